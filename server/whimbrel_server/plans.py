"""From an ONNX model and a task's settings to the plan that devices work by, and back to a model for inference.

What belongs here: the one place of the server, outside the compiler, that knows onnx. What does not: signing (the
authority's), and when a plan takes effect (`catalogue.py`). Everything here is slow enough to run on a worker.

No runtime is given to the compiler: an uploaded file would then run in the process that everything else depends on. A model
with nodes whose shapes only a run could tell is refused; `whimbrel-lab check` runs it, and shows what to change.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx

from whimbrel_protocol import fixed, wire
from whimbrel_protocol.delta import compress, decompress
from whimbrel_protocol.encoding import LIGHTEST
from whimbrel_protocol.errors import Code, RuleError, WireError
from whimbrel_protocol.messages import Binding, BlobRef, PlanBody
from whimbrel_protocol.primitives import sha256
from whimbrel_protocol.signed import MASKED, Plan
from whimbrel_server import compiler
from whimbrel_server.rounds import headers
from whimbrel_server.rounds.aggregate import Statistics
from whimbrel_server.settings import TaskSettings

logger = logging.getLogger("whimbrel.plans")

Parameters = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

_LIFE_S = 365 * 86_400
_GRAPH_MAX = 2**30
# How some other tools call them.
_ALIASES = {"softmax_cross_entropy": "cross_entropy", "mean_squared_error": "mse"}
# What a step counts for a metric that the settings name.
_SUMS = {"loss": "@loss_sum", "accuracy": "@correct_sum", "mae": "@abs_error_sum"}


@dataclass(frozen=True)
class Draft:
    """An unsigned plan, and the blob of its fixed tensors, where it has any."""

    plan: Plan
    fixed: bytes | None


def draft(model: bytes, settings: TaskSettings, fleet: bytes, task: str, now: int) -> Draft:
    """Compile a task to its unsigned plan.

    Raises RuleError MODEL_REFUSED where the model cannot be trained like this, CONFIGURATION where no model could.
    """
    proto = _parsed(model)
    spec = step_spec(settings)
    try:
        step, evaluation = compiler.compile_step(proto, spec), compiler.compile_eval(proto, spec)
        bindings, blob = _fixed(proto, step, evaluation)
        body = replace(_plan_body(step, evaluation, settings), fixed=bindings, fixed_blob=_ref(blob))
    except compiler.CompileError as error:
        raise _refusal(error) from error
    except RuleError:
        raise
    except Exception as error:  # onnx raises many kinds on models that are wrong in ways it did not foresee
        logger.warning("the compiler stumbled over a model", exc_info=error)
        raise RuleError(Code.MODEL_REFUSED, f"the model is not valid: {type(error).__name__}: {error}") from error
    _check_trained(step, settings)
    count = sum(math.prod(binding.shape) for binding in body.shared)
    return Draft(_plan(settings, fleet, task, now, count, wire.encode(body)), blob)


def first_parameters(model: bytes, settings: TaskSettings) -> Parameters:
    """Return version 1: what is trained and shared as it starts, and the running statistics, float32, in plan order.

    Raises RuleError MODEL_REFUSED.
    """
    proto = _parsed(model)
    try:
        step = compiler.compile_step(proto, step_spec(settings))
        start = compiler.initial_parameters(proto, step)
    except compiler.CompileError as error:
        raise RuleError(Code.MODEL_REFUSED, str(error)) from error
    return {one.name: start[one.name] for one in (*step.parameters, *step.running)}


def inference_model(model: bytes, settings: TaskSettings, parameters: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the shipped model with these weights, adapters merged, a new head in its place. Raises RuleError MODEL_REFUSED."""
    proto = _parsed(model)
    try:
        step = compiler.compile_step(proto, step_spec(settings)) if _is_changed(settings) else None
        return bytes(compiler.export_inference(proto, parameters, step).SerializeToString())
    except compiler.CompileError as error:
        raise RuleError(Code.MODEL_REFUSED, str(error)) from error


def shapes(body: PlanBody) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what a version consists of by name, in plan order."""
    return {binding.name: binding.shape for binding in body.shared}


def statistics(body: PlanBody) -> Statistics:
    """Return which parts of a version are running statistics, and which of these are variances."""
    running = frozenset(binding.name for binding in body.of("running"))
    if not running:
        return Statistics()
    graph = onnx.load_model_from_string(decompress(body.eval_graph, _GRAPH_MAX)).graph
    variances = {node.input[4] for node in graph.node if node.op_type == "BatchNormalization"}
    return Statistics(running, running & variances)


def _parsed(model: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(model)
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf's own errors and the checker's
        raise RuleError(Code.MODEL_REFUSED, f"not a valid ONNX model: {error}") from error
    return proto


def step_spec(settings: TaskSettings) -> compiler.StepSpec:
    """What the compiler is asked for by a task's settings; it judges the names in them."""
    return compiler.StepSpec(
        loss=_ALIASES.get(settings.loss, settings.loss),
        optimizer="momentum" if settings.optimizer == "sgd" and settings.momentum > 0 else settings.optimizer,
        batch=settings.batch,
        train=settings.train,
        proximal=settings.mu > 0,
        output=settings.output or None,
        dims=settings.dims,
        values=settings.values,
        freeze=settings.freeze,
        batch_norm=settings.batch_norm,
        adapters=_adapters(settings),
        head=settings.head or None,
        local=settings.local,
        label_smoothing=settings.label_smoothing,
        clip_norm=settings.clip_norm > 0,
        weight_decay=settings.weight_decay > 0,
        external=True,
        metrics=tuple(name for name in settings.metrics if name not in ("loss", "accuracy")),
    )


