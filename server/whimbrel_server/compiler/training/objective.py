"""From a model's output to what a step minimises and reports: label, sample weight, mean loss, metric sums.

The formulas are in `losses.py` and `metrics.py`; gradients and optimisers do not belong here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from whimbrel_server.compiler.contract import StepSpec
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import Value, topological
from whimbrel_server.compiler.training import metrics
from whimbrel_server.compiler.training.activation import without_activation
from whimbrel_server.compiler.training.batch_axis import batch_axis
from whimbrel_server.compiler.training.losses import LOSSES, Target


@dataclass(frozen=True)
class Objective:
    """`loss` is the weighted mean; `labels` holds the one label input, or none where the loss needs none.

    `whole`: the model itself made one number of the batch, so that rows of weight 0 have their part in it.
    """

    labels: tuple[Value, ...]
    weight: Value
    loss: Value
    sums: dict[str, Value]
    cut: str | None
    whole: bool = False


def objective(output: Value, spec: StepSpec) -> Objective:
    """The loss of `spec` on a model's output `[N, ...]`; raises CompileError ("spec", "output", "class-axis").

    An output `[T, N, ...]` is turned to `[N, T, ...]`. With the loss "output" a scalar output counts once for every unit
    of weight.
    """
    kind = LOSSES[spec.loss]
    if spec.label_smoothing and not (kind.smooths and 0.0 < spec.label_smoothing < 1.0):
        raise CompileError("spec", f"label_smoothing is {spec.label_smoothing}, for a cross-entropy and below 1 only")
    output, cut = without_activation(output, kind)
    if _time_first(output, spec.batch):
        output = output.transpose([1, 0, *range(2, output.rank)])
    scalar = kind.label is None and not output.rank
    if not output.is_float or not (scalar or output.shape[:1] == (spec.batch,)):
        raise CompileError("output", f"the output must be float with batch {spec.batch} first, not {output.shape}")
    label = output.graph.input("@label", *kind.label(output)) if kind.label else None
    weight = output.graph.input("@weight", output.dtype, (spec.batch,) if scalar else kind.positions(output))
    losses = kind.per_position(output, Target(label or weight, weight, spec.label_smoothing))
    sums = metrics.weighted_sums(losses, weight)
    loss = metrics.weighted_mean(sums)
    sums |= metrics.metric_sums(spec.metrics, kind, output, label, weight)
    return Objective((label,) if label else (), weight, loss, sums, cut, scalar)


def _time_first(output: Value, batch: int) -> bool:
    """Whether an output is `[T, N, ...]`, as recurrent layers give it."""
    if output.rank < 3 or output.shape[1] != batch:
        return False
    return output.shape[0] != batch or batch_axis(output, batch) == 1


def judged(loss: Value, data: Sequence[Value]) -> Value:
    """The loss, or NaN where an input holds a number that is not finite: a device then takes back the step.

    A runtime's MaxPool and Clip may let a NaN vanish on the way to the loss, but not on the way back to the weights. Inputs
    whose missing numbers the model itself fills in (`IsNaN`, or a node of another domain such as an imputer) are not judged.
    """
    readers = [(value, node) for node in topological([loss]) for value in node.ins]
    filled = {value for value, node in readers if node.domain or node.op == "IsNaN"}
    for value in data:
        if value.is_float and value not in filled:
            total = value.graph.op("ReduceSum", value, keepdims=0)
            loss = loss + total.cast(loss.dtype) * 0.0
    return loss
