"""The first child process of `check`: reads a foreign file, chooses what the author left open, and compiles the train step.

Run as `python -m whimbrel_lab.check.compilation FOLDER`, which holds the options; it leaves what it found there, and the
compiled steps for `training.py`. Nothing is trained here.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import external_data_helper

from whimbrel_lab.check import facts, inputs, objectives, weights
from whimbrel_lab.check.facts import Options
from whimbrel_lab.check.inputs import Fitted
from whimbrel_lab.check.objectives import Objective
from whimbrel_lab.check.runtime import Array, Model, Stopped, run
from whimbrel_protocol.delta import compress
from whimbrel_protocol.objects import VectorSpec
from whimbrel_server import compiler
from whimbrel_server.compiler import CompileError, StepSpec, TrainStep, UnsupportedOperator
from whimbrel_server.compiler.graph.nested import reads

BITS, COHORT = 16, 32  # of the masked vector that is reckoned with
RETRY = frozenset({"output", "class-axis", "loss"})  # a guessed loss that did not fit after all
_LARGE = 2**31 - 2**20  # protobuf's limit: larger models are run from their file


class Refused(Exception):
    """Something that the author must change; the message says what."""


@dataclass(frozen=True)
class _Opened:
    model: onnx.ModelProto
    path: str | None  # where the model is too large to be passed on in memory
    notes: tuple[str, ...]


def main(folder: Path) -> int:
    """Compile and leave what was found; returns 0, or 1 with a refusal left."""
    options = _options(folder)
    found: dict[str, Any] = {}
    try:
        _check(options, folder, found)
    except UnsupportedOperator as error:
        facts.write(folder, refusal=f"{error}{_way_out(error)}", **found)
        return 1
    except (Refused, Stopped, CompileError, inputs.Unfit, objectives.NoOutput) as error:
        facts.write(folder, refusal=str(error), **found)
        return 1
    facts.write(folder, **found)
    return 0


def _way_out(error: UnsupportedOperator) -> str:
    """The words of this command for what could be trained instead."""
    words = ["auto"] if error.trainable else []
    words += [f"last:{error.layers}"] if error.layers else []
    return f". Here: --trainable {' or '.join(words)}" if words else ""


def _options(folder: Path) -> Options:
    raw = json.loads((folder / "options.json").read_text())
    shapes = {name: tuple(shape) for name, shape in raw["inputs"].items()}
    return Options(**{**raw, "inputs": shapes, "trainable": tuple(raw["trainable"])})


def _check(options: Options, folder: Path, found: dict[str, Any]) -> None:
    opened = _open(options)
    asked = inputs.Asked(options.inputs, options.values, options.batch, options.seed)
    fitted = inputs.fit(opened.model, Model(opened.model, opened.path), asked)
    objective = objectives.choose(opened.model, fitted.outputs, options.output, options.loss)
    found["source"] = _source(options, opened, fitted, objective)
    begin = time.perf_counter()
    step, objective = _compile(opened.model, options, fitted, objective)
    seconds = time.perf_counter() - begin
    if any(one.dtype != np.float32 for one in step.parameters):
        raise Refused("the weights that are trained are float64, and devices train float32: export the model in float32")
    if options.batch not in (None, step.spec.batch):
        why = f"a step takes {step.spec.batch} examples and not {options.batch}: the inputs' sizes are fixed"
        fitted = replace(fitted, notes=(*fitted.notes, why))
    found["source"] = _source(options, opened, fitted, objective)
    found["step"] = _step(opened.model, step, seconds)
    _leave(folder, opened.model, step, fitted, objective, options)


# --- the file ---------------------------------------------------------------------------------------------------------


def _open(options: Options) -> _Opened:
    path = Path(options.file)
    try:
        model = onnx.load(path)
    except FileNotFoundError as error:
        raise Refused(f"{error.filename}: no such file") from error
    except Exception as error:  # protobuf's own errors, and onnx's for external data
        raise Refused(f"{path} is no ONNX file: {error}") from error
    if not model.graph.node:
        raise Refused(f"{path} is no ONNX file: it holds no graph")
    external_data_helper.load_external_data_for_model(model, str(path.parent))
    large = str(path) if model.ByteSize() > _LARGE else None
    if options.init != "he":
        return _Opened(model, large, ())
    filled, count = weights.initialise(model, options.seed)
    return _Opened(filled, None, (f"{count} placeholders for weights got He-scaled random values",))


def _source(options: Options, opened: _Opened, fitted: Fitted, objective: Objective) -> facts.Source:
    model = opened.model
    declared = {info.name: _declared(info) for info in model.graph.input}
    kinds = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)
    return facts.Source(
        file=options.file,
        bytes=Path(options.file).stat().st_size,
        opset=max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0),
        producer=f"{model.producer_name} {model.producer_version}".strip(),
        inputs=tuple(_tensor(name, declared[name], array) for name, array in fitted.feeds.items()),
        outputs=tuple(_tensor(info.name, _declared(info), fitted.outputs[info.name]) for info in model.graph.output),
        operators=dict(sorted(kinds.items())),
        notes=opened.notes + fitted.notes,
        output=objective.output,
        loss=objective.loss,
        loss_because=objective.why,
    )


def _declared(info: onnx.ValueInfoProto) -> tuple[int | str, ...]:
    return tuple(dim.dim_value if dim.dim_value > 0 else dim.dim_param or "?" for dim in info.type.tensor_type.shape.dim)


def _tensor(name: str, declared: Sequence[int | str], array: Array) -> facts.Tensor:
    return facts.Tensor(name, array.dtype.name, tuple(declared), array.shape)


# --- the step ---------------------------------------------------------------------------------------------------------


def _compile(model: onnx.ModelProto, options: Options, fitted: Fitted, objective: Objective) -> tuple[TrainStep, Objective]:
    """The step of the chosen loss, or of squared error where a guessed loss does not fit."""
    try:
        step = compiler.compile_step(model, _spec(model, options, fitted, objective), run)
        if step.cut or not objective.if_cut:
            return step, objective
        why = "the output is taken for real numbers, as it ends in a division"
    except CompileError as error:
        if objective.certain or objective.loss == objectives.FALLBACK or error.code not in RETRY:
            raise
        why = f"{objective.loss} does not fit: {error}"
    other = Objective(objective.output, objectives.FALLBACK, why, certain=True)
    return compiler.compile_step(model, _spec(model, options, fitted, other), run), other


def _spec(model: onnx.ModelProto, options: Options, fitted: Fitted, objective: Objective) -> StepSpec:
    output, read = fitted.outputs[objective.output], _leading_to(model, objective.output)
    auto = options.trainable == ("auto",)
    return StepSpec(
        loss=objective.loss,
        optimizer=options.optimizer,
        batch=_batch(fitted, output.shape),
        train=("*",) if auto or options.trainable == ("all",) else options.trainable,
        freeze="auto" if auto else "refuse",
        output=objective.output,
        dims={name: array.shape for name, array in fitted.feeds.items() if name in read and array.shape},
        values={name: value for name, value in fitted.values.items() if name in read},
        adapters=compiler.Adapters(options.lora, float(options.lora)) if options.lora else None,
        head=options.head or None,
        external=True,
    )


def _leading_to(model: onnx.ModelProto, output: str) -> set[str]:
    """Every name that an output depends on."""
    names = {output}
    for node in reversed(model.graph.node):
        if names.intersection(node.output):
            names.update(reads(node))
    return names


def _batch(fitted: Fitted, output: Sequence[int]) -> int:
    """The examples of a step: the output's first size if it is an input's too, else the second (time may come first)."""
    sizes = [array.shape[0] for array in fitted.feeds.values() if array.ndim]
    return next((size for size in output[:2] if size in sizes), sizes[0] if sizes else 1)


def _step(model: onnx.ModelProto, step: TrainStep, seconds: float) -> facts.Step:
    graph = step.model.SerializeToString(deterministic=True)
    count = sum(int(np.prod(one.shape)) for one in step.parameters)
    return facts.Step(
        trained={one.name: int(np.prod(one.shape)) for one in (*step.parameters, *step.local)},
        frozen=_sizes(model, step.frozen),
        given_up=step.frozen_automatically,
        unused=step.unused,
        cut=step.cut,
        batch=step.spec.batch,
        operators=step.operators,
        graph_bytes=len(graph),
        packed_bytes=len(compress(graph)),
        model_packed_bytes=len(compress(model.SerializeToString())) if model.ByteSize() < _LARGE else model.ByteSize(),
        up_bytes=8 * VectorSpec.make(BITS, COHORT, count, 1.0, 1).words,
        down_bytes=4 * count,
        compile_s=round(seconds, 3),
    )


def _sizes(model: onnx.ModelProto, names: Sequence[str]) -> dict[str, int]:
    sizes = {tensor.name: int(np.prod(tensor.dims)) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            sizes[node.output[0]] = int(np.prod(node.attribute[0].t.dims))
    return {name: sizes.get(name, 0) for name in names}


def _leave(
    folder: Path, model: onnx.ModelProto, step: TrainStep, fitted: Fitted, objective: Objective, options: Options
) -> None:
    """Write the step and all that it runs on, and beside it the plain gradient step that shows the gradient itself."""
    start = compiler.initial_parameters(model, step)
    label_seed, output = options.seed + 1, fitted.outputs[objective.output]
    batch = {name: array for name, array in fitted.feeds.items() if name not in fitted.values}
    for one in step.inputs:
        if one.role == "label":
            batch[one.name] = objectives.labels(objective, output, one.shape, one.dtype, label_seed, options.head)
        elif one.role == "weight":
            batch[one.name] = np.ones(one.shape, one.dtype)
    wanted = {one.name for one in step.inputs}
    _save(folder, "batch", {name: array for name, array in batch.items() if name in wanted})
    _save(folder, "start", start)
    _save(folder, "frozen", dict(compiler.frozen_weights(model, step)))
    _save_step(folder, facts.STEP, step)
    if options.optimizer != "sgd":
        step = compiler.compile_step(model, replace(step.spec, optimizer="sgd"), run)
    _save_step(folder, facts.GRADIENT, step)


def _save(folder: Path, name: str, arrays: Mapping[str, Array]) -> None:
    """Arrays in order; their names, which may be no file names, in a list beside them."""
    (folder / f"{name}.json").write_text(json.dumps(list(arrays)))
    np.savez(folder / f"{name}.npz", *arrays.values())


def _save_step(folder: Path, name: str, step: TrainStep) -> None:
    (folder / f"{name}.onnx").write_bytes(step.model.SerializeToString(deterministic=True))
    tables = {
        side: [[one.role, one.name, np.dtype(one.dtype).name, list(one.shape), one.default or 0.0] for one in table]
        for side, table in (("inputs", step.inputs), ("outputs", step.outputs))
    }
    (folder / f"{name}.json").write_text(json.dumps({"loss": step.spec.loss, "batch": step.spec.batch, **tables}))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
