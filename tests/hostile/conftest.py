"""Prints one line for each attack that was tried: what the client said, and what became of its update."""

from __future__ import annotations

import pytest


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """List the attacks of this run."""
    reports = [report for key in ("passed", "failed") for report in terminalreporter.stats.get(key, [])]
    lines = [(value, report.outcome) for report in reports for name, value in report.user_properties if name == "attack"]
    if lines:
        terminalreporter.section("attacks of a hostile server")
    for line, outcome in lines:
        terminalreporter.line(f"{'held  ' if outcome == 'passed' else 'FAILED'} {line}")
