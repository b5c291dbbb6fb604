"""Whole train steps on stock onnxruntime: against networks differentiated by hand, and against formulas."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
from sklearn.datasets import load_digits

from tests.compiler import numpy_training
from tests.compiler.evaluation import Array, stock
from tests.compiler.numpy_training import LossAndGradients, Weights
from whimbrel_lab.nets.models import digits_cnn, mlp
from whimbrel_server.compiler import (
    StepSpec,
    TrainStep,
    compile_eval,
    compile_step,
    export_inference,
    initial_parameters,
)

BATCH = 6
LR, MOMENTUM, MU = 0.05, 0.9, 0.3


def batches(shape: tuple[int, ...], label: Callable[[np.random.Generator], Array]) -> Iterator[tuple[Array, ...]]:
    """Endless batches (data, label, weight) with uneven weights and one padded row each."""
    rng = np.random.default_rng(11)
    while True:
        weight = rng.uniform(0.2, 2.0, BATCH).astype(np.float32)
        weight[rng.integers(BATCH)] = 0.0
        yield rng.normal(size=(BATCH, *shape)).astype(np.float32), label(rng), weight


def classes(rng: np.random.Generator) -> Array:
    return rng.integers(0, 10, BATCH)


def targets(rng: np.random.Generator) -> Array:
    return rng.normal(size=(BATCH, 3)).astype(np.float32)


TRAJECTORIES: dict[str, tuple[onnx.ModelProto, Any, LossAndGradients, tuple[int, ...], Any]] = {
    "cnn": (digits_cnn(1), "cross_entropy", numpy_training.digits_cnn, (1, 8, 8), classes),
    "mlp": (
        mlp(2, [7, 12, 10]),
        "cross_entropy",
        numpy_training.mlp(numpy_training.softmax_cross_entropy),
        (7,),
        classes,
    ),
    "regression": (
        mlp(3, [7, 12, 3]),
        "mse",
        numpy_training.mlp(numpy_training.mean_squared_error),
        (7,),
        targets,
    ),
}


@pytest.mark.parametrize("optimizer", ["sgd", "momentum"])
@pytest.mark.parametrize("proximal", [False, True])
@pytest.mark.parametrize("name", TRAJECTORIES)
def test_trajectory_equals_hand_derived_training(name: str, optimizer: Any, proximal: bool) -> None:
    model, loss, oracle, shape, label = TRAJECTORIES[name]
    step = compile_step(model, StepSpec(loss, optimizer, BATCH, proximal=proximal))
    start = initial_parameters(model, step)
    beta, mu = MOMENTUM if optimizer == "momentum" else 0.0, MU if proximal else 0.0
    expected = train_by_hand(oracle, start, batches(shape, label), beta, mu)
    found = train_compiled(step, start, batches(shape, label))
    for (loss_found, weights_found), (loss_expected, weights_expected) in zip(found, expected, strict=True):
        assert loss_found == pytest.approx(loss_expected, rel=1e-5)
        for key, weights in weights_expected.items():
            np.testing.assert_allclose(weights_found[key], weights, rtol=1e-4, atol=1e-5, err_msg=key)


def train_by_hand(
    oracle: LossAndGradients, start: Weights, data: Iterator[tuple[Array, ...]], beta: float, mu: float
) -> list[tuple[float, Weights]]:
    """Five steps: v = beta v + g + mu (p - start), p = p - lr v."""
    weights = {name: np.float64(array) for name, array in start.items()}
    velocity = {name: np.zeros_like(array) for name, array in weights.items()}
    results = []
    for _ in range(5):
        x, label, weight = next(data)
        loss, gradients = oracle(weights, np.float64(x), label, np.float64(weight))
        velocity = {k: beta * v + gradients[k] + mu * (weights[k] - start[k]) for k, v in velocity.items()}
        weights = {k: w - LR * velocity[k] for k, w in weights.items()}
        results.append((loss, weights))
    return results


def train_compiled(step: TrainStep, start: Weights, data: Iterator[tuple[Array, ...]]) -> list[tuple[float, Weights]]:
    run, feeds = stock(step.model), first_feeds(step, start)
    renewed = [b.name for b in step.inputs if b.role == "param"] + [b.name for b in step.inputs if b.role == "state"]
    results = []
    for _ in range(5):
        feeds |= dict(zip([b.name for b in step.inputs[:3]], next(data), strict=True))
        outputs = run(feeds)
        feeds |= dict(zip(renewed, (outputs[b.name] for b in step.outputs), strict=False))
        results.append((float(outputs["@loss"]), {p.name: feeds[p.name] for p in step.parameters}))
    return results


def first_feeds(step: TrainStep, start: Weights) -> dict[str, Array]:
    """All inputs but data, label and weight, bound by role as a client does."""
    hypers = {"@lr": LR, "@momentum": MOMENTUM, "@mu": MU}
    feeds: dict[str, Array] = {}
    anchors = iter(start.values())
    for binding in step.inputs[3:]:
        if binding.role == "param":
            feeds[binding.name] = start[binding.name]
        elif binding.role == "anchor":
            feeds[binding.name] = next(anchors)
        else:
            value = hypers.get(binding.name, binding.default)
            feeds[binding.name] = np.full(binding.shape, value, binding.dtype)
    return feeds


def test_evaluation_equals_the_shipped_model() -> None:
    model = digits_cnn(4)
    step = compile_eval(model, StepSpec("cross_entropy", "momentum", BATCH))
    x, label, weight = next(batches((1, 8, 8), classes))
    found = stock(step.model)({"image": x, "@label": label, "@weight": weight, **initial_parameters(model, step)})
    logits = stock(model)({"image": x})["logits"]
    mean, _ = numpy_training.softmax_cross_entropy(np.float64(logits), label, np.float64(weight))
    assert found["@weight_sum"] == pytest.approx(weight.sum(), rel=1e-6)
    assert found["@loss_sum"] == pytest.approx(mean * weight.sum(), rel=1e-5)
    assert found["@correct_sum"] == pytest.approx(weight[logits.argmax(axis=1) == label].sum(), rel=1e-6)


def test_published_model_is_the_shipped_one_with_new_weights() -> None:
    model = digits_cnn(4)
    step = compile_step(model, StepSpec("cross_entropy", "sgd", BATCH))
    _, trained = train_compiled(step, initial_parameters(model, step), batches((1, 8, 8), classes))[-1]
    published = export_inference(model, trained)
    x, label, weight = next(batches((1, 8, 8), classes))
    evaluate = stock(compile_eval(model, StepSpec("cross_entropy", "sgd", BATCH)).model)
    logits = stock(published)({"image": x})["logits"]
    mean, _ = numpy_training.softmax_cross_entropy(np.float64(logits), label, np.float64(weight))
    sums = evaluate({"image": x, "@label": label, "@weight": weight, **trained})
    assert sums["@loss_sum"] == pytest.approx(mean * weight.sum(), rel=1e-5)
    assert published.opset_import == model.opset_import
    assert not np.array_equal(logits, stock(model)({"image": x})["logits"])


def test_contract_of_names_and_roles() -> None:
    step = compile_step(mlp(1, [4, 3]), StepSpec("cross_entropy", "momentum", 2, proximal=True))
    assert [(b.role, b.name, b.shape) for b in step.inputs] == [
        ("data", "x", (2, 4)),
        ("label", "@label", (2,)),
        ("weight", "@weight", (2,)),
        ("param", "dense1.weight", (3, 4)),
        ("param", "dense1.bias", (3,)),
        ("state", "dense1.weight@m", (3, 4)),
        ("state", "dense1.bias@m", (3,)),
        ("anchor", "dense1.weight@anchor", (3, 4)),
        ("anchor", "dense1.bias@anchor", (3,)),
        ("hyper", "@mu", ()),
        ("hyper", "@lr", ()),
        ("hyper", "@momentum", ()),
    ]
    assert [(b.role, b.name) for b in step.outputs] == [
        ("param", "dense1.weight@new"),
        ("param", "dense1.bias@new"),
        ("state", "dense1.weight@m@new"),
        ("state", "dense1.bias@m@new"),
        ("metric", "@loss"),
        ("metric", "@loss_sum"),
        ("metric", "@weight_sum"),
        ("metric", "@correct_sum"),
    ]
    infos = [*step.model.graph.input, *step.model.graph.output]
    assert [info.name for info in infos] == [b.name for b in (*step.inputs, *step.outputs)]
    assert [(entry.domain, entry.version) for entry in step.model.opset_import] == [("", 20)]
    assert step.model.ir_version == 9


def test_digits_cnn_learns_handwritten_digits() -> None:
    """Eight epochs of the compiled step on real images; guessing scores 0.1, an untrained net about as much."""
    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16.0).astype(np.float32).reshape(-1, 1, 8, 8), labels.astype(np.int64)
    model, rng, size = digits_cnn(1), np.random.default_rng(1), 32
    step = compile_step(model, StepSpec("cross_entropy", "momentum", size))
    run, feeds = stock(step.model), first_feeds(step, initial_parameters(model, step))
    order = rng.permutation(len(images))
    held_out, rest = order[:320], order[320:]
    inputs, renewed = [b.name for b in step.inputs[3:]], [b.name for b in step.outputs if b.role != "metric"]
    for _ in range(8 * (len(rest) // size)):
        chosen = rng.choice(rest, size)
        outputs = run({"image": images[chosen], "@label": labels[chosen], "@weight": np.ones(size, np.float32), **feeds})
        feeds |= dict(zip(inputs, (outputs[name] for name in renewed), strict=False))
    published = export_inference(model, {p.name: feeds[p.name] for p in step.parameters})
    guesses = stock(published)({"image": images[held_out]})["logits"].argmax(axis=1)
    assert (guesses == labels[held_out]).mean() > 0.95
