"""One job on real processes: a world, its task, and a fleet of devices, each with its part of the data.

What belongs here: what the demo, the crash tests and the measurements have in common. What does not: what a person sees.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.journal import inspect
from whimbrel.records import UpdateState
from whimbrel_lab.data import digits, samples
from whimbrel_lab.fleet import faults
from whimbrel_lab.fleet.device import Devices, Spec
from whimbrel_lab.fleet.proof import Proof, prove
from whimbrel_lab.fleet.world import World
from whimbrel_lab.nets import models
from whimbrel_server import setting_words
from whimbrel_server.settings import TaskSettings

Arrays = Mapping[str, npt.NDArray[Any]]

TASK = "job"
N_MIN = 8
DIRICHLET = 0.3


@dataclass(frozen=True)
class Fleet:
    """How many devices there are, how often one vanishes in a round, and for how long it stays silent if it is not killed."""

    devices: int
    dropout: float
    seed: int
    absence_s: float = 2.0
    linger: tuple[str, ...] = ()  # stages in which every device pauses a moment, so that a test can strike there
    linger_s: float = 1.0


@dataclass(frozen=True)
class Job:
    """What is learned: an ONNX file, and for each device arrays by the model's input names and `label`."""

    model: bytes
    parts: tuple[Arrays, ...]
    settings: Mapping[str, str] = field(default_factory=dict)  # WHIMBREL_SECTION_KEY, for the server


def digits_job(fleet: Fleet) -> Job:
    """Return the demo's job: a small CNN, and the digits spread unevenly by Dirichlet(0.3) over labels."""
    train, _ = digits.load(fleet.seed)
    parts = samples.dirichlet_split(train, fleet.devices, DIRICHLET, fleet.seed)
    return Job(models.digits_cnn(fleet.seed).SerializeToString(), tuple(part.columns for part in parts))


class Federation:
    """A server at work on a job with a fleet of device processes."""

    def __init__(self, directory: Path, settings: TaskSettings, fleet: Fleet, job: Job) -> None:
        self.settings, self.fleet, self.job = settings, fleet, job
        self.world = World(directory, job.settings)
        self.devices = Devices([])
        self._directory = directory

    def start(self) -> None:
        """Found the world, start it, create the task and start all devices."""
        self.world.found(N_MIN)
        self.world.start()
        model = self._directory / "model.onnx"
        model.write_bytes(self.job.model)
        self.world.create_task(TASK, model, *setting_words.options(self.settings))
        self.devices = Devices(self._specs())
        self.devices.start()

    def _specs(self) -> list[Spec]:
        tokens = self.world.tokens(self.fleet.devices)
        parts = enumerate(zip(tokens, self.job.parts, strict=True))
        return [self._spec(index, token, part) for index, (token, part) in parts]

    def _spec(self, index: int, token: str, part: Arrays) -> Spec:
        home = self._directory / f"device-{index:03d}"
        home.mkdir()
        np.savez(home / "examples.npz", **dict(part), allow_pickle=False)
        return Spec(
            index=index,
            url=self.world.url,
            root=self.world.root,
            token=token,
            data=home / "examples.npz",
            state=home / "state",
            log=home / "faults.log",
            seed=self.fleet.seed,
            dropout=self.fleet.dropout,
            absence_s=self.fleet.absence_s,
            linger=self.fleet.linger,
            linger_s=self.fleet.linger_s,
            history=1_000_000,
        )

    def task(self) -> dict[str, Any] | None:
        """Return what the server says of the task; None while it is away."""
        view: dict[str, Any] | None = self.world.admin.get(f"/v1/tasks/{TASK}")
        return view

    def windows(self) -> list[dict[str, Any]]:
        """Return what the server says of its windows; none while it is away."""
        return self.world.admin.get(f"/v1/tasks/{TASK}/windows") or []

    def versions(self) -> list[dict[str, Any]]:
        """Return what the server says of the task's versions, oldest first; none while it is away."""
        return self.world.admin.get(f"/v1/tasks/{TASK}/versions") or []

    def exported(self, version: int) -> bytes:
        """Return a version of the model as an ONNX file."""
        return self.world.admin.bytes(f"/v1/tasks/{TASK}/versions/{version}/model")

    def lost(self) -> int:
        """Return how many device-rounds were lost so far."""
        return faults.count(spec.log for spec in self.devices.specs)

    def unsettled(self) -> int:
        """Return how many devices do not know yet whether an update of theirs was counted."""
        states = [inspect(spec.state) for spec in self.devices.specs if (spec.state / "journal.json").exists()]
        return sum(any(one.state is UpdateState.SPENT for one in state.updates) for state in states)

    def settle(self, patience_s: float) -> int:
        """Wait until every device has its receipt or certificate; return how many still have not when patience is over."""
        end = time.monotonic() + patience_s
        while (left := self.unsettled()) and time.monotonic() < end:
            time.sleep(0.1)
        return left

    def prove(self) -> Proof:
        """Compare all finished windows with the devices' journals. The devices must have ended."""
        return prove(self.world.admin, TASK, [spec.state for spec in self.devices.specs])

    def stop(self) -> None:
        """End devices and services, in that order."""
        self.devices.stop()
        self.world.stop()
