"""The blobs that everybody fetches, each as one `bytes` in memory, the least recently used ones dropped over a limit.

What belongs here: the cache in front of `storage.Blobs`. What does not: what a blob means.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict

from whimbrel_server.storage.protocols import Blobs


class HotBlobs:
    """Reads through to `blobs`; one read serves all who ask at once."""

    def __init__(self, blobs: Blobs, limit: int) -> None:
        self._blobs, self._limit = blobs, limit
        self._kept: OrderedDict[bytes, bytes] = OrderedDict()
        self._reading: dict[bytes, asyncio.Task[bytes]] = {}
        self._bytes = 0

    async def get(self, sha256: bytes) -> bytes:
        """Return the whole blob. Raises ProtocolError UNKNOWN_BLOB or DATA_DAMAGED."""
        data = self._kept.get(sha256)
        if data is not None:
            self._kept.move_to_end(sha256)
            return data
        task = self._reading.get(sha256)
        if task is None:
            task = self._reading[sha256] = asyncio.create_task(self._blobs.get(sha256))
            task.add_done_callback(lambda done: self._finished(sha256, done))
        return await asyncio.shield(task)

    def _finished(self, sha256: bytes, task: asyncio.Task[bytes]) -> None:
        del self._reading[sha256]
        if not task.cancelled() and task.exception() is None:
            self._keep(sha256, task.result())

    def _keep(self, sha256: bytes, data: bytes) -> None:
        if len(data) > self._limit:
            return
        self._kept[sha256] = data
        self._bytes += len(data)
        while self._bytes > self._limit:
            _, dropped = self._kept.popitem(last=False)
            self._bytes -= len(dropped)
