"""`whimbrel-lab window`: one window of many members with a large model over real HTTP, and what each phase of it costs.

What belongs here: one measured window of real processes. What does not: learning something (`demo.py`). The model is a dense
layer, so that training takes no time worth mentioning beside the window.
"""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np

from whimbrel_lab.fleet.federation import N_MIN, TASK, Arrays, Federation, Fleet, Job
from whimbrel_lab.fleet.world import WorldError
from whimbrel_lab.nets import models
from whimbrel_server.settings import TaskSettings

CLASSES = 10
EXAMPLES = 8
STAGING = 16 * 2**20
PATIENCE_S = 300.0
SPARE = 0.12


@dataclass(frozen=True)
class Options:
    """What is measured: `members` devices, about `parameters` values of `bits` each, a share `dropout` that vanishes."""

    members: int = 128
    parameters: int = 1_000_000
    bits: int = 16
    dropout: float = 0.1
    seed: int = 1


def run(options: Options) -> dict[str, Any]:
    """Run one window and return its figures. Raises WorldError where it does not come to its sum."""
    fleet = Fleet(_devices(options), options.dropout, options.seed, absence_s=20.0)
    with tempfile.TemporaryDirectory(prefix="whimbrel-window-") as scratch:
        federation = Federation(Path(scratch), _settings(options), fleet, _job(options))
        try:
            return _measured(federation, options)
        finally:
            federation.stop()


def _devices(options: Options) -> int:
    """Some more devices than members, so that those who vanish in training do not keep the window waiting."""
    return ceil(options.members * (1 + SPARE))


def _settings(options: Options) -> TaskSettings:
    n = options.members
    return TaskSettings(
        contributions=n,
        contributions_min=N_MIN,
        window=n,
        n_max=n,
        bits=options.bits,
        rounds=1,
        batch=EXAMPLES,
        lr=0.01,
        scale=1024.0,
        round_deadline_s=PATIENCE_S,
        assignment_deadline_s=PATIENCE_S,
        come_back_max_s=2.0,
        expected_dropout=SPARE,
        share_s=15.0,
        mask_s=15.0,
        mask_rate=1e6,
        vote_s=15.0,
        unmask_s=15.0,
    )


def _job(options: Options) -> Job:
    features = ceil(options.parameters / CLASSES) - 1
    rng = np.random.default_rng(options.seed)
    parts: list[Arrays] = []
    for _ in range(_devices(options)):
        x = rng.normal(size=(EXAMPLES, features)).astype(np.float32)
        parts.append({"x": x, "label": rng.integers(CLASSES, size=EXAMPLES)})
    model = models.mlp(options.seed, (features, CLASSES)).SerializeToString()
    return Job(model, tuple(parts), {"WHIMBREL_LIMITS_STAGING_BYTES": str(STAGING)})


def _measured(federation: Federation, options: Options) -> dict[str, Any]:
    federation.start()
    pid = federation.world.server.process.pid
    idle_mb, cpu_s = _memory(pid, "VmRSS:"), _cpu(pid)
    window = _finished_window(federation, options.members)
    stats = federation.world.admin.get("/v1/stats")
    vector = 8 * (2 + ceil((3 + options.parameters) / (64 // options.bits)))
    survivors = len(window["u3"])
    return {
        "members": window["n"],
        "survivors": survivors,
        "parameters": options.parameters,
        "bits": options.bits,
        "seconds": {name: round(spent, 2) for name, spent in window["durations"].items()},
        "server_cpu_s": round(_cpu(pid) - cpu_s, 2),
        "server_idle_mb": round(idle_mb, 1),
        "server_peak_over_idle_mb": round(_memory(pid, "VmHWM:") - idle_mb, 1),
        "target_over_idle_mb": round((STAGING + 3 * vector) / 2**20, 1),
        "device_peak_rss_mb": round(federation.devices.peak_rss_mb, 1),
        "vector_kb": round(vector / 1000, 1),
        "overhead_per_member_kb": round((_window_bytes(stats) - survivors * vector) / window["n"] / 1000, 1),
    }


def _window_bytes(stats: dict[str, Any]) -> int:
    """Return the bodies of all calls from JOIN to DONE, both ways, masked vectors included."""
    routes = {**stats["bytes_up_by_route"]}
    for route, count in stats["bytes_down_by_route"].items():
        routes[route] = routes.get(route, 0) + count
    return sum(count for route, count in routes.items() if "/v1/windows" in route or "/v1/joins" in route)


def _finished_window(federation: Federation, members: int) -> dict[str, Any]:
    """Wait for the window of so many members; the spare devices may have a small one of their own."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        done = [window for window in federation.windows() if window["state"] == "done" and window["n"] == members]
        if done:
            found: dict[str, Any] = federation.world.admin.get(f"/v1/windows/{done[0]['tau0']}")
            return found
        time.sleep(0.2)
    raise WorldError(f"no window of {TASK} came to its sum: {federation.world.server.last_words()}")


def _memory(pid: int, field: str) -> float:
    """Return VmRSS or VmHWM of a process in MB."""
    rows = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(row.split()[1]) for row in rows if row.startswith(field)) / 1024


def _cpu(pid: int) -> float:
    """Return a process's user and system seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100
