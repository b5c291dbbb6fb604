"""Enrolment and renewal: passed on to the authority's service byte for byte, because this server must not be able to enrol.

What belongs here: the call to that service, and what the server learns from its answer. What does not: any judgement of a
request.
"""

from __future__ import annotations

import logging
from typing import Any

import aiohttp

from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.objects import Certificate
from whimbrel_server.coordinator import Coordinator

logger = logging.getLogger("whimbrel.enrolment")

_ANSWER_MAX = 64 * 1024


class Enrolment:
    """The way to one authority's enrolment service; an empty `url` means that there is none."""

    def __init__(self, url: str, timeout_s: float, session: aiohttp.ClientSession, coordinator: Coordinator) -> None:
        self._url, self._session, self._coordinator = url.rstrip("/"), session, coordinator
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)

    async def forward(self, message: m.Enrol | m.Renew) -> m.Enrolled:
        """Return the service's answer, and note the device.

        Raises ProtocolError with the service's number where it refuses, ENROLMENT_DOWN where it does not answer.
        """
        if not self._url:
            raise ProtocolError(Code.ENROLMENT_DOWN, "this server knows no enrolment service")
        path = "enrol" if isinstance(message, m.Enrol) else "renew"
        answer = _decoded(await self._post(f"{self._url}/v1/{path}", wire.encode(message)))
        await self._learn(answer)
        return answer

    async def _post(self, url: str, body: bytes) -> bytes:
        headers = {"Content-Type": wire.CONTENT_TYPE}
        try:
            async with self._session.post(url, data=body, headers=headers, timeout=self._timeout) as response:
                if (response.content_length or _ANSWER_MAX) >= _ANSWER_MAX:
                    raise ProtocolError(Code.ENROLMENT_DOWN, "the enrolment service's answer has no length, or is too long")
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise ProtocolError(Code.ENROLMENT_DOWN, f"the enrolment service: {type(error).__name__}") from error

    async def _learn(self, answer: m.Enrolled) -> None:
        """Note the device, and put a newer policy in force: its members will ask for no less."""
        coordinator = self._coordinator
        device = Certificate.decode(answer.certificate).device
        await coordinator.services.rounds.seen(device, answer.certificate, "", 0, coordinator.now())
        if answer.policy != coordinator.fleet.policy_bytes:
            try:
                await coordinator.install_policy(answer.policy)
            except ProtocolError as error:
                logger.warning("the authority's policy was not installed", extra={"detail": error.detail})


def _decoded(data: bytes) -> m.Enrolled:
    """Return the service's yes; its no is raised with its number."""
    try:
        answer: Any = wire.decode(data, m.Enrolled, m.Failure)
        if isinstance(answer, m.Enrolled):
            Certificate.decode(answer.certificate)
            return answer
    except ProtocolError as error:
        raise ProtocolError(Code.ENROLMENT_DOWN, "the enrolment service gave no answer of this protocol") from error
    raise ProtocolError(_code(answer.number), answer.detail)


def _code(number: int) -> Code:
    known = {int(code): code for code in Code}
    if number not in known:
        raise ProtocolError(Code.ENROLMENT_DOWN, f"the enrolment service refuses with number {number}")
    return known[number]
