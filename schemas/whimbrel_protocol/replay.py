"""`python -m whimbrel_protocol.replay FILE...`: replays known-answer files of masking windows and compares every item.

Here belongs the command. What is computed from which item belongs in `replay_window.py` (whole windows) and
`replay_steps.py` (one window step by step); both drive the same `Member` and `Collector` as the product. Single cases, good
and bad, are `replay_cases.py`'s, rotated updates `replay_rotation.py`'s, files and reports `known_answers.py`'s.

Each failed item is printed with its name; the last line is `N passed, N failed`; the exit status is 1 when anything
failed. A file that cannot be read as known answers is a failed item too. Updates, weights and times that no output
depends on (of a member that dropped out before it masked, say) can only be held against their ranges.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from whimbrel_protocol import replay_cases, replay_rotation, replay_steps, replay_window
from whimbrel_protocol.errors import ProtocolError
from whimbrel_protocol.known_answers import MalformedError, Report, read


class Format(NamedTuple):
    """A kind of file: the names of its items, those of them that are computed, and how."""

    items: Sequence[str]
    outputs: Sequence[str]
    replay: Callable[[object, Report], None]


FORMATS = (
    Format(replay_window.ITEMS, replay_window.OUTPUTS, replay_window.replay),
    Format(replay_steps.ITEMS, replay_steps.OUTPUTS, replay_steps.replay),
    Format(replay_cases.ITEMS, replay_cases.OUTPUTS, replay_cases.replay),
    Format(replay_rotation.ITEMS, replay_rotation.OUTPUTS, replay_rotation.replay),
)


def replay_file(path: Path, report: Report) -> None:
    """Replay one file of any format into the report."""
    try:
        value = read(path)
    except MalformedError as reason:
        report.fail(reason.name, reason.reason)
        return
    # The format that shares the most names with the file, so that a damaged name is reported as such.
    names = set(value) if isinstance(value, dict) else set()
    _replay(value, max(FORMATS, key=lambda each: len(names & set(each.items))), report)


def _replay(value: object, kind: Format, report: Report) -> None:
    try:
        kind.replay(value, report)
    except MalformedError as reason:
        report.fail(reason.name, reason.reason)
    except ProtocolError as reason:
        report.fail("replay", f"stopped: {reason}")
    report.missing(kind.outputs)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="whimbrel_protocol.replay", description="Replay known-answer files.")
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    passed = failed = 0
    for path in parser.parse_args(arguments).files:
        report = Report()
        replay_file(path, report)
        for name, reason in report.failures:
            print(f"FAILED {path}: {name}: {reason}")
        passed, failed = passed + report.passed, failed + len(report.failures)
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
