"""Everything that is wrong gets a numbered 4xx from either listener, never a 500 and never silence."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import onnx
import pytest

from tests.server.world import SETTINGS, World, model, policy
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code
from whimbrel_server.listeners.device_api import ENDPOINTS, respond

FLAT = wire.CONTENT_TYPE
OCTETS = "application/octet-stream"
TAU0, TICKET = "ab" * 32, "cd" * 16
ACCEPTED = wire.encode(m.Accepted())
SHARES = wire.encode(m.Shares(0, bytes(32), b"", bytes(32), bytes(64)))


async def device_failure(response: aiohttp.ClientResponse) -> tuple[int, int]:
    """The status and number of a device listener's no; a HEAD has no body to hold a number."""
    body = await response.read()
    if response.method == "HEAD":
        return response.status, 0
    assert response.content_type == FLAT, (response.status, body[:200])
    answer = wire.decode(body, m.Failure)
    assert Code(answer.number).http == response.status
    return response.status, answer.number


def chunked(data: bytes) -> Any:
    async def pieces() -> Any:
        yield data

    return pieces()


# path, method, options of the request, number of the refusal (0: a HEAD). The token is valid unless `anonymous` is given.
DEVICE_CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("/", "GET", {}, 400),
    ("/v1/nothing", "POST", {"data": b"x"}, 400),
    ("/v1/tasks", "GET", {}, 400),
    ("/%00%ff/../..", "GET", {}, 400),
    ("/v1/check-in", "GET", {}, 401),
    ("/v1/joins", "DELETE", {}, 401),
    ("/health", "POST", {}, 401),
    (f"/v1/blobs/{TAU0}", "PUT", {"data": b"x"}, 401),
    *((endpoint.path.replace("{tau0}", TAU0), "PATCH", {}, 401) for endpoint in ENDPOINTS),
    ("/v1/joins", "POST", {"anonymous": "", "data": ACCEPTED, "type": FLAT}, 402),
    ("/v1/joins", "POST", {"anonymous": "Basic dTpw", "data": ACCEPTED, "type": FLAT}, 402),
    ("/v1/joins", "POST", {"anonymous": "Bearer ", "data": ACCEPTED, "type": FLAT}, 402),
    ("/v1/joins", "POST", {"anonymous": "Bearer nonsense", "data": ACCEPTED, "type": FLAT}, 403),
    (f"/v1/windows/{TAU0}/u2", "GET", {"anonymous": ""}, 402),
    (f"/v1/windows/{TAU0}/masked", "PUT", {"anonymous": "", "data": b"x", "type": OCTETS}, 402),
    (f"/v1/windows/{TAU0}/masked", "HEAD", {"anonymous": ""}, 0),
    (f"/v1/windows/{TAU0}/masked", "HEAD", {}, 0),
    ("/v1/check-in", "POST", {"data": b"", "type": FLAT}, 100),
    ("/v1/check-in", "POST", {"data": b"{}", "type": FLAT}, 100),
    ("/v1/check-in", "POST", {"data": ACCEPTED, "type": FLAT}, 101),
    ("/v1/check-in", "POST", {"data": ACCEPTED, "type": "application/json"}, 407),
    ("/v1/check-in", "POST", {"data": ACCEPTED, "type": "no type at all"}, 407),
    ("/v1/check-in", "POST", {"data": chunked(ACCEPTED), "type": FLAT}, 434),
    ("/v1/check-in", "POST", {"data": io.BytesIO(bytes(2**20 + 1)), "type": FLAT}, 406),
    ("/v1/check-in", "POST", {"data": ACCEPTED, "type": FLAT, "headers": {"Content-Encoding": "gzip"}}, 101),
    ("/v1/check-in", "POST", {"data": ACCEPTED, "type": FLAT, "headers": {"Expect": "a miracle"}}, 427),
    ("/v1/enrol", "POST", {"data": wire.encode(m.Enrol(bytes(152), "t")), "type": FLAT}, 426),
    ("/v1/renew", "POST", {"data": wire.encode(m.Renew(bytes(152), bytes(172), bytes(64))), "type": FLAT}, 426),
    ("/v1/joins", "POST", {"data": wire.encode(m.Join(bytes(404), bytes(16))), "type": FLAT}, 414),
    (f"/v1/joins/{TICKET}", "GET", {}, 411),
    (f"/v1/joins/{TICKET.upper()}", "GET", {}, 411),
    ("/v1/joins/xyz", "GET", {}, 411),
    (f"/v1/joins/{TICKET}?wait=26", "GET", {}, 427),
    (f"/v1/joins/{TICKET}?wait=-1", "GET", {}, 427),
    (f"/v1/joins/{TICKET}?wait=nan", "GET", {}, 427),
    (f"/v1/joins/{TICKET}?wait=soon", "GET", {}, 427),
    *((f"/v1/windows/{TAU0}/{phase}", "GET", {}, 410) for phase in ("u2", "survivors", "quorum", "done")),
    ("/v1/windows/abc/u2", "GET", {}, 410),
    ("/v1/windows/%F0%9F%90%A6/u2", "GET", {}, 410),
    (f"/v1/windows/{TAU0}/tea", "GET", {}, 400),
    (
        f"/v1/windows/{TAU0}/shares",
        "POST",
        {"data": SHARES, "type": FLAT},
        410,
    ),
    (f"/v1/windows/{TAU0}/vote", "POST", {"data": wire.encode(m.Vote(0, m.VoteKind.ABORT, bytes(64))), "type": FLAT}, 410),
    (f"/v1/windows/{TAU0}/masked?offset=0", "PUT", {"data": b"x" * 8, "type": OCTETS}, 410),
    (f"/v1/blobs/{TAU0}", "GET", {}, 412),
    ("/v1/blobs/../../etc/passwd", "GET", {}, 400),
    ("/v1/blobs/..%2f..%2fetc%2fpasswd", "GET", {}, 412),
]


