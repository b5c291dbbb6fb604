"""Known-answer files: reading them strictly, and counting what agrees.

Here belongs what the formats of `replay.py` share and nothing that computes an answer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from whimbrel_protocol.errors import ProtocolError

T = TypeVar("T")

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_LONGEST_SHOWN = 80


class MalformedError(Exception):
    """An item that cannot be read: its name, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name}: {reason}")
        self.name = name
        self.reason = reason


class Report:
    """The items compared so far. `passed` counts, `failures` are (name, reason)."""

    def __init__(self) -> None:
        self.passed = 0
        self.failures: list[tuple[str, str]] = []
        self._touched: set[str] = set()

    def same(self, name: str, computed: object, stated: object) -> None:
        """Compare an item."""
        self.holds(name, computed == stated, f"computed {_shown(computed)}, the file says {_shown(stated)}")

    def holds(self, name: str, condition: bool, reason: str) -> None:
        """Count an item as passed, or as failed for the reason."""
        self._touched.add(_top(name))
        if condition:
            self.passed += 1
        else:
            self.failures.append((name, reason))

    def fail(self, name: str, reason: str) -> None:
        """Count an item as failed."""
        self.holds(name, False, reason)

    def same_each(self, name: str, computed: Mapping[int, object], stated: Mapping[int, object], part: str = "") -> None:
        """Compare member by member what was computed with what the file says, or a part of it."""
        for i in sorted(computed.keys() | stated.keys()):
            item = f"{name}[{i}]{part}"
            if i not in computed or i not in stated:
                self.fail(item, "computed but not in the file" if i in computed else "in the file but not computed")
            else:
                self.same(item, computed[i], stated[i])

    def failed(self, name: str) -> bool:
        """Whether an item of this name failed."""
        return any(name == failure for failure, _ in self.failures)

    def missing(self, names: Iterable[str]) -> None:
        """Fail those items that nothing was compared for: the replay could not go on to them."""
        for name in names:
            if name not in self._touched:
                self.fail(name, "not reached")


def _top(name: str) -> str:
    return re.split(r"[.\[]", name, maxsplit=1)[0]


def _shown(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return text if len(text) <= _LONGEST_SHOWN else text[:_LONGEST_SHOWN] + "..."


class Fields:
    """An object of a file, read strictly: exactly the names expected, exact types, lower-case hexadecimal, numbers in range."""

    def __init__(self, value: object, name: str, expected: Iterable[str]) -> None:
        self._name = name
        if not isinstance(value, dict):
            raise MalformedError(name or "file", "is not an object")
        self._value: dict[str, Any] = value
        for key in sorted(set(expected) - value.keys()):
            raise MalformedError(self.path(key), f"is missing; not expected: {sorted(value.keys() - set(expected))}")
        for key in sorted(value.keys() - set(expected)):
            raise MalformedError(self.path(key), "is not expected here")

    def path(self, key: str) -> str:
        """The item's name in reports."""
        return f"{self._name}.{key}" if self._name else key

    def raw(self, key: str) -> object:
        """The value as it stands."""
        return self._value[key]

    def hex(self, key: str, size: int | None = None) -> bytes:
        """A byte string of `size` bytes."""
        return as_bytes(self._value[key], self.path(key), size)

    def blob(self, key: str, decode: Callable[[bytes], T]) -> T:
        """A fixed-layout blob, decoded."""
        return as_blob(self.hex(key), self.path(key), decode)

    def integer(self, key: str, least: int = 0, greatest: int = 2**64 - 1) -> int:
        """An integer within limits."""
        return as_integer(self._value[key], self.path(key), least, greatest)

    def number(self, key: str) -> float:
        """A float."""
        value = self._value[key]
        if type(value) is not float:
            raise MalformedError(self.path(key), "is not a decimal number")
        return value

    def text(self, key: str) -> str:
        """A string."""
        value = self._value[key]
        if not isinstance(value, str):
            raise MalformedError(self.path(key), "is not a string")
        return value

    def array(self, key: str) -> list[Any]:
        """A list of anything."""
        value = self._value[key]
        if not isinstance(value, list):
            raise MalformedError(self.path(key), "is not a list")
        return value

    def integers(self, key: str, least: int, greatest: int) -> list[int]:
        """A list of integers within limits."""
        return [as_integer(each, self.path(key), least, greatest) for each in self.array(key)]

    def hexes(self, key: str, size: int | None = None) -> list[bytes]:
        """A list of byte strings of `size` bytes."""
        return [as_bytes(each, f"{self.path(key)}[{at}]", size) for at, each in enumerate(self.array(key))]

    def by_member(self, key: str, n: int) -> dict[int, Any]:
        """An object whose names are indices below `n`."""
        value = self._value[key]
        if not isinstance(value, dict):
            raise MalformedError(self.path(key), "is not an object")
        allowed = {str(i): i for i in range(n)}
        for name in value:
            if name not in allowed:
                raise MalformedError(f"{self.path(key)}[{name}]", f"is not a member below {n}")
        return {allowed[name]: each for name, each in value.items()}

    def hex_by_member(self, key: str, n: int, size: int) -> dict[int, bytes]:
        """An object of byte strings of `size` bytes whose names are indices below `n`."""
        return {i: as_bytes(each, f"{self.path(key)}[{i}]", size) for i, each in self.by_member(key, n).items()}


def as_bytes(value: object, name: str, size: int | None = None) -> bytes:
    """Lower-case hexadecimal of `size` bytes; only one spelling, so that no changed letter goes unseen."""
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise MalformedError(name, "is not lower-case hexadecimal")
    if size is not None and len(value) != 2 * size:
        raise MalformedError(name, f"has {len(value) // 2} bytes, not {size}")
    return bytes.fromhex(value)


def as_blob(data: bytes, name: str, decode: Callable[[bytes], T]) -> T:
    """What `decode` makes of the bytes."""
    try:
        return decode(data)
    except ProtocolError as reason:
        raise MalformedError(name, reason.detail) from None


def as_integer(value: object, name: str, least: int, greatest: int) -> int:
    """An integer, and no boolean, within limits."""
    if type(value) is not int or not least <= value <= greatest:
        raise MalformedError(name, f"is not an integer within {least}..{greatest}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise MalformedError("file", "names an item twice")
    return value


def _no_constant(name: str) -> object:
    raise MalformedError("file", f"holds {name}")


def read(path: Path) -> object:
    """The JSON value of a file. Raises MalformedError."""
    try:
        return json.loads(path.read_bytes(), object_pairs_hook=_unique, parse_constant=_no_constant)
    except OSError as reason:
        raise MalformedError("file", f"cannot be read: {reason.strerror}") from None
    except (ValueError, RecursionError) as reason:
        raise MalformedError("file", f"is not JSON: {reason}") from None
