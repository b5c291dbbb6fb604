"""From an ONNX model and a task's settings to the plan that devices work by, and back to a model for inference.

What belongs here: the one place of the server, outside the compiler, that knows onnx. What does not: signing (the
authority's), and when a plan takes effect (`catalogue.py`). Everything here is slow enough to run on a worker.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
import onnx

from whimbrel_protocol import wire
from whimbrel_protocol.delta import compress
from whimbrel_protocol.encoding import LIGHTEST
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import Binding, PlanBody
from whimbrel_protocol.signed import MASKED, Plan
from whimbrel_server import compiler
from whimbrel_server.rounds import headers
from whimbrel_server.settings import TaskSettings

logger = logging.getLogger("whimbrel.plans")

Parameters = dict[str, np.ndarray[Any, np.dtype[np.float32]]]

_LIFE_S = 365 * 86_400
_LOSSES: dict[str, Literal["cross_entropy", "mse"]] = {
    "softmax_cross_entropy": "cross_entropy",
    "cross_entropy": "cross_entropy",
    "mean_squared_error": "mse",
    "mse": "mse",
}


def draft(model: bytes, settings: TaskSettings, fleet: bytes, task: str, now: int) -> Plan:
    """Compile a task to its unsigned plan. Raises RuleError MODEL_REFUSED where the model cannot be trained like this."""
    proto = _parsed(model)
    try:
        spec = _step_spec(settings)
        step, evaluation = compiler.compile_step(proto, spec), compiler.compile_eval(proto, spec)
        body = _plan_body(step, evaluation, settings)
    except compiler.CompileError as error:
        raise RuleError(Code.MODEL_REFUSED, str(error)) from error
    except RuleError:
        raise
    except Exception as error:  # onnx raises many kinds on models that are wrong in ways it did not foresee
        logger.warning("the compiler stumbled over a model", exc_info=error)
        raise RuleError(Code.MODEL_REFUSED, f"the model is not valid: {type(error).__name__}: {error}") from error
    if not step.parameters or any(parameter.dtype != np.float32 for parameter in step.parameters):
        raise RuleError(Code.MODEL_REFUSED, "the weights that are trained must be float32, and there must be some")
    if "accuracy" in settings.metrics and "@correct_sum" not in {binding.name for binding in step.outputs}:
        raise RuleError(Code.CONFIGURATION, f"the metric accuracy is not counted with the loss {settings.loss}")
    count = sum(math.prod(parameter.shape) for parameter in step.parameters)
    return _plan(settings, fleet, task, now, count, wire.encode(body))


def first_parameters(model: bytes, settings: TaskSettings) -> Parameters:
    """Return the parameters of version 1: the shipped weights, float32, in plan order. Raises RuleError MODEL_REFUSED."""
    proto = _parsed(model)
    try:
        return compiler.initial_parameters(proto, compiler.compile_step(proto, _step_spec(settings)))
    except compiler.CompileError as error:
        raise RuleError(Code.MODEL_REFUSED, str(error)) from error


def inference_model(model: bytes, parameters: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    """Return the shipped model with these weights. Raises RuleError MODEL_REFUSED."""
    try:
        return bytes(compiler.export_inference(_parsed(model), parameters).SerializeToString())
    except compiler.CompileError as error:
        raise RuleError(Code.MODEL_REFUSED, str(error)) from error


def shapes(body: PlanBody) -> dict[str, tuple[int, ...]]:
    """Return the trained parameters' shapes by name, in plan order."""
    return {binding.name: binding.shape for binding in body.inputs if binding.role == "param"}


def _parsed(model: bytes) -> onnx.ModelProto:
    try:
        proto = onnx.load_model_from_string(model)
        onnx.checker.check_model(proto)
    except Exception as error:  # protobuf's own errors and the checker's
        raise RuleError(Code.MODEL_REFUSED, f"not a valid ONNX model: {error}") from error
    return proto


def _step_spec(settings: TaskSettings) -> compiler.StepSpec:
    if settings.loss not in _LOSSES:
        raise RuleError(Code.CONFIGURATION, f"loss {settings.loss!r}, not one of {', '.join(sorted(_LOSSES))}")
    if settings.optimizer not in ("sgd", "momentum"):
        raise RuleError(Code.CONFIGURATION, f"optimizer {settings.optimizer!r}, neither sgd nor momentum")
    return compiler.StepSpec(
        loss=_LOSSES[settings.loss],
        optimizer="momentum" if settings.optimizer == "momentum" or settings.momentum > 0 else "sgd",
        batch=settings.batch,
        train=tuple(settings.train),
        proximal=settings.mu > 0,
        output=settings.output or None,
    )


def _plan_body(step: compiler.TrainStep, evaluation: compiler.EvalStep, settings: TaskSettings) -> PlanBody:
    clip_min, clip_max = headers.clip_range(settings)
    return PlanBody(
        loss=settings.loss,
        batch=settings.batch,
        train_graph=compress(step.model.SerializeToString(deterministic=True)),
        eval_graph=compress(evaluation.model.SerializeToString(deterministic=True)),
        inputs=_bindings(step.inputs),
        outputs=_bindings(step.outputs),
        eval_inputs=_bindings(evaluation.inputs),
        eval_outputs=_bindings(evaluation.outputs),
        # Whoever weighs less than a quarter could not join, so it need not train.
        min_examples=max(settings.min_examples, -(-settings.weight_max // LIGHTEST)),
        operators=step.operators,
        metrics=headers.metrics_of(settings),
        rotate=settings.rotate,
        weight_max=settings.weight_max,
        clip_min=clip_min,
        clip_max=clip_max,
    )


def _bindings(bindings: Iterable[compiler.Binding]) -> tuple[Binding, ...]:
    return tuple(Binding(b.role, b.name, np.dtype(b.dtype).name, b.shape, b.default or 0.0) for b in bindings)


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
