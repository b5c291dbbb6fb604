"""One train step on the device's own path, as a process of its own that is told how many steps to take.

`python -m whimbrel_lab.bench.worker PLAN DATA.npz THREADS` answers each line `COUNT` on standard input with
one JSON line: the seconds of so many steps, the last one's loss, and the memory. Only what a device carries is
imported, so the memory is a device's. The parent is `steps.py`.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import numpy as np

from whimbrel.actions import TrainingJob
from whimbrel.examples import Examples, gather
from whimbrel.trainer import StepGraph
from whimbrel_protocol import wire
from whimbrel_protocol.messages import PlanBody
from whimbrel_protocol.signed import VersionHeader


def memory_kb(field: str) -> int:
    """Return `VmRSS` (now) or `VmHWM` (the most so far) of this process; 0 where the system does not tell."""
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith(field)), 0)


def _opened(plan: Path, data: Path, threads: int) -> tuple[StepGraph, Examples]:
    body = wire.decode(plan.read_bytes(), PlanBody)
    with np.load(data) as arrays:
        rate = float(arrays["rate"])
        base = tuple(arrays[f"w:{one.name}"] for one in body.inputs if one.role == "param")
        examples = gather([{"x": arrays["x"], "@label": arrays["label"]}], body.inputs)
    header = VersionHeader(1, 1.0, 0.0, rate, 0.0, 0.0, 0.0, 1, 0, 0, 0, 0)
    return StepGraph(TrainingJob(b"bench", body, base, header, bytes(32)), threads), examples


def main() -> None:
    """Answer until standard input ends."""
    loaded = memory_kb("VmRSS")
    plan, data, threads = sys.argv[1:4]
    graph, examples = _opened(Path(plan), Path(data), int(threads))
    rows, loss = np.arange(examples.count), 0.0
    for line in sys.stdin:
        wall, busy = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            loss = graph.step(examples, rows)
        seconds = {"wall": time.perf_counter() - wall, "busy": time.process_time() - busy}
        print(json.dumps({**seconds, "loss": loss, "loaded_kb": loaded, "peak_kb": memory_kb("VmHWM")}), flush=True)


if __name__ == "__main__":
    main()
