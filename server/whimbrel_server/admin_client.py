"""The command line's side of the admin listener: found by the data directory, spoken to with its token.

What belongs here: the calls. What does not: commands and their output (`cli.py`).
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

import aiohttp

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.config import load
from whimbrel_server.datadir import DataDir

OCTETS = {"Content-Type": "application/octet-stream"}


class AdminClient:
    """Calls the server that runs on a data directory."""

    def __init__(self, data: DataDir) -> None:
        self._url = data.admin_address()
        token = load(data.config, os.environ).admin.token or data.read(data.admin_token).decode().strip()
        self._headers = {"Authorization": f"Bearer {token}"}

    def get(self, path: str) -> Any:
        """Return the JSON, or the bytes, at `path`. All calls raise ProtocolError with the server's number."""
        return self._call("GET", path)

    def post(self, path: str, document: dict[str, Any]) -> Any:
        """Send JSON and return the answer."""
        return self._call("POST", path, json=document)

    def send(self, method: str, path: str, data: bytes) -> Any:
        """Send bytes and return the answer."""
        return self._call(method, path, data=data, headers=OCTETS)

    def _call(self, method: str, path: str, **options: Any) -> Any:
        return asyncio.run(self._answer(method, path, **options))

    async def _answer(self, method: str, path: str, **options: Any) -> Any:
        try:
            async with (
                aiohttp.ClientSession(self._url, headers=self._headers) as session,
                session.request(method, path, **options) as response,
            ):
                if response.status >= 400:
                    raise _refusal(response.status, await response.json(content_type=None))
                return await (response.json() if response.content_type == "application/json" else response.read())
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise ProtocolError(Code.UNREACHABLE, f"{self._url}: {error}; is `whimbrel-server serve` running?") from error


def _refusal(status: int, problem: Any) -> ProtocolError:
    known = {int(code): code for code in Code}
    number = problem.get("code") if isinstance(problem, dict) else None
    if number not in known:
        return ProtocolError(Code.UNREACHABLE, f"the server answers {status} without a number of this version")
    return ProtocolError(known[number], str(problem.get("detail", "")))