async def test_devices_get_a_number_for_every_wrong_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = await World.make(tmp_path)
    wrong = []
    async with world.serving() as (server, operator, (device, *_rest)):
        await operator.start_task()
        await device.check_in()
        for path, method, options, number in DEVICE_CASES:
            token = options.get("anonymous", f"Bearer {device.token}")
            headers = {"Authorization": token, "Content-Type": options.get("type", FLAT), **options.get("headers", {})}
            url = server.device_url + path
            async with device.http.request(method, url, data=options.get("data"), headers=headers) as response:
                status, found = await device_failure(response)
                if found != number or not 400 <= status < (500 if number != 426 else 504):
                    wrong.append((method, path, options, status, found, number))
    assert not wrong, "\n".join(map(str, wrong))
    assert "unforeseen" not in caplog.text


async def test_bytes_that_are_no_request_get_a_number_too(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, _, _devices):
        for url, mark in ((server.device_url, b"WHB1"), (server.admin_url, b'"code": 427')):
            host, port = url.removeprefix("http://").split(":")
            for sent in (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
                b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1, 2\r\n\r\n",
                b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n\r\n",
                b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 500 + b"\r\n",
                b"GET  /  SPDY\r\n\r\n",
                b"POST /v1/check-in HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n",
            ):
                reader, writer = await asyncio.open_connection(host, int(port))
                writer.write(sent)
                answer = await asyncio.wait_for(reader.read(), 5)
                writer.close()
                assert answer.startswith((b"HTTP/1.1 4", b"HTTP/1.0 4")) and mark in answer, (sent[:40], answer[:200])
                assert b"Server: whimbrel\r\n" in answer and b"aiohttp" not in answer


async def test_no_answer_says_which_software_of_which_version_gives_it(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, _devices):
        for url in (server.device_url, server.admin_url):
            for path in ("/health", "/nowhere", "/v1/tasks"):
                async with operator.http.get(url + path) as response:
                    assert response.headers["Server"] == "whimbrel"


