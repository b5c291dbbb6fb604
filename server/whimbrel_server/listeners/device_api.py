"""The calls that devices make: addresses, who may call, what is read, what is answered.

What belongs here: HTTP for devices. What does not: judgement (`coordinator.py`, `fleet.py`), errors as answers
(`problems.py`). Every small call is an `Endpoint`: `respond` takes it from bytes to an answer without any network, which is
how it is fuzzed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from aiohttp import hdrs, web

from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_server.config import Limits
from whimbrel_server.coordinator import Coordinator
from whimbrel_server.listeners import bodies
from whimbrel_server.listeners.bodies import RECEIVED
from whimbrel_server.listeners.enrolment import Enrolment
from whimbrel_server.listeners.hot_blobs import HotBlobs
from whimbrel_server.listeners.listener import note_request, when_lost
from whimbrel_server.listeners.metrics import METRICS, Metrics, counted
from whimbrel_server.listeners.problems import errors_as, failure, nowhere, numbered
from whimbrel_server.storage.records import WindowRecord
from whimbrel_server.windows import ended
from whimbrel_server.windows.live import LiveWindow, Posted

OCTETS = "application/octet-stream"
PHASES_POSTED: dict[str, type] = {
    "shares": m.Shares,
    "masked": m.MaskedHead,
    "vote": m.Vote,
    "unmask": m.Unmask,
    "canaries": m.CanaryMasks,
}
_FOREVER = {hdrs.CACHE_CONTROL: "public, max-age=31536000, immutable", hdrs.ACCEPT_RANGES: "bytes"}
_RANGE = re.compile(r"bytes=([0-9]{0,15})-([0-9]{0,15})")
PHASES_POLLED = ("u2", "survivors", "quorum", "done")


@dataclass
class Desk:
    """What the calls work with."""

    coordinator: Coordinator
    enrolment: Enrolment
    hot: HotBlobs
    limits: Limits
    polls: int = 0


DESK = web.AppKey("desk", Desk)


@dataclass(frozen=True)
class Call:
    """One request of a small call: who (none before the check-in), and the ids in its address."""

    desk: Desk
    device: bytes
    match: Mapping[str, str]


@dataclass(frozen=True)
class Endpoint:
    """A small call: POST of one of `types`, answered by one message."""

    path: str
    types: tuple[type, ...]
    handle: Callable[[Call, Any], Awaitable[m.Message]]
    with_token: bool = True


# --- the small calls ------------------------------------------------------------------------------------------------


async def _enrol(call: Call, message: m.Enrol | m.Renew) -> m.Message:
    return await call.desk.enrolment.forward(message)


async def _check_in(call: Call, message: m.CheckIn) -> m.Message:
    return await call.desk.coordinator.check_in(message, call.desk.limits.token_s)


async def _join(call: Call, message: m.Join) -> m.Message:
    return await call.desk.coordinator.join(call.device, message)


async def _report(call: Call, message: m.Report) -> m.Message:
    await call.desk.coordinator.report(call.device, message)
    return m.Accepted()


async def _post_phase(call: Call, message: Posted) -> m.Message:
    window, i = await _live(call, isinstance(message, m.Vote))
    if message.i != i:
        raise RuleError(Code.NOT_YOURS, f"member {message.i} is another device; this one is member {i}")
    await window.accept(message)
    call.desk.coordinator.wake_alarm()
    return m.Accepted()


async def _live(call: Call, for_vote: bool) -> tuple[LiveWindow, int]:
    """Return the running window of a call; one that was given up comes back for the votes that free its updates."""
    coordinator, tau0 = call.desk.coordinator, _hex(call.match["tau0"], 32, Code.UNKNOWN_WINDOW)
    found = await coordinator.window(tau0, call.device)
    if isinstance(found, tuple):
        return found
    if call.device not in ended.devices(found):
        raise RuleError(Code.NOT_YOURS, "this device is not in the window's roster")
    if for_vote and ended.waits_for_votes(found, coordinator.now()):
        return await _revived(coordinator, found, call.device)
    raise RuleError(Code.PHASE_OVER, f"the window has ended: {found.state}")


async def _revived(coordinator: Coordinator, record: WindowRecord, device: bytes) -> tuple[LiveWindow, int]:
    window = await coordinator.revive(record)
    return window, window.member(device)


ENDPOINTS = (
    Endpoint("/v1/enrol", (m.Enrol,), _enrol, with_token=False),
    Endpoint("/v1/renew", (m.Renew,), _enrol, with_token=False),
    Endpoint("/v1/check-in", (m.CheckIn,), _check_in, with_token=False),
    Endpoint("/v1/joins", (m.Join,), _join),
    *(Endpoint(f"/v1/windows/{{tau0}}/{phase}", (kind,), _post_phase) for phase, kind in PHASES_POSTED.items()),
    Endpoint("/v1/reports", (m.Report,), _report),
)


async def respond(endpoint: Endpoint, desk: Desk, device: bytes, match: Mapping[str, str], body: bytes) -> web.Response:
    """Answer one small call from its bytes; every error becomes its numbered answer."""
    try:
        message: Any = wire.decode(body, *endpoint.types)
        return _answered(await endpoint.handle(Call(desk, device, match), message))
    except Exception as exception:
        return failure(numbered(exception))


def _answered(message: m.Message) -> web.Response:
    return web.Response(body=wire.encode(message), content_type=wire.CONTENT_TYPE)


async def _small(endpoint: Endpoint, request: web.Request) -> web.Response:
    desk = request.app[DESK]
    device = _device(request) if endpoint.with_token else b""
    body = await bodies.read(request, wire.CONTENT_TYPE, desk.limits.message_bytes, desk.limits.body_s)
    return await respond(endpoint, desk, device, request.match_info, body)


def _device(request: web.Request) -> bytes:
    """Return the device of the request's bearer token. Raises ProtocolError TOKEN_*."""
    scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise ProtocolError(Code.TOKEN_MISSING)
    coordinator = request.app[DESK].coordinator
    return coordinator.tokens.device(token.strip(), int(coordinator.now()))


