"""The fleet of the cases: an authority, seven devices, and windows in which everybody is honest.

Here belongs what is right. Keys and all other randomness are hashed from names. What is then said wrong is the chapters'.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np

from whimbrel_kernels import ring_add
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.layout import Signed
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.messages import MaskedHead, Quorum, Shares, Unmask, Vote, VoteKind
from whimbrel_protocol.objects import Certificate, VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.transcript import vote_body
from whimbrel_protocol.trust import fleet_of

NOW = 1_800_000_000
DAY = 86_400
N = 7

T = TypeVar("T", bound=Signed)


def secret(*names: object) -> bytes:
    """32 bytes that stand for randomness of this name."""
    return hashlib.sha256(repr(("bad vectors", *names)).encode()).digest()


def signer(name: str) -> SigningKey:
    """An Ed25519 key of this name."""
    return SigningKey(secret("key", name))


ROOT, ISSUER, PLAN_SIGNER, STRANGER = (signer(name) for name in ("root", "issuer", "plan signer", "stranger"))
FLEET = fleet_of(ROOT.public)
LANE = secret("lane")
SPEC = VectorSpec.make(bits=16, n_max=8, d=6, scale=4096.0, weight_bits=16)


def policy(key: SigningKey = ROOT, **changes: Any) -> Policy:
    """A policy for small cohorts: gamma 0.2, sigma 8, n_min 4."""
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "serial": 7,
        "not_after": NOW + DAY,
        "gamma_milli": 200,
        "sigma": 8,
        "n_min": 4,
        "n_max": 256,
        "min_epoch": 3,
        "flags": 0,
        "issuers": (ISSUER.public,),
        "plan_signers": (PLAN_SIGNER.public,),
    }
    return Policy.sign(key, **(fields | changes))


def resigned(blob: T, key: SigningKey, **changes: Any) -> T:
    """A signed blob with other fields, under a signature that is right for them."""
    changed = replace(blob, **changes)
    return replace(changed, signature=key.sign(changed.KIND, changed.signature_input()))


def seed(name: object) -> bytes:
    """What makes a device's Ed25519 key."""
    return secret("identity", name)


def identity(name: object, key: SigningKey = ISSUER, **changes: Any) -> Identity:
    """A device with its certificate, issued by `key`."""
    own = SigningKey(seed(name))
    fields: dict[str, Any] = {
        "fleet": FLEET,
        "device": secret("device", name)[:16],
        "public_key": own.public,
        "not_before": NOW - 3_600,
        "not_after": NOW + DAY,
        "serial": 1,
        "attest_class": 1,
        "flags": 0,
        "epoch": 3,
    }
    return Identity(fields["device"], own, Certificate.issue(key, **(fields | changes)).encode())


def rho(who: Identity) -> bytes:
    """The device's entropy for its one window here."""
    return secret("rho", who.device)


def join(who: Identity, rules: Policy) -> Member:
    """The device joins."""
    facts: dict[str, Any] = {"lane": LANE, "spec": SPEC, "policy": rules, "root": ROOT.public, "seq": 1}
    return Member.join(who, **facts, rho=rho(who), expires=NOW + 600)


class Window:
    """A window of honest members, played as far as it is asked for."""

    def __init__(self, rules: Policy | None = None, dealers: Collection[int] = range(N)) -> None:
        self.rules = rules or policy()
        names = sorted(range(N), key=lambda k: identity(k).device)
        self.identities = [identity(k) for k in names]
        self.seeds = [seed(k) for k in names]
        self.members = [join(who, self.rules) for who in self.identities]
        entries = [member.entry for member in self.members]
        self.collector = Collector.form(entries, FLEET, LANE, SPEC, self.rules, 1)
        self._dealers = sorted(dealers)

    def plain(self, i: int) -> bytes:
        """Member i's packed update."""
        update = np.array([(i + 1) * (k - 2) * 11 % SPEC.limit for k in range(SPEC.d)])
        return pack(SPEC, update, 1000 * (i + 1))

    @cached_property
    def shares(self) -> dict[int, Shares]:
        """What the dealers send; U2 is fixed."""
        made = {i: self.members[i].on_open(self.collector.open, NOW, self.rules) for i in self._dealers}
        for message in made.values():
            self.collector.on_shares(message)
        self.collector.close_shares()
        return made

    @cached_property
    def vectors(self) -> dict[int, tuple[MaskedHead, bytes]]:
        """Heads and vectors; the survivors are fixed."""
        made = {}
        for i in self.shares:
            self.members[i].on_u2(self.collector.u2_for(i))
            vector = self.members[i].mask(self.plain(i))
            made[i] = (self.members[i].head(hashlib.sha256(vector).digest()), vector)
            self.collector.on_head(made[i][0])
            self.collector.on_vector(i)
        self.collector.close_masked()
        return made

    @cached_property
    def votes(self) -> dict[int, Vote]:
        """Votes; the first t of them make the certificate."""
        made = {i: self.members[i].on_survivors(self.collector.survivors) for i in self.vectors}
        for vote in list(made.values())[: self.collector.t]:
            self.collector.on_vote(vote)
        return made

    @cached_property
    def answers(self) -> dict[int, Unmask]:
        """The shares that members reveal."""
        quorum = self.certificate(VoteKind.COMMIT, sorted(self.votes)[: self.collector.t])
        return {i: self.members[i].on_quorum(quorum) for i in self.votes}

    def total(self) -> bytes:
        """The sum of the masked vectors."""
        total = bytearray(8 * SPEC.words)
        for _, vector in self.vectors.values():
            ring_add(total, vector)
        return bytes(total)

    def certificate(self, kind: VoteKind, voters: Sequence[int], tau1: bytes | None = None, u3: bytes | None = None) -> Quorum:
        """A certificate with these members' true signatures, whatever they voted for; by default what the window is about."""
        commit = kind is VoteKind.COMMIT
        tau1 = tau1 if tau1 is not None else self.collector.tau1 if commit else bytes(32)
        u3 = u3 if u3 is not None else self.collector.survivors.bitmap if commit else b""
        body = vote_body(self.collector.tau0, kind, tau1, u3)
        return Quorum(kind, tau1, u3, tuple(voters), b"".join(self.identities[i].key.sign("vote", body) for i in voters))
