"""Reading small request bodies: length and type are judged before the first byte, time and size are bounded.

What belongs here: what both listeners do with a body before anybody looks into it. What does not: masked vectors
(`upload.py`).
"""

from __future__ import annotations

import asyncio

from aiohttp import hdrs, web

from whimbrel_protocol.errors import Code, ProtocolError

# Bytes of the request's body that were read; the metrics middleware counts them for the route.
RECEIVED = web.RequestKey("received", int)


async def expect_nothing(_: web.Request) -> None:
    """Take the place of aiohttp's expect handler, which would invite the body before the request's headers were judged."""


async def invite(request: web.Request) -> None:
    """Ask for the body where the client waits for that. Raises ProtocolError BAD_REQUEST for another expectation."""
    expected = request.headers.get(hdrs.EXPECT)
    if expected is None:
        return
    if expected.lower() != "100-continue":
        raise ProtocolError(Code.BAD_REQUEST, f"Expect: {expected[:40]!r} is not 100-continue")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    request.writer.output_size = 0


def stated_length(request: web.Request, limit: int) -> int:
    """Return Content-Length. Raises ProtocolError LENGTH_REQUIRED or TOO_LARGE."""
    length = request.content_length
    if length is None:
        raise ProtocolError(Code.LENGTH_REQUIRED, "send the body with a Content-Length")
    if length > limit:
        raise ProtocolError(Code.TOO_LARGE, f"{length} bytes, not at most {limit}")
    return length


def require_type(request: web.Request, content_type: str) -> None:
    """Raise ProtocolError WRONG_CONTENT_TYPE where the body is declared as anything but `content_type`."""
    if request.content_type != content_type:
        raise ProtocolError(Code.WRONG_CONTENT_TYPE, f"{request.content_type[:100]}, not {content_type}")


async def read(request: web.Request, content_type: str, limit: int, seconds: float) -> bytes:
    """Return the whole body. Raises ProtocolError where type, length, or the time that it takes is outside the limits."""
    require_type(request, content_type)
    stated_length(request, limit)
    await invite(request)
    try:
        async with asyncio.timeout(seconds):
            data = await request.content.read()
    except TimeoutError:
        raise ProtocolError(Code.UPLOAD_TOO_SLOW, f"the body took longer than {seconds:g} s") from None
    request[RECEIVED] = len(data)
    return data
