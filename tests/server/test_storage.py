"""One contract for every back end of the storage: the same tests, and one history that must read the same in all of them."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.storage import files
from whimbrel_server.storage.files import FileBlobs
from whimbrel_server.storage.memory import MemoryBlobs, MemoryRounds, MemorySignal
from whimbrel_server.storage.protocols import Blobs, Rounds
from whimbrel_server.storage.records import (
    AssignmentRecord,
    BlameRecord,
    EventRecord,
    TaskRecord,
    VersionRecord,
    WindowOutcome,
    WindowRecord,
)
from whimbrel_server.storage.sqlite import SqliteRounds

DAY = 86400.0


def h(label: str) -> bytes:
    return hashlib.sha256(label.encode()).digest()


def task(name: str = "digits") -> TaskRecord:
    return TaskRecord(name, {"lr": 0.5, "train": ["*"]}, h("model"), h("unsigned"), 1.0)


def version(number: int, name: str = "digits") -> VersionRecord:
    blobs = {"snapshot": h(f"snapshot{number}"), "master": h(f"master{number}")}
    deltas = {number - 1: h(f"delta{number}")} if number > 1 else {}
    blobs["header"] = b"header"
    means = {"loss": 0.1 / number}
    names = {"model_hash": h(f"m{number}"), "chain_head": h("chain"), "lane": h("lane")}
    return VersionRecord(name, number, parent=number - 1, published_at=5.0, deltas=deltas, metrics=means, **names, **blobs)


def window(label: str, number: int = 1, opened_at: float = 10.0) -> WindowRecord:
    roster = (b"\1" * 404, b"\2" * 404)
    return WindowRecord(h(label), 2**62 + 5, "digits", number, h("lane"), b"p" * 72, roster, opened_at)


def h_window(label: str) -> bytes:
    return window(label).tau0


OUTCOME = WindowOutcome(h("sum"), 2, 2, (b"d" * 16,), {"shares": 1})


async def running(rounds: Rounds) -> None:
    await rounds.create_task(task())
    await rounds.sign_task("digits", h("signed"), version(1))


async def finished(rounds: Rounds, record: WindowRecord, now: float = 20.0) -> bytes:
    await rounds.open_window(record)
    await rounds.fix_u2(record.tau0, b"\3", now)
    await rounds.fix_survivors(record.tau0, b"\3", [EventRecord("masked", 0, b"head")], h("masked"), now)
    await rounds.fix_quorum(record.tau0, b"quorum", now)
    await rounds.finish_window(record.tau0, OUTCOME, now)
    return record.tau0


def files_below(directory: Path) -> list[Path]:
    return [path for path in directory.rglob("*") if path.is_file()]


async def refused(code: Code, verb: Awaitable[object]) -> None:
    with pytest.raises(ProtocolError) as caught:
        await verb
    assert caught.value.code is code


@pytest.fixture(params=["sqlite", "memory"])
async def rounds(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Rounds]:
    opened: Rounds = SqliteRounds.open(tmp_path / "w.sqlite") if request.param == "sqlite" else MemoryRounds()
    yield opened
    await opened.close()


@pytest.fixture(params=["files", "memory"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return FileBlobs(tmp_path / "blobs") if request.param == "files" else MemoryBlobs()


class TestRounds:
    async def test_a_devices_join_counter_never_goes_back(self, rounds: Rounds) -> None:
        one, other, top = b"a" * 16, b"b" * 16, 2**64 - 1
        for seq, entry in ((0, b"e0"), (0, b"e0"), (7, b"e7"), (7, b"e7")):
            await rounds.count_join(one, seq, entry)
        for seq, entry in ((7, b"e7 again"), (6, b"e6"), (0, b"e0"), (6, b"e7")):
            await refused(Code.STATE_ROLLED_BACK, rounds.count_join(one, seq, entry))
        await rounds.count_join(other, 1, b"e1")  # each device has a counter of its own
        await rounds.count_join(one, top, b"last")
        await refused(Code.STATE_ROLLED_BACK, rounds.count_join(one, top - 1, b"before"))

    async def test_a_join_counter_survives_the_server(self, tmp_path: Path) -> None:
        first = SqliteRounds.open(tmp_path / "w.sqlite")
        await first.count_join(b"a" * 16, 7, b"e7")
        await first.close()
        again = SqliteRounds.open(tmp_path / "w.sqlite")
        await refused(Code.STATE_ROLLED_BACK, again.count_join(b"a" * 16, 7, b"other"))
        await again.count_join(b"a" * 16, 7, b"e7")
        await again.close()

    async def test_a_policy_never_goes_back(self, rounds: Rounds) -> None:
        assert await rounds.policy() is None
        await rounds.install_policy(7, b"seven", 0.0)
        await rounds.install_policy(7, b"seven", 1.0)
        await refused(Code.POLICY_ROLLED_BACK, rounds.install_policy(7, b"other seven", 2.0))
        await refused(Code.POLICY_ROLLED_BACK, rounds.install_policy(6, b"six", 2.0))
        await rounds.install_policy(9, b"nine", 3.0)
        assert await rounds.policy() == b"nine"

    async def test_devices_are_remembered_and_paged_in_order(self, rounds: Rounds) -> None:
        for device in (b"c", b"a", b"b", b"a"):
            await rounds.seen(device * 16, b"cert", "1.0", 1, 3.0 if device == b"a" else 1.0)
        await rounds.seen(b"a" * 16, b"renewed", "1.1", 2, 9.0)
        first, second = await rounds.devices(limit=2)
        assert (first.device, first.certificate, first.first_seen, first.last_seen) == (b"a" * 16, b"renewed", 3.0, 9.0)
        assert [d.device for d in await rounds.devices(after=second.device)] == [b"c" * 16]

    async def test_a_task_is_created_once_and_signed_once(self, rounds: Rounds) -> None:
        await rounds.create_task(task())
        await refused(Code.TASK_EXISTS, rounds.create_task(replace(task(), created_at=9.0)))
        assert await rounds.task("digits") == task()
        await refused(Code.UNKNOWN_TASK, rounds.sign_task("other", h("signed"), version(1, "other")))
        await rounds.sign_task("digits", h("signed"), version(1))
        await refused(Code.OUT_OF_TURN, rounds.sign_task("digits", h("again"), version(1)))
        assert await rounds.tasks() == [replace(task(), plan_sha256=h("signed"), state="running")]
        assert await rounds.versions("digits") == [version(1)]
        await refused(Code.UNKNOWN_TASK, rounds.set_task_state("other", "finished"))

    async def test_a_window_counts_once_or_not_at_all(self, rounds: Rounds) -> None:
        await running(rounds)
        one, two = await finished(rounds, window("one")), await finished(rounds, window("two"))
        await rounds.open_window(window("open"))
        unfinished = version(2), [one, window("open").tau0]
        await refused(Code.OUT_OF_TURN, rounds.publish(*unfinished))
        await refused(Code.OUT_OF_TURN, rounds.publish(version(2), [one, one]))
        await refused(Code.OUT_OF_TURN, rounds.publish(version(3), [one]))
        assert [v.version for v in await rounds.versions("digits")] == [1]
        late = await finished(rounds, window("late"))
        await rounds.publish(version(2), [two, one])
        await refused(Code.OUT_OF_TURN, rounds.publish(version(3), [late]))
        assert await rounds.version("digits", 2) == replace(version(2), windows=(two, one))
        await refused(Code.OUT_OF_TURN, rounds.publish(version(3), [one]))
        await refused(Code.OUT_OF_TURN, rounds.publish(version(2), []))
        assert [v.version for v in await rounds.versions("digits")] == [1, 2]
        found = await rounds.window(one)
        assert found is not None and found.applied_in == 2

    async def test_the_first_body_of_a_member_stands_and_order_is_kept(self, rounds: Rounds) -> None:
        await running(rounds)
        await rounds.open_window(window("w"))
        tau0 = window("w").tau0
        for kind, member, body in [("shares", 1, b"x"), ("shares", 0, b"y"), ("vote", 1, b"v"), ("shares", 1, b"changed")]:
            await rounds.log(tau0, kind, member, body)
        events = [EventRecord("shares", 1, b"x"), EventRecord("shares", 0, b"y"), EventRecord("vote", 1, b"v")]
        assert await rounds.events(tau0) == events
        await refused(Code.UNKNOWN_WINDOW, rounds.log(h("none"), "vote", 0, b""))

    async def test_an_abort_certificate_may_come_after_giving_up_but_never_after_a_quorum(self, rounds: Rounds) -> None:
        await running(rounds)
        await rounds.open_window(window("given up"))
        await rounds.close_window(window("given up").tau0, "aborted", {"shares": 2}, 11.0)
        assert await rounds.certificate(window("given up").tau0) is None
        await rounds.fix_abort(window("given up").tau0, b"abort", {"shares": 1}, 12.0)
        assert await rounds.certificate(window("given up").tau0) == b"abort"
        done = await finished(rounds, window("done"))
        await refused(Code.OUT_OF_TURN, rounds.fix_abort(done, b"abort", {"shares": 1}, 12.0))
        assert await rounds.certificate(done) == b"quorum"

    async def test_recovery_finds_exactly_what_was_promised(self, rounds: Rounds) -> None:
        await rounds.install_policy(1, b"policy", 0.0)
        await running(rounds)
        await rounds.assign(AssignmentRecord(b"a" * 16, b"d" * 16, "digits", 1, 50.0))
        await rounds.assign(AssignmentRecord(b"b" * 16, b"e" * 16, "digits", 1, 150.0))
        later, earlier = await finished(rounds, window("one"), 30.0), await finished(rounds, window("two"), 25.0)
        await rounds.open_window(window("three", opened_at=40.0))
        await rounds.log(window("three").tau0, "shares", 0, b"s")
        found = await rounds.recover(100.0)
        assert (found.policy, [t.state for t in found.tasks], found.current) == (b"policy", ["running"], {"digits": version(1)})
        assert [a.id for a in found.assignments] == [b"b" * 16]
        assert found.unfinished == ((window("three", opened_at=40.0), (EventRecord("shares", 0, b"s"),)),)
        assert [w.tau0 for w in found.unapplied["digits"]] == [earlier, later]
        await rounds.publish(version(2), [earlier, later])
        after = await rounds.recover(40.0 + 1801)
        assert (after.unapplied, after.current["digits"].version, after.recent) == ({"digits": ()}, 2, ())

    async def test_recovery_names_windows_that_failed_on_the_current_version_and_none_that_was_given_up(
        self, rounds: Rounds
    ) -> None:
        await running(rounds)
        for label in ("failed", "given up", "certified"):
            await rounds.open_window(window(label))
        await rounds.fix_u2(window("failed").tau0, b"\3", 11.0)
        await rounds.fix_survivors(window("failed").tau0, b"\3", [], h("masked"), 11.0)
        await rounds.fix_quorum(window("failed").tau0, b"quorum", 11.0)
        await rounds.close_window(window("failed").tau0, "failed", {}, 12.0)
        await rounds.close_window(window("given up").tau0, "aborted", {}, 12.0)
        await rounds.fix_abort(window("certified").tau0, b"abort", {}, 12.0)
        found = await rounds.recover(20.0)
        assert [w.tau0 for w in found.failed["digits"]] == [window("failed").tau0]
        assert found.unfinished == ()
        await rounds.publish(version(2), [])
        assert (await rounds.recover(20.0)).failed == {"digits": ()}

    async def test_blame_and_quarantine_survive_and_end(self, rounds: Rounds) -> None:
        await running(rounds)
        for label in ("one", "two"):
            await rounds.open_window(window(label))
        known, pair = (
            BlameRecord(b"a" * 16, h_window("one"), "vector", (b"a" * 16,), "wrong", 11.0, 50.0),
            (b"a" * 16, b"b" * 16),
        )
        both = [BlameRecord(device, h_window("two"), "mask", pair, "differ", 12.0, 90.0) for device in pair]
        free = BlameRecord(b"c" * 16, h_window("one"), "share", (b"a" * 16, b"c" * 16), "one share", 11.0)
        await rounds.blame([known, free])
        await rounds.blame([*both, replace(known, until=10_000.0)])
        assert await rounds.blames() == [known, free, *both]
        assert await rounds.blames(device=b"a" * 16) == [known, both[0]]
        assert await rounds.blames(tau0=h_window("one")) == [known, free]
        assert (await rounds.recover(20.0)).quarantined == {b"a" * 16: 90.0, b"b" * 16: 90.0}
        assert (await rounds.recover(90.0)).quarantined == {}
        await refused(Code.UNKNOWN_WINDOW, rounds.blame([free, replace(free, tau0=h("none"))]))

    async def test_a_failed_window_says_of_what(self, rounds: Rounds) -> None:
        await running(rounds)
        await rounds.open_window(window("w"))
        tau0 = window("w").tau0
        await rounds.fix_u2(tau0, b"\3", 11.0)
        await rounds.fix_survivors(tau0, b"\3", [EventRecord("canaries", 0, bytes(16))], h("masked"), 11.0)
        await rounds.fix_quorum(tau0, b"quorum", 11.0)
        await rounds.close_window(tau0, "failed", {}, 12.0, int(Code.SPOILED_SUM))
        found = await rounds.window(tau0)
        assert found is not None and (found.state, found.failure) == ("failed", Code.SPOILED_SUM)

    async def test_certificates_stay_thirty_days(self, rounds: Rounds) -> None:
        await running(rounds)
        tau0 = await finished(rounds, window("w"), now=20.0)
        await rounds.assign(AssignmentRecord(b"a" * 16, b"d" * 16, "digits", 1, 50.0))
        assert await rounds.prune(20.0 + 30 * DAY - 1) == 1
        assert await rounds.certificate(tau0) == b"quorum"
        assert await rounds.prune(20.0 + 30 * DAY + 1) == 1
        assert await rounds.certificate(tau0) is None
        assert [w.tau0 for w in await rounds.windows("digits")] == [tau0]

    async def test_every_blob_in_use_is_named(self, rounds: Rounds) -> None:
        await running(rounds)
        await rounds.publish(version(2), [await finished(rounds, window("w"))])
        tasks, windows = {h("model"), h("signed")}, {h("masked"), h("sum")}
        versions = {h("snapshot1"), h("master1"), h("snapshot2"), h("master2"), h("delta2")}
        assert await rounds.referenced(2, 100.0, 20.0) == tasks | versions | windows - {h("masked")}
        assert await rounds.referenced(1, 0.0, 21.0) == tasks | {h("snapshot2"), h("master2"), h("delta2")}

    async def test_a_sum_is_in_use_until_its_version_and_a_masked_sum_while_votes_may_come(self, rounds: Rounds) -> None:
        await running(rounds)
        await finished(rounds, window("done"))
        assert h("sum") in await rounds.referenced(1, 0.0, 1000 * DAY)
        await rounds.publish(version(2), [])
        assert h("sum") not in await rounds.referenced(1, 0.0, 1000 * DAY), "it came too late for its version"
        tau0 = window("late").tau0
        await rounds.open_window(window("late"))
        await rounds.fix_u2(tau0, b"\3", 11.0)
        await rounds.fix_survivors(tau0, b"\3", [], h("late"), 11.0)
        assert h("late") in await rounds.referenced(1, 0.0, 1000 * DAY)
        await rounds.close_window(tau0, "aborted", {}, 12.0)
        assert h("late") in await rounds.referenced(1, 0.0, 29 * DAY)
        assert h("late") not in await rounds.referenced(1, 0.0, 31 * DAY)
        await rounds.fix_abort(tau0, b"abort", {}, 13.0)
        assert h("late") not in await rounds.referenced(1, 0.0, 14.0)


# --- one history, all back ends -----------------------------------------------------------------------------------------

WELL = ["fix_u2", "fix_survivors", "fix_quorum", "finish_window"]
LABELS = st.sampled_from(["w1", "w2", "w3"])
VERBS = st.one_of(
    st.tuples(st.just("open_window"), LABELS, st.integers(1, 2)),
    st.tuples(st.sampled_from([*WELL, "fix_abort", "fail", "abandon"]), LABELS),
    st.tuples(st.just("log"), LABELS, st.sampled_from(["shares", "vote"]), st.integers(0, 2), st.binary(max_size=2)),
    st.tuples(st.just("publish"), st.integers(1, 4), st.lists(LABELS, max_size=3)),
    st.tuples(st.just("assign"), st.integers(0, 3)),
    st.tuples(st.just("blame"), LABELS, st.sampled_from([b"a" * 16, b"b" * 16]), st.sampled_from([0.0, 14.0, 16.0, 40.0])),
    st.tuples(st.just("prune"), st.sampled_from([30.0, 31 * DAY])),
)
# The way of a window that ends well, so that the deep states are reached often.
STORY = st.tuples(LABELS, st.integers(0, 5)).map(
    lambda s: (
        [("open_window", s[0], 1)] + [(verb, s[0]) for verb in WELL][: s[1]] + ([("publish", 2, [s[0]])] if s[1] == 5 else [])
    )
)
HISTORY = st.lists(st.one_of(VERBS.map(lambda verb: [verb]), STORY), max_size=12).map(lambda parts: list(chain(*parts)))


def call(rounds: Rounds, step: tuple, now: float) -> Awaitable[object]:
    """The verb that a step of a history stands for."""
    verb, *rest = step
    tau0 = window(rest[0]).tau0 if rest and isinstance(rest[0], str) else b""
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "open_window": lambda: rounds.open_window(window(rest[0], rest[1], now)),
        "fix_u2": lambda: rounds.fix_u2(tau0, b"\1", now),
        "fix_survivors": lambda: rounds.fix_survivors(tau0, b"\1", [EventRecord("masked", 0, b"h")], h("masked"), now),
        "fix_quorum": lambda: rounds.fix_quorum(tau0, b"quorum", now),
        "fix_abort": lambda: rounds.fix_abort(tau0, b"abort", {"shares": 1}, now),
        "finish_window": lambda: rounds.finish_window(tau0, OUTCOME, now),
        "fail": lambda: rounds.close_window(tau0, "failed", {"unmask": 3}, now),
        "abandon": lambda: rounds.close_window(tau0, "aborted", {"masked": 3}, now),
        "log": lambda: rounds.log(tau0, *rest[1:]),
        "publish": lambda: rounds.publish(version(rest[0]), [window(label).tau0 for label in rest[1]]),
        "assign": lambda: rounds.assign(AssignmentRecord(bytes([int(now)]) * 16, b"d" * 16, "digits", 1, 10.0 * rest[0])),
        "prune": lambda: rounds.prune(rest[0]),
        "blame": lambda: rounds.blame([BlameRecord(rest[1], tau0, "vector", (rest[1],), "", now, rest[2])]),
    }
    return calls[verb]()


async def told(rounds: Rounds, history: list[tuple]) -> list[object]:
    """What a back end answers to a history, step by step, and what it remembers at the end."""
    await rounds.seen(b"d" * 16, b"cert", "1", 1, 0.0)
    await running(rounds)
    answers: list[object] = []
    for now, step in enumerate(history, 1):
        try:
            answers.append(await call(rounds, step, float(now)))
        except ProtocolError as error:
            answers.append(error.code)
    windows = await rounds.windows("digits")
    return [
        *answers,
        windows,
        [await rounds.events(w.tau0) for w in windows],
        await rounds.recover(15.0),
        await rounds.devices(),
        await rounds.blames(),
    ]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(HISTORY)
def test_all_back_ends_tell_the_same_history(history: list[tuple]) -> None:
    async def compare(path: Path) -> None:
        sqlite = SqliteRounds.open(path)
        try:
            assert await told(sqlite, history) == await told(MemoryRounds(), history)
        finally:
            await sqlite.close()

    with tempfile.TemporaryDirectory() as directory:
        asyncio.run(compare(Path(directory) / "w.sqlite"))


# --- what only a disk can do --------------------------------------------------------------------------------------------


class TestSqlite:
    async def test_one_bad_write_does_not_take_its_group_along(self, tmp_path: Path) -> None:
        rounds = SqliteRounds.open(tmp_path / "w.sqlite")
        await running(rounds)
        await rounds.open_window(window("w"))
        writes = [rounds.log(h("none") if member == 25 else window("w").tau0, "vote", member, b"") for member in range(50)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [i for i, result in enumerate(results) if result is not None] == [25]
        assert [event.member for event in await rounds.events(window("w").tau0)] == [m for m in range(50) if m != 25]
        await rounds.close()

    async def test_many_waiters_share_a_commit(self, tmp_path: Path) -> None:
        rounds = SqliteRounds.open(tmp_path / "w.sqlite")
        await running(rounds)
        await rounds.open_window(window("w"))
        statements: list[str] = []
        rounds._writer._connection.set_trace_callback(statements.append)
        await asyncio.gather(*(rounds.log(window("w").tau0, "vote", member, b"") for member in range(300)))
        await rounds.close()
        assert 1 <= statements.count("COMMIT") <= 100

    async def test_a_newer_database_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "w.sqlite"
        await SqliteRounds.open(path).close()
        db = sqlite3.connect(path)
        db.execute("INSERT INTO _sqlite_migrations (migration_set, name, applied_at) VALUES ('whimbrel_server', 'second', '')")
        db.commit()
        db.close()
        before = path.read_bytes()
        with pytest.raises(ProtocolError, match="second") as caught:
            SqliteRounds.open(path)
        assert caught.value.code is Code.SCHEMA_NEWER
        assert path.read_bytes() == before

    def test_a_file_that_is_no_database_is_left_alone(self, tmp_path: Path) -> None:
        path = tmp_path / "w.sqlite"
        path.write_bytes(b"something else entirely" * 100)
        with pytest.raises(ProtocolError) as caught:
            SqliteRounds.open(path)
        assert caught.value.code is Code.DATA_DAMAGED
        assert path.read_bytes() == b"something else entirely" * 100

    async def test_a_full_disk_is_an_error_that_loses_nothing(self, tmp_path: Path) -> None:
        rounds = SqliteRounds.open(tmp_path / "w.sqlite")
        await running(rounds)
        await rounds.open_window(window("w"))
        tau0 = window("w").tau0
        await rounds._writer.run(lambda db: db.execute("PRAGMA max_page_count = 60").fetchone())
        writes = [rounds.log(tau0, "shares", member, bytes(200_000 if member == 3 else 10)) for member in range(6)]
        results = await asyncio.gather(*writes, return_exceptions=True)
        assert [getattr(result, "code", None) for result in results] == [None, None, None, Code.STORAGE_FULL, None, None]
        await rounds._writer.run(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
        await rounds.log(tau0, "shares", 3, bytes(200_000))
        assert [event.member for event in await rounds.events(tau0)] == [0, 1, 2, 4, 5, 3]
        await rounds.close()

    def test_what_was_acknowledged_survives_a_kill(self, tmp_path: Path) -> None:
        """A process acknowledges writes until it is killed with SIGKILL; every acknowledged one must be there."""
        program = (
            "import asyncio, sys; from pathlib import Path; from tests.server.test_storage import *\n"
            "async def main():\n"
            "    rounds = SqliteRounds.open(Path(sys.argv[1])); await running(rounds); await rounds.open_window(window('w'))\n"
            "    async def one(member):\n"
            "        await rounds.log(window('w').tau0, 'vote', member, b'v'); print(member, flush=True)\n"
            "    for start in range(0, 10**6, 8): await asyncio.gather(*(one(start + k) for k in range(8)))\n"
            "asyncio.run(main())\n"
        )
        path = tmp_path / "w.sqlite"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE, env=environment) as child:
            assert child.stdout is not None
            acknowledged = [int(child.stdout.readline()) for _ in range(100)]
            child.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in child.stdout.read().splitlines()]

        async def members() -> set[int]:
            rounds = SqliteRounds.open(path)
            found = {event.member for event in await rounds.events(window("w").tau0)}
            await rounds.close()
            return found

        assert set(acknowledged) <= asyncio.run(members())


class TestBlobs:
    async def test_a_blob_is_its_hash(self, blobs: Blobs) -> None:
        data = bytes(range(256)) * 5
        sha256 = await blobs.put(data)
        assert sha256 == hashlib.sha256(data).digest() == await blobs.put(data)
        assert (await blobs.get(sha256), await blobs.size(sha256), await blobs.names()) == (data, 1280, [sha256])
        assert (await blobs.get(sha256, 100, 300), await blobs.get(sha256, 1280)) == (data[100:300], b"")
        assert not await blobs.delete(sha256, 3600.0), "it is young"
        assert await blobs.delete(sha256) and await blobs.delete(sha256, 3600.0)
        assert (await blobs.size(sha256), await blobs.names()) == (None, [])
        await refused(Code.UNKNOWN_BLOB, blobs.get(sha256))

    @pytest.mark.parametrize(("start", "stop"), [(0, 11), (-1, 5), (6, 5), (11, None)])
    async def test_a_range_outside_is_refused(self, blobs: Blobs, start: int, stop: int | None) -> None:
        sha256 = await blobs.put(b"0123456789")
        await refused(Code.BAD_RANGE, blobs.get(sha256, start, stop))

    async def test_a_damaged_file_is_reported_and_left_alone(self, tmp_path: Path) -> None:
        sha256 = await FileBlobs(tmp_path).put(b"good bytes")
        file = tmp_path / sha256.hex()[:2] / sha256.hex()
        file.write_bytes(b"bad bytes!")
        again = FileBlobs(tmp_path)
        await refused(Code.DATA_DAMAGED, again.get(sha256))
        await refused(Code.DATA_DAMAGED, again.get(sha256, 0, 2))
        await refused(Code.DATA_DAMAGED, again.put(b"good bytes"))
        assert file.read_bytes() == b"bad bytes!"

    async def test_a_full_disk_leaves_no_half_blob(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        blobs = FileBlobs(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", full)
            await refused(Code.STORAGE_FULL, blobs.put(b"data"))
        assert files_below(tmp_path) == []
        assert await blobs.get(await blobs.put(b"data")) == b"data"

    async def test_bytes_that_are_put_again_are_young_again(self, tmp_path: Path) -> None:
        blobs = FileBlobs(tmp_path)
        sha256 = await blobs.put(b"data")
        file = tmp_path / sha256.hex()[:2] / sha256.hex()
        os.utime(file, (0, 0))
        await blobs.put(b"data")
        assert not await blobs.delete(sha256, 3600.0) and await blobs.get(sha256) == b"data"
        os.utime(file, (0, 0))
        assert await blobs.delete(sha256, 3600.0)

    async def test_a_put_while_the_same_bytes_are_deleted_wins(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        blobs = FileBlobs(tmp_path)
        sha256 = await blobs.put(b"data")
        os.utime(tmp_path / sha256.hex()[:2] / sha256.hex(), (0, 0))
        judged, real = threading.Event(), Path.unlink

        def unlink(path: Path, missing_ok: bool = False) -> None:
            judged.set()
            time.sleep(0.2)  # the put comes between judging the age and deleting
            real(path, missing_ok)

        monkeypatch.setattr(Path, "unlink", unlink)
        deleting = asyncio.create_task(blobs.delete(sha256, 3600.0))
        await asyncio.to_thread(judged.wait, 5)
        assert await blobs.put(b"data") == sha256
        assert await deleting
        assert await FileBlobs(tmp_path).get(sha256) == b"data"

    async def test_bytes_that_are_there_already_are_durable_only_with_their_directory(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The first put stops behind the rename; the second one of the same bytes must not vouch for it unsynced."""
        renamed, go_on, synced = threading.Event(), threading.Event(), []
        real = files._sync_directory

        def sync(directory: Path) -> None:
            if not renamed.is_set():
                renamed.set()
                go_on.wait(5)
            real(directory)
            synced.append(directory)

        monkeypatch.setattr(files, "_sync_directory", sync)
        blobs = FileBlobs(tmp_path)
        first = asyncio.create_task(blobs.put(b"data"))
        await asyncio.to_thread(renamed.wait, 5)
        sha256 = await blobs.put(b"data")
        assert synced == [tmp_path / sha256.hex()[:2], tmp_path]
        go_on.set()
        assert await first == sha256

    async def test_what_a_crash_left_half_written_is_swept(self, tmp_path: Path) -> None:
        sha256 = await FileBlobs(tmp_path).put(b"data")
        half = tmp_path / sha256.hex()[:2] / f"{h('x').hex()}.0011.part"
        half.write_bytes(b"ha")
        assert await FileBlobs(tmp_path).names() == [sha256]
        assert not half.exists()


class TestSignal:
    async def test_everybody_who_waits_is_woken_and_nobody_misses_it(self) -> None:
        signal_ = MemorySignal()
        before = signal_.mark(b"t")
        waiters = [asyncio.create_task(signal_.mark(b"t").wait(5)) for _ in range(100)]
        other = asyncio.create_task(signal_.mark(b"other").wait(0.01))
        await asyncio.sleep(0)
        signal_.wake(b"t")
        assert await asyncio.gather(*waiters) == [True] * 100
        assert await before.wait(0.01)
        assert not await other
        assert not await signal_.mark(b"t").wait(0.01)

    async def test_a_topic_without_waiters_takes_no_memory(self) -> None:
        signal_ = MemorySignal()
        for number in range(10):
            signal_.mark(bytes([number]))
        assert len(signal_._marks) == 0
