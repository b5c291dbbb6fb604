"""HTTP as a hostile client or a bad line speaks it: one request in parts, what damage makes of it, and a raw connection.

What belongs here: requests that any listener may get, and answers as they arrive. What does not: what an answer must be
(`test_fuzz_endpoints.py`), damage to plain bytes (`mutations.py`).
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any
from urllib.parse import quote_from_bytes, urlsplit

from tests.mutations import changed, mutated

Headers = tuple[tuple[bytes, bytes], ...]

METHODS = (b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS", b"TRACE", b"BREW", b"get")
ODD_NUMBERS = (
    *(b"", b"-1", b"-0", b"+1", b"0x10", b"1e9", b"1e400", b"nan", b"inf", b"1_0", b"1.5", b"%00", b"%EF%BC%91", b"1;2"),
    *(b"9" * 15, b"9" * 16, b"9" * 400, b"18446744073709551616", b"1&wait=2&offset=3&limit=x", b"%", b"%ff", b"[]", b"\xff"),
)
# What some code reads besides the headers of a valid request. Lengths are left alone: they would only make both sides wait.
ODD_HEADERS: Headers = (
    *((b"Range", value) for value in (b"bytes=0-", b"bytes=5-2", b"bytes=-0", b"bytes=-5", b"bytes=%s-" % (b"9" * 30))),
    *((b"Range", value) for value in (b"lines=1-2", b"bytes=0-1,3-4", b"bytes=--1", b"bytes=", b"\xff", b"bytes=1-1")),
    *((b"If-None-Match", value) for value in (b"*", b'"', b'W/"x', b"\xe9", b'"' + b"a" * 5000, b'"a", W/"b", c')),
    *((b"If-Modified-Since", value) for value in (b"yesterday", b"Thu, 99 Foo 0000 99:99:99 GMT")),
    *((b"Content-Encoding", value) for value in (b"gzip", b"deflate", b"br", b"zstd", b"nonsense")),
    *((b"Expect", value) for value in (b"100-continue", b"a miracle", b"")),
    *((b"Transfer-Encoding", value) for value in (b"chunked", b"gzip", b"chunked, gzip", b"")),
    *(
        (b"Content-Type", value)
        for value in (b"", b";;;", b"a/b; c", b"x" * 4000, b'multipart/form-data; boundary="', b"\xff/\xff")
    ),
    *((b"Authorization", value) for value in (b"Bearer", b"Bearer  ", b"bearer \xff\xfe", b"Basic dTpw", b"Bearer a b", b"=")),
    *((b"Connection", value) for value in (b"close", b"upgrade", b"keep-alive, upgrade, \xff")),
    *((b"Upgrade", value) for value in (b"websocket", b"h2c", b"TLS/1.0")),
    *((b"Cookie", value) for value in (b'"\\\x01;;=', b"a=" + b"b" * 4000)),
    *((b"Host", value) for value in (b"", b"a:b:c", b"[::1", b"\xff")),
    (b"X-Forwarded-For", b"1.2.3.4, \xff"),
    (b"Sec-WebSocket-Key", b"x"),
)
ODD_VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 0.5, 1e-308, 1e30, 3.0, -0.0),
    *("", "x" * 5000, "\x00", "é🐦\ud800", "../x", [], [1], [[]], ["*"] * 500, {}, {"a": {"b": []}}),
)


@dataclass(frozen=True)
class Call:
    """One request. The length of its body is stated as it is; `fresh`: it may leave the connection in an unknown state."""

    method: bytes
    target: bytes
    headers: Headers = ()
    body: bytes = b""
    fresh: bool = False

    def on_the_wire(self) -> bytes:
        """The bytes of the request."""
        length: Headers = (
            ((b"Content-Length", b"%d" % len(self.body)),) if self.body or self.method in (b"POST", b"PUT") else ()
        )
        lines = [b"%s %s HTTP/1.1" % (self.method, self.target), *(b"%s: %s" % each for each in (*self.headers, *length))]
        return b"\r\n".join(lines) + b"\r\n\r\n" + self.body


# --- damage ---------------------------------------------------------------------------------------------------------


def _one_line(data: bytes) -> bytes:
    """Keep the end of the line where it was: what follows a request would be another one, with an answer of its own."""
    return data.translate(None, b"\r\n")


def _body(call: Call, random: Random) -> Call:
    return replace(call, body=mutated(call.body, random))


def _json(call: Call, random: Random) -> Call:
    document = json.loads(call.body)
    document[random.choice([*document, "surplus"])] = random.choice(ODD_VALUES)
    return replace(call, body=json.dumps(document).encode())


def _target(call: Call, random: Random) -> Call:
    target = b"/" + _one_line(mutated(call.target[1:] or b"/", random))
    return replace(call, target=quote_from_bytes(target, "/?=&%").encode() if random.random() < 0.5 else target)


def _segment(call: Call, random: Random) -> Call:
    parts = call.target.split(b"/")
    at = random.randrange(1, len(parts))
    parts[at] = random.choice([parts[at].upper(), parts[at] * 2, b"", b".", b"..", b"%2e%2e", b"%00", parts[-1], b"a" * 3000])
    return replace(call, target=b"/".join(parts))


def _query(call: Call, random: Random) -> Call:
    path, _, query = call.target.partition(b"?")
    name = random.choice([query.partition(b"=")[0] or b"wait", b"wait", b"offset", b"limit", b"after"])
    return replace(call, target=b"%s?%s=%s" % (path, name, random.choice(ODD_NUMBERS)))


def _header(call: Call, random: Random) -> Call:
    headers = list(call.headers)
    at = random.randrange(len(headers))
    name, value = headers[at]
    choice = random.randrange(5)
    if choice == 0:
        headers[at] = (_one_line(mutated(name, random)), value)
    elif choice == 1:
        del headers[at]
    elif choice == 2:
        headers.append((name, _one_line(mutated(value, random))))
    else:
        headers[at] = (name, _one_line(mutated(value, random)))
    return replace(call, headers=tuple(headers), fresh=True)


def _more_headers(call: Call, random: Random) -> Call:
    name, value = random.choice(ODD_HEADERS)
    kept = call.headers if random.random() < 0.5 else tuple(each for each in call.headers if each[0] != name)
    return replace(call, headers=((name, value), *kept), fresh=True)


def _method(call: Call, random: Random) -> Call:
    return replace(call, method=random.choice(METHODS), fresh=True)


def reworded(call: Call, random: Random) -> Call:
    """Return `call` with another message than the right one in it, and everything around it right."""
    return replace(call, body=changed(call.body, random))


def misaddressed(call: Call, random: Random) -> Call:
    """Return `call` with something around its body damaged."""
    return random.choice((_target, _segment, _query, _header, _more_headers, _method))(call, random)


def damaged(call: Call, random: Random) -> Call:
    """Return `call` with one part damaged, mostly the body where there is one."""
    if not call.body or random.random() < 0.25:
        return misaddressed(call, random)
    return random.choice((_body, _json) if call.body.startswith(b"{") else (_body,))(call, random)


# --- a connection ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Answer:
    """One answer; header names in lower case; `lasting`: the connection takes another request."""

    status: int
    headers: dict[str, str]
    body: bytes
    lasting: bool


@dataclass
class Line:
    """A connection to one listener, made anew whenever it broke."""

    url: str
    _streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = field(default=None, init=False)

    async def ask(self, call: Call, seconds: float = 20.0) -> Answer:
        """Send one request and return its answer. Raises TimeoutError, or IncompleteReadError where there is none."""
        if call.fresh:
            self.close()
        answer = await self.exchange(call.on_the_wire(), call.method == b"HEAD", seconds)
        if call.fresh or not answer.lasting:
            self.close()
        return answer

    async def exchange(self, data: bytes, bodiless: bool = False, seconds: float = 20.0) -> Answer:
        """Send bytes and return the answer that they get."""
        async with asyncio.timeout(seconds):
            if self._streams is None or self._streams[0].at_eof():
                self.close()
                parts = urlsplit(self.url)
                self._streams = await asyncio.open_connection(parts.hostname, parts.port)
            reader, writer = self._streams
            writer.write(data)
            return await _read(reader, bodiless)

    async def last_word(self, data: bytes, seconds: float = 5.0) -> Answer | None:
        """Send bytes over a connection of their own; return the answer, None where it is closed without one."""
        self.close()
        try:
            return await self.exchange(data, data.startswith(b"HEAD "), seconds)
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        finally:
            self.close()

    def close(self) -> None:
        """Break the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def _read(reader: asyncio.StreamReader, bodiless: bool) -> Answer:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    version, status_text, _ = head[0].split(" ", 2)
    status = int(status_text)
    if status == 100:
        return await _read(reader, bodiless)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    size = 0 if bodiless or status in (204, 304) else int(headers["content-length"])
    lasting = version == "HTTP/1.1" and headers.get("connection", "") != "close"
    return Answer(status, headers, await reader.readexactly(size), lasting)