def _hex(text: str, size: int, unknown: Code) -> bytes:
    """Return the bytes of an id in an address; what is no id is an id that nobody has."""
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b""
    if len(raw) != size or text != raw.hex():
        raise ProtocolError(unknown, f"{text[:80]!r} is not {size} bytes in lower-case hex")
    return raw


# --- long polls -----------------------------------------------------------------------------------------------------


def _wait_s(request: web.Request) -> float:
    """Return how long the caller wants to wait; over the limit of polls at once, not at all."""
    desk, text = request.app[DESK], request.query.get("wait", "0")
    try:
        wait = float(text)
    except ValueError:
        raise ProtocolError(Code.BAD_REQUEST, f"wait={text[:20]!r} is not a number of seconds") from None
    if not 0 <= wait <= 25:
        raise ProtocolError(Code.BAD_REQUEST, "wait is 0 to 25 seconds")
    return 0.0 if desk.polls >= desk.limits.polls else min(wait, desk.limits.poll_s)


async def _polled(request: web.Request, ask: Callable[[float], Awaitable[m.Message]]) -> web.Response:
    desk, wait = request.app[DESK], _wait_s(request)
    desk.polls += 1
    try:
        return _answered(await ask(wait))
    finally:
        desk.polls -= 1


async def _poll_join(request: web.Request) -> web.Response:
    device, ticket = _device(request), _hex(request.match_info["ticket"], 16, Code.UNKNOWN_TICKET)
    return await _polled(request, partial(request.app[DESK].coordinator.ticket, device, ticket))


async def _poll_window(phase: str, request: web.Request) -> web.Response:
    device, tau0 = _device(request), _hex(request.match_info["tau0"], 32, Code.UNKNOWN_WINDOW)
    coordinator = request.app[DESK].coordinator
    found = await coordinator.window(tau0, device)
    if not isinstance(found, tuple) and phase == "survivors" and ended.may_want_commits(found, device, coordinator.now()):
        found = await _revived(coordinator, found, device)
    if not isinstance(found, tuple):
        return _answered(ended.answer(found, phase, device, coordinator.now()))
    window, i = found

    def lost() -> None:
        window.lost(i)
        coordinator.wake_alarm()

    with when_lost(request, lost):
        return await _polled(request, partial(window.answer, phase, i))


