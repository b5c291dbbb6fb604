"""The members around the client: honest ones, and those that the server has bought.

Here belongs what a companion does in a window, with the protocol's own `Member`. What the server tells the client belongs in
`world.py`. Randomness is hashed from names: a scene is the same in every run, but for the client.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.window import ServerState

if TYPE_CHECKING:
    from tests.hostile.world import HostileServer


def secret(*names: object) -> bytes:
    """32 bytes that stand for randomness of this name."""
    return hashlib.sha256(repr(names).encode()).digest()


def plain_words(spec: VectorSpec, name: object) -> bytes:
    """A packed update of random values, unlike all others."""
    rng = np.random.default_rng(int.from_bytes(secret("update", name)[:8], "little"))
    return pack(spec, rng.integers(-spec.limit, spec.limit, spec.d, np.int32), 1 if spec.weight_bits else 0)


@dataclass
class Companion:
    """One member that lives in the harness. Its window is remembered by tau0."""

    server: HostileServer
    name: int
    entries: int = 0
    member: Member | None = None
    vectors: dict[bytes, bytes] = field(default_factory=dict)

    @property
    def key(self) -> SigningKey:
        """Its identity key."""
        return SigningKey(secret("identity", self.name))

    @property
    def device(self) -> bytes:
        """Its device id."""
        return secret("device", self.name)[:16]

    def certificate(self, **changes: object) -> bytes:
        """Its certificate, from the fleet's issuer."""
        return self.server.certificate(self.device, self.key.public, **changes)

    def join(self, lane: bytes = b"") -> bytes:
        """Make fresh window keys; return the entry."""
        self.entries += 1
        identity = Identity(self.device, self.key, self.certificate(epoch=self.server.policy.min_epoch))
        self.member = Member.join(
            identity,
            lane=lane or self.server.lane,
            spec=self.server.spec,
            policy=self.server.policy,
            root=self.server.root.public,
            rho=secret("rho", self.name, self.entries),
            seq=self.entries,
            expires=int(self.server.clock()) + 600,
        )
        return self.member.entry

    @property
    def there(self) -> Member:
        """Its side of the window that it joined last."""
        assert self.member is not None
        return self.member

    # --- an honest member's steps ---------------------------------------------------------------------------------------

    def act(self, collector: Collector) -> None:
        """Do what is due in the window, once."""
        if self.there.entry not in collector.open.roster:
            return
        i = collector.open.roster.index(self.there.entry)
        match collector.state:
            case ServerState.SHARE:
                collector.on_shares(self.there.on_open(collector.open, int(self.server.clock()), self.server.policy))
            case ServerState.MASK if i in collector.u2:
                self.mask(collector, i)
            case ServerState.VOTE if i in collector.u2:
                collector.on_vote(self.there.on_survivors(collector.survivors))
            case ServerState.ABORTING:
                collector.on_vote(self.there.abort_vote())
            case ServerState.UNMASK if i in collector.u2 and collector.quorum is not None:
                self.there.on_survivors(collector.survivors)  # its vote may have come after the t-th
                collector.on_unmask(self.there.on_quorum(collector.quorum))

    def mask(self, collector: Collector, i: int) -> None:
        """Send head and vector."""
        self.there.on_u2(collector.u2_for(i))
        self.vectors[collector.tau0] = self.there.mask(plain_words(collector.spec, self.name))
        collector.on_head(self.there.head(hashlib.sha256(self.vectors[collector.tau0]).digest()))
        collector.on_vector(i)


PASSING = (Code.OUT_OF_TURN, Code.TOO_LATE, Code.SECOND_BODY)
"""What a companion that acts again in the same state hears."""
