"""Any message of the contract, made from the limits that the wire module states."""

from __future__ import annotations

from dataclasses import fields
from enum import IntEnum
from typing import Any, get_args, get_origin, get_type_hints

from hypothesis import strategies as st

from whimbrel_protocol import messages as m
from whimbrel_protocol import wire

CLASSES: tuple[type, ...] = get_args(m.Message)
# Longer bytes and lists only take time; both ends of every limit have a test of their own.
LONGEST = 600


def message(cls: Any) -> st.SearchStrategy[Any]:
    """Any valid message of one class."""
    hints = get_type_hints(cls)
    return st.builds(cls, **{field.name: _values(cls, field.name, hints[field.name]) for field in fields(cls)})


def _values(cls: type, name: str, hint: Any) -> st.SearchStrategy[Any]:
    optional = [each for each in get_args(hint) if each is not type(None)] if type(None) in get_args(hint) else []
    if optional:
        return st.none() | message(optional[0])
    if get_origin(hint) is tuple:
        low, high = wire.LIMITS[cls][name]
        item = get_args(hint)[0]
        items = message(item) if item in wire.LIMITS else scalar(item, wire._ITEM_LIMITS[cls, name])
        return st.lists(items, min_size=low, max_size=min(high, low + 3)).map(tuple)
    return message(hint) if hint in wire.LIMITS else scalar(hint, wire.LIMITS[cls].get(name, (0, 0)))


def scalar(kind: Any, limit: tuple[int, int]) -> st.SearchStrategy[Any]:
    """Any value of a kind within a limit."""
    low, high = limit
    if kind is bytes:
        return st.binary(min_size=low, max_size=max(low, min(high, LONGEST)))
    if kind is str:
        text = st.text(min_size=low, max_size=min(high, 40))
        return text.filter(lambda each: len(each.encode()) <= high)
    if kind is float:
        return st.floats(low, high)
    if kind is bool:
        return st.booleans()
    return st.sampled_from(list(kind)) if issubclass(kind, IntEnum) else st.integers(low, high)


def least(cls: type) -> Any:
    """The smallest message of a class: every length and number at the low end of its limit."""
    return cls(**{name: _at(cls, name, hint, 0) for name, hint in get_type_hints(cls).items()})


def at_end(cls: type, name: str, end: int, beyond: int) -> Any:
    """The smallest message of a class, but for one field `beyond` one end (0 low, 1 high) of its limit."""
    values = vars(least(cls))
    return cls(**{**values, name: _at(cls, name, get_type_hints(cls)[name], end, beyond)})


def _at(cls: type, name: str, hint: Any, end: int, beyond: int = 0) -> Any:
    if type(None) in get_args(hint):
        return None
    if hint in wire.LIMITS:
        return least(hint)
    if isinstance(hint, type) and issubclass(hint, IntEnum | bool):
        return next(iter(hint)) if issubclass(hint, IntEnum) else False
    size = wire.LIMITS[cls][name][end] + beyond
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        one = least(item) if item in wire.LIMITS else value_of(item, wire._ITEM_LIMITS[cls, name][0])
        return (one,) * max(size, 0)
    return value_of(hint, size)


def value_of(kind: Any, size: int) -> Any:
    """A number of this value, or bytes or text of this length."""
    if kind in (int, float):
        return kind(size)
    return kind(b"a" * size) if kind is bytes else "a" * size
