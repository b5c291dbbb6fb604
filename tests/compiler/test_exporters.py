"""Nets as PyTorch's exporters write them: loss and all gradients against PyTorch's own (`golden/make_exports.py`)."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.compiler.evaluation import Array, stock
from whimbrel_server.compiler import StepSpec, compile_step, initial_parameters

FOLDER = Path(__file__).parent / "golden" / "exports"


def found_by_numbers(weight: Array, known: dict[str, Array]) -> tuple[str, Array] | None:
    """A weight's name in PyTorch and its gradient there: exporters rename, reshape and transpose."""
    for key in (key.removeprefix("weight/") for key in known if key.startswith("weight/")):
        array, gradient = known[f"weight/{key}"], known[f"gradient/{key}"]
        for turned, slope in ((array, gradient), (array.T, gradient.T)):
            if np.array_equal(turned.ravel(), weight.ravel()):
                return key, slope.reshape(weight.shape)
    return None


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.onnx")), ids=lambda path: path.stem)
def test_gradients_equal_pytorch(path: Path) -> None:
    model, known = onnx.load(path), dict(np.load(FOLDER / f"{path.name.partition('-')[0]}.npz"))
    step = compile_step(model, StepSpec("cross_entropy", "sgd", 4))
    start = initial_parameters(model, step)
    feeds = {"x": known["x"], "@label": known["label"], "@weight": np.ones(4, np.float32), "@lr": np.ones((), np.float32)}
    outputs, seen = stock(step.model)({**feeds, **start}), set()
    assert outputs["@loss"] == pytest.approx(known["loss"], rel=1e-5)
    for name, weight in start.items():
        match = found_by_numbers(weight, known)
        if match is None:
            assert np.unique(weight).size == 1, (
                f"{name!r} is trained, and is neither the net's nor the ones or zeros of an export"
            )
            continue
        seen.add(match[0])
        scale = max(1e-2, float(np.abs(match[1]).max()))
        np.testing.assert_allclose(weight - outputs[f"{name}@new"], match[1], atol=1e-4 * scale, err_msg=name)
    assert seen == {key.removeprefix("weight/") for key in known if key.startswith("weight/")}
