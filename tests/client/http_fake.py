"""The fake server behind a real HTTP listener on loopback, with faults that a network has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from tests.client.fake_server import FakeServer
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code

_WORD = 8


class HttpFake:
    """Serves a FakeServer. `break_uploads` and `break_blobs` transfers are cut half-way, `garbage` calls get a page of HTML."""

    def __init__(self, server: FakeServer) -> None:
        self.server = server
        self.break_uploads = self.break_blobs = self.garbage = 0
        self.partial: dict[str, bytearray] = {}
        self.requests: list[tuple[str, str]] = []
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[HttpFake]:
        app = web.Application(client_max_size=2**24)
        app.router.add_get("/v1/blobs/{sha}", self._blob)
        app.router.add_put("/v1/windows/{tau0}/masked", self._put)
        app.router.add_head("/v1/windows/{tau0}/masked", self._head)
        app.router.add_route("*", "/{rest:.*}", self._message)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _message(self, request: web.Request) -> web.Response:
        self.requests.append((request.method, request.path))
        if self.garbage:
            self.garbage -= 1
            return web.Response(status=502, text="<html>bad gateway</html>")
        body = await request.read()
        types = (m.Enrol, m.Renew, m.CheckIn, m.Join, m.Shares, m.MaskedHead, m.Vote, m.Unmask, m.Report)
        message = wire.decode(body, *types) if body else None
        answer = self.server.call(request.method, request.path, message, _token(request))
        if isinstance(answer, m.Wait):
            await asyncio.sleep(0.05)
            answer = m.Wait(0)
        return _response(answer)

    async def _blob(self, request: web.Request) -> web.StreamResponse:
        data = self.server.blobs.get(bytes.fromhex(request.match_info["sha"]))
        if data is None:
            return _response(m.Failure(int(Code.UNKNOWN_BLOB), "no such blob"))
        start = int(request.headers.get("Range", "bytes=0-")[6:-1])
        self.requests.append(("GET", f"blob from {start}"))
        response = web.StreamResponse(status=206 if start else 200, headers={"Content-Length": str(len(data) - start)})
        await response.prepare(request)
        if self.break_blobs:
            self.break_blobs -= 1
            await response.write(data[start : start + (len(data) - start) // 2])
            _cut(request)
            return response
        await response.write(data[start:])
        return response

    async def _put(self, request: web.Request) -> web.Response:
        held = self.partial.setdefault(request.match_info["tau0"] + _token(request), bytearray())
        offset = _WORD * int(request.query["offset"])
        self.requests.append(("PUT", f"masked from {offset // _WORD}"))
        if offset != len(held):
            return _response(m.Failure(int(Code.BAD_OFFSET), f"{len(held)} bytes are here"))
        body = await request.read()
        if self.break_uploads:
            self.break_uploads -= 1
            held += body[: len(body) // 2 // _WORD * _WORD]
            _cut(request)
            return web.Response()
        held += body
        return _response(self.server.put(request.path, bytes(held), _token(request)))

    async def _head(self, request: web.Request) -> web.Response:
        held = self.partial.get(request.match_info["tau0"] + _token(request), bytearray())
        return web.Response(headers={"Upload-Offset": str(len(held) // _WORD)})


def _token(request: web.Request) -> str:
    return request.headers.get("Authorization", "").removeprefix("Bearer ")


def _response(answer: object) -> web.Response:
    status = 200
    if isinstance(answer, m.Failure):
        status = Code(answer.number).http  # type: ignore[call-arg]
    return web.Response(status=status, body=wire.encode(answer), content_type=wire.CONTENT_TYPE)  # type: ignore[arg-type]


def _cut(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.abort()
