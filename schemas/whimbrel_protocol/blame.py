"""Who spoiled a window, as far as the server can know: wrong shares, inconsistent dealers, wrong vectors.

Here belongs the judgement of what members revealed (masking protocol, sections 1.6 and 1.9, phase 4b). It convinces nobody
but the server that saw it: members sign nothing of it. What a member reveals, and when, belongs in `member.py`; what a fault
costs a device is the server's.

Two members of whom one must be at fault cannot be told apart by what they say of each other. Only somebody who differs from
more others than may collude (c) is at fault alone, since one of the others is honest. So nobody can frame a member at no cost.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from whimbrel_protocol.masks import WORD_BYTES
from whimbrel_protocol.messages import CanaryMasks
from whimbrel_protocol.packing import CANARY
from whimbrel_protocol.primitives import stream
from whimbrel_protocol.rules import members_of

CANARY_BYTES = 2 * WORD_BYTES
_RING = 2**64


class FaultKind(StrEnum):
    """What was wrong."""

    SHARES = "shares"  # revealed shares that their dealers did not deal
    DEALING = "dealing"  # dealt shares that give no secret, or not the one committed to
    SHARE = "share"  # of one share: the dealer dealt it wrong or the responder revealed it wrong
    VECTOR = "vector"  # a masked vector whose canary is not what its own masks give
    MASK = "mask"  # a mask between two members: one of them used, or tells, another than the pair's
    SILENT = "silent"  # vectors with a wrong canary whose members do not say what they masked with


@dataclass(frozen=True)
class Fault:
    """A fault and the members that it lies with: one for certain, or several of whom at least one did it."""

    kind: FaultKind
    members: tuple[int, ...]
    detail: str


class Pair(NamedTuple):
    """Two words of a mask: what it adds to the first and to the last word of a vector."""

    first: int
    last: int

    @classmethod
    def read(cls, data: bytes) -> Pair:
        """The words of 16 bytes."""
        return cls(int.from_bytes(data[:WORD_BYTES], "little"), int.from_bytes(data[WORD_BYTES:], "little"))

    def plus(self, other: Pair, sign: int = 1) -> Pair:
        """The sum, or the difference, modulo 2^64 a word."""
        return Pair((self.first + sign * other.first) % _RING, (self.last + sign * other.last) % _RING)


NOTHING = Pair(0, 0)


def canary_mask(key: bytes, words: int) -> bytes:
    """The 16 bytes of a mask stream that fall on the two canary words of a vector of `words` words, and no others."""
    return stream(key, WORD_BYTES) + stream(key, WORD_BYTES, WORD_BYTES * (words - 1))


def canaries_of(vector: bytes | bytearray | memoryview) -> bytes:
    """The first and the last word of a masked vector, 16 bytes."""
    return bytes(vector[:WORD_BYTES]) + bytes(vector[-WORD_BYTES:])


# --- one against another --------------------------------------------------------------------------------------------


def share_faults(wrong: Collection[tuple[int, int]], c: int) -> list[Fault]:
    """What follows from wrong shares, as pairs (responder, dealer), where at most `c` members collude.

    A responder that is wrong about more dealers than collude is at fault itself, and so is a dealer about whom more
    responders are wrong. The rest may be either's doing: a dealer can deal a wrong share to frame its holder.
    """
    crowd = max(c, 1)
    dealers = _others(wrong)
    liars = {i for i, of in dealers.items() if len(of) > crowd or i in of}
    responders = _others((j, i) for i, j in wrong if i not in liars)
    cheats = {j for j, of in responders.items() if len(of) > crowd}
    rest = sorted((i, j) for i, j in wrong if i not in liars and j not in cheats)
    return [
        *(Fault(FaultKind.SHARES, (i,), f"wrong shares of {len(dealers[i])} dealers") for i in sorted(liars)),
        *(Fault(FaultKind.DEALING, (j,), f"dealt wrong shares to {len(responders[j])} members") for j in sorted(cheats)),
        *(Fault(FaultKind.SHARE, (i, j), f"the share of member {j} that member {i} revealed") for i, j in rest),
    ]


def _others(pairs: Iterable[tuple[int, int]]) -> dict[int, set[int]]:
    others: dict[int, set[int]] = {}
    for one, other in pairs:
        others.setdefault(one, set()).add(other)
    return others


# --- canaries: phase 4b ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spoiled:
    """A window whose sum failed its checks, and what its members said of their masks on the canary words.

    `vectors` holds of each survivor the two canary words of its masked vector, `self_masks` its self mask's, `known` the
    masks that the server can compute itself, since one end dropped out and its secret was revealed: by survivor, then by
    dropped member, edges only. `told` holds what survivors answered.
    """

    c: int
    u3: tuple[int, ...]
    dropped: tuple[int, ...]
    vectors: Mapping[int, Pair]
    self_masks: Mapping[int, Pair]
    known: Mapping[int, Mapping[int, Pair]]
    told: Mapping[int, Mapping[int, Pair]]


def read_masks(message: CanaryMasks, n: int) -> dict[int, Pair]:
    """The masks that a member says it has edges for, by the other end."""
    edges = members_of(message.edges, n)
    return {j: Pair.read(message.masks[CANARY_BYTES * at : CANARY_BYTES * (at + 1)]) for at, j in enumerate(edges)}


def canary_faults(window: Spoiled) -> list[Fault]:
    """Recompute each canary and compare each edge from both ends.

    Nothing is found where garbage left the canaries alone: only the count or the range of the sum shows it then.
    """
    alone = dict(_against_themselves(window))
    pairs = [(i, j) for i, j in _differing(window) if i not in alone and j not in alone]
    crowd = max(window.c, 1)
    ends = _others([*pairs, *((j, i) for i, j in pairs)])
    hubs = {i for i, of in ends.items() if len(of) > crowd}
    return [
        *(Fault(FaultKind.VECTOR, (i,), detail) for i, detail in sorted(alone.items())),
        *(Fault(FaultKind.MASK, (i,), f"differs from {len(ends[i])} members about their masks") for i in sorted(hubs)),
        *(
            Fault(FaultKind.MASK, (i, j), f"members {i} and {j} tell different masks of their pair")
            for i, j in pairs
            if i not in hubs and j not in hubs
        ),
        *_silent(window),
    ]


def _against_themselves(window: Spoiled) -> Iterator[tuple[int, str]]:
    """Members whose own words are enough: they do not give their own vector, or contradict a secret that was revealed."""
    for i, told in window.told.items():
        if any(told.get(j) != window.known[i].get(j) for j in window.dropped):
            yield i, "tells a mask with a dropped member that its keys do not give"
        elif _remainder(window, i, told) != NOTHING:
            yield i, "its masks do not give the canary of its vector"


def _remainder(window: Spoiled, i: int, masks: Mapping[int, Pair]) -> Pair:
    """What is left of member i's canary words without these masks and the canaries themselves: nothing, if all is right."""
    rest = window.vectors[i].plus(Pair(CANARY, CANARY), -1).plus(window.self_masks[i], -1)
    for j, mask in masks.items():
        rest = rest.plus(mask, -1 if i < j else 1)
    return rest


def _differing(window: Spoiled) -> Iterator[tuple[int, int]]:
    spoke = sorted(window.told)
    for at, i in enumerate(spoke):
        for j in spoke[at + 1 :]:
            if window.told[i].get(j) != window.told[j].get(i):
                yield i, j


def _silent(window: Spoiled) -> list[Fault]:
    """Together the silent must be right as well: masks among themselves cancel, the others the other end told."""
    silent = tuple(i for i in window.u3 if i not in window.told)
    rest = NOTHING
    for i in silent:
        others = {j: told[i] for j, told in window.told.items() if i in told}
        rest = rest.plus(_remainder(window, i, {**others, **window.known[i]}))
    if rest == NOTHING:
        return []
    return [Fault(FaultKind.SILENT, silent, "say nothing of their masks, and a canary among theirs is wrong")]
