"""A small fleet for the tests of the masking window: an authority, devices, and windows that are played message by message.

Here belongs what several test modules need to set a scene; what is expected of the product belongs in the tests. All randomness
is hashed from names, so a scene is the same in every run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from whimbrel_kernels import ring_add
from whimbrel_protocol.blame import canaries_of
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code
from whimbrel_protocol.layout import Signed
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.messages import U2, MaskedHead, Quorum, Shares, Unmask, Vote, VoteKind
from whimbrel_protocol.objects import Certificate, VectorSpec
from whimbrel_protocol.packing import WindowSum, pack
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.transcript import vote_body
from whimbrel_protocol.window import Shortage

NOW = 1_800_000_000
FLEET = bytes(range(16))
LANE = hashlib.sha256(b"lane").digest()
AUTHORITY = SigningKey(hashlib.sha256(b"authority").digest())
SPEC = VectorSpec.make(bits=16, n_max=64, d=21, scale=4096.0, weight_bits=16)


T = TypeVar("T", bound=Signed)


def secret(*names: object) -> bytes:
    """32 bytes that stand for randomness of this name."""
    return hashlib.sha256(repr(names).encode()).digest()


def policy(**changes: object) -> Policy:
    """A signed policy for small cohorts: gamma 0.2, sigma 8, n_min 4."""
    fields: dict[str, object] = {
        "fleet": FLEET,
        "serial": 7,
        "not_after": NOW + 86_400,
        "gamma_milli": 200,
        "sigma": 8,
        "n_min": 4,
        "n_max": 256,
        "min_epoch": 3,
        "flags": 0,
        "issuers": (),
        "plan_signers": (),
    }
    return Policy.sign(AUTHORITY, **(fields | changes))


def resigned(blob: T, key: SigningKey, **changes: Any) -> T:
    """A signed blob with other fields, under a signature that is right for them."""
    changed = replace(blob, **changes)
    return replace(changed, signature=key.sign(changed.KIND, changed.signature_input()))


def identity(name: object, key: SigningKey = AUTHORITY, **changes: object) -> Identity:
    """A device with its certificate, issued by `key`."""
    device, own = secret("device", name)[:16], SigningKey(secret("identity", name))
    fields: dict[str, object] = {
        "fleet": FLEET,
        "device": device,
        "public_key": own.public,
        "not_before": NOW - 3_600,
        "not_after": NOW + 86_400,
        "serial": 1,
        "attest_class": 1,
        "flags": 0,
        "epoch": 3,
    }
    return Identity(device, own, Certificate.issue(key, **(fields | changes)).encode())


def join(who: Identity, rules: Policy, spec: VectorSpec = SPEC, lane: bytes = LANE) -> Member:
    """The device joins with window keys that follow from its name."""
    rho, root = secret("rho", who.device), AUTHORITY.public
    return Member.join(who, lane=lane, spec=spec, policy=rules, root=root, rho=rho, seq=1, expires=NOW + 600)


@dataclass
class Window:
    """A window in which every member is honest, and vanishes when the test says so."""

    n: int
    rules: Policy = field(default_factory=policy)
    spec: VectorSpec = SPEC
    vectors: dict[int, tuple[MaskedHead, bytes]] = field(default_factory=dict)

    @cached_property
    def identities(self) -> list[Identity]:
        """In roster order."""
        return sorted((identity(k) for k in range(self.n)), key=lambda who: who.device)

    @cached_property
    def members(self) -> list[Member]:
        """In roster order."""
        return [join(who, self.rules, self.spec) for who in self.identities]

    @cached_property
    def collector(self) -> Collector:
        """The server's side, formed from all entries."""
        return Collector.form([m.entry for m in self.members], FLEET, LANE, self.spec, self.rules, 1)

    def update(self, i: int) -> np.ndarray:
        """Member i's update: extreme and unlike all others, so that a double count or a lost borrow shows."""
        signs = np.where(np.arange(self.spec.d) % 2 == i % 2, 1, -1)
        return signs * (self.spec.limit - (i + np.arange(self.spec.d)) % min(self.spec.limit, 50))

    def weight(self, i: int) -> int:
        """Member i's weight."""
        return (40_503 * (i + 1)) % 2**self.spec.weight_bits

    def plain(self, i: int) -> bytes:
        """Member i's packed update."""
        return pack(self.spec, self.update(i), self.weight(i))

    # --- the phases, for those who are still there --------------------------------------------------------------------

    def deal(self, there: Collection[int]) -> dict[int, Shares]:
        """OPEN to all of them, their shares to the server, U2 fixed."""
        made = {i: self.members[i].on_open(self.collector.open, NOW, self.rules) for i in sorted(there)}
        for message in made.values():
            self.collector.on_shares(message)
        return made

    def mask(self, there: Collection[int]) -> None:
        """U2 to all of them, their vectors to the server."""
        self.collector.close_shares()
        for i in sorted(there):
            self.vectors[i] = self.masked(i, self.collector.u2_for(i))
            self.collector.on_head(self.vectors[i][0])
            self.collector.on_vector(i, canaries_of(self.vectors[i][1]))

    def masked(self, i: int, message: U2) -> tuple[MaskedHead, bytes]:
        """Member i's answer to U2: head and vector."""
        self.members[i].on_u2(message)
        vector = self.members[i].mask(self.plain(i))
        return self.members[i].head(hashlib.sha256(vector).digest()), vector

    def vote(self, there: Collection[int]) -> dict[int, Vote]:
        """SURVIVORS to all of them, as many votes to the server as it takes."""
        self.collector.close_masked()
        votes = {i: self.members[i].on_survivors(self.collector.survivors) for i in sorted(there)}
        for vote in votes.values():
            if self.collector.quorum is None:
                self.collector.on_vote(vote)
        return votes

    def unmask(self, there: Collection[int]) -> dict[int, Unmask]:
        """QUORUM to all of them, their shares to the server."""
        quorum = self.collector.quorum
        if quorum is None:
            raise Shortage(Code.SHORTAGE, "too few votes")
        made = {i: self.members[i].on_quorum(quorum) for i in sorted(there)}
        for message in made.values():
            self.collector.on_unmask(message)
        return made

    def total(self) -> bytearray:
        """The sum of the survivors' masked vectors."""
        total = bytearray(8 * self.spec.words)
        for i in self.collector.u3:
            ring_add(total, self.vectors[i][1])
        return total

    def play(self, drops: Sequence[Collection[int]] = ((), (), (), ())) -> WindowSum:
        """The whole window; `drops` vanish before SHARES, MASKED, VOTE and UNMASK."""
        there = set(range(self.n)) - set(drops[0])
        self.deal(there)
        self.mask(there := there - set(drops[1]))
        self.vote(there := there - set(drops[2]))
        self.unmask(there - set(drops[3]))
        return self.collector.finish(self.total())


def certificate(window: Window, kind: VoteKind, voters: Sequence[int], tau1: bytes = bytes(32), u3: bytes = b"") -> Quorum:
    """A certificate with these members' true signatures, whatever they voted for in the window."""
    body = vote_body(window.collector.tau0, kind, tau1, u3)
    signatures = [window.identities[i].key.sign("vote", body) for i in voters]
    return Quorum(kind, tau1, u3, tuple(voters), b"".join(signatures))
