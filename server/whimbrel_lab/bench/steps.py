"""Benchmark of train steps: each model beside the same model in PyTorch (eager) and beside plain matrix products.

Here belong turns, ratios and the table. Models are in `models.py`, what is timed in `worker.py` (the
device's own path) and `eager.py`. Both sides live at once, each in a process of its own, and take turns; a
ratio is the median over the turns of their quotient, since no absolute figure survives a change of machine.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from whimbrel_lab.bench.models import BENCHES, VOCABULARY, Bench
from whimbrel_protocol import wire
from whimbrel_protocol.delta import compress
from whimbrel_protocol.messages import Binding, PlanBody
from whimbrel_server import compiler

BATCH, RATE, SEED = 32, 0.01, 7
TURNS, TURN_S, WARMING = 11, 0.25, 3
SIDE, PRODUCTS = 512, 4  # the plain products' matrices (0.27 billion operations each), and how many a turn
CLOSE = 2e-3  # how far apart the two sides' losses may be after the warming steps, relative


@dataclass(frozen=True)
class Options:
    """`torch` names an interpreter that has torch (none: no such column); `models` and `threads` say what to measure."""

    torch: str | None = None
    models: tuple[str, ...] = tuple(BENCHES)
    threads: tuple[int, ...] = (1, 2)


class _Worker:
    """A process that takes steps on request."""

    def __init__(self, command: Sequence[str], path: Sequence[str] = ()) -> None:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(path)} if path else None
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)

    def steps(self, count: int) -> dict[str, float]:
        """Take `count` steps. Raises RuntimeError where the process has ended; its own words are on standard error."""
        assert self._process.stdin and self._process.stdout
        try:
            self._process.stdin.write(f"{count}\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self._process.args!r} ended with status {self._process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer

    def close(self) -> None:
        with self._process:  # closes the pipes and waits
            pass


def run(options: Options) -> list[dict[str, Any]]:
    """One row a model and number of threads. Raises ArithmeticError where the two sides' losses differ."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.models:
            plan, data = _prepared(name, Path(folder))
            rows += [_row(name, threads, (plan, data), options) for threads in options.threads]
    return rows


def _prepared(name: str, folder: Path) -> tuple[Path, Path]:
    """Compile the model's step and draw its batch."""
    bench = BENCHES[name]
    model, rng = bench.build(SEED), np.random.default_rng(SEED)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    shape = (BATCH, *bench.shape)
    x = rng.integers(0, VOCABULARY, shape) if bench.ids else rng.normal(size=shape).astype(np.float32)
    label = rng.integers(0, bench.classes, shape if bench.tokens else BATCH)
    plan, data = folder / f"{name}.plan", folder / f"{name}.npz"
    plan.write_bytes(wire.encode(plan_of(model, bench)))
    arrays: dict[str, Any] = {"x": x, "label": label, "rate": RATE, **{f"w:{key}": array for key, array in weights.items()}}
    np.savez(data, **arrays)
    return plan, data


def plan_of(model: onnx.ModelProto, bench: Bench) -> PlanBody:
    """What a device gets; it takes its running statistics for one more kind of state."""
    loss = "token_cross_entropy" if bench.tokens else "cross_entropy"
    step = compiler.compile_step(model, compiler.StepSpec(loss=loss, optimizer="sgd", batch=BATCH, batch_norm="train"))
    graph = compress(step.model.SerializeToString(deterministic=True))
    inputs, outputs = (tuple(_binding(one) for one in table) for table in (step.inputs, step.outputs))
    return PlanBody(loss, BATCH, graph, graph, inputs, outputs, inputs, outputs)  # nothing is evaluated


def _binding(one: compiler.Binding) -> Binding:
    running = one.role == "running"
    start = float("running_var" in one.name) if running else one.default or 0.0
    return Binding("state" if running else one.role, one.name, np.dtype(one.dtype).name, one.shape, start)


def _row(name: str, threads: int, files: tuple[Path, Path], options: Options) -> dict[str, Any]:
    workers = _workers(name, threads, files, options)
    try:
        samples = turns(name, workers, _product(threads))
    finally:
        for worker in workers.values():
            worker.close()
    return {"model": name, "threads": threads, **_summary(samples)}


