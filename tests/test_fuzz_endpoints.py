"""Damaged requests at every call of both listeners, over HTTP, with a running task and valid tokens behind them.

FUZZ_EXAMPLES of them for each call (1,000 by default; `make fuzz` takes 100,000), or as many as fit in FUZZ_SECONDS, each made
of a request that would be right.
Whatever comes in gets a numbered 4xx, or its right answer where the damage did no harm; nothing is logged as an error; and the
right request works afterwards. The calls of a window: `test_fuzz_windows.py`; parsers with no listener around them:
`test_fuzz.py`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from unittest.mock import Mock

import pytest
from aiohttp import hdrs
from hypothesis import strategies as st

from tests.hostile_http import Call, Line, damaged, misaddressed, reworded
from tests.mutations import mutated
from tests.server.world import FLEET, PLAN_SIGNER, SETTINGS, Device, model, policy
from tests.test_fuzz import EXAMPLES, fuzz
from tests.under_fire import FLAT, ISSUER, JSON, OCTETS, STATUS, TOKEN, Site, judged, under_fire
from whimbrel_protocol import messages as m
from whimbrel_protocol.errors import Code
from whimbrel_protocol.objects import RENEW_KIND, CertificateRequest
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Plan
from whimbrel_server import plans
from whimbrel_server.listeners import admin_api, device_api
from whimbrel_server.rounds import aggregate
from whimbrel_server.settings import TaskSettings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with under_fire(tmp_path_factory.mktemp("site"), contributions=100) as made:
        yield made


# --- calls outside a window ---------------------------------------------------------------------------------------------

# Devices, each of one test, and of one request where that is all that it can do.
NUMBERS = iter(range(50, 256))


def _request(number: int) -> bytes:
    key = SigningKey(bytes([number, number]) * 16)
    fields = {"fleet": FLEET, "device": bytes([number]) * 16, "public_key": key.public, "attest_class": 0, "flags": 0}
    return CertificateRequest.sign(key, **fields, nonce=bytes(16)).encode()


def _enrol(site: Site) -> Call:
    return site.message(site.another(0), "/v1/enrol", m.Enrol(_request(1), TOKEN))


def _renew(site: Site) -> Call:
    enrolled = site.run(site.another(0).call("POST", "/v1/enrol", m.Enrol(_request(2), TOKEN)))
    signature = SigningKey(bytes([2, 2]) * 16).sign(RENEW_KIND, _request(2))
    return site.message(site.another(0), "/v1/renew", m.Renew(_request(2), enrolled.certificate, signature))


def _check_in(site: Site) -> Call:
    device = site.another(next(NUMBERS))
    return site.message(device, "/v1/check-in", device.check_in_message())


def _trained(site: Site) -> tuple[Device, m.Assignment]:
    device = site.another(next(NUMBERS))
    site.run(device.train())
    assert device.checked is not None and device.checked.assignment is not None
    return device, device.checked.assignment


def _join(site: Site) -> Call:
    device, assignment = _trained(site)
    return site.message(device, "/v1/joins", m.Join(device.entry(), assignment.id))


def _ticket(site: Site) -> Call:
    device, _ = _trained(site)
    return site.poll(device, f"/v1/joins/{site.run(device.join()).ticket.hex()}?wait=1")


def _report(site: Site) -> Call:
    device, assignment = _trained(site)
    return site.message(device, "/v1/reports", m.Report(502, 3, assignment.task, assignment.version, 2))


def _blob(site: Site) -> Call:
    _, assignment = _trained(site)
    headers = ((b"Host", b"server"), (b"Range", b"bytes=1-9"), (b"If-None-Match", b'"%s"' % (b"0" * 64)))
    return Call(b"GET", f"/v1/blobs/{assignment.snapshot.sha256.hex()}".encode(), headers)


def _health(_: Site) -> Call:
    return Call(b"GET", b"/health", ((b"Host", b"server"),))


# The right request, the status that it gets, and numbers that damage to it must have met: so deep into the call it reaches.
MESSAGES: dict[str, tuple[Callable[[Site], Call], set[int]]] = {
    "enrol": (_enrol, {Code.BAD_REQUEST_SIGNATURE, Code.ENROLMENT_TOKEN, Code.OTHER_FLEET}),
    "renew": (_renew, {Code.BAD_REQUEST_SIGNATURE, Code.BAD_CERTIFICATE, Code.OTHER_FLEET}),
    "check-in": (_check_in, {Code.BAD_CERTIFICATE, Code.BAD_SIGNATURE, Code.REPLAYED, Code.KEY_MISMATCH}),
    "join": (_join, {Code.STALE_VERSION, Code.ENTRY_SIGNATURE, Code.ENTRY_CERTIFICATE, Code.ENTRY_DEVICE}),
    "report": (_report, set()),
}
CALLS: dict[str, tuple[Callable[[Site], Call], int, set[int]]] = {
    "ticket": (_ticket, 200, {Code.TOKEN_INVALID, Code.UNKNOWN_TICKET, Code.BAD_REQUEST}),
    "blob": (_blob, 206, {Code.UNKNOWN_BLOB, Code.BAD_RANGE}),
    "health": (_health, 200, {Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED}),
    **{name: (valid, 200, {100, Code.NOT_FOUND}) for name, (valid, _) in MESSAGES.items()},
}


@pytest.mark.parametrize("name", CALLS)
def test_device_calls(site: Site, name: str) -> None:
    valid, status, numbers = CALLS[name]
    site.throw(valid(site), site.device, numbers)
    site.still(valid(site), status, site.device)


@pytest.mark.parametrize("name", MESSAGES)
def test_what_device_calls_say(site: Site, name: str) -> None:
    valid, numbers = MESSAGES[name]
    site.throw(valid(site), site.device, {100, *numbers}, reworded)
    site.still(valid(site), 200, site.device)


# --- the operator's calls -----------------------------------------------------------------------------------------------

NAMES = iter(f"task-{number}" for number in range(1000))


def _get(path: str) -> Callable[[Site], Call]:
    return lambda site: site.order("GET", path)


def _stored(site: Site) -> str:
    blob = site.run(site.operator.call("POST", "/v1/blobs", data=model(), headers={hdrs.CONTENT_TYPE: OCTETS}))
    name: str = blob["sha256"]
    return name


def _new_task(site: Site) -> Call:
    body = {"name": next(NAMES), "model": _stored(site), "loss": "mse", "train": ["*"], **SETTINGS}
    return site.order("POST", "/v1/tasks", json.dumps(body).encode(), JSON)


def _signed_plan(site: Site) -> Call:
    call = _new_task(site)
    path = f"/v1/tasks/{json.loads(call.body)['name']}/plan"
    site.still(call, 201, site.admin)
    unsigned = site.run(site.operator.call("GET", path))
    signature = PLAN_SIGNER.sign(Plan.KIND, Plan.decode(unsigned + bytes(64)).signature_input())
    return site.order("PUT", path, unsigned + signature, OCTETS)


def _next_policy(site: Site) -> Call:
    serial = site.server.coordinator.fleet.policy.serial + 1
    return site.order("PUT", "/v1/policy", policy(serial, issuers=(ISSUER.public,)), OCTETS)


def _new_blob(site: Site) -> Call:
    return site.order("POST", "/v1/blobs", b"anything at all", OCTETS)


# As above.
ORDERS: dict[str, tuple[Callable[[Site], Call], int, set[int]]] = {
    "health": (_get("/health"), 200, {Code.NOT_FOUND, Code.METHOD_NOT_ALLOWED}),
    "metrics": (_get("/metrics"), 200, {Code.TOKEN_INVALID}),
    "stats": (_get("/v1/stats"), 200, {Code.TOKEN_INVALID}),
    "devices": (_get("/v1/devices?limit=5"), 200, {Code.TOKEN_INVALID, Code.BAD_REQUEST}),
    "policy": (_get("/v1/policy"), 200, {Code.TOKEN_INVALID}),
    "new policy": (_next_policy, 200, {200, Code.BAD_POLICY}),
    "new blob": (_new_blob, 201, {Code.BAD_REQUEST, Code.NOT_FOUND}),
    "tasks": (_get("/v1/tasks"), 200, {Code.TOKEN_INVALID}),
    "new task": (_new_task, 201, {Code.BAD_REQUEST, Code.CONFIGURATION, Code.TASK_EXISTS}),
    "task": (_get("/v1/tasks/digits"), 200, {Code.TOKEN_INVALID, Code.UNKNOWN_TASK}),
    "plan": (_get("/v1/tasks/digits/plan"), 200, {Code.TOKEN_INVALID, Code.UNKNOWN_TASK}),
    "signed plan": (_signed_plan, 200, {200, Code.BAD_PLAN}),
    "versions": (_get("/v1/tasks/digits/versions"), 200, {Code.TOKEN_INVALID, Code.UNKNOWN_TASK}),
    "model": (_get("/v1/tasks/digits/versions/1/model"), 200, {Code.UNKNOWN_TASK, Code.UNKNOWN_VERSION}),
    "windows": (_get("/v1/tasks/digits/windows"), 200, {Code.TOKEN_INVALID, Code.UNKNOWN_TASK}),
}


@pytest.mark.parametrize("name", ORDERS)
def test_orders(site: Site, name: str) -> None:
    valid, status, numbers = ORDERS[name]
    # What a blob holds is nobody's business yet: there is nothing to damage in it.
    site.throw(valid(site), site.admin, numbers, misaddressed if name == "new blob" else damaged)
    site.still(valid(site), status, site.admin)


# Thrown at here or in `test_fuzz_windows.py`, by listener.
_PHASES = [f"GET /v1/windows/{{tau0}}/{phase}" for phase in ("u2", "survivors", "quorum", "done")]
_POSTS = [f"POST /v1/windows/{{tau0}}/{phase}" for phase in ("shares", "masked", "vote", "unmask", "canaries")]
_SMALL = [f"POST /v1/{name}" for name in ("enrol", "renew", "check-in", "joins", "reports")]
_REST = ["GET /v1/joins/{ticket}", "GET /v1/blobs/{sha256}", "GET /health"]
THROWN_AT = {
    "device": {*_PHASES, *_POSTS, *_SMALL, *_REST, "PUT /v1/windows/{tau0}/masked", "HEAD /v1/windows/{tau0}/masked"},
    "admin": {
        *("GET /health", "GET /metrics", "GET /v1/stats", "GET /v1/devices", "GET /v1/policy", "PUT /v1/policy"),
        *("POST /v1/blobs", "GET /v1/tasks", "POST /v1/tasks", "GET /v1/tasks/{name}", "GET /v1/tasks/{name}/plan"),
        *("PUT /v1/tasks/{name}/plan", "GET /v1/tasks/{name}/versions", "GET /v1/tasks/{name}/versions/{number}/model"),
        *("GET /v1/tasks/{name}/windows", "GET /v1/windows/{tau0}", "GET /v1/windows/{tau0}/sum"),
    },
}


def test_no_call_is_left_out() -> None:
    """A call that is added must be thrown at as well."""
    apps = {"device": device_api.make_app(Mock(), Mock()), "admin": admin_api.make_app(Mock(), Mock())}
    for name, app in apps.items():
        routes = {f"{route.method} {route.resource.canonical}" for route in app.router.routes() if route.resource}
        assert routes - {"* /{rest}"} == THROWN_AT[name]


def test_models() -> None:
    """What a task is made of, on its way from the stored file to the plan, version 1 and the file for inference."""
    settings = TaskSettings.from_json(SETTINGS)

    def parse(data: bytes) -> None:
        plan = plans.draft(data, settings, FLEET, "digits", 0).plan
        assert Plan.decode(plan.signed_bytes() + bytes(64)) == plan
        first = aggregate.first_version(plans.first_parameters(data, settings))
        plans.inference_model(data, settings, aggregate.parameters(first.state))

    assert fuzz(st.just(model()), parse) > EXAMPLES // 2


# --- what is hardly a request -------------------------------------------------------------------------------------------

AT_ONCE = 250


@pytest.mark.parametrize("listener", ["device", "admin"])
def test_damage_anywhere_in_the_bytes_of_a_request(site: Site, monkeypatch: pytest.MonkeyPatch, listener: str) -> None:
    """Lengths and line ends are hit as well: every connection is answered or closed, none is left waiting."""
    monkeypatch.setattr(admin_api, "_BODY_S", 0.3)
    to, random = getattr(site, listener), Random(EXAMPLES)
    seeds = [_join(site), _ticket(site), _blob(site)] if listener == "device" else [_new_task(site), _next_policy(site)]

    async def one(data: bytes) -> int:
        answer = await Line(to.url).last_word(data)
        try:
            return judged(answer, to is site.device, data.startswith(b"HEAD "))[0] if answer else 0
        except Exception as error:
            raise AssertionError(f"{type(error).__name__}: {error}, from {data[:4000]!r}") from error

    found: Counter[int] = Counter()
    for start in range(0, EXAMPLES, AT_ONCE):
        calls = [random.choice(seeds) for _ in range(min(AT_ONCE, EXAMPLES - start))]
        found.update(site.all(*(one(mutated(call.on_the_wire(), random)) for call in calls)))
    assert found[STATUS + 400] > EXAMPLES // 10, found
    assert found[STATUS + 408] and found[0] < EXAMPLES // 4, found
    assert not site.errors.found
    site.still(_health(site), 200, to)


def _raw(*lines: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join((*lines, b"", b"")) + body


_POST = (b"POST /v1/reports HTTP/1.1", b"Host: a", b"Content-Type: %s" % FLAT.encode())
# What is sent, and whether the connection may be closed without a word (there is no request to answer).
ODD_BYTES: dict[str, tuple[bytes, bool]] = {
    "nothing": (b"", True),
    "line ends": (b"\r\n" * 2000, True),
    "zeros": (bytes(5000), False),
    "half a head": (b"POST /v1/reports HTTP/1.1\r\nHost: a\r\nX", True),
    "http/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(20), False),
    "http/9.9": (_raw(b"GET /health HTTP/9.9", b"Host: a"), False),
    "no path": (_raw(b"GET  HTTP/1.1", b"Host: a"), False),
    "a whole address": (_raw(b"GET http://[::1/health HTTP/1.1", b"Host: a"), False),
    "an endless name": (b"GET /health HTTP/1.1\r\n" + b"a" * 70_000, False),
    "an endless value": (_raw(b"GET /health HTTP/1.1", b"Host: a", b"X: " + b"x" * 70_000), False),
    "a header without a name": (_raw(b"GET /health HTTP/1.1", b"Host: a", b": b"), False),
    "a zero in a header": (_raw(b"GET /health HTTP/1.1", b"Host: a", b"X: a\0b"), False),
    "a folded header": (_raw(b"GET /health HTTP/1.1", b"Host: a", b"X: a", b" b"), False),
    "two lengths": (_raw(*_POST, b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), False),
    "length and chunks": (_raw(*_POST, b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), False),
    "a length with a sign": (_raw(*_POST, b"Content-Length: +3", body=b"abc"), False),
    "a length without end": (_raw(*_POST, b"Content-Length: %s" % (b"9" * 30), body=b"abc"), False),
    "a length too large": (_raw(*_POST, b"Content-Length: 99999999", body=b"abc"), False),
    "a body too short": (_raw(*_POST, b"Content-Length: 30", body=b"abc"), False),
    "chunks": (_raw(*_POST, b"Transfer-Encoding: chunked", body=b"3\r\nabc\r\n0\r\n\r\n"), False),
    "a chunk without end": (_raw(*_POST, b"Transfer-Encoding: chunked", body=b"f" * 16 + b"\r\nabc"), False),
    "chunks that are none": (_raw(*_POST, b"Transfer-Encoding: chunked", body=b"xyz\r\nabc\r\n"), False),
    "another coding": (_raw(*_POST, b"Transfer-Encoding: gzip", body=b"abc"), False),
    "a tunnel": (_raw(b"CONNECT a:443 HTTP/1.1", b"Host: a"), False),
    "a web socket": (_raw(b"GET /v1/reports HTTP/1.1", b"Host: a", b"Connection: upgrade", b"Upgrade: websocket"), False),
}


@pytest.mark.parametrize("listener", ["device", "admin"])
@pytest.mark.parametrize("name", ODD_BYTES)
def test_odd_bytes(site: Site, name: str, listener: str) -> None:
    to, (data, may_be_closed) = getattr(site, listener), ODD_BYTES[name]
    answer = site.run(Line(to.url).last_word(data))
    assert answer or may_be_closed
    assert answer is None or 400 <= judged(answer, to is site.device)[0] - STATUS < 500, answer
    assert not site.errors.found
    site.still(_health(site), 200, to)
