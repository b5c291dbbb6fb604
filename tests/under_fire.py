"""A server on loopback that a test throws damaged requests at, and what every answer of it must be.

What belongs here: the running server with its authority and its devices, throwing, judging. What does not: requests and their
damage (`hostile_http.py`), which requests are thrown (`test_fuzz_endpoints.py`, `test_fuzz_windows.py`).
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from time import time
from typing import Any, TypeVar

from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile_http import Answer, Call, Headers, Line, damaged
from tests.server.world import ROOT, Device, Operator, World, policy
from tests.test_fuzz import EACH, EXAMPLES, VOLLEYS, for_the_time
from whimbrel_authority.keys import Directory
from whimbrel_authority.ledger import Ledger
from whimbrel_authority.service import make_app
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code
from whimbrel_protocol.primitives import SigningKey
from whimbrel_server import config
from whimbrel_server.app import Running
from whimbrel_server.datadir import DataDir
from whimbrel_server.setup import initialise

T = TypeVar("T")
Damage = Callable[[Call, Random], Call]

ISSUER = SigningKey(b"i" * 32)
TOKEN = "a token that admits many devices"
FLAT, OCTETS, JSON = wire.CONTENT_TYPE, "application/octet-stream", "application/json"
# Nothing may end by itself while damaged requests are thrown, however many they are.
_DAY = 86_400.0
_SLOW = dict.fromkeys(("share_s", "mask_s", "vote_s", "unmask_s", "round_deadline_s", "assignment_deadline_s"), _DAY)
_LIMITS = {"poll_s": 0.001, "body_s": 0.3, "idle_s": 0.5, "token_s": int(_DAY), "upload_grace_s": 0.3}
# Statuses are counted above the numbers of errors.
STATUS = 1000


def headers(token: str, kind: str = "") -> Headers:
    """The headers of a right request."""
    given = {"Host": "server", "Authorization": f"Bearer {token}" if token else "", "Content-Type": kind}
    return tuple((name.encode(), value.encode()) for name, value in given.items() if value)


class _Errors(logging.Handler):
    """Keeps what is logged as an error: a failure that no answer tells of shows there alone."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.name}: {record.getMessage()}, {record.exc_info}")


@dataclass
class Site:
    """A server with its authority and a running task, on an event loop that a test runs from outside."""

    runner: asyncio.Runner
    server: Running
    operator: Operator
    devices: list[Device]
    device: Line
    admin: Line
    errors: _Errors

    def run(self, work: Awaitable[T]) -> T:
        """Let the server run until `work` is done."""

        async def waited() -> T:
            return await work

        return self.runner.get_loop().run_until_complete(waited())

    def all(self, *work: Awaitable[T]) -> list[T]:
        """As `run`, for many at once."""

        async def gathered() -> list[T]:
            return list(await asyncio.gather(*work))

        return self.run(gathered())

    def another(self, number: int) -> Device:
        """A device besides the ten."""
        return Device(number, self.server, self.operator.http)

    # --- requests that are right ------------------------------------------------------------------------------------

    def message(self, device: Device, path: str, message: m.Message) -> Call:
        return Call(b"POST", path.encode(), headers(device.token, FLAT), wire.encode(message))

    def poll(self, device: Device, path: str) -> Call:
        return Call(b"GET", path.encode(), headers(device.token))

    def order(self, method: str, path: str, body: bytes = b"", kind: str = "") -> Call:
        return Call(method.encode(), path.encode(), headers(self.server.admin_token, kind), body)

    # --- fire -------------------------------------------------------------------------------------------------------

    def throw(self, call: Call, to: Line, reached: Iterable[int] = (), damage: Damage = damaged) -> None:
        """Throw EXAMPLES damaged versions of `call`; among the numbers that come back must be those of `reached`."""
        found: Counter[int] = Counter()

        @VOLLEYS
        @given(st.integers(0, 2**64 - 1))
        def volley(seed: int) -> None:
            random = Random(seed)
            self.run(self._volley(to, [damage(call, random) for _ in range(EACH)], found))

        for_the_time(volley)
        assert not self.errors.found
        refused = sum(count for number, count in found.items() if number >= STATUS + 400)
        assert refused > EXAMPLES // 10, found
        assert EXAMPLES < 1000 or set(reached) <= found.keys(), (set(reached) - found.keys(), found)

    async def _volley(self, to: Line, calls: list[Call], found: Counter[int]) -> None:
        for call in calls:
            try:
                answer = await to.ask(call)
                found.update(judged(answer, to is self.device, call.method == b"HEAD"))
            except Exception as error:
                raise AssertionError(f"{type(error).__name__}: {error}, from {call.on_the_wire()[:4000]!r}") from error

    def still(self, call: Call, status: int, to: Line) -> Answer:
        """The right request gets its right answer."""
        answer = self.run(to.ask(call))
        assert answer.status == status and not self.errors.found, (answer, self.errors.found)
        return answer


