"""The proof of the demo: each window's unmasked sum is the plain sum of its survivors' updates, bit for bit.

It reads two sides that have never met: the sums from the server, the plain packed vectors from the devices' own journals (which
the demo owns, and which keep them because the app asked for a history). Nothing else ever holds a plain vector.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel.journal import contributed, inspect
from whimbrel_lab.fleet.world import Admin

Words = npt.NDArray[np.uint64]


@dataclass(frozen=True)
class Proof:
    """How many finished windows there were, and what is wrong with them (nothing, if all is well)."""

    windows: int
    survivors: int
    faults: tuple[str, ...]

    @property
    def holds(self) -> bool:
        """Whether there was something to prove and all of it is right."""
        return self.windows > 0 and not self.faults


def prove(admin: Admin, task: str, journals: Iterable[Path]) -> Proof:
    """Compare every finished window of a task with the journals, and every applied window with the versions' lists."""
    plain = plain_vectors(journals)
    windows = [admin.get(f"/v1/windows/{row['tau0']}") for row in admin.get(f"/v1/tasks/{task}/windows?limit=100000")]
    done = [window for window in windows if window["state"] == "done"]
    faults = [fault for window in done for fault in _window_faults(admin, window, plain)]
    faults += _application_faults(admin, task, {window["tau0"] for window in done})
    faults += _spare_vectors(done, plain)
    return Proof(len(done), sum(len(window["u3"]) for window in done), tuple(faults))


def plain_vectors(journals: Iterable[Path]) -> dict[tuple[str, str], Words]:
    """Return each contributed update's packed words by (window, device), both in hexadecimal."""
    found = {}
    for journal in journals:
        device = inspect(journal).device.hex()
        for record, words in contributed(journal):
            found[record.tau0.hex(), device] = np.frombuffer(words, "<u8")
    return found


def _window_faults(admin: Admin, window: dict[str, Any], plain: dict[tuple[str, str], Words]) -> list[str]:
    tau0, name = window["tau0"], f"window {window['tau0'][:12]}"
    missing = [device for device in window["u3"] if (tau0, device) not in plain]
    if missing:
        return [f"{name}: the journals of {len(missing)} survivors do not know that they contributed"]
    masked = np.frombuffer(admin.bytes(f"/v1/windows/{tau0}/sum"), "<u8")
    total = np.zeros_like(masked)
    for device in window["u3"]:
        total += plain[tau0, device]  # wraps modulo 2^64, as the ring does
    wrong = int(np.count_nonzero(total != masked))
    return [f"{name}: {wrong} of {len(total)} words differ from the plain sum"] if wrong else []


def _application_faults(admin: Admin, task: str, done: set[str]) -> list[str]:
    """A window counts once or not at all."""
    applied = [tau0 for version in admin.get(f"/v1/tasks/{task}/versions") for tau0 in version["windows"]]
    faults = [f"window {tau0[:12]} was applied {applied.count(tau0)} times" for tau0 in set(applied) if applied.count(tau0) > 1]
    return faults + [f"window {tau0[:12]} was applied but never finished" for tau0 in set(applied) - done]


def _spare_vectors(done: list[dict[str, Any]], plain: dict[tuple[str, str], Words]) -> list[str]:
    """A device that holds its contribution for counted must be among the survivors."""
    counted = {(window["tau0"], device) for window in done for device in window["u3"]}
    finished = {window["tau0"] for window in done}
    return [
        f"device {device[:8]} counts on window {tau0[:12]} in vain"
        for tau0, device in plain
        if tau0 in finished and (tau0, device) not in counted
    ]
