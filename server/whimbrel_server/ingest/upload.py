"""Masked vectors on their way in: received in blocks, verified as a whole, then added to the window's sum.

What belongs here: the order of things that keeps the survivor set and the sum in agreement, resumption, the least rate.
What does not: memory and files (`staging.py`), who may send when (`coordinator.py` with the window's state machine). The
event loop only copies; hash and addition run on the window's worker, a MiB a job, so that windows take turns.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from aiohttp import StreamReader

from whimbrel_kernels import ring_add
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.ingest.staging import StagedVector, Staging
from whimbrel_server.ingest.workers import Worker

T = TypeVar("T")
WORD = 8
# A small vector is hashed in one job, a large one a MiB a job, so that no window keeps its thread for long.
_WHOLE_BYTES, _JOB_BYTES = 4 * 2**20, 2**20


@dataclass(frozen=True)
class Pace:
    """The slowest that an upload may be: `bytes_per_s`, judged every `grace_s` seconds."""

    bytes_per_s: int
    grace_s: float


class Upload:
    """One member's vector: what it announced, and how far it has come."""

    def __init__(self, staging: Staging, size: int, sha256: bytes) -> None:
        self.sha256, self.size = sha256, size
        self._staging, self._staged = staging, StagedVector(staging, size)
        self._turn = 0
        self.finishing: asyncio.Task[None] | None = None

    @property
    def words_held(self) -> int:
        """Whole words received; once the vector is being finished, all of them."""
        return (self.size if self.finishing else self._staged.received) // WORD

    @property
    def whole(self) -> bool:
        """Whether every byte arrived."""
        return self._staged.received == self.size

    async def receive(self, offset: int, length: int, content: StreamReader, pace: Pace) -> None:
        """Take `length` bytes for byte `offset` and on, which must be where the upload stands.

        A later call takes the upload over: a device that lost its connection need not wait until the server notices.
        Raises ProtocolError BAD_OFFSET, UPLOAD_TOO_SLOW, BUSY, STORAGE_FULL; what arrived before stays.
        """
        if offset != self.words_held * WORD:
            raise ProtocolError(Code.BAD_OFFSET, f"word {offset // WORD}, not {self.words_held}")
        self._turn += 1
        turn, position, end = self._turn, offset, offset + length
        clock = asyncio.get_running_loop().time
        deadline, due = clock() + pace.grace_s, position + pace.bytes_per_s * pace.grace_s
        with self._staging.reading(length):
            while position < end:
                chunk = await _next_chunk(content, deadline)
                self._demand_turn(turn)
                if not chunk:
                    raise ProtocolError(Code.BAD_REQUEST, "the body ended before its Content-Length")
                position = await self._staged.write(position, chunk[: end - position])
                self._demand_turn(turn)
                if position >= due:
                    deadline, due = clock() + pace.grace_s, position + pace.bytes_per_s * pace.grace_s

    def _demand_turn(self, turn: int) -> None:
        if turn != self._turn:
            raise ProtocolError(Code.BAD_OFFSET, "another request took this upload over, or its phase ended")

    def finish(self, accumulator: Accumulator, accept: Callable[[bytes], None]) -> asyncio.Task[None]:
        """Verify and add the whole vector, once however often this is called; a caller that goes away stops nothing.

        `accept` is called with the vector's first and last word.
        """
        if self.finishing is None:
            self._turn += 1
            self.finishing = asyncio.create_task(self._finish(accumulator, accept))
        return self.finishing

    async def _finish(self, accumulator: Accumulator, accept: Callable[[bytes], None]) -> None:
        staged = self._staged
        try:
            await accumulator.take(staged, self.sha256, accept)
        except ProtocolError as error:
            if error.code is Code.UPLOAD_HASH:
                self._staged, self.finishing = StagedVector(self._staging, self.size), None
            raise
        finally:
            staged.release()

    def drop(self) -> None:
        """Give the memory back, unless the vector is being added just now."""
        self._turn += 1
        if self.finishing is None:
            self._staged.release()


async def _next_chunk(content: StreamReader, deadline: float) -> bytes:
    try:
        async with asyncio.timeout_at(deadline):
            return await content.readany()
    except TimeoutError:
        raise ProtocolError(Code.UPLOAD_TOO_SLOW) from None


class Accumulator:
    """A window's sum of masked vectors: `words` little-endian u64, modulo 2^64; no memory before the first vector."""

    def __init__(self, words: int, worker: Worker, inline_bytes: int) -> None:
        self._size = WORD * words
        self._worker, self._inline = worker, self._size <= inline_bytes
        self._total: bytearray | None = None
        self._broken = False

    async def take(self, staged: StagedVector, sha256: bytes, accept: Callable[[bytes], None]) -> None:
        """Verify `staged` and add it.

        `accept` is called with its first and last word, on the event loop, once the hash is right; where it raises, nothing
        is added. Where it does not, the addition is queued in the same step: whatever is given to the worker after `accept`,
        such as `copy`, sees it.
        Raises ProtocolError UPLOAD_HASH.
        """
        digest = hashlib.sha256()
        step = self._size if self._size <= _WHOLE_BYTES else _JOB_BYTES
        for start in range(0, self._size, step):
            await self._run(partial(_hash, digest, staged, start, min(start + step, self._size)))
        if digest.digest() != sha256:
            raise ProtocolError(Code.UPLOAD_HASH)
        accept(await self._run(partial(_ends, staged, self._size)))
        await self._run(lambda: self._add(staged))

    async def copy(self) -> bytes:
        """Return the sum of all vectors that were accepted so far. Raises ProtocolError DATA_DAMAGED where one got lost."""
        return await self._run(self._copy)

    def release(self) -> None:
        """Give the memory back: nothing is added any more."""
        self._total = None

    def _copy(self) -> bytes:
        if self._broken:
            raise ProtocolError(Code.DATA_DAMAGED, "a spilled upload could not be read back")
        return bytes(self._total if self._total is not None else self._size)

    async def _run(self, job: Callable[[], T]) -> T:
        return job() if self._inline else await self._worker.run(job)

    def _add(self, staged: StagedVector) -> None:
        if self._total is None:
            self._total = bytearray(self._size)
        total = memoryview(self._total)
        self._broken = True  # until all of the vector is in: half of one would be in no survivor's name
        for position, piece in staged.pieces(0, self._size):
            ring_add(total[position : position + len(piece)], piece)
        self._broken = False


def _ends(staged: StagedVector, size: int) -> bytes:
    return b"".join(bytes(piece) for at in (0, size - WORD) for _, piece in staged.pieces(at, at + WORD))


def _hash(digest: hashlib._Hash, staged: StagedVector, start: int, stop: int) -> None:
    for _, piece in staged.pieces(start, stop):
        digest.update(piece)
