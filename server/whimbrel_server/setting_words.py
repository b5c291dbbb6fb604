"""A task's settings as the options of a command line, and back.

What belongs here: how a value of each type is written. What does not: which settings there are and what they may be
(`settings.py`), and the command that takes them (`cli.py`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec.structs import FieldInfo

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.settings import TaskSettings

_SHAPES = "dims"
"""The mapping whose values are several numbers."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Give a parser an option for every setting."""
    for field in msgspec.structs.fields(TaskSettings):
        default = _default(field)
        if isinstance(default, dict):
            form = "NAME=SIZE,SIZE" if field.name == _SHAPES else "NAME=NUMBER"
            parser.add_argument(_flag(field), dest=field.name, action="append", metavar=form, help="as often as needed")
        else:
            shown = ",".join(default) if isinstance(default, tuple) else default
            parser.add_argument(_flag(field), dest=field.name, metavar="VALUE", help=f"default {shown!r}")


def given(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the settings that were given, each as its own type. Raises ProtocolError CONFIGURATION, naming the option."""
    said = [(field, getattr(arguments, field.name)) for field in msgspec.structs.fields(TaskSettings)]
    return {field.name: _value(field, words) for field, words in said if words is not None}


def options(settings: TaskSettings) -> list[str]:
    """Return the command line that says what differs from the defaults."""
    return [word for field in msgspec.structs.fields(TaskSettings) for word in _words(field, getattr(settings, field.name))]


def _words(field: FieldInfo, value: Any) -> Iterator[str]:
    if value == _default(field):
        return
    for one in [f"{name}={_text(part)}" for name, part in value.items()] if isinstance(value, dict) else [_text(value)]:
        yield f"{_flag(field)}={one}"  # in one word, so that nothing in it is taken for an option


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _value(field: FieldInfo, words: Any) -> Any:
    try:
        return msgspec.convert(_plain(field, words), field.type, strict=False)
    except (msgspec.ValidationError, ValueError) as error:
        shown = " ".join(words) if isinstance(words, list) else words
        raise ProtocolError(Code.CONFIGURATION, f"{_flag(field)} {shown}: {error}") from error


def _plain(field: FieldInfo, words: Any) -> Any:
    default = _default(field)
    if isinstance(default, dict):
        pairs = dict(_pair(word) for word in words)
        return {name: value.split(",") if field.name == _SHAPES else value for name, value in pairs.items()}
    if isinstance(default, tuple):
        return words.split(",") if words else []
    return words


def _pair(word: str) -> tuple[str, str]:
    name, _, value = word.rpartition("=")
    if not name:
        raise ValueError("expected NAME=VALUE")
    return name, value


def _flag(field: FieldInfo) -> str:
    return f"--{field.name.replace('_', '-')}"


def _default(field: FieldInfo) -> Any:
    return field.default if field.default is not msgspec.NODEFAULT else field.default_factory()
