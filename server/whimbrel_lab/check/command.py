"""`whimbrel-lab check`: the stages in their processes, one after the other, and what the command answers.

What belongs here: starting children, their time limit, and what their death means. What does not: anything that opens the file
(`compilation.py`, `training.py`, `exact.py`) and the words of the report (`report.py`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from whimbrel_lab.check import facts
from whimbrel_lab.check.facts import Facts, Options
from whimbrel_lab.check.report import report
from whimbrel_lab.fleet.world import environment

ARBITER_S = 120.0
STAGES = {
    "compilation": "reading and compiling it",
    "training": "running the compiled step",
    "exact": "evaluating the gradient in float64",
}


def run(options: Options, as_json: bool) -> int:
    """Check a file and print; returns 0 where a step ran and its loss went down, else 1."""
    found = check(options)
    print(json.dumps(found.to_json()) if as_json else report(found))
    return 0 if found.ok else 1


def check(options: Options) -> Facts:
    """Everything that can be found out within the time limit."""
    until = time.monotonic() + options.timeout_s
    with tempfile.TemporaryDirectory(prefix="whimbrel-check-") as name:
        folder = Path(name)
        (folder / "options.json").write_text(json.dumps(asdict(options)))
        found = Facts()
        for stage in ("compilation", "training"):
            found = replace(found, **_stage(stage, folder, until))
            if found.refusal:
                return found
        if options.exact:
            return replace(found, **_stage("exact", folder, until))
        if _doubtful(found):  # nobody asked for it, so it may not take long, and its silence says nothing
            found = replace(found, **{**_stage("exact", folder, min(until, time.monotonic() + ARBITER_S)), "refusal": ""})
    return found


def _doubtful(found: Facts) -> bool:
    """Whether float32 left the gradient undecided, or called it wrong: then float64 has the last word."""
    return found.gradient is not None and not found.gradient.right


def _stage(stage: str, folder: Path, until: float) -> dict[str, Any]:
    words = [sys.executable, "-m", f"whimbrel_lab.check.{stage}", str(folder)]
    try:
        limit = max(until - time.monotonic(), 0.1)
        ended = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=limit, errors="replace")
    except subprocess.TimeoutExpired:
        return {**facts.read(folder), "refusal": f"{STAGES[stage]} took longer than the time limit (--timeout)"}
    left = facts.read(folder)
    if ended.returncode == 0 or left.get("refusal"):
        return left
    return {**left, "refusal": _death(stage, ended)}


def _death(stage: str, ended: subprocess.CompletedProcess[str]) -> str:
    if ended.returncode < 0:
        name = signal.Signals(-ended.returncode).name
        why = "out of memory?" if name == "SIGKILL" else "a fault in onnxruntime or onnx that the file brings out"
        return f"{STAGES[stage]} was ended by {name}: {why}"
    last = (ended.stderr.strip().splitlines() or ["no message"])[-1]
    return f"{STAGES[stage]} failed on something that nobody foresaw; please report it with the file: {last}"
