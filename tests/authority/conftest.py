"""Each test gets a fleet of its own, with a floor of eight members."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.authority.fleet import Fleet


@pytest.fixture
def fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Fleet:
    return Fleet(tmp_path / "authority", capsys).init("--n-min", 8)