# --- masked vectors -------------------------------------------------------------------------------------------------


async def _put_masked(request: web.Request) -> web.Response:
    call = Call(request.app[DESK], _device(request), request.match_info)
    window, i = await _live(call, for_vote=False)
    bodies.require_type(request, OCTETS)
    length = bodies.stated_length(request, call.desk.limits.vector_bytes)
    try:
        await window.receive(i, _offset(request), length, request.content, partial(bodies.invite, request))
    finally:
        request[RECEIVED] = request.content.total_bytes
        call.desk.coordinator.wake_alarm()
    return _answered(m.Accepted())


def _offset(request: web.Request) -> int:
    text = request.query.get("offset", "0")
    if not text.isascii() or not text.isdecimal() or len(text) > 15:
        raise ProtocolError(Code.BAD_REQUEST, f"offset={text[:20]!r} is not a number of words")
    return int(text)


async def _head_masked(request: web.Request) -> web.Response:
    window, i = await _live(Call(request.app[DESK], _device(request), request.match_info), for_vote=False)
    return web.Response(headers={"Upload-Offset": str(window.words_held(i))})


# --- blobs ----------------------------------------------------------------------------------------------------------


async def _blob(request: web.Request) -> web.Response:
    name = _hex(request.match_info["sha256"], 32, Code.UNKNOWN_BLOB)
    headers = {hdrs.ETAG: f'"{name.hex()}"', **_FOREVER}
    desk = request.app[DESK]
    if name not in desk.coordinator.catalogue.served:
        raise ProtocolError(Code.UNKNOWN_BLOB, name.hex())
    if any(tag.value in (name.hex(), "*") for tag in request.if_none_match or ()):
        return web.Response(status=304, headers=headers)
    data = await desk.hot.get(name)
    part = _range(request, len(data))
    if part is None:
        return web.Response(body=data, content_type=OCTETS, headers=headers)
    start, stop = part
    headers[hdrs.CONTENT_RANGE] = f"bytes {start}-{stop - 1}/{len(data)}"
    return web.Response(status=206, body=bytes(memoryview(data)[start:stop]), content_type=OCTETS, headers=headers)


def _range(request: web.Request, size: int) -> tuple[int, int] | None:
    """Return the one range that is asked for. Raises ProtocolError BAD_RANGE where it holds no byte of the blob."""
    if hdrs.RANGE not in request.headers:
        return None
    asked = _RANGE.fullmatch(request.headers[hdrs.RANGE])
    if asked is None or not any(asked.groups()):
        raise ProtocolError(Code.BAD_RANGE, "one range of bytes, such as bytes=0-99, bytes=100- or bytes=-50")
    first, last = asked.groups()
    start = int(first) if first else max(0, size - int(last))
    stop = min(size, int(last) + 1) if first and last else size
    if start >= stop:
        raise ProtocolError(Code.BAD_RANGE, f"the blob has {size} bytes")
    return start, stop


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def make_app(desk: Desk, metrics: Metrics) -> web.Application:
    """Return the device listener's application."""
    app = web.Application(middlewares=[note_request, counted, errors_as(failure)])
    app[DESK], app[METRICS] = desk, metrics

    def add(method: str, path: str, handler: Any) -> None:
        app.router.add_route(method, path, handler, expect_handler=bodies.expect_nothing)

    for endpoint in ENDPOINTS:
        add("POST", endpoint.path, partial(_small, endpoint))
    for phase in PHASES_POLLED:
        add("GET", f"/v1/windows/{{tau0}}/{phase}", partial(_poll_window, phase))
    add("GET", "/v1/joins/{ticket}", _poll_join)
    add("PUT", "/v1/windows/{tau0}/masked", _put_masked)
    add("HEAD", "/v1/windows/{tau0}/masked", _head_masked)
    add("GET", "/v1/blobs/{sha256}", _blob)
    add("GET", "/health", _health)
    add("*", "/{rest:.*}", nowhere)
    return app
