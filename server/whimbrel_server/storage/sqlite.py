"""`Rounds` in one SQLite file: the embedded default.

Here belong the statements behind each verb, and the way between rows and records. Grouping and durability: `writer.py`, the
shape of the tables in `migrations.py`. Reading goes past the writer: readers have connections of their own.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_server.storage import records
from whimbrel_server.storage.migrations import migrate
from whimbrel_server.storage.records import (
    AssignmentRecord,
    BlameRecord,
    DeviceRecord,
    EventRecord,
    Recovery,
    TaskRecord,
    VersionRecord,
    WindowOutcome,
    WindowRecord,
)
from whimbrel_server.storage.writer import GroupWriter, Work, connect, translated

T = TypeVar("T")
R = TypeVar("R")

_READERS = 2
_ENTRY_BYTES, _DEVICE_BYTES = 404, 16

_WINDOW = "SELECT w.*, a.version AS applied_in FROM windows w LEFT JOIN applications a USING (tau0)"


class SqliteRounds:
    """See `protocols.Rounds`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer = GroupWriter(path)
        self._readers = ThreadPoolExecutor(_READERS, "storage-reader")
        self._local = threading.local()
        self._open: list[sqlite3.Connection] = []

    @classmethod
    def open(cls, path: Path) -> SqliteRounds:
        """Open or create the database. Raises RuleError SCHEMA_NEWER or DATA_DAMAGED, with nothing written."""
        migrate(path)
        return cls(path)

    async def close(self) -> None:
        """Finish what is queued and let go of the file."""
        await self._writer.close()
        self._readers.shutdown()
        for connection in self._open:
            connection.close()

    async def _read(self, work: Work[T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._run_read, work)

    def _run_read(self, work: Work[T]) -> T:
        if not hasattr(self._local, "connection"):
            self._local.connection = connect(self._path)
            self._open.append(self._local.connection)
        connection: sqlite3.Connection = self._local.connection
        try:
            # One transaction, so that several statements see one state.
            connection.execute("BEGIN")
            return work(connection)
        except sqlite3.DatabaseError as error:
            raise translated(error) from error
        finally:
            if connection.in_transaction:
                connection.execute("COMMIT")

    async def _change(self, statement: str, *values: object) -> int:
        return await self._writer.run(lambda db: db.execute(statement, values).rowcount)

    async def _rows(self, record: type[R], statement: str, *values: object) -> list[R]:
        return await self._read(lambda db: _records(db, record, statement, *values))

    async def _row(self, record: type[R], statement: str, *values: object) -> R | None:
        rows = await self._rows(record, statement, *values)
        return rows[0] if rows else None

    # --- fleet ------------------------------------------------------------------------------------------------------

    async def install_policy(self, serial: int, policy: bytes, now: float) -> None:
        def work(db: sqlite3.Connection) -> None:
            newest = db.execute("SELECT serial, body FROM policies ORDER BY serial DESC LIMIT 1").fetchone()
            if newest is None or serial > newest["serial"]:
                db.execute("INSERT INTO policies VALUES (?, ?, ?)", (serial, policy, now))
            elif (serial, policy) != tuple(newest):
                raise RuleError(Code.POLICY_ROLLED_BACK, f"serial {serial}, but {newest['serial']} is installed")

        await self._writer.run(work)

    async def policy(self) -> bytes | None:
        return await self._read(_newest_policy)

    async def seen(self, device: bytes, certificate: bytes, app_version: str, protocol: int, now: float) -> None:
        await self._change(
            "INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?, 0) ON CONFLICT (device) DO UPDATE SET"
            " certificate = excluded.certificate, app_version = excluded.app_version, protocol = excluded.protocol,"
            " last_seen = excluded.last_seen",
            *(device, certificate, app_version, protocol, now, now),
        )

    async def count_join(self, device: bytes, seq: int, entry: bytes) -> None:
        await self._writer.run(lambda db: _count_join(db, device, seq, hashlib.sha256(entry).digest()))

    async def devices(self, after: bytes = b"", limit: int = 1000) -> list[DeviceRecord]:
        return await self._rows(DeviceRecord, "SELECT * FROM devices WHERE device > ? ORDER BY device LIMIT ?", after, limit)

    # --- tasks and versions -----------------------------------------------------------------------------------------

    async def create_task(self, task: TaskRecord) -> None:
        hashes = (task.model_sha256, task.plan_sha256)
        values = (task.name, json.dumps(dict(task.settings)), *hashes, task.created_at, task.state, task.fixed_sha256)
        if not await self._change("INSERT OR IGNORE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)", *values):
            raise RuleError(Code.TASK_EXISTS, task.name)

    async def sign_task(self, name: str, plan_sha256: bytes, version: VersionRecord) -> None:
        def work(db: sqlite3.Connection) -> None:
            row = db.execute("SELECT state FROM tasks WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise RuleError(Code.UNKNOWN_TASK, name)
            if row["state"] != "unsigned":
                raise RuleError(Code.OUT_OF_TURN, f"the task {name} is {row['state']}")
            db.execute("UPDATE tasks SET state = 'running', plan_sha256 = ? WHERE name = ?", (plan_sha256, name))
            _insert_version(db, version)

        await self._writer.run(work)

    async def set_task_state(self, name: str, state: str) -> None:
        if not await self._change("UPDATE tasks SET state = ? WHERE name = ?", state, name):
            raise RuleError(Code.UNKNOWN_TASK, name)

    async def task(self, name: str) -> TaskRecord | None:
        return await self._row(TaskRecord, "SELECT * FROM tasks WHERE name = ?", name)

    async def tasks(self) -> list[TaskRecord]:
        return await self._rows(TaskRecord, "SELECT * FROM tasks ORDER BY name")

    async def publish(self, version: VersionRecord, windows: Sequence[bytes]) -> None:
        def work(db: sqlite3.Connection) -> None:
            newest = db.execute("SELECT max(version) AS v FROM versions WHERE task = ?", (version.task,)).fetchone()["v"]
            if version.parent != newest or version.version != newest + 1:
                raise RuleError(Code.OUT_OF_TURN, f"version {version.version} cannot follow version {newest}")
            _insert_version(db, version)
            for position, tau0 in enumerate(windows):
                _apply_window(db, version, tau0, position)

        await self._writer.run(work)

    async def versions(self, task: str) -> list[VersionRecord]:
        return await self._read(lambda db: _versions(db, "task = ? ORDER BY version", task))

    async def version(self, task: str, number: int) -> VersionRecord | None:
        found = await self._read(lambda db: _versions(db, "task = ? AND version = ?", task, number))
        return found[0] if found else None

    async def assign(self, assignment: AssignmentRecord) -> None:
        a = assignment
        await self._change("INSERT INTO assignments VALUES (?, ?, ?, ?, ?)", a.id, a.device, a.task, a.version, a.expires)

    # --- windows ----------------------------------------------------------------------------------------------------

    async def open_window(self, window: WindowRecord) -> None:
        w = window
        values = (w.tau0, w.window_id, w.task, w.version, w.lane, w.params, b"".join(w.roster), w.opened_at, w.state)
        statement = (
            "INSERT OR IGNORE INTO windows (tau0, window_id, task, version, lane, params, roster, opened_at, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
        )
        if not await self._change(statement, *values):
            raise RuleError(Code.OUT_OF_TURN, "the window is open already")

    async def log(self, tau0: bytes, kind: str, member: int, body: bytes) -> None:
        def work(db: sqlite3.Connection) -> None:
            _state(db, tau0)
            _log(db, tau0, EventRecord(kind, member, body))

        await self._writer.run(work)

    async def _advance(self, tau0: bytes, verb: str, events: Sequence[EventRecord] = (), **columns: object) -> None:
        def work(db: sqlite3.Connection) -> None:
            _advance(db, tau0, verb, columns)
            for event in events:
                _log(db, tau0, event)

        await self._writer.run(work)

    async def fix_u2(self, tau0: bytes, u2: bytes, now: float) -> None:
        await self._advance(tau0, "fix_u2", u2=u2)

    async def fix_survivors(self, tau0: bytes, u3: bytes, heads: Sequence[EventRecord], masked_sum: bytes, now: float) -> None:
        await self._advance(tau0, "fix_survivors", heads, u3=u3, masked_sum=masked_sum)

    async def fix_quorum(self, tau0: bytes, quorum: bytes, now: float) -> None:
        await self._advance(tau0, "fix_quorum", quorum=quorum)

    async def close_window(self, tau0: bytes, state: str, dropped: Mapping[str, int], now: float, failure: int = 0) -> None:
        verb = "fail" if state == "failed" else "abandon"
        await self._advance(tau0, verb, dropped=json.dumps(dict(dropped)), closed_at=now, failure=failure)

    async def blame(self, blames: Sequence[BlameRecord]) -> None:
        rows = [(b.device, b.tau0, b.kind, b"".join(b.suspects), b.detail, b.blamed_at, b.until) for b in blames]

        def work(db: sqlite3.Connection) -> None:
            for row in rows:
                _state(db, row[1])
                db.execute("INSERT OR IGNORE INTO blames VALUES (?, ?, ?, ?, ?, ?, ?)", row)

        await self._writer.run(work)

    async def blames(self, device: bytes = b"", tau0: bytes = b"") -> list[BlameRecord]:
        where = "(?1 = x'' OR device = ?1) AND (?2 = x'' OR tau0 = ?2)"
        order = "ORDER BY blamed_at, device, tau0, kind, suspects"
        return await self._rows(BlameRecord, f"SELECT * FROM blames WHERE {where} {order}", device, tau0)  # noqa: S608

    async def fix_abort(self, tau0: bytes, certificate: bytes, dropped: Mapping[str, int], now: float) -> None:
        columns = {"abort": certificate, "dropped": json.dumps(dict(dropped)), "closed_at": now}

        def work(db: sqlite3.Connection) -> None:
            _advance(db, tau0, "fix_abort", columns)
            db.execute("DELETE FROM events WHERE tau0 = ?", (tau0,))

        await self._writer.run(work)

    async def finish_window(self, tau0: bytes, outcome: WindowOutcome, now: float) -> None:
        o = outcome
        columns = {"sum_sha256": o.sum_sha256, "count": o.count, "weight_sum": o.weight_sum}

        def work(db: sqlite3.Connection) -> None:
            _advance(db, tau0, "finish_window", {**columns, "dropped": json.dumps(dict(o.dropped)), "closed_at": now})
            db.execute("DELETE FROM events WHERE tau0 = ?", (tau0,))
            one_more = "UPDATE devices SET contributions = contributions + 1 WHERE device = ?"
            db.executemany(one_more, [(device,) for device in o.contributors])

        await self._writer.run(work)

    async def window(self, tau0: bytes) -> WindowRecord | None:
        return await self._row(WindowRecord, f"{_WINDOW} WHERE w.tau0 = ?", tau0)

    async def windows(self, task: str, limit: int = 100) -> list[WindowRecord]:
        order = "ORDER BY w.opened_at DESC, w.rowid DESC LIMIT ?"
        return await self._rows(WindowRecord, f"{_WINDOW} WHERE w.task = ? {order}", task, limit)

    async def events(self, tau0: bytes) -> list[EventRecord]:
        return await self._read(lambda db: _events(db, tau0))

    async def certificate(self, tau0: bytes) -> bytes | None:
        window = await self.window(tau0)
        return (window.quorum or window.abort) if window else None

    # --- recovery and oblivion --------------------------------------------------------------------------------------

    async def recover(self, now: float) -> Recovery:
        return await self._read(lambda db: _recover(db, now))

    async def prune(self, now: float) -> int:
        before = now - records.CERTIFICATE_S

        def work(db: sqlite3.Connection) -> int:
            old = "closed_at IS NOT NULL AND closed_at < ?"
            gone = db.execute("DELETE FROM assignments WHERE expires < ?", (now,)).rowcount
            gone += db.execute(f"DELETE FROM events WHERE tau0 IN (SELECT tau0 FROM windows WHERE {old})", (before,)).rowcount  # noqa: S608
            clear = f"UPDATE windows SET quorum = NULL, abort = NULL WHERE {old} AND (quorum IS NOT NULL OR abort IS NOT NULL)"  # noqa: S608
            return gone + db.execute(clear, (before,)).rowcount

        return await self._writer.run(work)

    async def referenced(self, versions: int, sums_s: float, now: float) -> set[bytes]:
        return await self._read(lambda db: _referenced(db, versions, now - sums_s, now - records.CERTIFICATE_S))


# --- statements that several verbs share ------------------------------------------------------------------------------


def _state(db: sqlite3.Connection, tau0: bytes) -> str:
    row = db.execute("SELECT state FROM windows WHERE tau0 = ?", (tau0,)).fetchone()
    if row is None:
        raise RuleError(Code.UNKNOWN_WINDOW, tau0.hex())
    return str(row["state"])


def _advance(db: sqlite3.Connection, tau0: bytes, verb: str, columns: Mapping[str, object]) -> None:
    columns = {"state": records.next_state(verb, _state(db, tau0)), **columns}
    assignments = ", ".join(f"{name} = ?" for name in columns)
    db.execute(f"UPDATE windows SET {assignments} WHERE tau0 = ?", (*columns.values(), tau0))  # noqa: S608


def _count_join(db: sqlite3.Connection, device: bytes, seq: int, sha256: bytes) -> None:
    row = db.execute("SELECT seq, entry_sha256 FROM joins WHERE device = ?", (device,)).fetchone()
    known = (int.from_bytes(row["seq"], "big"), row["entry_sha256"]) if row else None
    if known is not None and seq <= known[0]:
        if known != (seq, sha256):
            raise records.rolled_back(seq, known[0])
        return
    db.execute("INSERT OR REPLACE INTO joins VALUES (?, ?, ?)", (device, seq.to_bytes(8, "big"), sha256))


def _log(db: sqlite3.Connection, tau0: bytes, event: EventRecord) -> None:
    db.execute("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?)", (tau0, event.kind, event.member, event.body))


def _insert_version(db: sqlite3.Connection, v: VersionRecord) -> None:
    deltas = json.dumps({number: sha256.hex() for number, sha256 in v.deltas.items()})
    hashes = (v.header, v.chain_head, v.lane, v.snapshot, v.master)
    numbers = (v.published_at, deltas, v.contributions, v.stage, json.dumps(dict(v.metrics)))
    values = (v.task, v.version, v.model_hash, v.parent, *hashes, *numbers)
    db.execute("INSERT INTO versions VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", values)


def _apply_window(db: sqlite3.Connection, version: VersionRecord, tau0: bytes, position: int) -> None:
    row = db.execute("SELECT state, task, version FROM windows WHERE tau0 = ?", (tau0,)).fetchone()
    if row is None or tuple(row) != ("done", version.task, version.parent):
        raise RuleError(Code.OUT_OF_TURN, f"window {tau0.hex()} is no finished window of version {version.parent}")
    try:
        db.execute("INSERT INTO applications VALUES (?, ?, ?, ?)", (tau0, version.task, version.version, position))
    except sqlite3.IntegrityError as error:
        raise RuleError(Code.OUT_OF_TURN, f"window {tau0.hex()} was counted before") from error


def _newest_policy(db: sqlite3.Connection) -> bytes | None:
    row = db.execute("SELECT body FROM policies ORDER BY serial DESC LIMIT 1").fetchone()
    return row["body"] if row else None


def _versions(db: sqlite3.Connection, where: str, *values: object) -> list[VersionRecord]:
    rows = db.execute(f"SELECT * FROM versions WHERE {where}", values).fetchall()  # noqa: S608
    applied = "SELECT tau0 FROM applications WHERE task = ? AND version = ? ORDER BY position"
    return [
        _record(VersionRecord, row, windows=tuple(w["tau0"] for w in db.execute(applied, (row["task"], row["version"]))))
        for row in rows
    ]


def _events(db: sqlite3.Connection, tau0: bytes) -> list[EventRecord]:
    return _records(db, EventRecord, "SELECT * FROM events WHERE tau0 = ? ORDER BY rowid", tau0)


def _recover(db: sqlite3.Connection, now: float) -> Recovery:
    current = "(task, version) IN (SELECT task, max(version) FROM versions GROUP BY task)"
    states = ", ".join(f"'{state}'" for state in records.UNFINISHED)
    unfinished = _records(db, WindowRecord, f"{_WINDOW} WHERE w.state IN ({states}) ORDER BY w.rowid")
    newest = "(w.task, w.version) IN (SELECT task, max(version) FROM versions GROUP BY task)"
    # In order of their end: that is the order in which the engine counts them.
    unapplied = f"w.state = 'done' AND a.tau0 IS NULL AND {newest}"
    done = _records(db, WindowRecord, f"{_WINDOW} WHERE {unapplied} ORDER BY w.closed_at, w.rowid")
    failed = _records(db, WindowRecord, f"{_WINDOW} WHERE w.state = 'failed' AND {newest} ORDER BY w.rowid")
    tasks = _records(db, TaskRecord, "SELECT * FROM tasks ORDER BY name")
    return Recovery(
        policy=_newest_policy(db),
        tasks=tuple(tasks),
        current={version.task: version for version in _versions(db, current)},
        assignments=tuple(
            _records(db, AssignmentRecord, "SELECT * FROM assignments WHERE expires > ? ORDER BY expires, id", now)
        ),
        unfinished=tuple((window, tuple(_events(db, window.tau0))) for window in unfinished),
        unapplied={task.name: tuple(w for w in done if w.task == task.name) for task in tasks},
        failed={task.name: tuple(w for w in failed if w.task == task.name) for task in tasks},
        recent=tuple(
            _records(db, WindowRecord, f"{_WINDOW} WHERE w.opened_at > ? ORDER BY w.rowid", now - records.ENTRY_LIFE_S)
        ),
        quarantined={
            row["device"]: row["until"]
            for row in db.execute("SELECT device, max(until) AS until FROM blames WHERE until > ? GROUP BY device", (now,))
        },
    )


def _referenced(db: sqlite3.Connection, versions: int, sums_since: float, votes_since: float) -> set[bytes]:
    newest = "SELECT max(version) FROM versions n WHERE n.task = v.task"
    kept = f"SELECT snapshot, master, deltas FROM versions v WHERE version > ({newest}) - ?"  # noqa: S608
    states = ", ".join(f"'{state}'" for state in records.UNFINISHED)
    given_up = "state = 'aborted' AND abort IS NULL AND closed_at >= ?"
    masked = f"SELECT masked_sum FROM windows WHERE state IN ({states}) OR ({given_up})"  # noqa: S608
    last = "SELECT max(version) FROM versions n WHERE n.task = w.task"
    unapplied = f"w.state = 'done' AND a.tau0 IS NULL AND w.version = ({last})"
    sums = f"SELECT sum_sha256 FROM windows w LEFT JOIN applications a USING (tau0) WHERE closed_at >= ? OR ({unapplied})"  # noqa: S608
    found = {value for row in db.execute("SELECT model_sha256, plan_sha256, fixed_sha256 FROM tasks") for value in row if value}
    for row in db.execute(kept, (versions,)):
        found |= {row["snapshot"], row["master"], *(bytes.fromhex(one) for one in json.loads(row["deltas"]).values())}
    for statement, since in ((masked, votes_since), (sums, sums_since)):
        found |= {row[0] for row in db.execute(statement, (since,)) if row[0] is not None}
    return found


# --- rows and records -------------------------------------------------------------------------------------------------


def _records(db: sqlite3.Connection, record: type[R], statement: str, *values: object) -> list[R]:
    return [_record(record, row) for row in db.execute(statement, values)]


def _record(record: type[R], row: sqlite3.Row, **more: Any) -> R:
    names = {field.name for field in fields(record)}  # type: ignore[arg-type]
    values = {name: _value(name, row[name]) for name in row.keys() if name in names}  # noqa: SIM118  (a Row iterates over values)
    return record(**{**values, **more})


def _value(column: str, value: Any) -> Any:
    """A column's value as its record holds it."""
    if column in ("settings", "dropped", "metrics"):
        return json.loads(value)
    if column == "deltas":
        return {int(number): bytes.fromhex(sha256) for number, sha256 in json.loads(value).items()}
    if column in ("roster", "suspects"):
        size = _ENTRY_BYTES if column == "roster" else _DEVICE_BYTES
        return tuple(value[at : at + size] for at in range(0, len(value), size))
    return value
