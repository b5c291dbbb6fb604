"""`python -m whimbrel_lab.soak`: many masking windows with members that vanish and lie, and what became of every update.

What belongs here: a small fleet whose devices go from window to window with the update that they have, the ledger of all
updates, and the figures. What does not: one window (`soak_window.py`). All of it happens in this process and follows from
the seed; it ends with 1 where a promise was broken, and says which.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

from whimbrel_lab.soak_window import POINTS, Broken, Outcome, Played, Seat, Terms, WindowPlay, demand
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.objects import Certificate, VectorSpec
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy

NOW = 1_800_000_000
SMALLEST, LARGEST = 16, 64
_FLEET = 80
_DAY_S = 86_400


@dataclass(frozen=True)
class Options:
    """How many windows, and the shares of members that vanish, of members that lie, and of windows with a garbage vector."""

    windows: int = 1000
    seed: int = 1
    dropout: float = 0.2
    liars: float = 0.02
    garbage: float = 0.05


@dataclass
class Player:
    """A device with the update that it has now; `number` tells all updates of all devices apart."""

    identity: Identity
    number: int
    update: NDArray[np.int64]
    weight: int
    joins: int = 0


class Soak:
    """The fleet and the ledger."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.random = Random(options.seed)  # noqa: S311 - the same seed must give the same windows
        authority = SigningKey(self.random.randbytes(32))
        self.terms = _terms(authority)
        self._updates = 0
        self.players = [self._player(authority) for _ in range(_FLEET)]
        self.finished: set[int] = set()  # updates that may never be masked again
        self.tried: set[int] = set()
        self.figures: Counter[str] = Counter()

    def _player(self, authority: SigningKey) -> Player:
        key, device = SigningKey(self.random.randbytes(32)), self.random.randbytes(16)
        names = {"fleet": self.terms.policy.fleet, "device": device, "public_key": key.public}
        dates = {"not_before": NOW - _DAY_S, "not_after": NOW + _DAY_S}
        certificate = Certificate.issue(authority, **names, **dates, serial=1, attest_class=0, flags=0, epoch=0)
        return Player(Identity(device, key, certificate.encode()), *self._fresh())

    def _fresh(self) -> tuple[int, NDArray[np.int64], int]:
        """A new update, unlike all others and often at the limits."""
        self._updates += 1
        spec, draw = self.terms.spec, np.random.default_rng(self.random.getrandbits(64))
        values = draw.integers(-spec.limit, spec.limit, spec.d, endpoint=True)
        values[draw.random(spec.d) < 0.3] = spec.limit * self.random.choice((-1, 1))
        return self._updates, values, self.random.randrange(2**spec.weight_bits)

    def one_window(self) -> Outcome:
        """Play one window with a part of the fleet and enter what it did. Raises Broken."""
        n = self.random.randint(SMALLEST, LARGEST)
        chosen = self.random.sample(self.players, n)
        spoiler = chosen[0] if self.random.random() < self.options.garbage else None
        for player in chosen:
            demand(player.number not in self.finished, "no update that may be in a sum is masked again")
        by_device = {player.identity.device: player for player in chosen}
        play = WindowPlay([self._seat(player, player is spoiler) for player in chosen], self.terms, self.random)
        played = play.play()
        self._enter(play, played, [by_device[seat.identity.device] for seat in play.seats])
        return played.outcome

    def _seat(self, player: Player, garbage: bool) -> Seat:
        random, options, terms = self.random, self.options, self.terms
        leaves = random.choice(POINTS[:-1]) if random.random() < options.dropout else ""
        lies = random.choice(("one", "all")) if random.random() < options.liars else ""
        player.joins += 1
        member = Member.join(
            player.identity,
            lane=terms.lane,
            spec=terms.spec,
            policy=terms.policy,
            root=terms.root,
            rho=random.randbytes(32),
            seq=player.joins,
            expires=NOW + 600,
        )
        return Seat(player.identity, player.update, player.weight, leaves, lies, garbage, member)

    def _enter(self, play: WindowPlay, played: Played, players: Sequence[Player]) -> None:
        """Spent updates are done with, whatever became of the sum; all others go on to the next window."""
        count = self.figures
        count[played.outcome.value] += 1
        count["members"] += len(players)
        count["bad_shares_then_more"] += played.retries
        for seat in play.seats:
            count["vanished"] += bool(seat.leaves)
            count["liars"] += bool(seat.lies)
            count["garbage"] += seat.garbage
        for fault in played.faults:
            count[f"blamed_{fault.kind.value}"] += 1
        for name in ("counted", "freed", "lost", "unresolved", "untouched"):
            count[f"updates_{name}"] += len(getattr(played, name))
        count["freed_updates_counted_later"] += sum(players[i].number in self.tried for i in played.counted)
        self.tried |= {players[i].number for i in played.freed}
        for i in (*played.counted, *played.lost, *played.unresolved):
            self.finished.add(players[i].number)
            players[i].number, players[i].update, players[i].weight = self._fresh()

    def run(self) -> dict[str, Any]:
        """Play all windows; the figures. Raises Broken with the number of the window in its message."""
        began = time.monotonic()
        for number in range(self.options.windows):
            try:
                self.one_window()
            except Broken as broken:
                raise Broken(f"window {number} of seed {self.options.seed}: {broken}") from broken
        seconds = round(time.monotonic() - began, 1)
        return {"windows": self.options.windows, "seed": self.options.seed, "seconds": seconds, **sorted_figures(self.figures)}


def sorted_figures(figures: Counter[str]) -> dict[str, int]:
    """The figures, outcomes first."""
    outcomes = {outcome.value: figures[outcome.value] for outcome in Outcome}
    return outcomes | {name: figures[name] for name in sorted(figures) if name not in outcomes}


def _terms(authority: SigningKey) -> Terms:
    """A sparse hidden graph in the larger windows, a fifth of the members corrupt at most, small vectors."""
    fleet = hashlib.sha256(b"soak").digest()
    numbers = {"gamma_milli": 200, "sigma": 40, "n_min": 8, "n_max": LARGEST, "min_epoch": 0, "flags": 0}
    dates = {"serial": 1, "not_after": NOW + _DAY_S}
    policy = Policy.sign(authority, fleet=fleet[:16], **dates, **numbers, issuers=(), plan_signers=())
    spec = VectorSpec.make(bits=16, n_max=LARGEST, d=40, scale=1.0, weight_bits=16)
    return Terms(policy, authority.public, fleet, spec, NOW)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the soak from the command line: its figures as one line of JSON, or what was broken."""
    parser = argparse.ArgumentParser(prog="python -m whimbrel_lab.soak", description=__doc__.splitlines()[0] if __doc__ else "")
    for name, kind in {"windows": int, "seed": int, "dropout": float, "liars": float, "garbage": float}.items():
        parser.add_argument(f"--{name}", type=kind, default=getattr(Options, name))
    try:
        figures = Soak(Options(**vars(parser.parse_args(argv)))).run()
    except Broken as broken:
        print(f"soak: broken: {broken}", file=sys.stderr)
        return 1
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
