"""Threads for heavy work, with each window pinned to one of them.

What belongs here: who runs a job. What does not: the jobs. A window's jobs run in the order in which they were given, so its
accumulator needs no lock; jobs that are too small for a hand-over run at once on the event loop.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


class Worker:
    """One thread."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)

    async def run(self, job: Callable[[], T]) -> T:
        """Return what `job` returns, after all jobs that were given before."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, job)

    def close(self) -> None:
        """Wait for the jobs that were given, then end the thread."""
        self._thread.shutdown()


class Workers:
    """As many threads as cores, unless the configuration says otherwise."""

    def __init__(self, threads: int) -> None:
        count = threads or os.cpu_count() or 1
        self._workers = [Worker(f"work-{index}") for index in range(count)]

    def pinned(self, key: bytes) -> Worker:
        """Return the worker of a window or task: always the same for the same `key`."""
        return self._workers[int.from_bytes(key[:8], "little") % len(self._workers)]

    def close(self) -> None:
        """Wait for all jobs and end all threads."""
        for worker in self._workers:
            worker.close()
