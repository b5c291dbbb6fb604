"""What a specification trains of a model: weights, adapters, a new head, running statistics.

`task_model` is the inference model that a task trains and publishes, `choose` says what of it is trained. Reading and
differentiating do not belong here.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx

from whimbrel_server.compiler.choice.adapters import find_adapters
from whimbrel_server.compiler.choice.heads import with_head
from whimbrel_server.compiler.choice.selection import Uses, leading_to, matches, trainable_names, weights_of
from whimbrel_server.compiler.contract import Adapter, StepSpec
from whimbrel_server.compiler.errors import LISTED, CompileError
from whimbrel_server.compiler.graph.nested import reads
from whimbrel_server.compiler.source.constants import write_out
from whimbrel_server.compiler.source.inputs import check_name
from whimbrel_server.compiler.source.prepare import flatten
from whimbrel_server.compiler.source.reader import output_name


@dataclass(frozen=True)
class Choice:
    """The names to train in a fixed order, and the adapters that some of them belong to."""

    trained: tuple[str, ...]
    adapters: tuple[Adapter, ...]

    def only(self, names: Iterable[str]) -> "Choice":
        """Without what is not among `names`; an adapter that is not trained is none."""
        kept = set(names)
        trained = tuple(name for name in self.trained if name in kept)
        return Choice(trained, tuple(adapter for adapter in self.adapters if adapter.b in kept))


def task_model(model: onnx.ModelProto, spec: StepSpec) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A flat copy of the model as the task publishes it, and the names of the weights that are new in it."""
    flat = flatten(model)
    write_out(flat.graph, spec.train)
    return flat, with_head(flat, spec.head, output_name(flat.graph, spec.output)) if spec.head is not None else ()


def choose(prepared: onnx.ModelProto, spec: StepSpec, new: Sequence[str]) -> Choice:
    """What `spec` trains of a prepared model; the weights in `new` in any case.

    Raises CompileError: "nothing-to-train", "adapters", "train", "reserved-name".
    """
    train = () if spec.adapters is not None and spec.train == ("*",) else spec.train
    own = trainable_names(prepared.graph, [*train, *new], spec.output)
    adapters = find_adapters(prepared.graph, spec.adapters, own) if spec.adapters is not None else ()
    factors = {name for adapter in adapters for name in (adapter.a, adapter.b)}
    for name in [*own, *factors.intersection(weights_of(prepared.graph))]:
        check_name(name)
    trained = (*own, *(name for adapter in adapters for name in adapter.trained))
    if not trained:
        names = list(weights_of(prepared.graph))
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        raise CompileError(
            "nothing-to-train", f"train={spec.train!r} selects none of {names[:LISTED]!r}{more}{_hint(prepared.graph, train)}"
        )
    return Choice(trained, adapters)


def _hint(graph: onnx.GraphProto, train: Sequence[str]) -> str:
    """Trees and linear models of `ai.onnx.ml` keep their numbers in attributes; a word leaves out what was not learnt."""
    foreign = sorted({node.op_type for node in graph.node if node.domain == "ai.onnx.ml"})
    if foreign:
        return f"; what {', '.join(foreign)} keep in attributes is not trained"
    return "; none of them looks learnt: give their names to train them" if "*" in train and Uses(graph).candidates() else ""


def moving_statistics(graph: onnx.GraphProto, trained: Iterable[str], output: str | None) -> list[str]:
    """The running means and variances of the batch normalisations that see anything trained.

    Below the first trained weight nothing moves: there the statistics that the model came with are the right ones.
    Raises CompileError ("batch-norm") for one that something else uses as well.
    """
    uses, weights, live, found = Uses(graph), weights_of(graph), set(trained), list[str]()
    for node in leading_to(graph, output):
        if live.isdisjoint(reads(node)):
            continue
        live.update(node.output)
        if node.op_type == "BatchNormalization" and weights.keys() >= set(node.input[3:5]):
            _check_statistics(uses, node)
            found += node.input[3:5]
    return list(dict.fromkeys(found))


def _check_statistics(uses: Uses, layer: onnx.NodeProto) -> None:
    """Exporters store equal tensors once; what starts equal must still move apart."""
    operands = list(layer.input[1:5])
    for name in operands[2:]:
        shared = [node for node in uses.users[name] if list(node.input[1:5]) != operands]
        if shared or operands.count(name) > 1:
            where = [node.name or node.output[0] for node in (layer, *shared)]
            raise CompileError(
                "batch-norm", f"{name!r} is not only the running statistic of one layer: nodes {where!r}; store it apart"
            )


def is_local(name: str, spec: StepSpec) -> bool:
    return any(matches(pattern, name) for pattern in spec.local)
