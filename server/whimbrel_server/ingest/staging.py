"""Where an upload waits until it is whole: bounded blocks of memory that go around, and files beyond the budget.

What belongs here: memory, files and their two budgets. What does not: HTTP, hashes and sums (`upload.py`). One event loop
uses all of it; only `pieces` is read on a worker thread, when nothing is written any more.
"""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from whimbrel_protocol.errors import Code, ProtocolError


class Staging:
    """The budgets of all uploads: `budget` bytes of memory, then `spill_budget` bytes of files in `folder`.

    Memory is blocks, and what the connection of an upload that is read buffers: `connection_bytes` at most.
    """

    def __init__(self, folder: Path, budget: int, spill_budget: int, block_bytes: int, connection_bytes: int) -> None:
        self.folder, self.block_bytes = folder, block_bytes
        self._connection_bytes = connection_bytes
        self._budget, self._in_use = budget, 0
        self._free: list[bytearray] = []
        self._spill_budget = self._spill_left = spill_budget

    @property
    def idle(self) -> bool:
        """Whether everything that was taken was given back."""
        return self._in_use == 0 and self._spill_left == self._spill_budget

    @contextmanager
    def reading(self, size: int) -> Iterator[None]:
        """While this is held, `size` bytes are read from a connection; they are not refused, but leave less for blocks."""
        buffered = min(size, self._connection_bytes)
        self._in_use += buffered
        try:
            yield
        finally:
            self._give(buffered)

    def take_block(self, size: int) -> bytearray | None:
        """Return a block of `size` bytes, at most `block_bytes`, or nothing where the budget is used up.

        A vector smaller than a block gets what it needs: a thousand small uploads do not hold a thousand whole blocks.
        """
        size = min(size, self.block_bytes)
        if self._in_use + size > self._budget:
            return None
        self._in_use += size
        if size == self.block_bytes and self._free:
            return self._free.pop()
        # Blocks that lie idle count as well: memory in use and idle stays within the budget.
        while self._free and self._in_use + len(self._free) * self.block_bytes > self._budget:
            self._free.pop()
        return bytearray(size)

    def give_block(self, block: bytearray) -> None:
        """Take a block back."""
        if len(block) == self.block_bytes:
            self._free.append(block)
        self._give(len(block))

    def _give(self, size: int) -> None:
        self._in_use -= size
        if not self._in_use:  # no upload is under way: what comes next, an unmasking, needs the memory itself
            self._free.clear()

    def take_file(self, size: int) -> IO[bytes]:
        """Return a file with room for `size` bytes; it has no name, so a crash leaves nothing behind. Raises BUSY."""
        if size > self._spill_left:
            raise ProtocolError(Code.BUSY, "uploads fill memory and files up to their limits")
        self.folder.mkdir(mode=0o700, exist_ok=True)
        file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 - it lives as long as the upload
        self._spill_left -= size
        return file

    def give_file(self, file: IO[bytes], size: int) -> None:
        """Take the room of a file back."""
        file.close()
        self._spill_left += size


class StagedVector:
    """One upload of exactly `size` bytes as far as it has come: blocks in order, then the rest in a file."""

    def __init__(self, staging: Staging, size: int) -> None:
        self._staging, self.size = staging, size
        self._blocks: list[bytearray] = []
        self._file: IO[bytes] | None = None
        self._file_start = 0
        self._released = False
        self.received = 0

    async def write(self, position: int, chunk: bytes) -> int:
        """Put `chunk` at `position`, which is at most what was received; returns the position behind it.

        Raises ProtocolError BUSY over both budgets, STORAGE_FULL on a full disk, PHASE_OVER after `release`.
        """
        view = memoryview(chunk)
        while view:
            if self._released:
                raise ProtocolError(Code.PHASE_OVER)
            count = self._into_block(position, view)
            if count == 0:
                count = await self._into_file(position, view)
            position, view = position + count, view[count:]
        if not self._released:
            self.received = max(self.received, position)
        return position

    def _into_block(self, position: int, view: memoryview) -> int:
        index, offset = divmod(position, self._staging.block_bytes)
        if self._file is not None and position >= self._file_start:
            return 0
        if index == len(self._blocks):
            block = self._staging.take_block(self.size - position)
            if block is None:
                return 0
            self._blocks.append(block)
        block = self._blocks[index]
        count = min(len(view), len(block) - offset)
        block[offset : offset + count] = view[:count]
        return count

    async def _into_file(self, position: int, view: memoryview) -> int:
        if self._file is None:
            self._file_start = len(self._blocks) * self._staging.block_bytes
            self._file = self._staging.take_file(self.size - self._file_start)
        # The thread has a descriptor of its own: `release` may close the file meanwhile, and its number may be another's soon.
        own = os.dup(self._file.fileno())
        try:
            return await asyncio.to_thread(_write_and_close, own, view, position - self._file_start)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ProtocolError(Code.STORAGE_FULL, "the disk that takes spilled uploads is full") from error
            raise

    def pieces(self, start: int, stop: int) -> Iterator[tuple[int, memoryview]]:
        """Yield (position, bytes) for what lies in start..stop, a block's length at most at a time."""
        position, step = start, self._staging.block_bytes
        while position < stop:
            index, offset = divmod(position, step)
            end = min(stop, (index + 1) * step)
            if index < len(self._blocks):
                yield position, memoryview(self._blocks[index])[offset : offset + end - position]
            elif self._file is not None:
                yield position, memoryview(os.pread(self._file.fileno(), end - position, position - self._file_start))
            position = end

    def release(self) -> None:
        """Give all memory and files back for good."""
        self._released = True
        for block in self._blocks:
            self._staging.give_block(block)
        if self._file is not None:
            self._staging.give_file(self._file, self.size - self._file_start)
        self._blocks, self._file, self.received = [], None, 0


def _write_and_close(descriptor: int, view: memoryview, position: int) -> int:
    try:
        return os.pwrite(descriptor, view, position)
    finally:
        os.close(descriptor)
