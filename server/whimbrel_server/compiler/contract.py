"""What one asks of the compiler, and the contract of inputs and outputs that it answers with.

Only the dataclasses belong here; how they are filled is in `step.py`, what becomes of weights in `parameters.py`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx

from whimbrel_server.compiler.graph.ir import OPSET, Array

ANY = -1  # a size in the table of a symbolic step
Role = Literal["data", "label", "weight", "param", "local", "running", "state", "anchor", "hyper", "metric"]
Run = Callable[[onnx.ModelProto, Mapping[str, Array]], Sequence[Array]]
"""Executes a model: all its outputs in order. The only way to run anything while compiling."""


@dataclass(frozen=True)
class Adapters:
    """Low-rank adapters: x W becomes x W + (alpha / rank) (x A) B, with W frozen, A `[in, rank]`, B `[rank, out]`.

    Hu et al., "LoRA", ICLR 2022, section 4.1. `patterns` are globs over the names of the adapted weights;
    `freeze_a` trains B alone (Sun et al., "Improving LoRA in Privacy-preserving Federated Learning", ICLR 2024:
    then the mean of the products is the product of the means).
    """

    rank: int
    alpha: float
    patterns: tuple[str, ...] = ("*",)
    freeze_a: bool = False


@dataclass(frozen=True)
class StepSpec:
    """What to compile.

    `train`: globs over weight names (`*` and `?`) or the words of `selection.py` ("all", "auto", "last:K",
    "biases", "norms"). With adapters "*" alone means the adapters (and a new head) alone.
    `batch` is the static number of examples a step takes; with `symbolic` the graph takes any number `N`.
    `output` names the model output to train on (needed where there are several), `dims` gives whole shapes of data
    inputs that the model leaves open, `values` fixes scalar inputs. `proximal` adds FedProx' anchor inputs.
    `freeze="auto"` trains the largest part behind an operator without a gradient instead of refusing the model.
    `batch_norm="train"` normalises with the batch's statistics and moves the running ones. `head` replaces the
    final product by a new one with so many classes. `local` are globs over trained weights that stay on the device.
    `external` keeps large frozen weights out of the graph; `metrics` names further sums.
    """

    loss: str
    optimizer: str
    batch: int
    train: tuple[str, ...] = ("*",)
    proximal: bool = False
    output: str | None = None
    dims: Mapping[str, Sequence[int]] = field(default_factory=dict)
    values: Mapping[str, float] = field(default_factory=dict)
    symbolic: bool = False
    freeze: Literal["refuse", "auto"] = "refuse"
    batch_norm: Literal["frozen", "train"] = "frozen"
    adapters: Adapters | None = None
    head: int | None = None
    local: tuple[str, ...] = ()
    label_smoothing: float = 0.0
    clip_norm: bool = False
    weight_decay: bool = False
    external: bool = False
    metrics: tuple[str, ...] = ()


@dataclass(frozen=True)
class Adapter:
    """The adapter of one weight. `transposed`: the weight is stored `[out, in]` (as a kernel `[out, in, 1, ...]`)."""

    weight: str
    shape: tuple[int, ...]
    transposed: bool
    dtype: np.dtype[Any]
    spec: Adapters

    @property
    def inputs(self) -> int:
        return self.shape[1 if self.transposed else 0]

    @property
    def outputs(self) -> int:
        return self.shape[0 if self.transposed else 1]

    @property
    def a(self) -> str:
        """Name of the factor `[in, rank]`."""
        return f"{self.weight}@lora_a"

    @property
    def b(self) -> str:
        """Name of the factor `[rank, out]`."""
        return f"{self.weight}@lora_b"

    @property
    def scale(self) -> float:
        return self.spec.alpha / self.spec.rank

    @property
    def trained(self) -> tuple[str, ...]:
        return (self.b,) if self.spec.freeze_a else (self.a, self.b)


@dataclass(frozen=True)
class Binding:
    """One input or output of a step. `default` fills the whole tensor where the client has no value; None:
    the client must supply one. Outputs have role param, local, running, state or metric. In the table of a symbolic
    step, sizes that grow with the batch are `ANY`."""

    role: Role
    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    default: float | None = None


@dataclass(frozen=True)
class Parameter:
    """A weight under its name in the source model (adapters: `<weight>@lora_a`, `<weight>@lora_b`)."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class CompiledStep:
    """A graph and its table.

    Outputs of role param, local, running and state come in the order of the inputs of that role, so they can be
    paired by position. `parameters` are the weights that are trained and shared, `local` those that are trained
    and stay on the device, `running` batch-norm statistics that are shared and averaged, never optimised.
    `unused` are selected weights the loss does not depend on, `frozen` the float weights kept as constants,
    `frozen_automatically` those of them that `freeze="auto"` gave up, `external` the ones the client hands over,
    `adapters` what stands beside frozen weights,
    `cut` the source node of the final activation that the loss was put in front of.
    """

    model: onnx.ModelProto
    spec: StepSpec
    inputs: tuple[Binding, ...]
    outputs: tuple[Binding, ...]
    parameters: tuple[Parameter, ...]
    local: tuple[Parameter, ...]
    running: tuple[Parameter, ...]
    unused: tuple[str, ...]
    frozen: tuple[str, ...]
    frozen_automatically: tuple[str, ...]
    external: tuple[Parameter, ...]
    adapters: tuple[Adapter, ...]
    cut: str | None
    operators: tuple[str, ...]
    opset: int = OPSET


@dataclass(frozen=True)
class TrainStep(CompiledStep):
    """One optimiser step: new parameters and state, `@loss` before the update, and the metric sums.

    `drop_ragged`: batch statistics, or a loss that the model itself makes of the batch, see padded rows, so a last batch
    that is not full must be left out.
    """

    drop_ragged: bool = False


@dataclass(frozen=True)
class EvalStep(CompiledStep):
    """The metric sums of one batch for given parameters, as the published model would give them."""
