"""The file of cases while it is written: values in plain JSON, and names for what several cases share."""

from __future__ import annotations

import json
from typing import Any

from whimbrel_protocol.errors import Code

GOOD = 0


class Book:
    """Collects cases. A value may be bytes (written in hexadecimal), a tuple, a list, a dict or what JSON has."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._shared: dict[str, Any] = {}
        self._cases: dict[str, dict[str, Any]] = {}

    def share(self, name: str, value: Any) -> str:
        """Give a value a name and return what stands for it in a case."""
        value = _plain(value)
        if self._shared.setdefault(name, value) != value:
            raise ValueError(f"{name} stands for two values")
        return f"@{name}"

    def add(self, name: str, check: str, expect: Code | int, **given: Any) -> None:
        """Write down a case: its input, and the one error that it must give."""
        if name in self._cases:
            raise ValueError(f"two cases are named {name!r}")
        self._cases[name] = {"name": name, "check": check, "expect": int(expect), "input": _plain(given)}

    def text(self) -> str:
        """The file, one shared value and one case a line."""
        shared = ",\n".join(f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in self._shared.items())
        cases = ",\n".join(f"  {json.dumps(case, ensure_ascii=False)}" for case in self._cases.values())
        return f'{{\n "name": {json.dumps(self._name)},\n "shared": {{\n{shared}\n }},\n "cases": [\n{cases}\n ]\n}}\n'


def _plain(value: Any) -> Any:
    if isinstance(value, bytes | bytearray):
        return value.hex()
    if isinstance(value, dict):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value
