"""The hostile server's HTTP, on loopback: as the device listener's, and as bad as an attack wants it.

Here belong routes, long polls and damage to bytes. What is answered belongs in `world.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web

from tests.hostile.attack import Cut, Late
from tests.hostile.world import HostileServer
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code

WORD = 8
POSTED = (m.Enrol, m.Renew, m.CheckIn, m.Join, m.Shares, m.MaskedHead, m.Vote, m.Unmask, m.CanaryMasks, m.Report)
HOLD_S, LOOK_S = 0.5, 0.01


@dataclass
class Listener:
    """Serves one hostile server. `before` sees each request first: a test may kill the client there."""

    server: HostileServer
    port: int = 0
    before: Callable[[str, str], None] | None = None
    half_uploads: int = 0
    url: str = ""
    held: dict[str, bytearray] = field(default_factory=lambda: defaultdict(bytearray))

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Listener]:
        """Listen until the block ends."""
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/v1/blobs/{sha}", self._blob)
        app.router.add_put("/v1/windows/{tau0}/masked", self._put)
        app.router.add_head("/v1/windows/{tau0}/masked", self._head)
        app.router.add_route("*", "/{rest:.*}", self._message)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", self.port).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    def _seen(self, request: web.Request) -> None:
        if self.before is not None:
            self.before(request.method, request.path)

    async def _message(self, request: web.Request) -> web.Response:
        self._seen(request)
        body = await request.read()
        message = wire.decode(body, *POSTED) if body else None
        end = time.monotonic() + min(float(request.query.get("wait", "0")), HOLD_S)
        answer = self.server.call(request.method, request.path, message, _token(request))
        while isinstance(answer, m.Wait) and time.monotonic() < end:
            await asyncio.sleep(LOOK_S)
            answer = self.server.call(request.method, request.path, message, _token(request))
        if isinstance(answer, Late):
            await asyncio.sleep(answer.seconds)
            answer = answer.answer
        return _response(request, answer)

    async def _blob(self, request: web.Request) -> web.Response:
        data = self.server.blobs.get(bytes.fromhex(request.match_info["sha"]))
        return (
            _response(request, m.Failure(int(Code.UNKNOWN_BLOB), "no such blob")) if data is None else web.Response(body=data)
        )

    async def _put(self, request: web.Request) -> web.Response:
        self._seen(request)
        tau0, offset = bytes.fromhex(request.match_info["tau0"]), int(request.query["offset"])
        held, body = self.held[request.path], await request.read()
        if WORD * offset != len(held):
            return _response(request, m.Failure(int(Code.BAD_OFFSET), f"{len(held)} bytes are here"))
        kept = body[: len(body) // 2 // WORD * WORD] if self.half_uploads else body
        held += kept
        whole = bytes(held) if self._complete(tau0, held) else None
        answer = self.server.received(tau0, _token(request), offset, kept, whole)
        if self.half_uploads:
            self.half_uploads -= 1
            return _response(request, Cut())
        return _response(request, answer)

    def _complete(self, tau0: bytes, held: bytearray) -> bool:
        heads = [one.body for one in self.server.seen if (one.kind, one.tau0) == ("masked", tau0)]
        return any(head.sha256 == hashlib.sha256(held).digest() for head in heads)

    async def _head(self, request: web.Request) -> web.Response:
        self._seen(request)
        return web.Response(headers={"Upload-Offset": str(len(self.held[request.path]) // WORD)})


def _token(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _response(request: web.Request, answer: object) -> web.Response:
    if isinstance(answer, Cut):
        assert request.transport is not None
        request.transport.abort()
        return web.Response()
    status = Code(answer.number).http if isinstance(answer, m.Failure) else 200  # type: ignore[call-arg]
    data = answer if isinstance(answer, bytes) else wire.encode(answer)  # type: ignore[arg-type]
    return web.Response(status=status, body=data, content_type=wire.CONTENT_TYPE)
