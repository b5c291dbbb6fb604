"""What an attacker, a broken disk or a bad line makes of a message: one to four small damages, from a seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

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
