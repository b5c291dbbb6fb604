"""The Python client as the victim of an attack: a real participant over real HTTP, watched from the inside.

Here belong running it and what is found in its logs, its journal and its memory. What it must show belongs in the tests.
"""

from __future__ import annotations

import asyncio
import base64
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.client.fake_server import TOKEN
from tests.client.tasks import examples
from tests.hostile.attack import Attack, Update
from tests.hostile.listener import Listener
from tests.hostile.world import HostileServer
from whimbrel import DevicePolicy, Participant
from whimbrel.records import UNSENT, UpdateRecord, UpdateState
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.masks import WindowKeys

POLICY = DevicePolicy(backoff_min_s=0.05, backoff_max_s=0.1, window_patience_s=1.2, poll_s=0.1, history=5)
LIMIT_S, LINGER_S, IMPATIENT_S = 30.0, 0.06, 0.6


class Numbers(logging.Handler):
    """Collects the error numbers that the client logs."""

    def __init__(self) -> None:
        super().__init__()
        self.codes: list[Code] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Note a logged error."""
        args = record.args if isinstance(record.args, tuple) else ()
        self.codes += [one.code for one in args if isinstance(one, ProtocolError)]


@dataclass
class Trial:
    """One attack on one client, from its first request to its silence."""

    server: HostileServer
    path: Path
    numbers: Numbers = field(default_factory=Numbers)
    drawn: list[bytes] = field(default_factory=list)
    records: list[UpdateRecord] = field(default_factory=list)
    contributions: int = 0

    @property
    def attack(self) -> Attack:
        """What is tried."""
        return self.server.attack

    def participant(self, url: str) -> Participant:
        """The client."""

        def batches() -> Iterator[dict[str, Any]]:
            yield examples(24)

        # What is no message of the protocol is heard with patience; how much of it does not matter here.
        garbled = self.attack.code in (Code.MALFORMED, Code.UNEXPECTED_MESSAGE)
        policy = replace(POLICY, window_patience_s=IMPATIENT_S) if garbled else POLICY
        root = self.server.root.public.hex()
        return Participant.open(url, state=self.path, examples=batches, authority=root, token=TOKEN, policy=policy)

    def over(self) -> bool:
        """Whether the client has said what it had to say."""
        attack = self.attack
        if self.server.struck is None:
            return False
        if attack.update is Update.COUNTED and not self.contributions:
            return False
        if attack.code is not None:
            return attack.code in self.numbers.codes
        wanted = (Update.SPENT, Update.COUNTED) if attack.update is Update.SPENT else (attack.update,)
        return self.server.finished and self.fate in wanted

    @property
    def fate(self) -> Update:
        """What became of the update, as the journal has it."""
        if self.contributions:
            return Update.COUNTED
        if not self.records:
            return Update.NONE
        (record,) = self.records
        if record.state is UpdateState.SPENT:
            return Update.SPENT
        return Update.FREE if record.state in UNSENT else Update.COUNTED

    def look(self, participant: Participant) -> None:
        """Note what the journal holds now."""
        self.records = [one for one in participant.state.updates if one.state is not UpdateState.CONTRIBUTED]
        self.contributions = sum(len(memory.contributions) for memory in participant.state.tasks.values())

    def secrets(self) -> list[bytes]:
        """All that may never be written anywhere but where it belongs: entropy, window keys, the identity, packed words."""
        device = self.server.victim or bytes(16)
        entropy = [one for one in self.drawn if len(one) == 32]
        keys = [WindowKeys.derive(rho, device) for rho in entropy]
        windows = [key for one in keys for key in (one.mask_secret, one.channel_secret, one.self_seed)]
        coefficients = [key for one in keys for key in (one.seed_coefficients, one.secret_coefficients)]
        words = [file.read_bytes() for file in self.path.glob("updates/*.words")]
        pieces = [data[at : at + 24] for data in words for at in range(8, len(data) - 32, 24)]
        telling = [piece for piece in pieces if len(set(piece)) > 8]
        return [*entropy, *windows, *coefficients, (self.path / "identity.key").read_bytes(), *telling]


def spelled(secret: bytes) -> tuple[str, ...]:
    """How bytes get into text."""
    return secret.hex(), repr(secret)[2:-1], base64.b64encode(secret).decode().rstrip("=")


async def suffer(attack: Attack, path: Path, monkeypatch: pytest.MonkeyPatch) -> Trial:
    """Run the client against the attack until it is silent. Raises TimeoutError where it never says what it has to say."""
    server = HostileServer(attack)
    trial = Trial(server, path)
    _watch(trial, monkeypatch)
    log = logging.getLogger("whimbrel")
    log.addHandler(trial.numbers)
    try:
        async with Listener(server).serving() as listener, trial.participant(listener.url) as participant:
            async with asyncio.timeout(LIMIT_S):
                while not trial.over():
                    await _tick(trial, participant)
            end = time.monotonic() + LINGER_S
            while time.monotonic() < end:
                await _tick(trial, participant)
    finally:
        log.removeHandler(trial.numbers)
    return trial


async def _tick(trial: Trial, participant: Participant) -> None:
    delay = await participant.tick()
    trial.look(participant)
    await asyncio.sleep(min(delay, LINGER_S))


def _watch(trial: Trial, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write down the entropy that is drawn, and set the client's clock as the attack wants it."""
    draw, server = os.urandom, trial.server

    def urandom(size: int) -> bytes:
        trial.drawn.append(draw(size))
        return trial.drawn[-1]

    def clock() -> float:
        return time.time() + (trial.attack.clock_s if server.known else 0)

    monkeypatch.setattr(os, "urandom", urandom)
    for name in ("windowing._RETRY_S", "lifecycle._REJOIN_S"):  # what is waited for at most, between two tries
        monkeypatch.setattr(f"whimbrel.{name}", 0.1)
    monkeypatch.setattr("whimbrel.participant.time", SimpleNamespace(time=clock))
