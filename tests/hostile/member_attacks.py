"""Attacks by members that the server has bought, or that only play the fool: the client must come through them.

Here belong the rows and the few functions that only they need.
"""

from __future__ import annotations

from dataclasses import replace

from tests.hostile.attack import Attack, SetUp, Update
from tests.hostile.cohort import Companion
from tests.hostile.world import HostileServer
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code
from whimbrel_protocol.transcript import shares_body
from whimbrel_protocol.window import ServerState

FREE, COUNTED = Update.FREE, Update.COUNTED
LEAVING = frozenset({"shares", "masked", "put", "vote", "unmask"})


class Stingy(Companion):
    """Deals shares that only three members can open, and is honest otherwise."""

    def act(self, collector: Collector) -> None:
        """As a member does, but for the shares."""
        if collector.state is not ServerState.SHARE:
            super().act(collector)
            return
        honest = self.there.on_open(collector.open, int(self.server.clock()), self.server.policy)
        cts = honest.cts[:240] + bytes(len(honest.cts) - 240)
        sig = self.key.sign("shares", shares_body(honest.tau0, honest.i, honest.bcommit, cts))
        collector.on_shares(replace(honest, cts=cts, sig=sig))


class Liar(Companion):
    """Reveals wrong shares of every dealer."""

    def act(self, collector: Collector) -> None:
        """As a member does, but for the release."""
        if collector.state is not ServerState.UNMASK or collector.quorum is None:
            super().act(collector)
            return
        self.there.on_survivors(collector.survivors)
        honest = self.there.on_quorum(collector.quorum)
        collector.on_unmask(replace(honest, shares=bytes(255 - byte for byte in honest.shares)))


def bought(kind: type[Companion], count: int) -> SetUp:
    """Some companions are of another kind."""

    def set_up(server: HostileServer) -> None:
        for k in range(count):
            server.companions[k] = kind(server, k)
        server.strike()

    return set_up


def repeats_an_entry(server: HostileServer) -> None:
    """A member whose entry stood in an earlier roster does not know of this one: it never deals."""
    server.companions[0].act = lambda collector: None  # type: ignore[method-assign]
    server.strike()


MEMBER_ATTACKS: tuple[Attack, ...] = (
    Attack("dealer-of-too-few-shares", "1.6 dealer: t holders or abort", None, FREE, set_up=bought(Stingy, 1), after=LEAVING),
    Attack("liars-at-unmasking", "1.6 blame: no honest dealer", None, COUNTED, set_up=bought(Liar, 2), after=LEAVING, n=12),
    Attack("light-cohort", "4 weights: no light member", Code.TOO_FEW_EXAMPLES, Update.NONE, set_up=HostileServer.strike,
           scene={"plan": {"weight_bits": 8}, "body": {"weight_max": 1000}}),
    Attack("entry-reposted", "1.5 repeats: no entry twice", None, COUNTED, set_up=repeats_an_entry, after=LEAVING),
)  # fmt: skip
