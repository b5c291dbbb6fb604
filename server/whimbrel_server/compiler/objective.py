"""From a model's output to what a step minimises and reports: label, sample weight, mean loss, metric sums.

The formulas are in `losses.py` and `metrics.py`; gradients and optimisers do not belong here.
"""

from dataclasses import dataclass

from whimbrel_server.compiler import metrics
from whimbrel_server.compiler.contract import StepSpec
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.ir import Value
from whimbrel_server.compiler.losses import LOSSES, without_activation


@dataclass(frozen=True)
class Objective:
    """`loss` is the weighted mean; `labels` holds the one label input, or none where the loss needs none."""

    labels: tuple[Value, ...]
    weight: Value
    loss: Value
    sums: dict[str, Value]
    cut: str | None


def objective(output: Value, spec: StepSpec) -> Objective:
    """The loss of `spec` on a model's output `[N, ...]`; raises CompileError ("spec", "output", "class-axis")."""
    graph, kind, cut = output.graph, LOSSES[spec.loss], None
    if kind.classes:
        output, cut = without_activation(output)
    if not output.is_float or output.shape[:1] != (spec.batch,):
        raise CompileError("output", f"the output must be float with batch {spec.batch} first, not {output.shape}")
    label = graph.input("@label", *kind.label_type(output))
    weight = graph.input("@weight", output.dtype, kind.positions(output))
    sums = metrics.weighted_sums(kind.per_position(output, label), weight)
    loss = metrics.weighted_mean(sums)
    if kind.classes:
        sums["@correct_sum"] = metrics.correct_sum(output, label, weight)
    return Objective((label,), weight, loss, sums, cut)
