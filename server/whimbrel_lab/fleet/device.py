"""One device of the demo: the client library in a process of its own, as an app would embed it, and the faults drawn for it.

What belongs here: what runs inside a device process, and how such processes are started. A process that is killed is started
again after a moment, on the same state directory.
"""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import random
import signal
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import numpy as np

from whimbrel import DevicePolicy, Participant
from whimbrel_lab.fleet import faults

# Imported once by the fork server, so that forty devices start in a moment and share their code's memory.
PRELOAD = [
    "numpy",
    "aiohttp",
    "onnxruntime",
    "whimbrel.participant",
    "whimbrel.trainer",
    "whimbrel.transport",
    "whimbrel_lab.fleet.device",
]
RESTART_S = (0.3, 1.5)
WATCH_S = 0.1


@dataclass(frozen=True)
class Spec:
    """Where one device lives and what it suffers. `data` is an .npz file of arrays by input name, and `label`."""

    index: int
    url: str
    root: str
    token: str
    data: Path
    state: Path
    log: Path
    seed: int
    dropout: float
    absence_s: float
    linger: tuple[str, ...]
    linger_s: float
    history: int


def live(spec: Spec) -> None:
    """Be a device until the process ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its devices itself
    logging.basicConfig(filename=spec.log.with_name("device.log"), format="%(asctime)s %(message)s", level=logging.INFO)
    asyncio.run(_live(spec))


async def _live(spec: Spec) -> None:
    def examples() -> Iterable[Mapping[str, np.ndarray[Any, Any]]]:
        with np.load(spec.data) as data:
            yield {name: data[name] for name in data.files}

    policy = DevicePolicy(history=spec.history, backoff_min_s=0.5, backoff_max_s=3.0, window_patience_s=20.0, poll_s=5.0)
    device = Participant.open(
        spec.url, state=spec.state, examples=examples, authority=spec.root, token=spec.token, policy=policy
    )
    async with device:
        stage = device.stage
        while True:
            await _suffer(spec, device)
            if device.stage is not stage and device.stage.name.lower() in spec.linger:
                await asyncio.sleep(spec.linger_s)
            stage = device.stage
            await asyncio.sleep(await device.tick())


async def _suffer(spec: Spec, device: Participant) -> None:
    """Vanish if this is the moment: die, or stay silent for longer than any phase lasts."""
    assigned = device.state.assigned
    fault = faults.draw(spec.seed, spec.index, assigned.assignment.version, spec.dropout) if assigned else None
    if fault is None or device.stage.name.lower() != fault.stage or fault in faults.suffered(spec.log):
        return
    faults.note(spec.log, fault)
    if fault.killed:
        os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.sleep(spec.absence_s)


class Devices:
    """Device processes and the watch that starts the killed ones again."""

    def __init__(self, specs: Iterable[Spec]) -> None:
        self.specs = list(specs)
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(PRELOAD)
        self._processes: dict[int, ForkServerProcess] = {}
        self._peaks: dict[int, int] = {}
        self._ending = threading.Event()
        self._watch = threading.Thread(target=self._keep_alive, daemon=True)
        self._random = random.Random(0)  # noqa: S311 - moments of restarts, not secrets

    def start(self) -> None:
        """Start all devices and the watch."""
        for spec in self.specs:
            self._start(spec)
        self._watch.start()

    def _start(self, spec: Spec) -> None:
        process = self._context.Process(target=live, args=(spec,), daemon=True)
        process.start()
        self._processes[spec.index] = process

    def _keep_alive(self) -> None:
        due: dict[int, float] = {}
        while not self._ending.wait(WATCH_S):
            for spec in self.specs:
                if self._processes[spec.index].is_alive():
                    self._note_peak(spec.index)
                elif spec.index not in due:
                    due[spec.index] = time.monotonic() + self._random.uniform(*RESTART_S)
                elif time.monotonic() >= due[spec.index]:
                    del due[spec.index]
                    self._start(spec)

    def _note_peak(self, index: int) -> None:
        try:
            status = Path(f"/proc/{self._processes[index].pid}/status").read_text()
        except OSError:  # it died a moment ago, or the system has no such files
            return
        peak = next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")), 0)
        self._peaks[index] = max(self._peaks.get(index, 0), peak)

    @property
    def peak_rss_mb(self) -> float:
        """The largest resident memory that any device process ever had, as far as it was watched."""
        return max(self._peaks.values(), default=0) / 1024

    def stop(self) -> None:
        """End all devices; their state directories stay."""
        self._ending.set()
        if self._watch.is_alive():
            self._watch.join()
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()
