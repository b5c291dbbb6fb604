"""The second child process of `check`: runs a compiled step exactly as a device does, and holds its gradient against the loss.

Run as `python -m whimbrel_lab.check.training FOLDER` after `compilation.py`. It knows neither onnx nor the compiler, so that
the memory it takes is a device's.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.actions import Float32, TrainingJob
from whimbrel.trainer import StepGraph
from whimbrel_lab.check import facts
from whimbrel_lab.check.facts import GRADIENT, STEP, Learning, Slope
from whimbrel_protocol.delta import compress
from whimbrel_protocol.errors import ProtocolError
from whimbrel_protocol.messages import Binding, PlanBody
from whimbrel_protocol.signed import VersionHeader

Array = npt.NDArray[Any]
STEPS = 20
RATES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
TRIAL = 3  # steps that a learning rate must survive to be tried in earnest
EPSILONS = tuple(2.0**-k for k in range(3, 17))  # of each tensor's own size
ACCEPT = 2e-2  # relative error of a slope in float32
SPREAD = 0.1  # of neighbouring differences: more than this tells nothing
WINDOW = 5  # differences that must agree: fewer do so by chance, once rounding reigns
DIRECTIONS = (5, 6, 7)  # seeds; a kink may lie across one
SLOW_MS = 300.0  # a step; from here on half of the differences along one direction must do
_UNIT = 2.0**13  # the learning rate that shows a gradient: a power of two, so that nothing is rounded on the way back


def main(folder: Path) -> int:
    """Train and leave what was found; returns 0, or 1 with a refusal left."""
    try:
        learning = learn(folder)
        facts.write(folder, learning=learning)
        facts.write(folder, learning=learning, gradient=check_gradient(folder, learning.step_ms > SLOW_MS))
    except ProtocolError as error:
        facts.write(folder, refusal=f"onnxruntime does not run the compiled step: {error}")
        return 1
    return 0


def load(folder: Path, name: str) -> dict[str, Array]:
    """Arrays that `compilation.py` left."""
    names = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as arrays:
        return dict(zip(names, (arrays[file] for file in arrays.files), strict=True))


class _Device:
    """A step on its batch, which can be set back to any parameters."""

    def __init__(self, folder: Path, name: str, rate: float) -> None:
        self.start: list[Float32] = [np.asarray(array, np.float32) for array in load(folder, "start").values()]
        body = _body(folder, name)
        header = VersionHeader(1, 1.0, 0.0, rate, 0.9, 0.0, 0.0, 1, STEPS, 0, 1, 0)
        frozen = load(folder, "frozen")
        body = replace(body, fixed=tuple(Binding("frozen", key, str(one.dtype), one.shape) for key, one in frozen.items()))
        self._job = TrainingJob(b"check", body, tuple(self.start), header, bytes(32), frozen)
        self._graph = StepGraph(self._job, 1)
        self._graph.feed(load(folder, "batch"))
        self._fresh = [array.copy() for array in self._graph.buffers()]

    def rate(self, rate: float) -> None:
        """Use another learning rate from now on."""
        self._graph.feed({"@lr": np.array(rate, np.float32)})

    def restart(self, parameters: Sequence[Float32] | None = None) -> None:
        """Go back to these parameters (else the start's), with fresh optimiser state."""
        moved = self._fresh if parameters is None else [*parameters, *self._fresh[len(parameters) :]]
        self._graph.fill(moved)

    def step(self) -> float:
        return self._graph.advance()

    def parameters(self) -> list[Float32]:
        return [array.copy() for array in self._graph.parameters()]


def _body(folder: Path, name: str) -> PlanBody:
    table = json.loads((folder / f"{name}.json").read_text())
    inputs, outputs = (
        tuple(Binding(role, label, dtype, tuple(shape), default) for role, label, dtype, shape, default in table[side])
        for side in ("inputs", "outputs")
    )
    graph = compress((folder / f"{name}.onnx").read_bytes())
    return PlanBody(table["loss"], table["batch"], graph, b"", inputs, outputs, (), ())


# --- learning ---------------------------------------------------------------------------------------------------------


def learn(folder: Path) -> Learning:
    """Train for 20 steps on the one batch, at the largest of a few learning rates at which the loss falls."""
    device = _Device(folder, STEP, RATES[0])
    for rate in RATES:
        device.rate(rate)
        device.restart()
        if not _falls(device) and rate != RATES[-1]:
            continue
        device.restart()
        losses, seconds = _train(device)
        if np.isfinite(losses).all() and losses[-1] < losses[0]:
            break
    name = json.loads((folder / "options.json").read_text())["optimizer"]
    return Learning(name, rate, tuple(losses), round(1e3 * seconds, 3), round(peak_bytes() / 2**20, 1))


def _falls(device: _Device) -> bool:
    """Whether each of a few steps lowers the loss; a rate that is far too large shows at once."""
    last = np.inf
    for _ in range(TRIAL):
        loss = device.step()
        if not loss < last:
            return False
        last = loss
    return True


def _train(device: _Device) -> tuple[list[float], float]:
    """Losses before each of 20 steps and after the last; median seconds a step."""
    losses, times = [], []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        losses.append(device.step() + 0.0)  # no negative zero
        times.append(time.perf_counter() - begin)
    return losses, statistics.median(times)


def peak_bytes() -> int:
    """The largest resident memory this process had (Linux: since it began its program)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- the gradient -----------------------------------------------------------------------------------------------------


def check_gradient(folder: Path, slow: bool = False) -> Slope:
    """The gradient along a random direction over all trained parameters, against central differences of the loss.

    Another direction is taken only where the first is undecided or wrong: the slope of a loss with kinks may be neither.
    """
    epsilons, directions = (EPSILONS[::2], DIRECTIONS[:1]) if slow else (EPSILONS, DIRECTIONS)
    device = _Device(folder, GRADIENT, _UNIT)
    grain = float(np.spacing(np.float32(device.step())))
    stepped = device.parameters()
    for seed in directions:
        direction = random_direction(device.start, seed)
        moves = zip(device.start, stepped, direction, strict=True)
        slope = sum(float(((old.astype(np.float64) - new) * d).sum()) for old, new, d in moves) / _UNIT

        def loss(eps: float, direction: Sequence[Array] = direction) -> float:
            device.restart([np.asarray(p + eps * d, np.float32) for p, d in zip(device.start, direction, strict=True)])
            return device.step()

        found = judge(slope, list(differences(loss, epsilons)), epsilons, (ACCEPT, SPREAD), grain)
        if found.right:
            break
    return found


def random_direction(parameters: Sequence[Array], seed: int) -> list[Array]:
    """Normal numbers, each tensor's as large as the tensor itself, so that small biases count beside large matrices."""
    rng = np.random.default_rng(seed)
    sizes = [float(np.sqrt(np.mean(np.square(array, dtype=np.float64)))) for array in parameters]
    usual = float(np.median([size for size in sizes if size > 0] or [1.0]))
    scales = [size or 0.1 * usual for size in sizes]
    return [(rng.standard_normal(a.shape) * scale).astype(a.dtype) for a, scale in zip(parameters, scales, strict=True)]


def judge(
    slope: float, found: Sequence[float], epsilons: Sequence[float], limits: tuple[float, float], grain: float = 0.0
) -> Slope:
    """Compare with the run of differences that agree best: further apart they bend, nearer they round.

    The run is chosen without looking at `slope`, so that a wrong gradient has no say in it. `limits`: the relative error that
    is accepted, and the spread above which nothing is decided. `grain` is the distance of two numbers that the loss can be:
    differences of nothing but 0 contradict only a slope that would have moved it further.
    """
    runs = [found[k : k + WINDOW] for k in range(len(found) - WINDOW + 1)]
    spreads = [(max(run) - min(run)) / max(*map(abs, run), 1e-30) for run in runs]
    spread, best = min((spread, k) for k, spread in enumerate(spreads))
    difference = statistics.median(runs[best])
    error = abs(slope - difference) / max(abs(slope), abs(difference), 1e-30)
    accept, undecided = limits
    hidden = not any(runs[best]) and 0 < abs(2 * epsilons[best] * slope) <= 2 * grain
    decided = spread < undecided and not hidden
    right = bool(error <= max(accept, spread)) and decided
    return Slope(slope, difference, epsilons[best + WINDOW // 2], error, spread, decided, right)


def differences(loss: Callable[[float], float], epsilons: Sequence[float]) -> Iterator[float]:
    for eps in epsilons:
        yield (loss(eps) - loss(-eps)) / (2 * eps)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
