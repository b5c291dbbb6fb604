"""A device of the simulated world: it trains, masks, votes and reveals with the product's member, and may vanish anywhere.

Here belongs one life: what survives a killed process (`kept`, `spent`, `fate`) and what does not. The world's laws: `world.py`.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.protocol.world import AUTHORITY, identity
from tests.simulation.world import RULES, D, Down, Server
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.member import Member
from whimbrel_protocol.messages import Done, Survivors, VoteKind
from whimbrel_protocol.packing import pack
from whimbrel_protocol.spent import SpentRecord, Verdict, verify_certificate
from whimbrel_protocol.window import MemberState

STEPS = ("train", "wait_for_open", "deal", "wait_for_u2", "mask", "wait_for_survivors", "vote", "wait_for_quorum", "reveal")
POLL_S = 0.5
PATIENCE_S = 60.0


def update_of(device: bytes, version: int, limit: int) -> np.ndarray:
    """A device's update for a version: unlike every other, so that one that counts twice or not at all shows in a sum."""
    seed = int.from_bytes(hashlib.sha256(device + bytes([version])).digest()[:8], "little")
    return np.random.default_rng(seed).integers(-limit, limit + 1, D)


class Device:
    """One installation; `vanish` is the chance to be killed, by step."""

    def __init__(self, name: int, server: Server, dice: random.Random, vanish: Mapping[str, float]) -> None:
        self.who = identity(name)
        self.id = self.who.device
        self.server, self.dice, self.vanish = server, dice, vanish
        # What a state directory would hold:
        self.seq = 0
        self.kept: dict[int, bytes] = {}  # version -> packed update
        self.spent: dict[bytes, tuple[int, SpentRecord]] = {}  # by tau0: version and record of an update that is not free
        self.fate: dict[int, str] = {}  # version -> contributed | lost
        self.freed: list[bytes] = []  # windows whose certificate gave the update back
        self.deaths = 0
        # What dies with the process:
        self.life = 0
        self.member: Member | None = None
        self.assignment = self.ticket = self.tau0 = self.lane = b""
        self.version = 0
        self.since = 0.0

    # --- life and death -----------------------------------------------------------------------------------------------

    def soon(self, step: Callable[[], None], delay: float = 0.05) -> None:
        self.server.clock.after(delay, self._run, self.life, step)

    def _run(self, life: int, step: Callable[[], None]) -> None:
        if life != self.life:
            return None
        if self.dice.random() < self.vanish.get(step.__name__, 0.0):
            return self.die()
        try:
            step()
        except Down:
            # No answer: the same call again, and again.
            self.soon(step, 1.0)
        return None

    def die(self) -> None:
        self.life += 1
        self.deaths += 1
        self.member = None
        self.soon(self.restart, self.dice.uniform(2, 40))

    def restart(self) -> None:
        self.check_in()

    def call(self, act: Callable[[], Any]) -> Any:
        return self.server.call(act)

    def leave(self) -> None:
        """Out of the window; what is not spent is still there for the next."""
        self.member = None
        self.soon(self.check_in, 1.0)

    # --- train and join -----------------------------------------------------------------------------------------------

    def check_in(self) -> None:
        for tau0 in list(self.spent):
            self.resolve(tau0)
        answer = self.call(lambda: self.server.check_in(self.id))
        if answer.assignment is None:
            return self.soon(self.check_in, max(1.0, answer.come_back_s))
        self.assignment, self.version, self.lane = answer.assignment.id, answer.assignment.version, self.server.version.lane
        if self.version in self.fate or self.version in [version for version, _ in self.spent.values()]:
            self.call(lambda: self.server.give_up(self.id, self.version))
            return self.soon(self.check_in, 3.0)
        return self.soon(self.join) if self.version in self.kept else self.soon(self.train, self.dice.lognormvariate(1, 0.5))

    def train(self) -> None:
        spec = self.server.spec
        self.kept = {self.version: pack(spec, update_of(self.id, self.version, spec.limit), 1)}
        self.join()

    def join(self) -> None:
        self.seq += 1
        rho, expires = self.dice.randbytes(32), int(self.server.clock.now) + 600
        terms: dict[str, Any] = {"spec": self.server.spec, "policy": RULES, "root": AUTHORITY.public}
        self.member = Member.join(self.who, lane=self.lane, rho=rho, seq=self.seq, expires=expires, **terms)
        entry = self.member.entry
        try:
            answer = self.call(lambda: self.server.join(self.id, self.assignment, entry))
        except ProtocolError as error:
            assert error.code in (Code.STALE_VERSION, Code.ENTRY_LANE), error
            return self.soon(self.check_in, 1.0)
        self.ticket = answer.ticket
        return self.soon(self.wait_for_open, max(POLL_S, answer.come_back_s))

    def wait_for_open(self) -> None:
        try:
            opened = self.call(lambda: self.server.ticket(self.id, self.ticket))
        except ProtocolError as error:
            assert error.code in (Code.STALE_VERSION, Code.UNKNOWN_TICKET), error
            return self.soon(self.check_in if error.code is Code.STALE_VERSION else self.join, 1.0)
        if opened is None:
            return self.soon(self.wait_for_open, POLL_S)
        self._member.on_open(opened, int(self.server.clock.now), RULES)
        self._shares = self._member.on_open(opened, int(self.server.clock.now), RULES)
        self.tau0, self.since = self._shares.tau0, self.server.clock.now
        return self.soon(self.deal, self.dice.expovariate(4))

    @property
    def _member(self) -> Member:
        assert self.member is not None
        return self.member

    # --- the window ---------------------------------------------------------------------------------------------------

    def deal(self) -> None:
        try:
            self.call(lambda: self.server.send(self.tau0, "on_shares", self._shares))
        except ProtocolError:
            return self.leave()
        return self.soon(self.wait_for_u2, POLL_S)

    def wait_for_u2(self) -> None:
        try:
            answer = self.call(lambda: self.server.u2(self.tau0, self._shares.i))
        except ProtocolError:
            return self.leave()
        if answer is None:
            return self.again(self.wait_for_u2)
        if isinstance(answer, Survivors):
            return self.vote_on(answer)
        record = self._member.on_u2(answer)
        self.spent[self.tau0] = (self.version, record)
        return self.soon(self.mask, self.dice.expovariate(2))

    def mask(self) -> None:
        vector = self._member.mask(self.kept[self.version])
        head = self._member.head(hashlib.sha256(vector).digest())
        try:
            self.call(lambda: self.server.send(self.tau0, "on_head", head))
            self.call(lambda: self.server.upload(self.tau0, head.i, vector))
        except ProtocolError as error:
            # Late, or the server is asking for an abort since it was down: its answers will say.
            assert error.code in (Code.TOO_LATE, Code.OUT_OF_TURN), error
        return self.soon(self.wait_for_survivors, POLL_S)

    def wait_for_survivors(self) -> None:
        answer = self.call(lambda: self.server.survivors(self.tau0))
        return self.again(self.wait_for_survivors) if answer is None else self.vote_on(answer)

    def vote_on(self, answer: Survivors) -> None:
        self._vote = self._member.on_survivors(answer)
        if self.tau0 in self.spent:
            self.spent[self.tau0] = (self.version, self._member.record)
        self.soon(self.vote, self.dice.expovariate(4))

    def vote(self) -> None:
        try:
            self.call(lambda: self.server.send(self.tau0, "on_vote", self._vote))
        except ProtocolError as error:
            assert error.code in (Code.TOO_LATE, Code.OUT_OF_TURN), error
        aborted = self._vote.kind is VoteKind.ABORT
        return self.leave() if aborted else self.soon(self.wait_for_quorum, POLL_S)

    def wait_for_quorum(self) -> None:
        certificate = self.call(lambda: self.server.quorum(self.tau0))
        if certificate is None:
            return self.again(self.wait_for_quorum)
        if certificate.kind is VoteKind.ABORT or self._member.state is not MemberState.COMMITTED:
            return self.leave()
        self._unmask = self._member.on_quorum(certificate)
        return self.soon(self.reveal, self.dice.expovariate(4))

    def reveal(self) -> None:
        try:
            self.call(lambda: self.server.send(self.tau0, "on_unmask", self._unmask))
        except ProtocolError as error:
            assert error.code in (Code.TOO_LATE, Code.OUT_OF_TURN, Code.UNKNOWN_WINDOW), error
        return self.soon(self.wait_for_done, POLL_S)

    def wait_for_done(self) -> None:
        try:
            answer = self.call(lambda: self.server.done(self.tau0, self._member.record.i))
        except ProtocolError as error:
            assert error.code in (Code.WINDOW_ENDED, Code.SHORTAGE), error
            return self.leave()
        if answer is None:
            return self.again(self.wait_for_done)
        if isinstance(answer, Done):
            self._member.on_done(answer)
        return self.leave()

    def again(self, step: Callable[[], None]) -> None:
        """Poll on, until patience is over."""
        if self.server.clock.now - self.since > PATIENCE_S:
            return self.leave()
        return self.soon(step, POLL_S)

    # --- an update that is not free ------------------------------------------------------------------------------------

    def resolve(self, tau0: bytes) -> None:
        """Ask for the certificate that decides; vote, if that is what is missing and no vote was cast."""
        version, record = self.spent[tau0]
        certificate = self.call(lambda: self.server.quorum(tau0))
        if certificate is None:
            return self._vote_from_record(tau0, version, record)
        if verify_certificate(record, certificate) is Verdict.FREED:
            self.freed.append(tau0)
        else:
            self.fate[version] = "contributed"
        del self.spent[tau0]
        return None

    def _vote_from_record(self, tau0: bytes, version: int, record: SpentRecord) -> None:
        answer = self.call(lambda: self.server.survivors(tau0))
        if answer is None:
            return
        if record.vote is None:
            record = record.abort(self.who.key) if answer.abort else record.commit(self.who.key, answer)
            self.spent[tau0] = (version, record)
        try:
            self.call(lambda: self.server.send(tau0, "on_vote", record.ballot))
        except ProtocolError as error:
            assert error.code in (Code.TOO_LATE, Code.OUT_OF_TURN, Code.UNKNOWN_WINDOW), error
