"""What all tests share: the marker that ties a test to a rule of the protocol."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker; `whimbrel_lab.rules_page` reads it from the source."""
    config.addinivalue_line("markers", "rule(name): the rule of the masking protocol that the test attacks; see docs/rules.md")
