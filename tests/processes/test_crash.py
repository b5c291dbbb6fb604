"""Real processes on loopback, real SIGKILLs: what was promised survives, and every sum is still exact."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from whimbrel_lab.fleet.federation import Federation, Fleet, digits_job
from whimbrel_server.settings import TaskSettings

ROUNDS = 4
DEVICES = 16
SETTINGS = TaskSettings(
    contributions=12,
    contributions_min=8,
    window=12,
    n_max=16,
    rounds=ROUNDS,
    epochs=1,
    batch=8,
    lr=0.05,
    round_deadline_s=15.0,
    assignment_deadline_s=15.0,
    come_back_max_s=1.0,
    expected_window_dropout=0.0,
    share_s=5.0,
    mask_s=5.0,
    vote_s=5.0,
    unmask_s=5.0,
)


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    fleet = Fleet(DEVICES, dropout=0.1, seed=3, linger=("train", "mask", "unmask"), linger_s=0.8)
    federation = Federation(tmp_path, SETTINGS, fleet, digits_job(fleet))
    federation.start()
    yield federation
    federation.stop()


def wait_for(what: str, condition: Callable[[], bool], patience_s: float = 60.0) -> None:
    end = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def strike(federation: Federation) -> None:
    """The server dies as in a power cut and comes back at the same address."""
    federation.world.server.kill()
    federation.world.start_server()


@pytest.mark.processes
def test_a_server_killed_in_training_in_a_window_and_while_unmasking_ends_with_exact_sums(federation: Federation) -> None:
    def rounds_done() -> int:
        return max(len(federation.versions()) - 1, 0)

    def phases() -> dict[str, str]:
        return {window["tau0"]: window["phase"] for window in federation.windows() if window["phase"]}

    def struck_in(phase: str) -> str:
        wait_for(f"a window in phase {phase}", lambda: phase in phases().values())
        tau0 = next(tau0 for tau0, at in phases().items() if at == phase)
        strike(federation)
        return tau0

    def training() -> bool:
        task = federation.task()
        return task is not None and task["active"] >= 8 and not task["open_windows"]

    wait_for("devices in training", training)
    strike(federation)
    wait_for("the first round", lambda: rounds_done() >= 1)
    masked = struck_in("mask")
    wait_for("the second round", lambda: rounds_done() >= 2)
    unmasking = struck_in("unmask")
    wait_for("the last round", lambda: rounds_done() == ROUNDS)

    assert federation.settle(patience_s=20.0) == 0
    federation.devices.stop()
    proof = federation.prove()
    assert proof.faults == ()
    assert proof.windows >= ROUNDS
    states = {window["tau0"]: window["state"] for window in federation.windows()}
    assert states[masked] == "aborted", "no sum was fixed: the updates are freed by votes"
    assert states[unmasking] == "done", "the survivors were fixed: the window goes on"
