"""`whimbrel-lab learn`: one kind of net learns on a fleet of real devices, masks on, beside central training.

What belongs here: the order of events and the result. What does not: what is learned (`lessons.py`), processes
(`federation.py`), the yardstick (`central.py`), the proof (`proof.py`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from whimbrel_lab.data import sentences
from whimbrel_lab.data.samples import Examples, dirichlet_split
from whimbrel_lab.fleet.federation import Federation, Fleet, Job
from whimbrel_lab.nets import learned_models
from whimbrel_lab.runs import central
from whimbrel_lab.runs.lessons import ADAPTING, LESSONS, PRETRAINING, WITH_ADAPTERS, Lesson
from whimbrel_lab.runs.progress import watch
from whimbrel_server import plans
from whimbrel_server.settings import TaskSettings

SKEW = 1.0  # of the Dirichlet shares in which labels are spread over devices
SETTLE_S = 20.0
PATTERNS = ("layer*.query.*", "layer*.key.*", "layer*.value.*", "layer*.out.*")  # the weights that get adapters
TRAINED = ("head.*", "biases", "norms")  # what is trained beside them
FEW = 2000  # sentences of the domain that adapters learn
LAST = 3  # versions that an accuracy is the mean of


@dataclass(frozen=True)
class Options:
    """What `whimbrel-lab learn` takes. `rounds` 0: as many as the lesson has; `lora` above 0: adapters against all weights."""

    kind: str
    devices: int = 20
    rounds: int = 0
    dropout: float = 0.1
    seed: int = 1
    lora: int = 0


@dataclass(frozen=True)
class Task:
    """A model with its data and the settings of its task."""

    model: bytes
    train: Examples
    test: Examples
    settings: TaskSettings


def run(options: Options) -> dict[str, Any]:
    """Run a lesson and return what became of it. Raises WorldError where a process of it fails or nothing moves."""
    if options.lora:
        return _adapted(options)
    lesson = LESSONS[options.kind]
    train, test = lesson.load(options.seed)
    return {"kind": options.kind, **_learned(_task(lesson, options, train, test), options)}


def is_exact(result: Mapping[str, Any]) -> bool:
    """Whether every sum was proved to be the plain one."""
    parts: list[Mapping[str, Any]] = [part for part in result.values() if isinstance(part, dict)]
    return all(part["masked_equals_plain"] for part in parts or [result])


def shown(result: Mapping[str, Any]) -> str:
    """The result for people, a line a number."""
    lines = []
    for name, value in result.items():
        lines.append(f"{name}\n{shown(value)}" if isinstance(value, dict) else f"  {name:<20} {value}")
    return "\n".join(lines)


def _task(lesson: Lesson, options: Options, train: Examples, test: Examples) -> Task:
    changes: dict[str, Any] = {"seed": options.seed, "rounds": options.rounds or lesson.settings.rounds}
    settings = msgspec.structs.replace(lesson.settings, **changes)
    return Task(lesson.model(options.seed), train, test, settings)


def _learned(task: Task, options: Options) -> dict[str, Any]:
    """The task on a fleet, then in one place until it learns no more."""
    result = _federated(task, options)
    yardstick = central.central_accuracy(task.model, task.settings, task.train, task.test)
    gap = 100 * (yardstick - result["accuracy"])
    return {**result, "central_accuracy": round(yardstick, 4), "gap_points": round(gap, 2)}


def _federated(task: Task, options: Options) -> dict[str, Any]:
    """What the fleet learned."""
    fleet = Fleet(options.devices, options.dropout, options.seed)
    parts = dirichlet_split(task.train, options.devices, SKEW, options.seed)
    scratch = Path(tempfile.mkdtemp(prefix="whimbrel-learn-"))
    federation = Federation(scratch, task.settings, fleet, Job(task.model, tuple(part.columns for part in parts)))
    begin = time.monotonic()
    try:
        federation.start()
        accuracies = watch(federation, task.settings.rounds, task.test)
        federation.settle(SETTLE_S)
        stats = federation.world.admin.get("/v1/stats")
        federation.devices.stop()
        result = _result(federation, task, accuracies, stats)
        return {**result, "seconds": round(time.monotonic() - begin, 1)}
    finally:
        federation.stop()
        shutil.rmtree(scratch, ignore_errors=True)


def _result(federation: Federation, task: Task, accuracies: list[float], stats: Mapping[str, Any]) -> dict[str, Any]:
    proof = federation.prove()
    for fault in proof.faults:
        print(f"NOT EXACT: {fault}")
    device_rounds = max(proof.survivors, 1)
    return {
        "devices": federation.fleet.devices,
        "rounds": task.settings.rounds,
        "parameters": sum(array.size for array in central.parameters_of(task.model, task.settings)),
        "windows": proof.windows,
        "dropouts": federation.lost(),
        "masked_equals_plain": proof.holds,
        "accuracy_before": round(accuracies[0], 4),
        "accuracy": round(float(np.mean(accuracies[-LAST:])), 4),
        "bytes_up": round(stats["bytes_up"] / device_rounds),  # of a device in a round, all calls included
        "bytes_down": round(stats["bytes_down"] / device_rounds),
    }


# --- adapters -----------------------------------------------------------------------------------------------------------


def _adapted(options: Options) -> dict[str, Any]:
    """A transformer that knows one domain learns another, once with all weights and once with adapters."""
    pretrained = _pretrained(options.seed)
    train, test = sentences.load(options.seed, FEW, sentences.FRONTED)
    full = _task(Lesson(lambda _: pretrained, sentences.load, ADAPTING), options, train, test)
    lora = _task(Lesson(lambda _: pretrained, sentences.load, WITH_ADAPTERS), options, train, test)
    changes = {"lora_rank": options.lora, "lora_alpha": 4.0 * options.lora, "lora_patterns": PATTERNS, "train": TRAINED}
    lora = replace(lora, settings=msgspec.structs.replace(lora.settings, **changes))
    print("all weights:", flush=True)
    everything = _federated(full, options)
    print("adapters:", flush=True)
    adapters = _federated(lora, options)
    share = 100 * adapters["bytes_up"] / everything["bytes_up"]
    gap = 100 * (everything["accuracy"] - adapters["accuracy"])
    summary = {"bytes_up_percent": round(share, 2), "gap_to_full_points": round(gap, 2)}
    return {"kind": options.kind, "rank": options.lora, **summary, "full": everything, "lora": adapters}


def _pretrained(seed: int) -> bytes:
    """The large transformer after central training on sentences of the plain domain, an ONNX file."""
    model = learned_models.transformer(seed, learned_models.LARGE).SerializeToString()
    settings = msgspec.structs.replace(PRETRAINING, seed=seed)
    scores, parameters = central.after_passes(model, settings, *sentences.load(seed), [1.0] * settings.rounds)
    print(f"trained before on the plain domain: accuracy {scores[-1]:.3f}", flush=True)
    names = plans.first_parameters(model, settings)
    return plans.inference_model(model, settings, dict(zip(names, parameters, strict=True)))
