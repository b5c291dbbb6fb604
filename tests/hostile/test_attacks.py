"""The Python client against every attack: the right number, silence, an update that is kept or spent as the rule says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.hostile.attack import Attack, Update
from tests.hostile.attacks import ATTACKS
from tests.hostile.verdict import faults
from tests.hostile.victim import Trial, spelled, suffer
from whimbrel_protocol.checks import ENTRY_CHECKS, PARAMS_CHECKS, ROSTER_CHECKS


@pytest.mark.rule("1.5 JOIN: fresh keys, short life")
@pytest.mark.rule("1.9 silence after a failed check")
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
async def test_the_client_holds(
    attack: Attack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    record_property: Callable[[str, object], None],
) -> None:
    caplog.set_level(logging.DEBUG)
    trial = await suffer(attack, tmp_path / "device", monkeypatch)
    said = f"error {attack.code:d} ({attack.code.name.lower()})" if attack.code else "no error"
    record_property("attack", f"{attack.name}: {said}, update {trial.fate.value}")
    assert faults(trial.server) == []
    assert_update(trial)
    if attack.code is not None:
        assert f"error {attack.code:d} " in caplog.text, "the reason is logged"
    assert_no_secret(trial, caplog.text)


def assert_update(trial: Trial) -> None:
    """It is kept, spent or counted as the attack's row says; what a wrong certificate counts is spent for good as well."""
    wanted = (Update.SPENT, Update.COUNTED) if trial.attack.update is Update.SPENT else (trial.attack.update,)
    assert trial.fate in wanted


def assert_no_secret(trial: Trial, log: str) -> None:
    kept = b"".join(
        file.read_bytes() for file in trial.path.rglob("*") if file.is_file() and file.suffix not in (".key", ".words")
    )
    for secret in trial.secrets():
        assert not any(text in log for text in spelled(secret)), "a secret is logged"
        assert secret not in kept and secret.hex().encode() not in kept, "a secret is in the journal"


def test_no_check_of_the_opening_goes_without_an_attack() -> None:
    attacked = {attack.code for attack in ATTACKS.values()}
    assert {code for code, _ in (*PARAMS_CHECKS, *ENTRY_CHECKS, *ROSTER_CHECKS)} <= attacked