def judged(answer: Answer, is_device: bool, bodiless: bool = False) -> tuple[int, ...]:
    """Return STATUS + the status, and the error's number; an answer that no listener may give raises AssertionError."""
    status, kind = STATUS + answer.status, answer.headers.get("content-type", "").partition(";")[0]
    if answer.status < 400:
        assert answer.status in (200, 201, 206, 304), answer
        if kind == FLAT and answer.body:
            wire.decode(answer.body, *wire.LIMITS)
        return (status,)
    assert answer.status < 500, answer
    if bodiless:
        return (status,)
    number = _failure(answer, kind) if is_device else _problem(answer, kind)
    assert Code(number).http == answer.status, answer
    return status, number


def _failure(answer: Answer, kind: str) -> int:
    assert kind == FLAT, answer
    return wire.decode(answer.body, m.Failure).number


def _problem(answer: Answer, kind: str) -> int:
    assert kind == "application/problem+json", answer
    problem = json.loads(answer.body)
    assert problem["status"] == answer.status and problem["type"] and problem["title"] and problem["detail"], answer
    number: int = problem["code"]
    return number


# --- starting it ------------------------------------------------------------------------------------------------------


@contextmanager
def under_fire(folder: Path, **task: Any) -> Iterator[Site]:
    """A server with a running task, whose devices stand behind an enrolment service."""
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        try:
            yield runner.run(_site(runner, stack, folder, task))
        finally:
            runner.run(stack.aclose())


async def _site(runner: asyncio.Runner, stack: AsyncExitStack, folder: Path, task: dict[str, Any]) -> Site:
    first = policy(issuers=(ISSUER.public,))
    authority = TestServer(make_app(_authority(folder / "authority", first)))
    await authority.start_server()
    stack.push_async_callback(authority.close)
    world = _world(folder, str(authority.make_url("")))
    await initialise(world.data, ROOT.public, first, world.config.authority.url)
    errors = _Errors()
    logging.getLogger().addHandler(errors)
    stack.callback(logging.getLogger().removeHandler, errors)
    server, operator, devices = await stack.enter_async_context(world.serving())
    lines = Line(server.device_url), Line(server.admin_url)
    for line in lines:
        stack.callback(line.close)
    await operator.start_task(**{**_SLOW, **task})
    return Site(runner, server, operator, devices, *lines, errors)


def _authority(path: Path, first: bytes) -> Directory:
    directory = Directory.create(path, (b"r" * 32, b"i" * 32, b"p" * 32))
    directory.replace_policy(first)
    ledger = Ledger(directory.ledger_path)
    ledger.add_tokens([TOKEN], 10**6, int(time() + _DAY))
    ledger.close()
    return directory


def _world(folder: Path, authority: str) -> World:
    anywhere = {"port": 0}
    fleet = {"root": ROOT.public.hex(), "url": authority}
    table = {"authority": fleet, "listen": anywhere, "admin": anywhere, "limits": _LIMITS}
    return World(DataDir(folder / "data"), config.merged(table, {}))
