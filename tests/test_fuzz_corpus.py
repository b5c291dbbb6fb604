"""The fuzz corpus: every input that once reached a new line is parsed again, and damaged further.

`make test` replays the files in `tests/corpus/`, one input in hexadecimal a line, and throws 1,000 damaged inputs at each
target; `make fuzz` throws FUZZ_EXAMPLES, or as many as fit in FUZZ_SECONDS. `python -m tests.test_fuzz_corpus SECONDS` looks,
for so long at each target, for inputs that reach lines that no known one does, and adds them to the files.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import pytest

from tests.fuzz_targets import Target, targets
from tests.mutations import changed, mutated
from whimbrel_protocol.errors import ProtocolError

CORPUS = Path(__file__).parent / "corpus"
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "1000"))
SECONDS = float(os.environ.get("FUZZ_SECONDS", "0"))
TARGETS = targets()
PACKAGE = "whimbrel_protocol"
LARGEST = 300_000
# These hold messages, whose fields can be changed one by one as well.
SPOKEN = {"message", "open", "u2", "survivors", "quorum"}

Line = tuple[str, int]


def known(name: str) -> list[bytes]:
    """The target's file."""
    file = CORPUS / f"{name}.hex"
    return [bytes.fromhex(line) for line in file.read_text().splitlines()] if file.exists() else []


def damaged(name: str, target: Target, random: Random) -> Iterator[bytes]:
    """Damaged inputs without end."""
    inputs = [*target.seeds, *known(name)]
    while True:
        data = random.choice(inputs)
        try:
            yield changed(data, random) if name in SPOKEN and random.random() < 0.5 else mutated(data, random)
        except (ProtocolError, IndexError):  # a bad message has no fields, and `Accepted` none either
            yield mutated(data, random)


def taken(target: Target, data: bytes) -> bool:
    """Whether the target accepts the input. Raises AssertionError, with the input, where it fails in a way of its own."""
    try:
        target.parse(data)
    except ProtocolError:
        return False
    except Exception as error:
        raise AssertionError(f"{type(error).__name__}: {error}, from {data.hex()}") from error
    return True


@pytest.mark.parametrize("name", TARGETS)
def test_the_corpus_and_the_vectors(name: str) -> None:
    target = TARGETS[name]
    verdicts = {taken(target, data) for data in (*target.seeds, *known(name))}
    assert verdicts == ({True, False} if name != "object" else {True}), "inputs of both kinds are needed"
    assert known(name)


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs(name: str) -> None:
    target, random = TARGETS[name], Random(name if not SECONDS else time.time_ns())
    end, thrown, refused = time.monotonic() + SECONDS, 0, 0
    for data in damaged(name, target, random):
        if time.monotonic() >= end if SECONDS else thrown >= EXAMPLES:
            break
        thrown += 1
        refused += not taken(target, data)
    assert name == "object" or refused > thrown // 4


def test_the_corpus_is_small_and_has_no_input_twice() -> None:
    files = sorted(CORPUS.iterdir())
    assert {file.stem for file in files} == set(TARGETS)
    assert sum(file.stat().st_size for file in files) < LARGEST
    for file in files:
        lines = file.read_text().splitlines()
        assert len(set(lines)) == len(lines)


# --- looking for new inputs -----------------------------------------------------------------------------------------


def lines_of(act: Callable[[], object]) -> set[Line]:
    """The lines of the protocol package that a call runs through."""
    seen: set[Line] = set()

    def within(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            seen.add((frame.f_code.co_filename, frame.f_lineno))
        return within

    def begin(frame: FrameType, event: str, _: Any) -> Any:
        return within if PACKAGE in frame.f_code.co_filename else None

    before = sys.gettrace()
    sys.settrace(begin)
    try:
        act()
    finally:
        sys.settrace(before)
    return seen


def grow(name: str, seconds: float) -> int:
    """Look for inputs that reach new lines; add them to the target's file and return how many there are."""
    target, random = TARGETS[name], Random(time.time_ns())
    reached: set[Line] = set()
    for data in target.seeds[:3]:
        reached |= lines_of(lambda data=data: taken(target, data))  # type: ignore[misc]
    kept: list[bytes] = []

    def consider(data: bytes) -> None:
        nonlocal reached
        lines = lines_of(lambda: taken(target, data))
        if not lines <= reached:
            reached |= lines
            kept.append(data)

    for data in (*known(name), *target.seeds[3:]):
        consider(data)
    end = time.monotonic() + seconds
    for data in damaged(name, target, random):
        if time.monotonic() >= end:
            break
        consider(data)
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.hex").write_text("".join(f"{data.hex()}\n" for data in kept))
    return len(kept)


if __name__ == "__main__":
    for each in TARGETS:
        print(f"{each}: {grow(each, float(sys.argv[1]))} inputs")
