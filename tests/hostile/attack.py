"""What an attack is: one rule that a hostile server breaks, and what a client must then do.

Here belong the shape of an attack and its expectations. The attacks themselves belong in the tables beside this file, the
server that carries them out in `world.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

from whimbrel_protocol.errors import Code

if TYPE_CHECKING:
    from tests.hostile.world import HostileServer


class Update(Enum):
    """What must have become of the client's update."""

    NONE = "none"  # nothing was trained, nothing joined
    FREE = "free"  # it may join another window
    SPENT = "spent"  # it may have been counted: no window sees it again
    COUNTED = "counted"  # the window was rightly finished


@dataclass(frozen=True)
class Cut:
    """Instead of an answer the connection is cut: the call was taken, and the client cannot know it."""


@dataclass(frozen=True)
class Late:
    """The answer, after some seconds."""

    answer: Any
    seconds: float


Reply = Callable[["HostileServer", Any], Any]
"""Takes the server and its honest answer; returns the message to send instead, raw bytes, or the same answer."""

SetUp = Callable[["HostileServer"], None]


def nothing(server: HostileServer) -> None:
    """Prepare nothing."""


@dataclass(frozen=True)
class Attack:
    """One attack.

    `rule` is the rule that is broken, in the words of `whimbrel_lab.rules_page`. `replies` overrides answers by name
    (`checked-in`, `joined`, `open`, `u2`, `survivors`, `quorum`, `done`, `accepted <phase>`); an answer that differs from the
    honest one is the stroke. After it nothing may leave the client but the kinds in `after`. `code` is the client's error
    number, None where it has nothing to object to. `n` is the number of members, `scene` what FakeServer takes (policy, plan,
    header, body), `clock_s` how far the client's own clock is off once it has checked in.
    """

    name: str
    rule: str
    code: Code | None
    update: Update
    replies: Mapping[str, Reply] = field(default_factory=dict)
    set_up: SetUp = nothing
    after: frozenset[str] = frozenset()
    n: int = 10
    scene: Mapping[str, Any] = field(default_factory=dict)
    clock_s: int = 0