async def test_a_body_that_never_comes_is_given_up(tmp_path: Path) -> None:
    world = await World.make(tmp_path, body_s=0.2, idle_s=0.4)
    async with world.serving() as (server, _, _devices):
        host, port = server.device_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"POST /v1/check-in HTTP/1.1\r\nHost: a\r\nContent-Type: %s\r\nContent-Length: 50\r\n\r\nx" % FLAT.encode()
        )
        answer = await asyncio.wait_for(reader.read(), 5)
        assert answer.startswith(b"HTTP/1.1 408")
        writer.close()
        # A connection on which nothing is asked is closed as well.
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/check-in HTT")
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()


async def test_connections_and_polls_beyond_their_limits_do_not_pile_up(tmp_path: Path) -> None:
    world = await World.make(tmp_path, connections=2, polls=1)
    async with world.serving() as (server, operator, (device, *_rest)):
        await operator.start_task()
        host, port = server.device_url.removeprefix("http://").split(":")
        await device.train()
        joined = await device.join()
        path = f"/v1/joins/{joined.ticket.hex()}?wait=25"
        waiting = asyncio.create_task(device.call("GET", path))
        await asyncio.sleep(0.1)
        assert isinstance(await asyncio.wait_for(device.call("GET", path), 2), m.Wait)
        assert not waiting.done()
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await asyncio.wait_for(reader.read(), 2) == b""
        writer.close()
        waiting.cancel()


async def test_a_refused_upload_is_not_read(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, _, (device, *_rest)):
        await device.check_in()
        host, port = server.device_url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head = f"PUT /v1/windows/{TAU0}/masked HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {device.token}\r\n"
        writer.write(f"{head}Content-Type: {OCTETS}\r\nContent-Length: 800\r\nExpect: 100-continue\r\n\r\n".encode())
        answer = await asyncio.wait_for(reader.read(2000), 5)
        assert answer.startswith(b"HTTP/1.1 404") and b"100 Continue" not in answer
        writer.close()


async def test_small_calls_answer_from_bytes_alone(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    random = np.random.default_rng(1)
    async with world.serving() as (server, operator, (device, *_rest)):
        await operator.start_task()
        await device.check_in()
        good = wire.encode(device.check_in_message())
        for endpoint in ENDPOINTS:
            for _ in range(20):
                data = bytearray(good)
                for position in random.integers(0, len(data), 3):
                    data[position] ^= 1 << int(random.integers(0, 8))
                response = await respond(endpoint, server.desk, device.id, {"tau0": TAU0}, bytes(data))
                assert response.status < 500 or response.status == 503  # no enrolment service: 426


# --- the admin listener ---------------------------------------------------------------------------------------------


def onnx_without_weights() -> bytes:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1, 2])
    out = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 2])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", [value], [out])
    made: bytes = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)]).SerializeToString()
    return made


def json_case(body: object, number: int) -> tuple[str, str, dict[str, Any], int]:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    return ("/v1/tasks", "POST", {"data": data, "type": "application/json"}, number)


