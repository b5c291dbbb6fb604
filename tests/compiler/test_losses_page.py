"""docs/losses.md says what the compiler's tables of losses, metrics and optimisers say."""

import re
from pathlib import Path

import numpy as np
import pytest

from whimbrel_server.compiler import StepSpec
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.training.losses import LOSSES
from whimbrel_server.compiler.training.objective import objective
from whimbrel_server.compiler.training.optim import OPTIMIZERS

PAGE = (Path(__file__).parents[2] / "docs/losses.md").read_text()
SIZES = {"N": 4, "C": 5, "T": 6, "D": 7, "3": 3, "...": 2}


def rows(heading: str) -> list[list[str]]:
    """The cells of the section's table, without its head."""
    section = PAGE.split(f"## {heading}\n")[1].split("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def shape(cell: str) -> tuple[int, ...]:
    """The first shape that a cell names, with a size for each letter."""
    inner = re.findall(r"`\[(.*?)\]`", cell)[0]
    return tuple(SIZES[letter] for letter in inner.split(", "))


LOSS_ROWS = {cells[0].strip("`"): cells[1:] for cells in rows("Losses")}


def test_the_losses_are_all_there() -> None:
    assert set(LOSS_ROWS) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_says_what_a_loss_takes(name: str) -> None:
    output, label, weight, replaced = LOSS_ROWS[name]
    value = Graph().input("output", np.dtype(np.float32), shape(output))
    target = objective(value, StepSpec(name, "sgd", SIZES["N"]))
    assert target.weight.shape == shape(weight)
    assert replaced == ", ".join(LOSSES[name].cut)
    found = [(one.dtype.name, one.shape) for one in target.labels]
    kind, *_ = label.split()
    if name == "ctc":
        assert [dtype for dtype, _ in found] == [kind]
    elif kind == "none":
        assert not found
    else:
        sizes = value.shape if "like the output" in label else shape(label)
        assert found == [("float32" if kind == "float" else kind, sizes)]


def test_the_metrics_are_all_there() -> None:
    value = {dims: Graph().input("output", np.dtype(np.float32), dims) for dims in ((4, 6), (4, 2))}
    classes = StepSpec("cross_entropy", "sgd", 4, metrics=("loss", "accuracy", "top5", "confusion"))
    targets = [objective(value[4, 6], classes), objective(value[4, 2], StepSpec("mse", "sgd", 4, metrics=("mae",)))]
    told = [re.findall(r"`(.*?)`", cells[0])[0] for cells in rows("Metrics")]
    assert set(told) == {name for target in targets for name in target.sums}


def test_the_optimisers_are_all_there() -> None:
    told = {cells[0].strip("`"): cells[1:3] for cells in rows("Optimisers")}
    assert set(told) == set(OPTIMIZERS)
    for name, (hypers, states) in told.items():
        defaults = {key: None if value is None else f"{value}" for key, value in OPTIMIZERS[name].hypers.items()}
        pairs = re.findall(r"`(@\w+)`(?: ([\d.e-]+))?", hypers)
        assert {key: value or None for key, value in pairs} == defaults
        assert tuple(re.findall(r"`(\w+)`", states)) == OPTIMIZERS[name].states
