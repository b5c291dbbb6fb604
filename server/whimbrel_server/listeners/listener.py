"""A listener: one aiohttp application on one port, with what an open network needs before a handler is reached.

What belongs here: connection limits and time-outs, numbered answers to bytes that are not HTTP. What does not: routes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import hdrs, web

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.listeners.problems import Answer

logger = logging.getLogger("whimbrel.http")

# Which software of which version answers is nobody's business.
_NAME = "whimbrel"
# After a refusal the rest of the body is read for this long, so that the client gets to see the answer.
_LINGER_S = 1.0
# aiohttp stops reading a connection that buffers twice the first, and asyncio reads so much as the second at once (it would
# take 256 KiB): that much memory an upload takes beside its blocks.
_READ_AHEAD, _READ_ONCE = 2**13, 2**14
CONNECTION_BYTES = 2 * _READ_AHEAD + _READ_ONCE
# Long polls are cut off when the server stops: devices ask again, and a kill must be as good as a stop.
_SHUTDOWN_S = 0.5


@dataclass(frozen=True)
class Terms:
    """What a listener grants: connections at once, and seconds for the first request and between two."""

    connections: int
    idle_s: float


@dataclass
class _Room:
    """How many connections a listener has."""

    terms: Terms
    open: int = 0


class _Connection(web.RequestHandler):
    """aiohttp's connection, with a limit on silence before the first request, and errors that have a number."""

    __slots__ = ("_answer", "_first", "_room", "on_lost")

    def __init__(self, server: web.Server, room: _Room, answer: Answer, **options: Any) -> None:
        super().__init__(server, **options)
        self._room, self._answer = room, answer
        self._first: asyncio.TimerHandle | None = None
        self.on_lost: Callable[[], None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if hasattr(transport, "max_size"):
            transport.max_size = _READ_ONCE
        self._room.open += 1
        self._first = asyncio.get_running_loop().call_later(self._room.terms.idle_s, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.requested()
        self._room.open -= 1
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()

    def requested(self) -> None:
        """Note that a whole request head arrived."""
        if self._first is not None:
            self._first.cancel()
            self._first = None

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer bytes that are not a request, and what escaped the application's own middleware."""
        if status >= 500:
            logger.error("unforeseen", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("an answer was sent already")
        code = Code.INTERNAL if status >= 500 else Code.BAD_REQUEST
        response = self._answer(ProtocolError(code, "" if status >= 500 else "not a well-formed HTTP request"))
        response.headers[hdrs.SERVER] = _NAME
        response.force_close()
        return response


@contextmanager
def when_lost(request: web.Request, action: Callable[[], None]) -> Iterator[None]:
    """Call `action` if the client's connection breaks inside the block: a handler that waits would not notice."""
    connection = request.protocol
    if not isinstance(connection, _Connection):
        yield
        return
    connection.on_lost = action
    try:
        yield
    finally:
        connection.on_lost = None


@web.middleware
async def note_request(request: web.Request, handler: Any) -> web.StreamResponse:
    """End the limit on silence: from here on aiohttp's keep-alive limit holds."""
    if isinstance(request.protocol, _Connection):
        request.protocol.requested()
    response: web.StreamResponse = await handler(request)
    return response


async def _name(_: web.Request, response: web.StreamResponse) -> None:
    response.headers[hdrs.SERVER] = _NAME


@asynccontextmanager
async def listening(app: web.Application, host: str, port: int, terms: Terms, answer: Answer) -> AsyncIterator[str]:
    """Serve `app` while the block runs; yields its URL with the port that was found."""
    app.on_response_prepare.append(_name)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
    await runner.setup()
    loop, room = asyncio.get_running_loop(), _Room(terms)

    def connection() -> asyncio.Protocol:
        manager = runner.server
        if manager is None or room.open >= terms.connections:
            return _Refused()
        options = {
            "loop": loop,
            "access_log": None,
            "auto_decompress": False,
            "lingering_time": _LINGER_S,
            "read_bufsize": _READ_AHEAD,
        }
        return _Connection(manager, room, answer, keepalive_timeout=terms.idle_s, **options)

    try:
        server = await loop.create_server(connection, host, port, backlog=1024)
    except OSError as error:
        await runner.cleanup()
        raise ProtocolError(Code.CONFIGURATION, f"cannot listen on {host}:{port}: {error.strerror or error}") from error
    try:
        yield f"http://{host}:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await runner.cleanup()


class _Refused(asyncio.Protocol):
    """A connection beyond the limit: closed at once, so that the others keep their memory."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
