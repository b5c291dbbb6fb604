"""One thread that owns the one write connection of a SQLite database and commits what waits in groups.

Here belong transactions, durability and SQLite's own troubles. What is written belongs in `sqlite.py`. A job is a function of
the connection; it may run twice (its first transaction rolled back), so it must have no other effect. While one group commits,
the next gathers: the more wait, the cheaper a commit is for each.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from whimbrel_protocol.errors import Code, RuleError

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

_GROUP_MAX = 1024
# Of each connection; what is read again and again lies in the system's page cache as well.
_CACHE_KB = 512


@dataclass
class _Job:
    """A piece of work, who waits for it, and how it ended."""

    work: Work[Any]
    future: asyncio.Future[Any]
    loop: asyncio.AbstractEventLoop
    result: Any = None
    error: BaseException | None = None


@dataclass
class _Stop:
    """The last thing that a writer takes from its queue."""

    stopped: threading.Event = field(default_factory=threading.Event)


def connect(path: Path) -> sqlite3.Connection:
    """A connection in WAL mode whose commits survive a loss of power; transactions are begun by hand."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    connection.row_factory = sqlite3.Row
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"cache_size=-{_CACHE_KB}"):
        connection.execute(f"PRAGMA {pragma}")
    return connection


def translated(error: BaseException) -> BaseException:
    """SQLite's error as one with a number, where there is one."""
    if not isinstance(error, sqlite3.DatabaseError):
        return error
    name = getattr(error, "sqlite_errorname", None) or ""
    if name.startswith("SQLITE_FULL") or name.startswith("SQLITE_IOERR_WRITE"):
        return RuleError(Code.STORAGE_FULL, str(error))
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return RuleError(Code.DATA_DAMAGED, str(error))
    return error


class GroupWriter:
    """Runs jobs in the order in which they came; each `await run(...)` returns when its commit is on the disk."""

    def __init__(self, path: Path) -> None:
        self._connection = connect(path)
        self._queue: queue.SimpleQueue[_Job | _Stop] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._serve, name="storage-writer", daemon=True)
        self._thread.start()

    async def run(self, work: Work[T]) -> T:
        """The result of `work(connection)`, once it is durable. Raises what the work raised, and then nothing was written."""
        loop = asyncio.get_running_loop()
        job = _Job(work, loop.create_future(), loop)
        self._queue.put(job)
        result: T = await job.future
        return result

    async def close(self) -> None:
        """Finish what is queued, then end the thread and its connection."""
        stop = _Stop()
        self._queue.put(stop)
        await asyncio.to_thread(stop.stopped.wait)
        self._thread.join()

    def _serve(self) -> None:
        stop: _Stop | None = None
        while stop is None:
            jobs, stop = self._gather()
            if jobs:
                self._commit(jobs)
                _answer(jobs)
        self._connection.close()
        stop.stopped.set()

    def _gather(self) -> tuple[list[_Job], _Stop | None]:
        jobs: list[_Job] = []
        item = self._queue.get()
        while isinstance(item, _Job):
            jobs.append(item)
            if len(jobs) == _GROUP_MAX:
                return jobs, None
            try:
                item = self._queue.get_nowait()
            except queue.Empty:
                return jobs, None
        return jobs, item

    def _commit(self, jobs: list[_Job]) -> None:
        try:
            self._transaction(jobs)
        except Exception as error:
            if len(jobs) == 1:
                jobs[0].error = translated(error)
                return
            # One bad job must not take the others with it: each gets its own transaction.
            for job in jobs:
                self._commit([job])

    def _transaction(self, jobs: list[_Job]) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            for job in jobs:
                job.result = job.work(self._connection)
            self._connection.execute("COMMIT")
        except BaseException:
            # SQLite ends the transaction by itself where the disk is full.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise


def _answer(jobs: list[_Job]) -> None:
    loops = {job.loop for job in jobs}
    for loop in loops:
        # A loop that was closed meanwhile has nobody left who waits.
        if not loop.is_closed():
            loop.call_soon_threadsafe(_resolve, [job for job in jobs if job.loop is loop])


def _resolve(jobs: list[_Job]) -> None:
    for job in jobs:
        if job.future.done():
            continue
        if job.error is not None:
            job.future.set_exception(job.error)
        else:
            job.future.set_result(job.result)
