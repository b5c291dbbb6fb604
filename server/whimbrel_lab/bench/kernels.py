"""Benchmark of the kernels: each measure beside its baseline, in turns, in the same run.

Here belong measures of one kernel call on one core. Uploads, rounds and anything with a socket do not.
A row holds a ratio of speeds (baseline's time / ours), since no absolute figure survives a change of
machine, and `run` raises ArithmeticError if a measured sum is not exact.
"""

import ctypes
import ctypes.util
import os
import sys
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from whimbrel_kernels import IMPLEMENTATION, _numpy, mask_add, ring_add, rotate
from whimbrel_protocol.encoding import BLOCK

Row: TypeAlias = dict[str, object]
Call: TypeAlias = Callable[[int], object]

_TURNS = 7
# Larger than any last-level cache met so far per core, so that each update arrives cold.
_POOL_BYTES = 160_000_000
_MASK_GOALS = {"native-avx512": 0.85, "native-avx2": 0.3}
_KEY = bytes(range(32))
_PIECE_BYTES = 1 << 18  # stays in the second-level cache: the best case for the baseline


def run() -> list[Row]:
    """All rows: ring_add against np.add and itself unaligned, rotate against its twin, mask_add against OpenSSL's keystream."""
    sizes = (2_000_000, 20_000_000)
    rows = [_ring_row(size) for size in sizes] + [_alignment_row(size) for size in sizes]
    rows.append(_rotation_row(4_000_000))
    mask = _mask_row(2_000_000)
    return [*rows, mask] if mask else rows