MODEL, NO_MODEL, NO_WEIGHTS = "model", "garbage", "no weights"
GOOD = {"name": "again", "model": MODEL, **SETTINGS}
ADMIN_CASES: list[tuple[str, str, dict[str, Any], int]] = [
    ("/nothing", "GET", {}, 400),
    ("/v1/tasks", "DELETE", {}, 401),
    ("/health", "POST", {}, 401),
    ("/v1/tasks", "GET", {"anonymous": ""}, 402),
    ("/metrics", "GET", {"anonymous": ""}, 402),
    ("/nothing", "GET", {"anonymous": ""}, 402),
    ("/v1/tasks", "GET", {"anonymous": "Bearer wrong"}, 403),
    ("/v1/tasks", "GET", {"anonymous": "Bearer ÿ"}, 403),
    json_case(b"", 427),
    json_case(b"[1]", 427),
    json_case(b"{", 427),
    json_case(b"\xff\xfe", 427),
    json_case(b"[" * 100_000, 427),
    json_case({}, 427),
    json_case({**GOOD, "name": 3}, 427),
    json_case({**GOOD, "name": ""}, 427),
    json_case({**GOOD, "name": "../x"}, 427),
    json_case({**GOOD, "name": "a" * 65}, 427),
    json_case({**GOOD, "model": None}, 427),
    json_case({**GOOD, "model": "zz"}, 412),
    json_case({**GOOD, "model": TAU0}, 412),
    json_case({**GOOD, "model": NO_MODEL}, 600),
    json_case({**GOOD, "model": NO_WEIGHTS}, 600),
    json_case({**GOOD, "name": "digits"}, 415),
    json_case({**GOOD, "learning_rate": 1}, 431),
    json_case({**GOOD, "lr": "fast"}, 431),
    json_case({**GOOD, "lr": -1}, 431),
    json_case({**GOOD, "batch": 10**30}, 431),
    json_case({**GOOD, "loss": "hinge"}, 431),
    json_case({**GOOD, "optimizer": "adamw9"}, 431),
    json_case({**GOOD, "output": "nowhere"}, 600),
    json_case({**GOOD, "train": ["nothing*"]}, 600),
    json_case({**GOOD, "scale": 3.0}, 431),
    json_case({**GOOD, "masked": False}, 431),
    json_case({**GOOD, "window": 9, "contributions": 9, "expected_window_dropout": 0.5}, 429),
    ("/v1/tasks", "POST", {"data": b"{}", "type": "text/plain"}, 407),
    ("/v1/blobs", "POST", {"data": b"", "type": OCTETS}, 427),
    ("/v1/blobs", "POST", {"data": chunked(b"x"), "type": OCTETS}, 434),
    ("/v1/blobs", "POST", {"data": bytes(2001), "type": OCTETS}, 406),
    ("/v1/tasks/nobody", "GET", {}, 408),
    ("/v1/tasks/nobody/plan", "GET", {}, 408),
    ("/v1/tasks/nobody/versions", "GET", {}, 408),
    ("/v1/tasks/nobody/windows", "GET", {}, 408),
    ("/v1/tasks/%00/versions/1/model", "GET", {}, 408),
    ("/v1/tasks/digits/versions/9/model", "GET", {}, 409),
    ("/v1/tasks/digits/versions/-1/model", "GET", {}, 409),
    ("/v1/tasks/digits/versions/99999999999999999999/model", "GET", {}, 409),
    ("/v1/tasks/idle/versions/latest/model", "GET", {}, 416),
    ("/v1/tasks/idle/versions/1/model", "GET", {}, 416),
    ("/v1/tasks/nobody/plan", "PUT", {"data": b"x", "type": OCTETS}, 408),
    ("/v1/tasks/idle/plan", "PUT", {"data": b"x", "type": OCTETS}, 200),
    ("/v1/tasks/idle/plan", "PUT", {"data": b"MWN1" + bytes(500), "type": OCTETS}, 200),
    ("/v1/windows/xyz", "GET", {}, 410),
    (f"/v1/windows/{TAU0}", "GET", {}, 410),
    (f"/v1/windows/{TAU0}/sum", "GET", {}, 410),
    ("/v1/devices?limit=0", "GET", {}, 427),
    ("/v1/devices?limit=x", "GET", {}, 427),
    ("/v1/devices?after=x", "GET", {}, 413),
    ("/v1/policy", "PUT", {"data": b"", "type": OCTETS}, 200),
    ("/v1/policy", "PUT", {"data": b"MWP1" + bytes(60), "type": OCTETS}, 200),
    ("/v1/policy", "PUT", {"data": policy()[:-1] + b"\x77", "type": OCTETS}, 212),
    ("/v1/policy", "PUT", {"data": policy(0), "type": OCTETS}, 213),
    ("/v1/policy", "PUT", {"data": policy(2, fleet=b"x" * 16), "type": OCTETS}, 208),
    ("/v1/policy", "PUT", {"data": policy(2, gamma_milli=400), "type": OCTETS}, 215),
    ("/v1/policy", "PUT", {"data": policy(2, not_after=1), "type": OCTETS}, 214),
    ("/v1/policy", "PUT", {"data": policy(2, n_min=11, n_max=11), "type": OCTETS}, 429),
]


