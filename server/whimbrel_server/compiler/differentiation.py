"""A model with its loss and the gradients of what is trained, found by trying.

The sweep tells which weights the loss does not depend on, and which lie behind an operator without a gradient; the model
is then read again without them, so that they are constants. What goes in and out of a step is not known here.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx

from whimbrel_server.compiler.choice.adapters import with_adapters
from whimbrel_server.compiler.choice.chosen import Choice, choose, is_local, moving_statistics, task_model
from whimbrel_server.compiler.choice.selection import last_layers, trainable_names
from whimbrel_server.compiler.contract import Run, StepSpec
from whimbrel_server.compiler.errors import CompileError, UnsupportedOperator
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Value
from whimbrel_server.compiler.source.prepare import prepare
from whimbrel_server.compiler.source.reader import Reading, Source, read
from whimbrel_server.compiler.training.objective import Objective, objective


@dataclass(frozen=True)
class Differentiated:
    """`gradients` has one for every trained weight; `running` are the statistics that are inputs, `local` what of both
    stays on the device. `unused` and `given_up` were chosen and are not trained: the loss does not depend on them, or
    only through an operator without a gradient."""

    source: Source
    objective: Objective
    choice: Choice
    gradients: dict[str, Value]
    running: tuple[str, ...]
    local: tuple[str, ...]
    unused: tuple[str, ...] = ()
    given_up: tuple[str, ...] = ()


def differentiate(model: onnx.ModelProto, spec: StepSpec, training: bool, run: Run | None) -> Differentiated:
    """Raises CompileError, UnsupportedOperator among them unless the specification gives way by itself."""
    task, new = task_model(model, spec)
    prepared = prepare(task)
    choice, unused, given_up = choose(prepared, spec, new), list[str](), list[str]()
    while True:
        try:
            done = _attempt(prepared, spec, choice, training, run)
        except UnsupportedOperator as refusal:
            if not _gives_way(spec) or not refusal.trainable:
                behind = refusal.trainable or _reached(prepared, spec, training, run)
                raise refusal.advised(last_layers(prepared.graph, behind, spec.output)) from None
            choice, lost = _without(choice, refusal.trainable)
            given_up += lost
            continue
        smaller, lost = _without(choice, done.gradients)
        unused += lost
        if not smaller.trained:
            raise CompileError("nothing-to-train", f"the loss depends on none of {list(choice.trained)!r}")
        if not lost:
            _check_local(spec, done)
            return replace(done, unused=tuple(unused), given_up=tuple(given_up))
        choice = smaller


def _attempt(prepared: onnx.ModelProto, spec: StepSpec, choice: Choice, training: bool, run: Run | None) -> Differentiated:
    model = with_adapters(prepared, choice.adapters) if choice.adapters else prepared
    moving = moving_statistics(model.graph, choice.trained, spec.output) if spec.batch_norm == "train" else []
    named = [*choice.trained, *moving]
    source = read(model, spec.output, spec.batch, spec.dims, named, Reading(spec.values, run, training, spec.symbolic))
    source.graph.origin = "loss"
    target = objective(source.output, spec)
    gradients = grad(target.loss, {name: source.weights[name] for name in choice.trained if name in source.weights})
    running = tuple(name for name in moving if name in source.weights)
    local = tuple(name for name in (*gradients, *running) if is_local(name, spec))
    return Differentiated(source, target, choice, gradients, running, local)


def _reached(prepared: onnx.ModelProto, spec: StepSpec, training: bool, run: Run | None) -> tuple[str, ...]:
    """What a gradient reaches of all weights, where it reaches none of those that were chosen."""
    try:
        _attempt(prepared, spec, Choice(tuple(trainable_names(prepared.graph, ["*"], spec.output)), ()), training, run)
    except UnsupportedOperator as wider:
        return wider.trainable
    except CompileError:
        return ()
    return ()


def _gives_way(spec: StepSpec) -> bool:
    return spec.freeze == "auto" or "auto" in spec.train


def _without(choice: Choice, names: Iterable[str]) -> tuple[Choice, list[str]]:
    """The choice without what is not among `names`, and what that was."""
    smaller = choice.only(names)
    return smaller, [name for name in choice.trained if name not in smaller.trained]


def _check_local(spec: StepSpec, done: Differentiated) -> None:
    for pattern in spec.local:
        if not any(is_local(name, replace(spec, local=(pattern,))) for name in done.local):
            raise CompileError("local", f"{pattern!r} matches nothing that is trained: {list(done.gradients)!r}")
    if set(done.local) >= set(done.gradients):
        raise CompileError("local", f"local={list(spec.local)!r} leaves no trained weight to share")