def _ring_row(size: int) -> Row:
    pool, (theirs, ours) = _cold_updates(size), np.zeros((2, size // 8), np.uint64)
    sources = [update[1:] for update in pool]
    row = _compare(lambda i: np.add(theirs, sources[i], out=theirs), lambda i: ring_add(ours, sources[i]), len(pool))
    _require_equal(ours, theirs)
    return {"measure": f"ring_add / np.add, {_megabytes(size)}", "goal": 0.8, **row}


def _alignment_row(size: int) -> Row:
    pool, (aligned, shifted) = _cold_updates(size), np.zeros((2, size // 8), np.uint64)
    views = [update.view(np.uint8).data for update in pool]
    row = _compare(lambda i: ring_add(aligned, views[i][8:]), lambda i: ring_add(shifted, views[i][1:-7]), len(pool))
    calls = row["calls"]
    expected = np.zeros_like(shifted)
    for view in views:
        expected += np.frombuffer(bytes(view[1:-7]), np.uint64)
    _require_equal(shifted, expected * np.uint64(calls // len(pool)))
    return {"measure": f"ring_add at address + 1 / aligned, {_megabytes(size)}", "goal": 0.9, **row}


def _rotation_row(size: int) -> Row:
    theirs, ours = np.random.default_rng(1).normal(size=(1, size // 4)).astype(np.float32).repeat(2, axis=0)
    signs = np.random.default_rng(2).bytes(size // 32)
    row = _compare(lambda _: _numpy.rotate(theirs, signs, BLOCK), lambda _: rotate(ours, signs, BLOCK), 1)
    _require_equal(ours, theirs)
    return {"measure": f"rotate / NumPy's, {_megabytes(size)}", "goal": None if IMPLEMENTATION == "numpy" else 3.0, **row}


def _mask_row(size: int) -> Row | None:
    keystream = _openssl_keystream()
    if keystream is None:
        print("no libcrypto found: the mask is not compared", file=sys.stderr)
        return None
    acc, stream = np.zeros(size // 8, np.uint64), np.empty(size // 8, np.uint64)
    row = _compare(lambda _: keystream(stream), lambda _: mask_add(acc, _KEY, 0), 16)
    calls = row["calls"]
    _require_equal(acc, stream * np.uint64(calls))
    goal = _MASK_GOALS.get(IMPLEMENTATION)
    return {"measure": f"mask_add / OpenSSL's keystream alone, {_megabytes(size)}", "goal": goal, **row}


def _cold_updates(size: int) -> list[npt.NDArray[np.uint64]]:
    """Random updates with one word more than `size` bytes, which leaves room to shift the start."""
    words = np.random.default_rng(1).integers(0, 2**64, size // 8 + 1, np.uint64)
    return [words + np.uint64(i) for i in range(_POOL_BYTES // size)]


def _compare(baseline: Call, ours: Call, calls: int) -> dict[str, float | int]:
    """Medians over turns of one pass of `calls` calls each, after a pass of warming up."""
    wall: tuple[list[float], list[float]] = ([], [])
    busy, began, own = _machine_busy_seconds(), time.perf_counter(), time.process_time()
    for turn, (samples, call) in product(range(_TURNS + 1), zip(wall, (baseline, ours), strict=True)):
        for i in range(calls):
            start = time.perf_counter()
            call(i)
            if turn > 0:
                samples.append(time.perf_counter() - start)
    elapsed, own = time.perf_counter() - began, time.process_time() - own
    theirs_us, ours_us = (1e6 * median(samples) for samples in wall)
    others = max(0.0, _machine_busy_seconds() - busy - own) / elapsed
    return {
        "ratio": theirs_us / ours_us,
        "baseline_us": theirs_us,
        "ours_us": ours_us,
        "cpu_share": own / elapsed,
        "others_cores": others,
        "calls": calls * (_TURNS + 1),
    }


def _machine_busy_seconds() -> float:
    """CPU seconds that all processes used since start-up; 0 where the system does not tell."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _wait, irq, soft = map(int, stat.read_text().split("\n", 1)[0].split()[1:8])
    return (user + nice + system + irq + soft) / float(os.sysconf("SC_CLK_TCK"))


def _openssl_keystream() -> Callable[[npt.NDArray[np.uint64]], None] | None:
    """A function that fills an array with the same keystream as the mask's, or None without libcrypto."""
    name = ctypes.util.find_library("crypto")
    if name is None:
        return None
    library = ctypes.CDLL(name)
    for function in ("EVP_chacha20", "EVP_CIPHER_CTX_new"):
        getattr(library, function).restype = ctypes.c_void_p
    cipher, context = ctypes.c_void_p(library.EVP_chacha20()), ctypes.c_void_p(library.EVP_CIPHER_CTX_new())
    zeros, written = bytes(_PIECE_BYTES), ctypes.c_int()
    initial = (1).to_bytes(4, "little") + bytes(12)  # OpenSSL takes the counter as the nonce's first part

    def fill(stream: npt.NDArray[np.uint64]) -> None:
        library.EVP_EncryptInit_ex(context, cipher, None, _KEY, initial)
        for start in range(0, stream.nbytes, _PIECE_BYTES):
            size = min(_PIECE_BYTES, stream.nbytes - start)
            target = ctypes.c_void_p(stream.ctypes.data + start)
            if library.EVP_EncryptUpdate(context, target, ctypes.byref(written), zeros, size) != 1:
                raise RuntimeError("OpenSSL refused to make keystream")

    return fill


def _require_equal(ours: npt.NDArray[Any], expected: npt.NDArray[Any]) -> None:
    if not np.array_equal(ours, expected):
        raise ArithmeticError(f"{IMPLEMENTATION}: the measured result is not exact")


def _megabytes(size: int) -> str:
    return f"{size // 1_000_000} MB"


def main() -> None:
    """Print the rows as a table."""
    print(f"kernels: {IMPLEMENTATION}; ratio = baseline's time / ours, medians of {_TURNS} turns")
    print(f"{'measure':46} {'ratio':>6} {'goal':>5} {'baseline us':>12} {'ours us':>9} {'others, cores':>14}")
    for row in run():
        goal = "-" if row["goal"] is None else row["goal"]
        print(
            f"{row['measure']:46} {row['ratio']:6.2f} {goal:>5} {row['baseline_us']:12.1f} "
            f"{row['ours_us']:9.1f} {row['others_cores']:14.2f}"
        )


if __name__ == "__main__":
    main()
