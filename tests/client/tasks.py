"""Small compiled tasks for the client's tests: a plan body, its base parameters, and examples to train it on."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from whimbrel_lab.nets.models import mlp
from whimbrel_protocol import fixed
from whimbrel_protocol.delta import compress
from whimbrel_protocol.messages import Binding, BlobRef, PlanBody
from whimbrel_protocol.primitives import sha256
from whimbrel_protocol.signed import VersionHeader
from whimbrel_server import compiler

BATCH, FEATURES, CLASSES = 8, 6, 3


@functools.cache
def compiled(optimizer: str = "momentum", proximal: bool = True) -> tuple[PlanBody, tuple[npt.NDArray[np.float32], ...]]:
    """A dense classifier of 6 features and 3 classes, and its base parameters in plan order."""
    model = mlp(1, (FEATURES, 5, CLASSES))
    train, body = plan_body(model, compiler.StepSpec("cross_entropy", optimizer, BATCH, proximal=proximal))
    return body, tuple(compiler.initial_parameters(model, train).values())


@functools.cache
def personal() -> tuple[PlanBody, tuple[npt.NDArray[np.float32], ...], bytes]:
    """A classifier whose first layer is frozen and whose last bias stays on the device; with its fixed blob."""
    model = mlp(1, (FEATURES, 64, CLASSES))
    spec = compiler.StepSpec("cross_entropy", "momentum", BATCH, ("dense2.*",), True, local=("dense2.bias",), external=True)
    train, body = plan_body(model, spec)
    start = compiler.initial_parameters(model, train)
    tensors = {**compiler.frozen_weights(model, train), "dense2.bias": start["dense2.bias"]}
    blob = fixed.encode(tensors.values())
    frozen = [Binding("frozen", one.name, one.dtype.name, one.shape) for one in train.external]
    local = [Binding("local", one.name, one.dtype.name, one.shape) for one in train.local]
    body = replace(body, fixed=(*frozen, *local), fixed_blob=BlobRef(sha256(blob), len(blob)))
    return body, tuple(start[one.name] for one in body.shared), blob


def plan_body(model: onnx.ModelProto, spec: compiler.StepSpec) -> tuple[compiler.TrainStep, PlanBody]:
    """A compiled step and the plan's body that carries it."""
    train, evaluate = compiler.compile_step(model, spec), compiler.compile_eval(model, spec)
    body = PlanBody(
        "cross_entropy",
        BATCH,
        compress(train.model.SerializeToString()),
        compress(evaluate.model.SerializeToString()),
        bindings(train.inputs),
        bindings(train.outputs),
        bindings(evaluate.inputs),
        bindings(evaluate.outputs),
        min_examples=2,
        drop_ragged=train.drop_ragged,
    )
    return train, body


def bindings(table: Any) -> tuple[Binding, ...]:
    return tuple(Binding(one.role, one.name, one.dtype.name, one.shape, one.default or 0.0) for one in table)


def header(**changes: Any) -> VersionHeader:
    values = dict.fromkeys(("clip", "momentum", "mu", "weight_decay"), 0.0)
    numbers = dict.fromkeys(("max_steps", "time_budget_ms", "seed", "flags"), 0)
    return VersionHeader(**{"version": 1, "scale": 1024.0, "lr": 0.1, "epochs": 3, **values, **numbers, **changes})


def examples(count: int, seed: int = 0) -> dict[str, npt.NDArray[Any]]:
    """Three separable clouds of points."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, CLASSES, count)
    x = rng.normal(0, 0.5, (count, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[label]
    return {"x": x.astype(np.float32), "@label": label}
