"""Losses and optimisers against known answers of PyTorch in float64 (`golden/make.py` says what they are).

Each is run twice: in float64 through the reference evaluator, to nine digits, and in float32 on stock onnxruntime.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.compiler.evaluation import Array, in_double, reference, stock
from whimbrel_lab.nets.models import mlp
from whimbrel_server.compiler import StepSpec, TrainStep, compile_step
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.training.losses import LOSSES
from whimbrel_server.compiler.training.objective import objective
from whimbrel_server.compiler.training.optim import OPTIMIZERS

GOLDEN = Path(__file__).parent / "golden"
LOSS = dict(np.load(GOLDEN / "losses.npz"))
TRAINED = dict(np.load(GOLDEN / "optimisers.npz"))
LOSS_CASES = [key.removesuffix("/output") for key in LOSS if key.endswith("/output")]
START = {key.removeprefix("start/"): value for key, value in TRAINED.items() if key.startswith("start/")}
BETAS = {"@beta1": 0.8, "@beta2": 0.95, "@eps": 1e-6}
EXACT, SINGLE = np.dtype(np.float64), np.dtype(np.float32)


def settings(name: str) -> tuple[StepSpec, dict[str, float]]:
    """The specification and hyper-parameters (the rate apart) that a trajectory's name stands for."""
    kind, *words = name.split()
    hypers = {"momentum": {"@momentum": 0.8}, "nesterov": {"@momentum": 0.8}, "adam": BETAS, "adamw": BETAS}.get(kind, {})
    said = {"clipped": {"@clip_norm": 0.3}, "decayed": {"@weight_decay": 0.1}, "proximal": {"@mu": 0.5}}
    for word in [*words, *(["decayed"] if kind == "adamw" else [])]:
        hypers = {**hypers, **said[word]}
    wants = {"clip_norm": "clipped" in words, "weight_decay": "decayed" in words, "proximal": "proximal" in words}
    return StepSpec("cross_entropy", kind, 6, **wants), hypers


def loss_and_gradient(name: str, dtype: np.dtype[Any]) -> Any:
    """A model from output, label and weight to `loss`, `sum` and `gradient`."""
    case = {key.split("/")[1]: value for key, value in LOSS.items() if key.startswith(f"{name}/")}
    graph = Graph()
    output = graph.input("output", dtype, case["output"].shape)
    spec = StepSpec(name.split()[0], "sgd", len(case["output"]), label_smoothing=float(case["smoothing"]))
    target = objective(output, spec)
    gradient = grad(target.loss, {"output": output})["output"]
    results = {"mean": target.loss, "sum": target.sums["@loss_sum"], "gradient": gradient}
    return graph.export([output, *target.labels, target.weight], results, "loss"), case


@pytest.mark.parametrize("dtype", [EXACT, SINGLE], ids=str)
@pytest.mark.parametrize("name", LOSS_CASES)
def test_loss_and_its_gradient(name: str, dtype: np.dtype[Any]) -> None:
    model, case = loss_and_gradient(name, dtype)
    tolerance = 1e-9 if dtype == EXACT else 2e-5
    feeds = {"output": case["output"].astype(dtype), "@weight": case["weight"].astype(dtype)}
    if "label" in case:
        label = case["label"]
        feeds["@label"] = label.astype(dtype) if label.dtype.kind == "f" else label
    found = (reference if dtype == EXACT else stock)(model)(feeds)
    total = (case["weight"] * case["loss"]).sum()
    np.testing.assert_allclose(found["sum"], total, rtol=tolerance)
    np.testing.assert_allclose(found["mean"], total / case["weight"].sum(), rtol=tolerance)
    np.testing.assert_allclose(found["gradient"], case["gradient"], rtol=tolerance, atol=tolerance * 0.1)


def test_every_loss_has_a_known_answer() -> None:
    assert {name.split()[0] for name in LOSS_CASES} == set(LOSSES)


def trajectory(step: TrainStep, run: Any, hypers: dict[str, float], dtype: np.dtype[Any]) -> list[dict[str, Array]]:
    """The outputs of each step, from the known start, with the known batches."""
    feeds = {name: value.astype(dtype) for name, value in START.items()}
    feeds |= {f"{name}@anchor": value for name, value in feeds.items() if step.spec.proximal}
    feeds |= {b.name: np.zeros(b.shape, dtype) for b in step.inputs if b.role == "state"}
    feeds |= {name: np.array(value, dtype) for name, value in hypers.items()}
    moving = [b.name for role in ("param", "state") for b in step.inputs if b.role == role]
    renewed = [b.name for role in ("param", "state") for b in step.outputs if b.role == role]
    results = []
    for x, label, weight, lr in zip(*(TRAINED[key] for key in ("x", "label", "weight", "lr")), strict=True):
        batch = {"x": x.astype(dtype), "@label": label, "@weight": weight.astype(dtype), "@lr": np.array(lr, dtype)}
        outputs = run({**batch, **feeds})
        feeds |= dict(zip(moving, (outputs[name] for name in renewed), strict=True))
        results.append(outputs)
    return results


def known_trajectories() -> list[str]:
    return [key.removesuffix("/loss") for key in TRAINED if key.endswith("/loss")]


@pytest.mark.parametrize("dtype", [EXACT, SINGLE], ids=str)
@pytest.mark.parametrize("name", known_trajectories())
def test_twenty_steps(name: str, dtype: np.dtype[Any]) -> None:
    spec, hypers = settings(name)
    model = mlp(1, [5, 8, 3])
    step = compile_step(in_double(model) if dtype == EXACT else model, spec)
    outputs = trajectory(step, (reference if dtype == EXACT else stock)(step.model), hypers, dtype)
    # Adam divides by the root of a mean square, which magnifies float32's rounding where gradients vanish
    tolerance = 1e-9 if dtype == EXACT else 2e-4
    np.testing.assert_allclose([out["@loss"] for out in outputs], TRAINED[f"{name}/loss"], rtol=tolerance)
    for parameter in step.parameters:
        found = [outputs[kept][f"{parameter.name}@new"] for kept in TRAINED["kept"]]
        np.testing.assert_allclose(found, TRAINED[f"{name}/{parameter.name}"], rtol=tolerance, atol=tolerance)


def test_every_optimiser_has_a_known_answer() -> None:
    assert {name.split()[0] for name in known_trajectories()} == set(OPTIMIZERS)