def _workers(name: str, threads: int, files: tuple[Path, Path], options: Options) -> dict[str, _Worker]:
    plan, data = (str(path) for path in files)
    workers = {"ours": _Worker([sys.executable, "-m", "whimbrel_lab.bench.worker", plan, data, str(threads)], sys.path)}
    if options.torch:
        script = str(Path(__file__).with_name("eager.py"))
        workers["torch"] = _Worker([options.torch, script, name, str(threads), data])
    return workers


def _product(threads: int) -> Callable[[], float]:
    """The seconds of a plain product of square matrices on the same runtime: how fast the machine is in this turn."""
    shape = [SIDE, SIDE]
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("a", "b", "c")]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", infos[:2], infos[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    how = ort.SessionOptions()
    how.intra_op_num_threads = threads
    session = ort.InferenceSession(model.SerializeToString(), how, providers=["CPUExecutionProvider"])
    feeds = {name: np.random.default_rng(SEED).normal(size=shape).astype(np.float32) for name in ("a", "b")}

    def seconds() -> float:
        begin = time.perf_counter()
        for _ in range(PRODUCTS):
            session.run(None, feeds)
        return (time.perf_counter() - begin) / PRODUCTS

    return seconds


class Side(Protocol):
    """Takes so many steps; answers with `wall` and `busy` seconds, `loss`, `loaded_kb` and `peak_kb`."""

    def steps(self, count: int) -> dict[str, float]: ...


Samples = dict[str, list[dict[str, float]]]


def turns(name: str, sides: Mapping[str, Side], product: Callable[[], float]) -> Samples:
    """The answers of all turns, times per step; both sides are warmed up, and their turns are equally long.

    Raises ArithmeticError where their losses are not the same, for then they do not do the same.
    """
    losses = [side.steps(WARMING)["loss"] for side in sides.values()]
    if max(losses) - min(losses) > CLOSE * max(losses):
        raise ArithmeticError(f"{name}: after {WARMING} steps the losses are {losses}")
    counts = {key: max(1, round(TURN_S / side.steps(1)["wall"])) for key, side in sides.items()}
    samples: Samples = {key: [] for key in (*sides, "product")}
    for _ in range(TURNS):
        for key, side in sides.items():
            answer = side.steps(counts[key])
            samples[key].append(answer | {clock: answer[clock] / counts[key] for clock in ("wall", "busy")})
        samples["product"].append({"wall": product()})
    return samples


def _summary(samples: Samples) -> dict[str, float]:
    """Times in ms, memory in MB over the process as just loaded; ratios are ours / torch."""
    ours = samples["ours"]
    found = {"ours_ms": 1e3 * _middle(ours, "wall"), "ours_mb": _memory(ours), "ours_all_mb": ours[-1]["peak_kb"] / 1024}
    found["products"] = median(a["wall"] / b["wall"] for a, b in zip(ours, samples["product"], strict=True))
    theirs = samples.get("torch")
    if theirs:
        found |= {"torch_ms": 1e3 * _middle(theirs, "wall"), "torch_mb": _memory(theirs)}
        found |= {"torch_all_mb": theirs[-1]["peak_kb"] / 1024, "memory_ratio": _memory(ours) / _memory(theirs)}
        for key, clock in (("ratio", "wall"), ("busy_ratio", "busy")):
            found[key] = median(a[clock] / b[clock] for a, b in zip(ours, theirs, strict=True))
    return found


def _middle(answers: Sequence[Mapping[str, float]], key: str) -> float:
    return median(answer[key] for answer in answers)


def _memory(answers: Sequence[Mapping[str, float]]) -> float:
    return (answers[-1]["peak_kb"] - answers[-1]["loaded_kb"]) / 1024


def main(options: Options) -> None:
    """Print the rows as a table, each as it is measured."""
    print(
        f"train steps, batch {BATCH}, SGD; medians of {TURNS} turns; ratio = ours / PyTorch, by wall clock and processor time"
    )
    print(f"MB = peak over the process as just loaded; products = a step in plain {SIDE}x{SIDE}x{SIDE} products")
    print(f"load average {os.getloadavg()[0]:.1f}")
    columns = ("ours_ms", "torch_ms", "ratio", "busy_ratio", "ours_mb", "torch_mb", "memory_ratio", "products")
    print(f"{'model':12} {'threads':>7} " + " ".join(f"{column:>12}" for column in columns))
    for name in options.models:
        for row in run(Options(options.torch, (name,), options.threads)):
            cells = (f"{row[column]:12.2f}" if column in row else f"{'-':>12}" for column in columns)
            print(f"{row['model']:12} {row['threads']:7} " + " ".join(cells), flush=True)
