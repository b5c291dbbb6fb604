"""The calls that operators make: JSON in and out, a token always, problem+json for every no.

What belongs here: HTTP for operators. What does not: what the calls do (`coordinator.py`, `catalogue.py`), how records look
as JSON (`admin_views.py`).
"""

from __future__ import annotations

import hmac
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from aiohttp import hdrs, web

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.config import Limits
from whimbrel_server.coordinator import Coordinator
from whimbrel_server.listeners import admin_views as views
from whimbrel_server.listeners import bodies
from whimbrel_server.listeners.hot_blobs import HotBlobs
from whimbrel_server.listeners.listener import note_request
from whimbrel_server.listeners.metrics import METRICS, Metrics
from whimbrel_server.listeners.problems import Handler, errors_as, nowhere, problem
from whimbrel_server.settings import TaskSettings

OCTETS = "application/octet-stream"
JSON = "application/json"
# A model of hundreds of megabytes takes a while, and whoever sends it holds the operator's token.
_BODY_S = 300.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_POLICY_MAX = 16_384


@dataclass
class Office:
    """What the calls work with."""

    coordinator: Coordinator
    hot: HotBlobs
    limits: Limits
    token: str
    version: str
    started: float


OFFICE = web.AppKey("office", Office)
Call = Callable[[Office, web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def authorised(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let nobody in without the operator's token, except to ask for health."""
    if request.path != "/health":
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise ProtocolError(
                Code.TOKEN_MISSING, "send the token of admin.token in the data directory as `Authorization: Bearer`"
            )
        given = token.strip().encode(errors="replace")
        if not hmac.compare_digest(given, request.app[OFFICE].token.encode()):
            raise ProtocolError(Code.TOKEN_INVALID)
    return await handler(request)


def _json(value: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(value) + b"\n", status=status, content_type=JSON)


def _hex(text: str, size: int, unknown: Code) -> bytes:
    if not re.fullmatch(f"[0-9a-f]{{{2 * size}}}", text):
        raise ProtocolError(unknown, f"{text[:80]!r} is not {size} bytes in lower-case hex")
    return bytes.fromhex(text)


# --- server ---------------------------------------------------------------------------------------------------------


async def _health(office: Office, _: web.Request) -> web.Response:
    return _json({"status": "ok", "version": office.version, "uptime_s": round(time.monotonic() - office.started, 1)})


async def _stats(office: Office, request: web.Request) -> web.Response:
    return _json({**request.app[METRICS].document(), "windows": office.coordinator.windows.states()})


async def _metrics(office: Office, request: web.Request) -> web.Response:
    text = request.app[METRICS].text({"whimbrel_windows": office.coordinator.windows.states()})
    return web.Response(text=text, content_type="text/plain")


# --- fleet ----------------------------------------------------------------------------------------------------------


async def _policy(office: Office, _: web.Request) -> web.Response:
    return _json(views.policy(office.coordinator.fleet))


async def _put_policy(office: Office, request: web.Request) -> web.Response:
    await office.coordinator.install_policy(await bodies.read(request, OCTETS, _POLICY_MAX, _BODY_S))
    return await _policy(office, request)


async def _devices(office: Office, request: web.Request) -> web.Response:
    after, limit = request.query.get("after", ""), request.query.get("limit", "1000")
    if not re.fullmatch(r"[0-9]{1,5}", limit) or not 1 <= int(limit) <= 10_000:
        raise ProtocolError(Code.BAD_REQUEST, "limit is 1 to 10000")
    start = _hex(after, 16, Code.UNKNOWN_DEVICE) if after else b""
    rounds, now = office.coordinator.services.rounds, office.coordinator.now()
    found, blames = await rounds.devices(start, int(limit)), await rounds.blames()
    return _json([views.device(one, [b for b in blames if b.device == one.device], now) for one in found])


# --- models and tasks -----------------------------------------------------------------------------------------------


async def _post_blob(office: Office, request: web.Request) -> web.Response:
    data = await bodies.read(request, OCTETS, office.limits.model_bytes, _BODY_S)
    if not data:
        raise ProtocolError(Code.BAD_REQUEST, "the body is empty")
    sha256 = await office.coordinator.services.blobs.put(data)
    return _json({"sha256": sha256.hex(), "size": len(data)}, 201)


async def _post_task(office: Office, request: web.Request) -> web.Response:
    given = _object(await bodies.read(request, JSON, office.limits.message_bytes, _BODY_S))
    name, model = given.pop("name", None), given.pop("model", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ProtocolError(Code.BAD_REQUEST, "name: 1 to 64 letters, digits, `.`, `_`, `-`, a letter or digit first")
    if not isinstance(model, str):
        raise ProtocolError(Code.BAD_REQUEST, "model: the SHA-256 that POST /v1/blobs answered")
    settings = TaskSettings.from_json(given)
    record = await office.coordinator.create_task(name, _hex(model, 32, Code.UNKNOWN_BLOB), settings)
    return _json(views.task(record, None), 201)


def _object(body: bytes) -> dict[str, Any]:
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(Code.BAD_REQUEST, f"the body is not a JSON object: {error}") from error


async def _tasks(office: Office, _: web.Request) -> web.Response:
    records = await office.coordinator.services.rounds.tasks()
    return _json([views.task(record, office.coordinator.task_view(record.name)) for record in records])


async def _task(office: Office, request: web.Request) -> web.Response:
    record = await office.coordinator.catalogue.record(request.match_info["name"])
    return _json(views.task(record, office.coordinator.task_view(record.name)))


async def _plan(office: Office, request: web.Request) -> web.Response:
    record = await office.coordinator.catalogue.record(request.match_info["name"])
    return web.Response(body=await office.hot.get(record.plan_sha256), content_type=OCTETS)


async def _put_plan(office: Office, request: web.Request) -> web.Response:
    signed = await bodies.read(request, OCTETS, office.limits.plan_bytes, _BODY_S)
    await office.coordinator.sign_task(request.match_info["name"], signed)
    return await _task(office, request)


async def _versions(office: Office, request: web.Request) -> web.Response:
    record = await office.coordinator.catalogue.record(request.match_info["name"])
    return _json([views.version(each, record) for each in await office.coordinator.services.rounds.versions(record.name)])


async def _model(office: Office, request: web.Request) -> web.Response:
    name, number = request.match_info["name"], request.match_info["number"]
    catalogue = office.coordinator.catalogue
    await catalogue.record(name)
    if number == "latest":
        number = str(catalogue.task(name).version.version)
    if not re.fullmatch(r"[0-9]{1,9}", number):
        raise ProtocolError(Code.UNKNOWN_VERSION, f"{number[:20]!r} is neither a number nor `latest`")
    return web.Response(body=await catalogue.model(name, int(number)), content_type=OCTETS)


# --- windows --------------------------------------------------------------------------------------------------------


async def _windows(office: Office, request: web.Request) -> web.Response:
    record = await office.coordinator.catalogue.record(request.match_info["name"])
    rounds = office.coordinator.services.rounds
    found, blames = await rounds.windows(record.name, 10_000), await rounds.blames()
    by_window = {each.tau0: [one for one in blames if one.tau0 == each.tau0] for each in found} if blames else {}
    live = office.coordinator.windows
    return _json([views.window(each, live.get(each.tau0), by_window.get(each.tau0, ())) for each in found])


async def _window(office: Office, request: web.Request) -> web.Response:
    tau0 = _hex(request.match_info["tau0"], 32, Code.UNKNOWN_WINDOW)
    record, blames = await office.coordinator.record(tau0), await office.coordinator.services.rounds.blames(tau0=tau0)
    return _json(views.window(record, office.coordinator.windows.get(tau0), blames))


async def _sum(office: Office, request: web.Request) -> web.Response:
    record = await office.coordinator.record(_hex(request.match_info["tau0"], 32, Code.UNKNOWN_WINDOW))
    if record.sum_sha256 is None:
        raise ProtocolError(Code.PHASE_NOT_YET, f"the window has no sum: it is {record.state}")
    return web.Response(body=await office.coordinator.services.blobs.get(record.sum_sha256), content_type=OCTETS)


ROUTES: tuple[tuple[str, str, Call], ...] = (
    ("GET", "/health", _health),
    ("GET", "/metrics", _metrics),
    ("GET", "/v1/stats", _stats),
    ("GET", "/v1/policy", _policy),
    ("PUT", "/v1/policy", _put_policy),
    ("GET", "/v1/devices", _devices),
    ("POST", "/v1/blobs", _post_blob),
    ("POST", "/v1/tasks", _post_task),
    ("GET", "/v1/tasks", _tasks),
    ("GET", "/v1/tasks/{name}", _task),
    ("GET", "/v1/tasks/{name}/plan", _plan),
    ("PUT", "/v1/tasks/{name}/plan", _put_plan),
    ("GET", "/v1/tasks/{name}/versions", _versions),
    ("GET", "/v1/tasks/{name}/versions/{number}/model", _model),
    ("GET", "/v1/tasks/{name}/windows", _windows),
    ("GET", "/v1/windows/{tau0}", _window),
    ("GET", "/v1/windows/{tau0}/sum", _sum),
)


def make_app(office: Office, metrics: Metrics) -> web.Application:
    """Return the admin listener's application."""
    app = web.Application(middlewares=[note_request, errors_as(problem), authorised])
    app[OFFICE], app[METRICS] = office, metrics
    for method, path, call in ROUTES:
        app.router.add_route(method, path, _handler(call), expect_handler=bodies.expect_nothing)
    app.router.add_route("*", "/{rest:.*}", nowhere, expect_handler=bodies.expect_nothing)
    return app


def _handler(call: Call) -> Handler:
    async def handle(request: web.Request) -> web.StreamResponse:
        return await call(request.app[OFFICE], request)

    return handle
