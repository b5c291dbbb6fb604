"""Errors as answers: one middleware that turns whatever a handler raises into a numbered answer of its listener.

What belongs here: the two forms of a no (a `Failure` message for devices, application/problem+json for operators) and the
mapping of exceptions to numbers. What does not: which numbers exist (`whimbrel_protocol.errors`) and when they are raised.
Only an exception that nobody foresaw becomes a 500; it is logged with its trace, and the answer says nothing of it.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Middleware

from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Failure

logger = logging.getLogger("whimbrel.http")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Answer = Callable[[ProtocolError], web.Response]

_BY_STATUS = {
    404: Code.NOT_FOUND,
    405: Code.METHOD_NOT_ALLOWED,
    411: Code.LENGTH_REQUIRED,
    413: Code.TOO_LARGE,
    415: Code.WRONG_CONTENT_TYPE,
}
# Where the same call may succeed a little later: the seconds to wait first.
_RETRY_AFTER = {Code.BUSY: 5, Code.STORAGE_FULL: 60, Code.ENROLMENT_DOWN: 30, Code.INTERNAL: 30}


def failure(error: ProtocolError) -> web.Response:
    """Return the no of the device listener."""
    wait = error.come_back_s or _RETRY_AFTER.get(error.code, 0)
    detail = error.detail.encode(errors="replace")[:1000].decode(errors="ignore")
    body = wire.encode(Failure(int(error.code), detail, wait))
    return web.Response(body=body, status=error.code.http, content_type=wire.CONTENT_TYPE, headers=_headers(wait))


def problem(error: ProtocolError) -> web.Response:
    """Return the no of the admin listener (RFC 9457)."""
    document = {
        "type": f"urn:whimbrel:error:{int(error.code)}",
        "title": error.code.title,
        "status": error.code.http,
        "detail": error.detail,
        "code": int(error.code),
    }
    headers = _headers(_RETRY_AFTER.get(error.code, 0))
    return web.Response(
        body=json.dumps(document).encode() + b"\n",
        status=error.code.http,
        content_type="application/problem+json",
        headers=headers,
    )


def _headers(wait: int) -> dict[str, str]:
    return {"Retry-After": str(wait)} if wait else {}


def numbered(exception: Exception) -> ProtocolError:
    """Return the numbered error that `exception` amounts to; an unforeseen one is logged and becomes INTERNAL."""
    if isinstance(exception, ProtocolError):
        if exception.code.http >= 500 and exception.code is not Code.BUSY:
            logger.error("request failed", extra={"code": int(exception.code), "detail": exception.detail})
        return exception
    if isinstance(exception, web.HTTPException) and exception.status < 500:
        return ProtocolError(_BY_STATUS.get(exception.status, Code.BAD_REQUEST), exception.reason)
    if isinstance(exception, (web.RequestPayloadError, HttpProcessingError)):
        return ProtocolError(Code.BAD_REQUEST, "the request's body cannot be read")
    if isinstance(exception, OSError) and exception.errno in (errno.ENOSPC, errno.EDQUOT):
        logger.error("the disk is full", exc_info=exception)
        return ProtocolError(Code.STORAGE_FULL)
    logger.error("unforeseen", exc_info=exception)
    return ProtocolError(Code.INTERNAL)


def errors_as(answer: Answer) -> Middleware:
    """Return a middleware that answers every exception through `answer`; broken connections are left to aiohttp."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            return await handler(request)
        except ConnectionError:
            raise
        except Exception as exception:
            return answer(numbered(exception))

    return middleware


async def nowhere(request: web.Request) -> web.StreamResponse:
    """Answer every address and method that no other route takes; it is registered last, under every path."""
    allowed: set[str] = set()
    for resource in request.app.router.resources():
        if resource.canonical != "/{rest}":
            allowed |= (await resource.resolve(request))[1]
    if allowed:
        raise ProtocolError(Code.METHOD_NOT_ALLOWED, f"{request.method} is not one of {', '.join(sorted(allowed))}")
    raise ProtocolError(Code.NOT_FOUND)
