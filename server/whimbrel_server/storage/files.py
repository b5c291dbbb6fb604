"""`Blobs` as files named by their hash: the embedded default.

Here belong the bytes on the disk: whole or not there, checked before they are believed. A file is written beside its place,
brought to the disk and renamed, so that a crash leaves the old state or the new one. A blob is checked against its name when it
is first read in a process; a damaged one is reported and never replaced silently.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import secrets
import threading
import time
from pathlib import Path

from whimbrel_protocol.errors import Code, RuleError

_FULL = (errno.ENOSPC, errno.EDQUOT)
_UNFINISHED = ".part"


class FileBlobs:
    """See `protocols.Blobs`. One process at a time uses a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._checked: set[bytes] = set()
        self._deleting = threading.Lock()
        directory.mkdir(parents=True, exist_ok=True)
        for leftover in directory.glob(f"*/*{_UNFINISHED}"):
            leftover.unlink()

    def _path(self, sha256: bytes) -> Path:
        name = sha256.hex()
        return self._directory / name[:2] / name

    async def put(self, data: bytes | memoryview) -> bytes:
        return await asyncio.to_thread(self._put, data)

    def _put(self, data: bytes | memoryview) -> bytes:
        sha256 = hashlib.sha256(data).digest()
        path = self._path(sha256)
        if self._renew(path):
            self._check(sha256)
            # Whoever renamed it may not have brought that to the disk yet, or died before.
            _sync_directories(path)
            return sha256
        try:
            self._write_durably(path, data)
        except OSError as error:
            if error.errno in _FULL:
                raise RuleError(Code.STORAGE_FULL, f"{len(data)} bytes do not fit: {error}") from error
            raise
        self._checked.add(sha256)
        return sha256

    def _write_durably(self, path: Path, data: bytes | memoryview) -> None:
        path.parent.mkdir(exist_ok=True)
        part = path.with_name(f"{path.name}.{secrets.token_hex(4)}{_UNFINISHED}")
        try:
            with part.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            with self._deleting:  # a file whose age is just being judged is not replaced by a young one
                part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        _sync_directories(path)

    async def get(self, sha256: bytes, start: int = 0, stop: int | None = None) -> bytes:
        return await asyncio.to_thread(self._get, sha256, start, stop)

    def _get(self, sha256: bytes, start: int, stop: int | None) -> bytes:
        self._check(sha256)
        size = self._path(sha256).stat().st_size
        end = size if stop is None else stop
        if not 0 <= start <= end <= size:
            raise RuleError(Code.BAD_RANGE, f"bytes {start} to {end} of {size}")
        with self._path(sha256).open("rb") as file:
            file.seek(start)
            return file.read(end - start)

    def _check(self, sha256: bytes) -> None:
        if sha256 in self._checked:
            return
        try:
            with self._path(sha256).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").digest()
        except FileNotFoundError as error:
            raise RuleError(Code.UNKNOWN_BLOB, sha256.hex()) from error
        if found != sha256:
            raise RuleError(Code.DATA_DAMAGED, f"{self._path(sha256)} holds other bytes than its name says")
        self._checked.add(sha256)

    async def size(self, sha256: bytes) -> int | None:
        path = self._path(sha256)
        return await asyncio.to_thread(lambda: path.stat().st_size if path.exists() else None)

    def _renew(self, path: Path) -> bool:
        """Whether the file is there; if so it is as young as a new one, and is not deleted for its age."""
        with self._deleting:
            try:
                os.utime(path)
            except FileNotFoundError:
                return False
            return True

    async def delete(self, sha256: bytes, age_s: float = 0.0) -> bool:
        return await asyncio.to_thread(self._delete, sha256, age_s)

    def _delete(self, sha256: bytes, age_s: float) -> bool:
        path = self._path(sha256)
        with self._deleting:
            if age_s and path.exists() and time.time() - path.stat().st_mtime < age_s:
                return False
            self._checked.discard(sha256)
            path.unlink(missing_ok=True)
            return True

    async def names(self) -> list[bytes]:
        return await asyncio.to_thread(
            lambda: sorted(bytes.fromhex(path.name) for path in self._directory.glob("*/" + "?" * 64))
        )


def _sync_directories(path: Path) -> None:
    for directory in (path.parent, path.parent.parent):
        _sync_directory(directory)


def _sync_directory(directory: Path) -> None:
    """Make a rename durable; where a system cannot (Windows) there is nothing to do."""
    if os.name != "posix":
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
