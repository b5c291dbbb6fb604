"""`make demo`: a model learns on devices that come and go, masks on, and every sum is proved afterwards.

What belongs here: the order of events, and the closing line of JSON. What does not: the job and its processes
(`federation.py`), following it (`progress.py`), the yardstick (`central.py`), the proof (`proof.py`), the picture (`curve.py`).
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from whimbrel_lab.data import digits
from whimbrel_lab.fleet.federation import Federation, Fleet, digits_job
from whimbrel_lab.runs import central, curve
from whimbrel_lab.runs.progress import watch
from whimbrel_server.settings import TaskSettings

SETTLE_S = 20.0  # after the last round: at most so long for devices that vanished to come back for their receipts
LAST = 3  # rounds that the closing accuracy is the mean of

# Phases are short because all devices are on this machine; the defaults are made for phones.
SETTINGS = TaskSettings(
    contributions=20,
    contributions_min=14,
    window=16,
    n_max=40,
    scale=2048.0,  # the best at this n_max by `whimbrel-lab codec`
    epochs=10,
    batch=8,
    lr=0.065,
    lr_decay=0.9,
    decay_after=10,
    momentum=0.9,
    round_deadline_s=12.0,
    assignment_deadline_s=8.0,
    come_back_max_s=1.0,
    expected_dropout=0.2,
    expected_window_dropout=0.1,
    share_s=1.5,
    mask_s=1.5,
    vote_s=3.0,
    unmask_s=3.0,
    early_min_s=0.5,
)


@dataclass(frozen=True)
class Options:
    """What `whimbrel-lab demo` takes; the picture goes to `out`, and with `keep` all else stays on the disk."""

    devices: int = 40
    rounds: int = 22
    dropout: float = 0.2
    seed: int = 1
    out: Path = Path("demo-out")
    keep: bool = False


def run(options: Options) -> dict[str, Any]:
    """Run the demo and return what its last line says. Raises WorldError where a process of it fails or nothing moves."""
    begin = time.monotonic()
    settings = msgspec.structs.replace(SETTINGS, rounds=options.rounds, seed=options.seed)
    scratch = Path(tempfile.mkdtemp(prefix="whimbrel-demo-"))
    fleet = Fleet(options.devices, options.dropout, options.seed)
    federation = Federation(scratch, settings, fleet, digits_job(fleet))
    try:
        result = _told(federation, options)
    finally:
        federation.stop()
        if options.keep:
            print(f"everything is kept in {scratch}")
        else:
            shutil.rmtree(scratch, ignore_errors=True)
    return {**result, "seconds": round(time.monotonic() - begin, 1)}


def _told(federation: Federation, options: Options) -> dict[str, Any]:
    train, test = digits.load(options.seed)
    print(f"central training of the same model on all {len(train)} examples: ", end="", flush=True)
    yardstick = central.central_accuracy(federation.job.model, federation.settings, train, test)
    print(f"accuracy {yardstick:.3f}", flush=True)
    print("operator owns the authority: honest-but-curious", flush=True)
    print(f"starting an authority, a server and {options.devices} devices, each a process of its own ...", flush=True)
    federation.start()
    accuracies = watch(federation, options.rounds, test)
    left = federation.settle(SETTLE_S)
    if left:
        print(f"{left} devices did not come back for their receipts within {SETTLE_S:.0f} s")
    stats = federation.world.admin.get("/v1/stats")
    federation.devices.stop()
    title = f"{options.devices} devices, {options.dropout:.0%} vanish in each round, masks on"
    picture = options.out / "accuracy.png"
    curve.draw(accuracies, yardstick, title, picture)
    print(f"accuracy curve: {picture}")
    return _closing(federation, options, accuracies, yardstick, stats)


def _closing(
    federation: Federation, options: Options, accuracies: list[float], yardstick: float, stats: dict[str, Any]
) -> dict[str, Any]:
    proof = federation.prove()
    for fault in proof.faults:
        print(f"NOT EXACT: {fault}")
    words = "is" if proof.holds else "IS NOT"
    print(f"each of {proof.windows} windows' sums {words} the plain sum of its survivors' updates, bit for bit")
    parameters = sum(array.size for array in central.parameters_of(federation.job.model, federation.settings))
    device_rounds = max(proof.survivors, 1) * parameters
    return {
        "rounds": options.rounds,
        "devices": options.devices,
        "windows": proof.windows,
        "dropouts": federation.lost(),
        "masked_equals_plain": proof.holds,
        "accuracy": round(float(np.mean(accuracies[-LAST:])), 4),
        "central_accuracy": round(yardstick, 4),
        "bytes_up_per_param": round(stats["bytes_up"] / device_rounds, 2),
        "bytes_down_per_param": round(stats["bytes_down"] / device_rounds, 2),
        "server_peak_rss_mb": round(stats["server_peak_rss_mb"], 1),
        "device_peak_rss_mb": round(federation.devices.peak_rss_mb, 1),
    }
