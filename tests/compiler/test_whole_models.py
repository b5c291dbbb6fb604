"""Entire training runs: twenty steps of each optimiser against JAX (deep), and the same bits on repeated runs."""

import itertools
from typing import Any

import numpy as np
import pytest

from tests.compiler.evaluation import Array, in_double, reference, stock
from tests.compiler.whole_models import BATCH, WHOLE, Whole
from whimbrel_server.compiler import StepSpec, TrainStep, compile_step, initial_parameters
from whimbrel_server.compiler.training.optim import OPTIMIZERS

STEPS = 20
HYPERS = {"lr": 0.05, "momentum": 0.8, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6, "weight_decay": 0.05, "clip_norm": 0.5}


def compiled(name: str, optimiser: str, double: bool) -> TrainStep:
    model = WHOLE[name].model
    spec = StepSpec(WHOLE[name].loss, optimiser, BATCH, clip_norm=True, weight_decay=True)
    return compile_step(in_double(model) if double else model, spec)


def trained(step: TrainStep, name: str, run: Any, start: dict[str, Array], steps: int) -> list[dict[str, Array]]:
    """The outputs of each step."""
    dtype = step.parameters[0].dtype
    feeds = {b.name: np.full(b.shape, HYPERS.get(b.name[1:], 0.0), dtype) for b in step.inputs if b.role in ("hyper", "state")}
    feeds |= {key: array.astype(dtype) for key, array in start.items()}
    moving = [b.name for role in ("param", "state") for b in step.inputs if b.role == role]
    results = []
    for batch in itertools.islice(WHOLE[name].batches(dtype), steps):
        outputs = run({**batch, **feeds})
        feeds |= {key: outputs[f"{key}@new"] for key in moving}
        results.append(outputs)
    return results


@pytest.mark.deep
@pytest.mark.parametrize("optimiser", OPTIMIZERS)
@pytest.mark.parametrize("name", WHOLE)
def test_twenty_steps_equal_jax(name: str, optimiser: str) -> None:
    """In float64 to nine digits; in float32 on onnxruntime as near as twenty steps of rounding allow."""
    pytest.importorskip("jax", reason="jax is missing: pip install 'whimbrel[oracle]'", exc_type=ImportError)
    from tests.compiler import jax_oracle

    whole, double = WHOLE[name], compiled(name, optimiser, double=True)
    start = initial_parameters(whole.model, double)
    expected = jax_oracle.train(whole.model, start, whole.batches(np.dtype(np.float64)), optimiser, HYPERS, STEPS)
    exact = trained(double, name, reference(double.model), start, STEPS)
    single = compiled(name, optimiser, double=False)
    rounded = trained(single, name, stock(single.model), start, STEPS)
    for (loss, weights), found, near in zip(expected, exact, rounded, strict=True):
        assert found["@loss"] == pytest.approx(loss, rel=1e-9)
        assert near["@loss"] == pytest.approx(loss, rel=2e-3)
        for key, array in weights.items():
            np.testing.assert_allclose(found[f"{key}@new"], array, rtol=1e-8, atol=1e-9, err_msg=key)


@pytest.mark.parametrize("name", WHOLE)
def test_the_same_bits_on_every_run(name: str) -> None:
    """Two sessions, one thread each, three steps of AdamW: not a bit differs."""
    step = compiled(name, "adamw", double=False)
    start = initial_parameters(WHOLE[name].model, step)
    first, second = (trained(step, name, stock(step.model), start, 3) for _ in range(2))
    for one, other in zip(first, second, strict=True):
        assert {key: array.tobytes() for key, array in one.items()} == {key: array.tobytes() for key, array in other.items()}


def gradients(whole: Whole, batch: dict[str, Array]) -> dict[str, Array]:
    """By an SGD step of learning rate 1 for a batch of just this size."""
    step = compile_step(whole.model, StepSpec(whole.loss, "sgd", len(batch["@label"])))
    start = initial_parameters(whole.model, step)
    outputs = stock(step.model)({**batch, **start, "@lr": np.ones((), np.float32)})
    return {"@loss": outputs["@loss"]} | {key: start[key] - outputs[f"{key}@new"] for key in start}


@pytest.mark.parametrize("name", WHOLE)
def test_one_example_alone_and_padded(name: str) -> None:
    """A batch of one is the same as a batch of five with four rows of weight 0, whatever stands in them."""
    batch = next(WHOLE[name].batches(np.dtype(np.float32)))
    batch["@weight"][:1], batch["@weight"][1:] = 1.0, 0.0
    padded, alone = (gradients(WHOLE[name], {key: array[:count] for key, array in batch.items()}) for count in (BATCH, 1))
    for key, array in alone.items():
        np.testing.assert_allclose(padded[key], array, rtol=1e-4, atol=1e-6, err_msg=key)