async def test_operators_get_a_problem_for_every_wrong_call(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = await World.make(tmp_path, model_bytes=2000)
    wrong = []
    async with world.serving() as (server, operator, (device, *_rest)):
        await operator.start_task()
        octets = {"Content-Type": OCTETS}
        blobs = {MODEL: model(), NO_MODEL: b"\x08\x07garbage", NO_WEIGHTS: onnx_without_weights()}
        for name, data in blobs.items():
            blob = await operator.call("POST", "/v1/blobs", data=data, headers=octets)
            blobs[name] = json.dumps(blob["sha256"]).encode()
        idle = json.dumps({**GOOD, "name": "idle"}).encode().replace(b'"model": "model"', b'"model": ' + blobs[MODEL])
        await operator.call("POST", "/v1/tasks", data=idle, headers={"Content-Type": "application/json"})
        for path, method, options, number in ADMIN_CASES:
            token = options.get("anonymous", f"Bearer {server.admin_token}")
            headers = {"Authorization": token, "Content-Type": options.get("type", OCTETS)}
            data = options.get("data")
            for name, blob in blobs.items():
                data = data.replace(f'"model": "{name}"'.encode(), b'"model": ' + blob) if isinstance(data, bytes) else data
            async with device.http.request(method, server.admin_url + path, data=data, headers=headers) as response:
                text = await response.text()
                problem = json.loads(text) if response.content_type == "application/problem+json" else {"code": text}
                if problem["code"] != number or not 400 <= response.status < 500 or problem["status"] != response.status:
                    wrong.append((method, path, str(options)[:200], response.status, problem, number))
    assert not wrong, "\n".join(map(str, wrong))
    assert "unforeseen" not in caplog.text


async def test_an_unforeseen_failure_says_nothing_of_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, _, (device, *_rest)):

        def broken(*_: object) -> None:
            raise ZeroDivisionError("the secret")

        monkeypatch.setattr(type(server.coordinator.engine), "check_in", broken)
        monkeypatch.setattr(type(server.coordinator.windows), "states", broken)
        message = wire.encode(device.check_in_message())
        async with device.http.post(
            f"{server.device_url}/v1/check-in", data=message, headers={"Content-Type": FLAT}
        ) as response:
            assert await device_failure(response) == (500, Code.INTERNAL)
        headers = {"Authorization": f"Bearer {server.admin_token}"}
        async with device.http.get(f"{server.admin_url}/v1/stats", headers=headers) as response:
            assert (response.status, "secret" in await response.text()) == (500, False)


async def test_the_operators_numbers_add_up(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task()
        await asyncio.gather(*(device.train() for device in devices))
        await asyncio.gather(*(device.take_part() for device in devices))
        stats = await operator.call("GET", "/v1/stats")
        uploads = stats["bytes_up_by_route"]["PUT /v1/windows/{tau0}/masked"]
        assert devices[0].spec is not None
        assert uploads == 10 * 8 * devices[0].spec.words
        assert stats["messages"]["vector accepted"] == 10
        assert stats["bytes_up"] > uploads and stats["bytes_down"] > 10_000 and stats["server_peak_rss_mb"] > 10
        text = (await operator.call("GET", "/metrics")).decode()
        assert f'whimbrel_bytes_up_total{{route="PUT /v1/windows/{{tau0}}/masked"}} {uploads}' in text
        async with devices[0].http.get(f"{server.admin_url}/health") as response:
            assert (await response.json())["status"] == "ok"
