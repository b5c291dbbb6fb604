"""The enrolment service: HTTP in front of `enrolment.py`.

It opens the issuer's key and nothing else: root and plan signer need not be on this machine. The policy is read anew for each
request, so a policy that is signed meanwhile holds at once. Every refusal is a Failure message with its number.
What does not belong here: rules.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from aiohttp import hdrs, web

from whimbrel_authority import enrolment
from whimbrel_authority.issuing import Issuer
from whimbrel_authority.keys import Directory
from whimbrel_authority.ledger import Ledger
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Enrol, Enrolled, Failure, Renew
from whimbrel_protocol.objects import Certificate
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.wire import CONTENT_TYPE, decode, encode

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Clock = Callable[[], float]

BODY_MAX = 4_096
BODY_S = 10.0
_LOG = logging.getLogger(__name__)
_HTTP = {404: Code.NOT_FOUND, 405: Code.METHOD_NOT_ALLOWED, 413: Code.TOO_LARGE}


class _Desk:
    """The ledger, the issuer's key and the one thread that uses them: a request waits for the disk, the loop does not."""

    def __init__(self, directory: Directory, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock
        self._key: SigningKey = directory.issuer
        self._ledger = Ledger(directory.ledger_path)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")
        if self._key.public not in self._policy().issuers:
            raise ProtocolError(Code.CONFIGURATION, "the policy does not name this directory's issuer key")

    def _policy(self) -> Policy:
        return Policy.decode(self._directory.policy())

    async def answer(self, message: Enrol | Renew) -> Enrolled:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(self._answer, message))

    def _answer(self, message: Enrol | Renew) -> Enrolled:
        issuer = Issuer(self._key, self._policy())
        if isinstance(message, Enrol):
            return enrolment.enrol(self._ledger, issuer, message, int(self._clock()))
        return enrolment.renew(self._ledger, issuer, message, int(self._clock()))

    def policy_bytes(self) -> bytes:
        return self._directory.policy()

    def close(self) -> None:
        self._thread.shutdown()
        self._ledger.close()


_DESK = web.AppKey("desk", _Desk)


def make_app(directory: Directory, clock: Clock = time.time) -> web.Application:
    """Return the service's application; `clock` gives Unix seconds."""
    app = web.Application(client_max_size=BODY_MAX, middlewares=[_failures])
    app.cleanup_ctx.append(partial(_open_desk, directory, clock))
    app.router.add_post("/v1/enrol", _enrol)
    app.router.add_post("/v1/renew", _renew)
    app.router.add_get("/v1/policy", _policy)
    app.router.add_get("/health", _health)
    return app


async def serve(directory: Directory, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Listen until SIGINT or SIGTERM; `ready` is called with the address once connections are taken (port 0: a free port)."""
    stop = asyncio.Event()
    for each in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(each, stop.set)
    runner = web.AppRunner(make_app(directory), access_log=None, auto_decompress=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        ready(f"http://{host}:{runner.addresses[0][1]}")
        await stop.wait()
    finally:
        await runner.cleanup()


async def _open_desk(directory: Directory, clock: Clock, app: web.Application) -> AsyncIterator[None]:
    app[_DESK] = _Desk(directory, clock)
    yield
    app[_DESK].close()


async def _enrol(request: web.Request) -> web.Response:
    return await _issue(request, decode(await _body(request), Enrol))


async def _renew(request: web.Request) -> web.Response:
    return await _issue(request, decode(await _body(request), Renew))


async def _body(request: web.Request) -> bytes:
    if request.content_type != CONTENT_TYPE or hdrs.CONTENT_ENCODING in request.headers:
        raise ProtocolError(Code.WRONG_CONTENT_TYPE, f"the body is {CONTENT_TYPE}, not encoded further")
    try:
        async with asyncio.timeout(BODY_S):
            return await request.read()
    except TimeoutError:
        raise ProtocolError(Code.UPLOAD_TOO_SLOW) from None


async def _issue(request: web.Request, message: Enrol | Renew) -> web.Response:
    answer = await request.app[_DESK].answer(message)
    _LOG.info("certificate for device %s", Certificate.decode(answer.certificate).device.hex())
    return web.Response(body=encode(answer), content_type=CONTENT_TYPE)


async def _policy(request: web.Request) -> web.Response:
    return web.Response(body=request.app[_DESK].policy_bytes(), content_type="application/octet-stream")


async def _health(_: web.Request) -> web.Response:
    return web.Response(text="ok\n")


@web.middleware
async def _failures(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turn whatever a handler raises into a Failure message."""
    try:
        return await handler(request)
    except ProtocolError as error:
        return _failure(error.code, error.detail)
    except web.RequestPayloadError as error:
        return _failure(Code.BAD_REQUEST, str(error))
    except web.HTTPException as error:
        return _failure(_HTTP.get(error.status, Code.BAD_REQUEST), error.reason)
    except Exception:
        _LOG.exception("%s %s failed", request.method, request.path)
        return _failure(Code.INTERNAL, "")


def _failure(code: Code, detail: str) -> web.Response:
    _LOG.info("refused: %d %s", code, detail)
    body = encode(Failure(int(code), (detail or code.title)[:256]))
    return web.Response(status=code.http, body=body, content_type=CONTENT_TYPE)