def _adapters(settings: TaskSettings) -> compiler.Adapters | None:
    if not settings.lora_rank:
        return None
    alpha = settings.lora_alpha or float(settings.lora_rank)
    return compiler.Adapters(settings.lora_rank, alpha, settings.lora_patterns, settings.lora_freeze_a)


def _is_changed(settings: TaskSettings) -> bool:
    """Whether the published model differs from the shipped one in more than its weights' values."""
    return bool(settings.lora_rank or settings.head or settings.train != ("*",))


def _check_trained(step: compiler.TrainStep, settings: TaskSettings) -> None:
    trained = (*step.parameters, *step.local, *step.running)
    if not step.parameters or any(parameter.dtype != np.float32 for parameter in trained):
        raise RuleError(Code.MODEL_REFUSED, "the weights that are trained must be float32, and some must be shared")
    counted = {binding.name for binding in step.outputs}
    for name in settings.metrics:
        if _SUMS.get(name, f"@{name}_sum") not in counted:
            raise RuleError(Code.CONFIGURATION, f"the metric {name} is not counted with the loss {settings.loss}")


def _fixed(
    proto: onnx.ModelProto, step: compiler.TrainStep, evaluation: compiler.EvalStep
) -> tuple[tuple[Binding, ...], bytes | None]:
    """What is handed over once: weights that either graph leaves out, and local parameters as they start.

    Raises RuleError MODEL_REFUSED for tensors that no device would take.
    """
    frozen = {**compiler.frozen_weights(proto, step), **compiler.frozen_weights(proto, evaluation)}
    start = compiler.initial_parameters(proto, step)
    tensors = [("frozen", name, array) for name, array in frozen.items()]
    tensors += [("local", one.name, start[one.name]) for one in step.local]
    if not tensors:
        return (), None
    bindings = tuple(Binding(role, name, array.dtype.name, array.shape) for role, name, array in tensors)
    blob = fixed.encode(array for _, _, array in tensors)
    try:
        fixed.decode(blob, bindings)
    except WireError as error:
        raise RuleError(Code.MODEL_REFUSED, f"its frozen weights cannot be handed over: {error.detail}") from error
    return bindings, blob


def _refusal(error: compiler.CompileError) -> RuleError:
    return RuleError(Code.CONFIGURATION if error.code == "spec" else Code.MODEL_REFUSED, str(error))


def _ref(blob: bytes | None) -> BlobRef | None:
    return None if blob is None else BlobRef(sha256(blob), len(blob))


def _plan_body(step: compiler.TrainStep, evaluation: compiler.EvalStep, settings: TaskSettings) -> PlanBody:
    clip_min, clip_max = headers.clip_range(settings)
    return PlanBody(
        loss=settings.loss,
        batch=settings.batch,
        train_graph=compress(step.model.SerializeToString(deterministic=True)),
        eval_graph=compress(evaluation.model.SerializeToString(deterministic=True)),
        inputs=_bindings(step.inputs, settings),
        outputs=_bindings(step.outputs, settings),
        eval_inputs=_bindings(evaluation.inputs, settings),
        eval_outputs=_bindings(evaluation.outputs, settings),
        # Whoever weighs less than a quarter could not join, so it need not train.
        min_examples=max(settings.min_examples, -(-settings.weight_max // LIGHTEST)),
        operators=step.operators,
        metrics=headers.metrics_of(settings),
        rotate=settings.rotate,
        weight_max=settings.weight_max,
        clip_min=clip_min,
        clip_max=clip_max,
        drop_ragged=step.drop_ragged,
    )


def _bindings(bindings: Iterable[compiler.Binding], settings: TaskSettings) -> tuple[Binding, ...]:
    """Hyper-parameters that no header states are told here, as what an input has by default."""
    stated = {
        "@beta1": settings.beta1,
        "@beta2": settings.beta2,
        "@eps": settings.eps,
        "@clip_norm": settings.clip_norm,
        "@weight_decay": settings.weight_decay,
    }
    return tuple(
        Binding(b.role, b.name, np.dtype(b.dtype).name, b.shape, stated.get(b.name, b.default or 0.0)) for b in bindings
    )


def _plan(settings: TaskSettings, fleet: bytes, task: str, now: int, count: int, body: bytes) -> Plan:
    scale_min, scale_max = headers.scale_range(settings, count)
    return Plan(
        fleet=fleet,
        serial=now,
        not_after=now + _LIFE_S,
        flags=MASKED if settings.masked else 0,
        bits=settings.bits,
        n_max=settings.n_max,
        weight_bits=headers.weight_bits(settings),
        d=headers.values_of(settings, count),
        scale_min=scale_min,
        scale_max=scale_max,
        task=task,
        body=body,
    )
