"""What `check` finds out, as values that pass from its child processes to its report and into `--json`.

Only data belongs here, and its way through a file.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

REPORT, SOURCE, STEP, GRADIENT = "facts.json", "source.onnx", "step", "gradient"


@dataclass(frozen=True)
class Options:
    """What the command takes. `trainable`: "auto", "all", or the compiler's words and patterns; `lora` 0: no adapters."""

    file: str
    loss: str = "auto"
    output: str | None = None
    trainable: tuple[str, ...] = ("auto",)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    batch: int | None = None
    init: str = ""
    optimizer: str = "sgd"
    lora: int = 0
    head: int = 0
    exact: bool = False
    seed: int = 1
    timeout_s: float = 1800.0


@dataclass(frozen=True)
class Tensor:
    """A model's input or output as the file declares it, and the shape it was tried with."""

    name: str
    dtype: str
    declared: tuple[int | str, ...]
    tried: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """The file as it came, and what was chosen where the author left it open (`notes`)."""

    file: str
    bytes: int
    opset: int
    producer: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    operators: dict[str, int]
    notes: tuple[str, ...]
    output: str
    loss: str
    loss_because: str


@dataclass(frozen=True)
class Step:
    """The compiled train step. Counts of numbers beside names; sizes in bytes.

    `up_bytes` is a masked vector of 16 bits a value; `down_bytes` the weights whole, as a device gets them the first time.
    """

    trained: dict[str, int]
    frozen: dict[str, int]
    given_up: tuple[str, ...]
    unused: tuple[str, ...]
    cut: str | None
    batch: int
    operators: tuple[str, ...]
    graph_bytes: int
    packed_bytes: int
    model_packed_bytes: int
    up_bytes: int
    down_bytes: int
    compile_s: float

    @property
    def values(self) -> int:
        return sum(self.trained.values())


@dataclass(frozen=True)
class Slope:
    """A directional derivative: by the compiled gradient, and by central differences `spread` apart from one another.

    `error` is relative. Where the differences differ too much, the check is not `decided`, and nothing is `right`.
    """

    by_gradient: float
    by_difference: float
    eps: float
    error: float
    spread: float
    decided: bool
    right: bool


@dataclass(frozen=True)
class Learning:
    """What the device's own trainer did with the step: losses before the first and after each step, at learning rate `rate`."""

    optimizer: str
    rate: float
    losses: tuple[float, ...]
    step_ms: float
    peak_mb: float

    @property
    def learnt(self) -> bool:
        first, last = self.losses[0], self.losses[-1]
        return last < first - 1e-6 * abs(first)


@dataclass(frozen=True)
class Facts:
    """Everything that is known; what was not reached is None, and `refusal` says why."""

    source: Source | None = None
    step: Step | None = None
    learning: Learning | None = None
    gradient: Slope | None = None
    exact: Slope | None = None
    refusal: str = ""

    @property
    def ok(self) -> bool:
        """A step ran, its loss went down, and its gradient was not found wrong."""
        return not self.refusal and self.learning is not None and self.learning.learnt and not self.wrong

    @property
    def wrong(self) -> bool:
        """Whether the gradient is wrong, by the most exact check there was."""
        last = self.exact or self.gradient
        return last is not None and last.decided and not last.right

    def to_json(self) -> dict[str, Any]:
        return {"ok": self.ok, **asdict(self)}


def write(folder: Path, **parts: Any) -> None:
    """Leave a stage's parts for the parent process."""
    values = {name: part if isinstance(part, str) else asdict(part) for name, part in parts.items()}
    (folder / REPORT).write_text(json.dumps(values))


def read(folder: Path) -> dict[str, Any]:
    """What a stage left, as parts of `Facts`; empty where it left nothing."""
    path = folder / REPORT
    parts = json.loads(path.read_text()) if path.exists() else {}
    types: dict[str, Any] = {"source": _source, "step": Step, "learning": Learning, "gradient": Slope, "exact": Slope}
    path.unlink(missing_ok=True)
    return {name: types[name](**part) if name in types else part for name, part in parts.items()}


def _source(**fields: Any) -> Source:
    tensors = {name: tuple(Tensor(**one) for one in fields[name]) for name in ("inputs", "outputs")}
    return Source(**{**fields, **tensors})
