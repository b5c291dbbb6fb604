"""What the app that embeds a device decides: when it may work, how patient it is, and the floors below which it refuses.

What belongs here: numbers and one callback, with their evidence. What does not: the fleet's policy, which the authority signs
and which `DevicePolicy` can only make stricter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

N_MIN_FLOOR = 8
"""The fewest members that a sum may hide an update among; the fleet's policy starts at 32."""

GAMMA_MAX = 1 / 3
"""Above a third of colluding members two quorums need share no honest one."""


@dataclass(frozen=True)
class Cost:
    """What the next step may take at most, known before it begins.

    `stage` names the step (a name of `lifecycle.Stage`), `seconds` bounds its work, `bytes_up` and `bytes_down` its traffic.
    """

    stage: str
    seconds: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0


def always(cost: Cost) -> bool:
    """Allow every step."""
    return True


@dataclass(frozen=True)
class DevicePolicy:
    """The app's conditions.

    `allow` is asked before each step that costs anything (charging? unmetered? idle? cool?); once a device has joined a window
    it is not asked again until the window ends, because leaving half-way loses the update and may cost others theirs.
    Raises ValueError for floors below the protocol's own, or times that make no sense.
    """

    allow: Callable[[Cost], bool] = always
    n_min_floor: int = N_MIN_FLOOR
    gamma_max: float = GAMMA_MAX
    history: int = 0  # contributed updates that stay on the device, for debugging; 0 deletes each at its receipt
    backoff_min_s: float = 30.0
    backoff_max_s: float = 6 * 3600.0
    refused_s: float = 60.0  # after `allow` said no
    window_patience_s: float = 120.0  # without any progress inside a window; a phase's longest deadline is 60 s, and 30 s more
    poll_s: float = 25.0  # the longest that the server holds a request
    slice_s: float = 5.0  # training runs in slices of at most this long
    threads: int = 1

    def __post_init__(self) -> None:
        """Refuse what would weaken the protocol or stop the device."""
        if self.n_min_floor < N_MIN_FLOOR:
            raise ValueError(f"n_min_floor {self.n_min_floor} is below {N_MIN_FLOOR}, the protocol's own floor")
        if not 0 <= self.gamma_max <= GAMMA_MAX:
            raise ValueError(f"gamma_max {self.gamma_max} is not within 0 and a third")
        if not 0 < self.backoff_min_s <= self.backoff_max_s:
            raise ValueError("backoff_min_s must be above 0 and at most backoff_max_s")
        if min(self.refused_s, self.window_patience_s, self.slice_s) <= 0 or not 0 <= self.poll_s <= 25:
            raise ValueError("refused_s, window_patience_s and slice_s must be above 0, poll_s within 0 and 25")
        if self.history < 0 or self.threads < 1:
            raise ValueError("history must be at least 0 and threads at least 1")
