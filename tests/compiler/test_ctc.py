"""The CTC loss against the sum over every path of classes, and through a whole train step.

Losses and gradients of longer sequences are held against PyTorch's in `test_golden.py`.
"""

import itertools

import numpy as np
import pytest

from tests.compiler.evaluation import Array, reference, stock
from whimbrel_server.compiler import CompileError
from whimbrel_server.compiler.contract import StepSpec
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.training.objective import objective

FRAMES, CLASSES = 4, 3


def loss_sum(logits: Array, label: Array, weight: Array) -> float:
    graph = Graph()
    output = graph.input("output", logits.dtype, logits.shape)
    target = objective(output, StepSpec("ctc", "sgd", len(logits)))
    run = (reference if logits.dtype == np.float64 else stock)(
        graph.export([output, *target.labels, target.weight], target.sums, "loss")
    )
    return float(run({"output": logits, "@label": label, "@weight": weight})["@loss_sum"])


def losses(logits: Array, label: Array, weight: Array) -> Array:
    """The loss of each example over all its frames, found one example at a time."""
    return np.array([loss_sum(*(array[row : row + 1] for array in (logits, label, weight))) for row in range(len(logits))])


def sum_over_paths(logits: Array, label: Array, frames: int) -> float:
    """-log of the probability of all paths that give the label once repeats are merged and blanks dropped."""
    share = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    total = 0.0
    for path in itertools.product(range(CLASSES), repeat=frames):
        merged = [symbol for symbol, _ in itertools.groupby(path) if symbol]
        if merged == [symbol for symbol in label if symbol > 0]:
            total += float(np.prod([share[frame, symbol] for frame, symbol in enumerate(path)]))
    return -np.log(total)


def test_loss_is_the_sum_over_all_paths() -> None:
    rng = np.random.default_rng(4)
    label = np.array([[1, 2], [1, 1], [2, -1], [-1, -1], [2, 2]])
    frames = [4, 4, 2, 3, 3]
    logits = rng.normal(size=(5, FRAMES, CLASSES)) * 2
    weight = (np.arange(FRAMES) < np.array(frames)[:, None]).astype(np.float64)
    expected = [sum_over_paths(*row) for row in zip(logits, label, frames, strict=True)]
    np.testing.assert_allclose(losses(logits, label, weight), expected, rtol=1e-12)


def test_certain_and_impossible_outputs_give_numbers() -> None:
    logits = np.full((3, FRAMES, CLASSES), -1e4, np.float32)
    logits[:, :, 1] = 1e4
    found = losses(logits, np.array([[1, -1], [2, -1], [1, 1]]), np.ones((3, FRAMES), np.float32))
    # frames that must be of another class cost 2e4 each; several paths share the least cost
    np.testing.assert_allclose(found, [0.0, FRAMES * 2e4 - np.log(10), 2e4 - np.log(2)], rtol=1e-6)


def test_a_large_batch_costs_what_its_examples_cost() -> None:
    rng = np.random.default_rng(4)
    logits, label = rng.normal(size=(40, FRAMES, CLASSES)), rng.integers(1, CLASSES, (40, 2))
    weight = (np.arange(FRAMES) < rng.integers(3, FRAMES + 1, (40, 1))).astype(np.float64)
    np.testing.assert_allclose(loss_sum(logits, label, weight), losses(logits, label, weight).sum(), rtol=1e-12)


def test_an_output_without_frames_is_refused() -> None:
    output = Graph().input("output", np.dtype(np.float32), (4, CLASSES))
    with pytest.raises(CompileError, match=r"ctc needs an output \[N, T, C\]"):
        objective(output, StepSpec("ctc", "sgd", 4))
