"""What an attacker, a broken disk or a bad line makes of a message, from a seed: damaged bytes, or another value in a field."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from enum import IntEnum
from random import Random
from typing import Any

from whimbrel_protocol.errors import WireError
from whimbrel_protocol.messages import Message
from whimbrel_protocol.wire import LIMITS, decode, encode

Bytes = bytearray

# Lengths and offsets that parsers get wrong: zero, one, the greatest of each width and of each sign.
NUMBERS = (0, 1, 2, 4, 8, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFC, 0xFFFFFFFF)


def _flip(data: Bytes, random: Random) -> None:
    data[random.randrange(len(data))] ^= 1 << random.randrange(8)


def _byte(data: Bytes, random: Random) -> None:
    data[random.randrange(len(data))] = random.randrange(256)


def _number(data: Bytes, random: Random) -> None:
    width = random.choice((2, 4, 8))
    at = random.randrange(len(data)) // width * width
    data[at : at + width] = random.choice(NUMBERS).to_bytes(8, "little")[:width]


def _nudge(data: Bytes, random: Random) -> None:
    at = random.randrange(len(data)) // 4 * 4
    value = int.from_bytes(data[at : at + 4], "little") + random.randint(-64, 64)
    data[at : at + 4] = (value % 2**32).to_bytes(4, "little")


def _cut(data: Bytes, random: Random) -> None:
    del data[random.randrange(len(data)) :]


def _grow(data: Bytes, random: Random) -> None:
    data += random.randbytes(random.randint(1, 64))


def _remove(data: Bytes, random: Random) -> None:
    at = random.randrange(len(data))
    del data[at : at + random.randint(1, 16)]


def _repeat(data: Bytes, random: Random) -> None:
    at = random.randrange(len(data))
    data[at:at] = data[at : at + random.randint(1, 64)]


def _move(data: Bytes, random: Random) -> None:
    source, target = random.randrange(len(data)), random.randrange(len(data))
    part = data[source : source + random.randint(1, 32)]
    data[target : target + len(part)] = part


DAMAGES: tuple[Callable[[Bytes, Random], None], ...] = (_flip, _byte, _number, _nudge, _cut, _grow, _remove, _repeat, _move)


def mutated(data: bytes, random: Random) -> bytes:
    """Return `data` with one to four damages."""
    copy = bytearray(data)
    for _ in range(random.randint(1, 4)):
        if copy:
            random.choice(DAMAGES)(copy, random)
    return bytes(copy)


def changed(data: bytes, random: Random) -> bytes:
    """Return an encoded message that says something else than `data`: often well-formed, sometimes not even decodable."""
    message: Any = decode(data, *LIMITS)
    while True:
        other = _field(message, random) if random.random() < 0.5 else mutated(data, random)
        try:
            if decode(other, *LIMITS) != message:
                return other
        except WireError:
            return other


def _field(message: Message, random: Random) -> bytes:
    """The message with one field changed, encoded; as it was where the contract has no such value."""
    name = random.choice([field.name for field in fields(message)])
    try:
        return encode(replace(message, **{name: _other(getattr(message, name), random)}))
    except WireError:
        return encode(message)


def _other(value: Any, random: Random) -> Any:
    if isinstance(value, bytes):
        copy = bytearray(value or b"\0")
        random.choice((_flip, _byte, _cut, _grow))(copy, random)
        return bytes(copy)
    if isinstance(value, bool):
        return not value
    if isinstance(value, IntEnum):
        return random.choice(list(type(value)))
    if isinstance(value, int):
        return random.choice((0, 1, value + 1, value - 1, random.randrange(1024), 2**63))
    if isinstance(value, str):
        return value[: random.randrange(len(value) + 1)] + random.choice(("", "\0", "é", "x" * 99))
    return (value * 2)[: random.randrange(4)] if isinstance(value, tuple) else value
