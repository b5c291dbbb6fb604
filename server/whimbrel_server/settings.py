"""A task's settings: what the operator chooses, what the policy allows, what a version's header tells the devices.

Here belong the numbers, their limits and their check against the fleet's policy. What the numbers do belongs in `engine.py`,
`window_run.py` and `aggregate.py`. All times are seconds.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import frexp
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.rules import corrupt, survivor_floor, threshold
from whimbrel_protocol.signed import Policy, VersionHeader

Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Whole = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Seconds = Annotated[float, Meta(gt=0, le=30 * 86_400)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
NotNegative = Annotated[float, Meta(ge=0, le=1e30)]
Fraction = Annotated[float, Meta(ge=0, lt=1)]
Measure = Annotated[str, Meta(pattern="^(loss|accuracy|mae|top([2-9]|[1-9][0-9]{1,3}))$")]
"""A metric that can be added over steps and devices."""

WORD_BYTES = 8

# The contract's greatest clip bound.
CLIP_MOST = 2.0**40

# A window's phases are over long before the next rendezvous.
RENDEZVOUS_LEAST_S = 60.0

# A window opens only if this many members more than expected may drop out of it (masking protocol, section 1.9).
SPARE = 2


def room(n: int, policy: Policy) -> int:
    """n - s_min: how many of `n` members may be lost before the survivor set is fixed (masking protocol, section 1.8)."""
    return n - survivor_floor(threshold(n, corrupt(n, policy.gamma_milli)), policy.n_min)


def may_open(n: int, policy: Policy, dropout: float) -> bool:
    """Whether a window of `n` has room for the share of members that is expected to drop out, and two more."""
    return policy.n_min <= n <= policy.n_max and room(n, policy) >= dropout * n + SPARE


class WindowLimits(msgspec.Struct, frozen=True, kw_only=True):
    """How long the phases of a window last, in seconds; `mask_s` includes the time for the bytes."""

    share_s: Seconds = 5.0
    mask_s: Seconds = 5.0
    vote_s: Seconds = 5.0
    unmask_s: Seconds = 5.0
    patience_s: NotNegative = 30.0
    early_min_s: NotNegative = 1.0


class TaskSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything about a task but its model.

    A round wants `contributions` (N) and is content with `contributions_min` at its deadline (0: three quarters of N); windows
    have `window` members (K) or more. `rounds` is the number of versions to publish after the first (0: no end).

    What is trained: an output "" is the model's only one; `dims` gives the shapes of inputs that the model leaves open,
    `values` fixes scalar inputs; `train` are patterns of parameter names or words ("all", "auto", "last:K", "biases", "norms").
    `freeze` "auto" gives up what lies before an operator without a gradient. A `lora_rank` above 0 puts adapters beside the
    frozen weights that `lora_patterns` name, with `lora_alpha` (0: the rank); then `train` "*" alone adds nothing to them. A
    `head` above 0 replaces the final product by one with so many classes. `local` are patterns of trained parameters that never
    leave the device. `clip_norm` bounds the norm of each step's gradient (0: not), `clip` that of the update.

    With `rendezvous_s` windows open only at multiples of it on the clock (Unix seconds), so that devices that are seldom online
    meet: who joins is told when, sleeps without a connection, and returns. 0: as soon as enough are ready.

    An update is clipped to the L2 norm `clip` (0: not), rotated, and rounded to the lattice of `scale` steps a unit: a power of
    two, or 0 to let it follow from the clip bound. With a `clip_quantile` the bound moves from version to version towards that
    quantile of the norms, at most by a factor of `clip_span`. `weight_max` is the number of examples that gives full weight (0:
    all updates weigh the same). `metrics` are means that devices report; like weights they carry no noise. `step_fraction` is
    the lattice of the published parameters, as a fraction of the size of an update.
    """

    loss: str = "softmax_cross_entropy"
    optimizer: Literal["sgd", "momentum", "nesterov", "adam", "adamw"] = "sgd"
    output: str = ""
    dims: dict[str, tuple[Count, ...]] = {}
    values: dict[str, float] = {}
    train: tuple[str, ...] = ("*",)
    freeze: Literal["refuse", "auto"] = "refuse"
    lora_rank: Annotated[int, Meta(ge=0, le=4096)] = 0
    lora_alpha: NotNegative = 0.0
    lora_patterns: tuple[str, ...] = ("*",)
    lora_freeze_a: bool = False
    head: Whole = 0
    local: tuple[str, ...] = ()
    batch_norm: Literal["frozen", "train"] = "frozen"

    contributions: Count = 32
    contributions_min: Whole = 0
    window: Count = 16
    rounds: Whole = 0
    round_deadline_s: Seconds = 600.0
    assignment_deadline_s: Seconds = 900.0
    come_back_min_s: Seconds = 1.0
    come_back_max_s: Seconds = 3600.0
    rendezvous_s: Annotated[float, Meta(ge=0, le=86_400)] = 0.0
    expected_dropout: Fraction = 0.1
    expected_window_dropout: Fraction = 0.05

    epochs: Count = 1
    max_steps: Whole = 0
    batch: Count = 16
    lr: Positive = 0.1
    lr_decay: Annotated[float, Meta(gt=0, le=1)] = 1.0
    decay_after: Whole = 0
    momentum: Fraction = 0.0
    mu: NotNegative = 0.0
    weight_decay: NotNegative = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    eps: Positive = 1e-8
    clip_norm: NotNegative = 0.0
    label_smoothing: Fraction = 0.0
    clip: NotNegative = 0.0
    clip_quantile: Fraction = 0.0
    clip_rate: Annotated[float, Meta(ge=0, le=2)] = 0.2
    clip_span: Annotated[float, Meta(ge=1, le=1e6)] = 64.0
    weight_max: Whole = 0
    min_examples: Count = 1
    seed: Whole = 0

    server_lr: Positive = 1.0
    step_fraction: Annotated[float, Meta(gt=0, le=1)] = 0.25

    masked: bool = True
    bits: Annotated[int, Meta(ge=8, le=32)] = 16
    rotate: bool = True
    n_max: Annotated[int, Meta(ge=2, le=1024)] = 64
    scale: NotNegative = 1024.0

    metrics: tuple[Measure, ...] = ()
    metric_bits: Annotated[int, Meta(ge=1, le=32)] = 16
    loss_max: Annotated[float, Meta(gt=0, le=1e9)] = 16.0

    share_s: Seconds = 5.0
    mask_s: Seconds = 5.0
    mask_rate: Positive = 50_000.0
    mask_max_s: Seconds = 60.0
    vote_s: Seconds = 5.0
    unmask_s: Seconds = 5.0
    patience_s: NotNegative = 30.0
    early_min_s: NotNegative = 1.0

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TaskSettings:
        """Settings from plain values. Raises RuleError CONFIGURATION for an unknown name or a value outside its limits."""
        try:
            return msgspec.convert(dict(data), cls)
        except msgspec.ValidationError as error:
            raise RuleError(Code.CONFIGURATION, f"task settings: {error}") from error

    def to_json(self) -> dict[str, Any]:
        """Plain values that `from_json` takes back."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

    @property
    def least_contributions(self) -> int:
        """N_min: with fewer a round is tried again."""
        return self.contributions_min or -(-3 * self.contributions // 4)

    def learning_rate(self, version: int) -> float:
        """The rate of a version: it decays by `lr_decay` a version once `decay_after` versions are past."""
        return float(self.lr * self.lr_decay ** max(0, version - self.decay_after))

    def header(self, version: int) -> VersionHeader:
        """All that a device is told to train `version` with, clip bound and scale as they start (see `headers.py`)."""
        rates = {"lr": self.learning_rate(version), "momentum": self.momentum, "mu": self.mu}
        steps = {"epochs": self.epochs, "max_steps": self.max_steps, "time_budget_ms": 0, "seed": self.seed, "flags": 0}
        reals = {"scale": self.scale, "clip": self.clip, "weight_decay": self.weight_decay}
        return VersionHeader(version=version, **rates, **steps, **reals)  # type: ignore[arg-type]

    def limits(self, words: int) -> WindowLimits:
        """The phases' lengths for vectors of so many 64-bit words."""
        upload_s = min(WORD_BYTES * words / self.mask_rate, self.mask_max_s)
        phases = {"share_s": self.share_s, "mask_s": self.mask_s + upload_s, "vote_s": self.vote_s, "unmask_s": self.unmask_s}
        return WindowLimits(**phases, patience_s=self.patience_s, early_min_s=self.early_min_s)

    def validate(self, policy: Policy) -> None:
        """Check the numbers against each other and against the fleet's policy.

        Raises RuleError CONFIGURATION for numbers that make no sense, POLICY_UNSATISFIABLE (naming numbers that would do) where
        no window could ever open, PLAN_UNMASKED for a task without masks that the policy forbids.
        """
        self._check_sense()
        if not self.masked and not policy.unmasked_allowed:
            raise RuleError(Code.PLAN_UNMASKED, "the policy forbids tasks without masks")
        largest = min(self.n_max, policy.n_max)
        if self.window <= largest and may_open(self.window, policy, self.expected_window_dropout):
            return
        sizes = [n for n in range(policy.n_min, largest + 1) if may_open(n, policy, self.expected_window_dropout)]
        advice = f"a window of {sizes[0]} to {largest} would do" if sizes else f"no window of at most {largest} would do"
        reason = f"a window of {self.window} (at most {largest}) may lose {room(self.window, policy)} with n_min {policy.n_min}"
        expected = f"{self.expected_window_dropout:.0%} are expected to drop out and {SPARE} more must be allowed to"
        raise RuleError(Code.POLICY_UNSATISFIABLE, f"{reason}; {expected}: {advice}")

    def _check_sense(self) -> None:
        if self.contributions < self.window:
            raise RuleError(Code.CONFIGURATION, f"{self.contributions} contributions do not fill a window of {self.window}")
        if self.least_contributions > self.contributions:
            raise RuleError(Code.CONFIGURATION, "contributions_min is above contributions")
        self._check_rendezvous()
        self._check_training()
        self._check_encoding()
        if not self.masked:
            raise RuleError(Code.CONFIGURATION, "windows without masks are not served: leave `masked` on")
        try:
            VectorSpec.make(self.bits, self.n_max, 1, 1.0, 1)
        except ProtocolError as error:
            raise RuleError(Code.CONFIGURATION, f"bits {self.bits} with n_max {self.n_max}: {error.detail}") from error

    def _check_rendezvous(self) -> None:
        if 0 < self.rendezvous_s < RENDEZVOUS_LEAST_S:
            raise RuleError(Code.CONFIGURATION, f"rendezvous_s is below {RENDEZVOUS_LEAST_S:.0f}")
        if self.rendezvous_s > min(self.round_deadline_s, self.assignment_deadline_s):
            reason = "round_deadline_s and assignment_deadline_s must reach from one rendezvous to the next"
            raise RuleError(Code.CONFIGURATION, f"rendezvous_s is {self.rendezvous_s}: {reason}")

    def _check_training(self) -> None:
        if self.optimizer == "nesterov" and not self.momentum:
            raise RuleError(Code.CONFIGURATION, "nesterov needs a `momentum` above 0")
        if self.momentum and self.optimizer in ("adam", "adamw"):
            raise RuleError(Code.CONFIGURATION, f"{self.optimizer} has no `momentum`: set `beta1`")
        if self.lora_freeze_a and not self.lora_rank:
            raise RuleError(Code.CONFIGURATION, "lora_freeze_a needs a `lora_rank`")

    def _check_encoding(self) -> None:
        if self.scale and frexp(self.scale)[0] != 0.5:
            raise RuleError(Code.CONFIGURATION, f"the scale {self.scale} is not a power of two")
        if not self.scale and not self.clip:
            raise RuleError(Code.CONFIGURATION, "the scale 0 follows from the clip bound: set `clip`, or a scale")
        if self.clip_quantile and (self.scale or not self.clip):
            raise RuleError(Code.CONFIGURATION, "clip_quantile needs a `clip` to start from, and `scale` 0 to follow it")
        if self.clip * (self.clip_span if self.clip_quantile else 1) > CLIP_MOST:
            raise RuleError(Code.CONFIGURATION, f"no clip bound may ever exceed {CLIP_MOST}")
        if len(set(self.metrics)) != len(self.metrics):
            raise RuleError(Code.CONFIGURATION, "a metric is named twice")
