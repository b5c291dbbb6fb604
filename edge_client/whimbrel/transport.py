"""The way to the server over HTTP: the only module of the client that touches aiohttp.

What belongs here: one call, tried a few times with full jitter; resumed transfers; limits, time-outs, byte counters.
What does not: how long a device stays away after all of that failed (`lifecycle.py`). Nothing raises for what a network or a
server does: it becomes a Failure, 505 where no answer came. Bodies are never logged.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import aiohttp

from whimbrel.actions import Fetch, Send, Upload
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Accepted, BlobRef, Failure

TRIES = 4
RETRY_BASE_S, RETRY_MAX_S = 0.2, 3.0
ANSWER_S = 30.0  # beyond what the server may hold a long poll
CONNECT_S = 10.0
STALL_S = 30.0  # a body that does not move for so long is broken off and resumed
_PIECE = 64 * 1024
_WORD = 8
_LOST = (aiohttp.ClientError, TimeoutError, OSError)
# HEAD has no body, so its refusals carry no number but the status.
_HEAD_REFUSALS = {
    401: Code.TOKEN_INVALID,
    403: Code.NOT_YOURS,
    404: Code.UNKNOWN_WINDOW,
    409: Code.PHASE_OVER,
}


class Transport:
    """Calls to one server. Made and closed inside a running event loop; `jitter(s)` draws a time between 0 and `s`."""

    def __init__(self, url: str, jitter: Callable[[float], float]) -> None:
        self._url = url.rstrip("/")
        self._jitter = jitter
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=STALL_S)
        self._session = aiohttp.ClientSession(timeout=timeout, raise_for_status=False, auto_decompress=False)
        self.bytes_up = self.bytes_down = 0

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    # --- messages -------------------------------------------------------------------------------------------------------

    async def send(self, action: Send) -> Any:
        """Return one message of `action.expects`, or a Failure."""
        tries = TRIES if action.repeatable else 1
        return await self._again(lambda: self._send(action), tries)

    async def _send(self, action: Send) -> Any:
        body = None if action.message is None else wire.encode(action.message)
        query = {"wait": f"{action.wait_s:g}"} if action.wait_s else {}
        headers = _bearer(action.token) | ({"Content-Type": wire.CONTENT_TYPE} if body is not None else {})
        limit = aiohttp.ClientTimeout(total=action.wait_s + ANSWER_S, sock_connect=CONNECT_S)
        address = self._url + action.path
        async with self._session.request(
            action.method, address, params=query, data=body, headers=headers, timeout=limit
        ) as response:
            self.bytes_up += len(body or b"")
            return self._decoded(response.status, await self._body(response, wire.MESSAGE_MAX), action.expects)

    async def _body(self, response: aiohttp.ClientResponse, limit: int) -> bytes:
        """Return the body, cut off one byte past `limit`: what is too long is refused, not stored."""
        parts, size = [], 0
        async for part in response.content.iter_any():
            parts.append(part)
            size += len(part)
            if size > limit:
                break
        self.bytes_down += size
        return b"".join(parts)[: limit + 1]

    def _decoded(self, status: int, body: bytes, expects: tuple[type, ...]) -> Any:
        try:
            return wire.decode(body, *(expects if status < 400 else ()), Failure)
        except ProtocolError as error:
            if status >= 500:  # a proxy's page, most likely: as good as no answer
                return _failure(Code.UNREACHABLE, f"status {status} without a message")
            return _failure(error.code, f"status {status}: {error.detail}")

    # --- blobs ----------------------------------------------------------------------------------------------------------

    async def fetch(self, action: Fetch) -> bytes | Failure:
        """Return the blob, of the size and hash that were announced, or a Failure; a broken download goes on where it broke."""
        held = bytearray()
        answer = await self._again(lambda: self._fetch(action.ref, held), TRIES)
        if isinstance(answer, Failure):
            return answer
        data = bytes(held)
        if hashlib.sha256(data).digest() != action.ref.sha256:
            return _failure(Code.BAD_BLOB, f"{len(data)} bytes without the hash {action.ref.sha256.hex()}")
        return data

    async def _fetch(self, ref: BlobRef, held: bytearray) -> Accepted | Failure:
        """Append to `held` until it has all bytes."""
        headers = {"Range": f"bytes={len(held)}-"} if held else {}
        async with self._session.get(f"{self._url}/v1/blobs/{ref.sha256.hex()}", headers=headers) as response:
            if response.status not in (200, 206):
                failure: Failure = self._decoded(response.status, await self._body(response, wire.MESSAGE_MAX), ())
                return failure
            if response.status == 200:
                held.clear()  # the range was not honoured
            async for part in response.content.iter_any():
                held += part
                self.bytes_down += len(part)
                if len(held) > ref.size:
                    return _failure(Code.BAD_BLOB, f"more than the {ref.size} bytes that were announced")
        if len(held) < ref.size:
            raise aiohttp.ClientPayloadError(f"{len(held)} of {ref.size} bytes")
        return Accepted()

    # --- the masked vector ------------------------------------------------------------------------------------------------

    async def upload(self, action: Upload) -> Any:
        """Put the vector and return Accepted or a Failure; a broken upload goes on from the words that the server holds."""
        start = 0

        async def attempt() -> Any:
            nonlocal start
            try:
                answer = await self._put(action, start)
            except _LOST:
                start = await self._held(action)
                raise
            if isinstance(answer, Failure) and answer.number == Code.BAD_OFFSET:
                start = await self._held(action)
                if _WORD * start >= len(action.data):
                    return Accepted()
                raise aiohttp.ClientPayloadError(f"the server holds {start} words")
            return answer

        return await self._again(attempt, TRIES)

    async def _put(self, action: Upload, start: int) -> Any:
        view = memoryview(action.data)[_WORD * start :]
        headers = _bearer(action.token) | {"Content-Length": str(len(view)), "Content-Type": "application/octet-stream"}
        address, query = self._url + action.path, {"offset": str(start)}
        async with self._session.put(address, params=query, data=self._pieces(view), headers=headers) as response:
            return self._decoded(response.status, await self._body(response, wire.MESSAGE_MAX), (Accepted,))

    async def _pieces(self, view: memoryview) -> AsyncIterator[bytes]:
        for at in range(0, len(view), _PIECE):
            piece = bytes(view[at : at + _PIECE])
            self.bytes_up += len(piece)
            yield piece

    async def _held(self, action: Upload) -> int:
        """Return how many words the server holds. Raises _Final where it takes no more of this vector."""
        async with self._session.head(self._url + action.path, headers=_bearer(action.token)) as response:
            if response.status in _HEAD_REFUSALS:
                raise _Final(_failure(_HEAD_REFUSALS[response.status], f"status {response.status}"))
            words = response.headers.get("Upload-Offset", "")
            return int(words) if words.isascii() and words.isdigit() else 0

    # --- trying again -----------------------------------------------------------------------------------------------------

    async def _again(self, attempt: Callable[[], Awaitable[Any]], tries: int) -> Any:
        """Return what an attempt returns; where it is lost, try again after a jittered time, then give up with a Failure."""
        lost = ""
        for number in range(tries):
            if number:
                await asyncio.sleep(self._jitter(min(RETRY_MAX_S, RETRY_BASE_S * 2.0**number)))
            try:
                return await attempt()
            except _Final as final:
                return final.failure
            except _LOST as error:
                lost = f"{type(error).__name__}: {error}"
        return _failure(Code.UNREACHABLE, lost)


class _Final(Exception):
    """A refusal found on the way, which no further try will change."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.detail)
        self.failure = failure


def _bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _failure(code: Code, detail: str) -> Failure:
    return Failure(int(code), detail[:1000])
