"""The state directory: one process, one identity, one state, and every write durable before the call returns.

    lock            held while the device runs
    identity.key    the Ed25519 seed, mode 0600
    journal.json    the device's state with its own SHA-256
    plans/ models/ updates/ checkpoint    large files that the state names

What belongs here: files. What does not: what the records mean. The directory must stay out of backups and snapshots of the
phone: a restored copy would forget what is spent. It is noticed where the file system gives files numbers that last (inode
numbers), because the journal remembers that of `identity.key`; elsewhere (FAT and its like) the server's memory of the join
counter is what is left. A file that cannot be trusted stops the device with STATE_DAMAGED and is left
as it is, because a fresh journal would forget the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from whimbrel.records import DeviceState, UpdateRecord, UpdateState, dumps, loads
from whimbrel_protocol.errors import Code, ProtocolError

_FORMAT = 1
_FOLDERS = ("plans", "models", "updates", "fixed", "local")
_SEED_BYTES = 32
_DEVICE_BYTES = 16
CHECKPOINT = "checkpoint"


class Journal:
    """An open state directory. Use `Journal.open`, and `close` at the end."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path = path
        self._lock = lock
        self._number = 0  # of the identity's file; 0 where it is not known

    @classmethod
    def open(cls, path: Path, entropy: Callable[[int], bytes]) -> Journal:
        """Lock the directory, made if it is not there, with a new identity drawn from `entropy` if it has none.

        Raises ProtocolError 500 where another process has it, 501 where it holds something else than a whole journal, 511
        where it is a copy of another directory.
        """
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        journal = cls(path, _locked(path / "lock"))
        try:
            journal._prepare(entropy)
        except BaseException:
            journal.close()
            raise
        return journal

    def close(self) -> None:
        """Let other processes have the directory."""
        self._lock.close()

    def _prepare(self, entropy: Callable[[int], bytes]) -> None:
        for folder in _FOLDERS:
            (self.path / folder).mkdir(mode=0o700, exist_ok=True)
        identity, state = self.path / "identity.key", self.path / "journal.json"
        if not state.exists():
            if identity.exists():
                raise _damaged(state, "an identity without a journal: what it spent is not known any more")
            self.commit(DeviceState(entropy(_DEVICE_BYTES)))
        if not identity.exists():
            if self.load().certificate:
                raise _damaged(identity, "a certified device without its key")
            _write(identity, entropy(_SEED_BYTES))
        self._know_again(state, identity)
        self._sweep(self.load())

    def _know_again(self, state: Path, identity: Path) -> None:
        """Remember the number of the identity's file, or find that it is another file than it was.

        The device number is no help: systems hand it out anew when they start.
        """
        before, self._number = _inspect(state)[1], _file_number(identity)
        if before and self._number and before != self._number:
            raise ProtocolError(Code.STATE_COPIED, f"{identity.parent} is a copy; remove it to enrol anew")
        if self._number and not before:
            self.commit(self.load())

    def seed(self) -> bytes:
        """Return the identity's 32-byte seed. Raises ProtocolError 501 where it has another length."""
        seed = _read(self.path / "identity.key")
        if len(seed) != _SEED_BYTES:
            raise _damaged(self.path / "identity.key", f"{len(seed)} bytes, not {_SEED_BYTES}")
        return seed

    def load(self) -> DeviceState:
        """Return the state. Raises ProtocolError 501 where it is damaged."""
        return inspect(self.path)

    def read(self, name: str) -> bytes | None:
        """Return a large file, or None where it is not there."""
        file = self.path / name
        return _read(file) if file.exists() else None

    def checkpoint(self) -> bytes | None:
        """Return the saved state of an unfinished training, or None."""
        return self.read(CHECKPOINT)

    def put_checkpoint(self, data: bytes | None) -> None:
        """Save the state of an unfinished training, or forget it."""
        if data is None:
            (self.path / CHECKPOINT).unlink(missing_ok=True)
        else:
            _write(self.path / CHECKPOINT, data)

    def commit(self, state: DeviceState, files: Mapping[str, bytes | None] | None = None) -> None:
        """Make the state durable: new large files first, then the state that names them, then deletions (None)."""
        changes = files or {}
        for name, data in changes.items():
            if data is not None:
                _write(self.path / name, data)
        body = dumps(state)
        whole = {"format": _FORMAT, "sha256": _digest(body, self._number), "state": json.loads(body)}
        if self._number:
            whole["identity_file"] = self._number
        _write(self.path / "journal.json", json.dumps(whole, sort_keys=True, indent=1).encode())
        for name, data in changes.items():
            if data is None:
                (self.path / name).unlink(missing_ok=True)

    def _sweep(self, state: DeviceState) -> None:
        """Delete what a crash between two writes of `commit` left behind."""
        named = state.files()
        for folder in _FOLDERS:
            for file in (self.path / folder).glob("*"):
                if f"{folder}/{file.name}" not in named:
                    file.unlink()


def inspect(path: Path) -> DeviceState:
    """Return the state in a directory without locking or changing anything. Raises ProtocolError 501 where it is damaged."""
    return _inspect(path / "journal.json")[0]


def _inspect(file: Path) -> tuple[DeviceState, int]:
    """Return the state, and the number that the identity's file had (0: not known)."""
    try:
        whole: dict[str, Any] = json.loads(_read(file))
        number = whole.get("identity_file", 0)
        if whole["format"] != _FORMAT:
            raise _damaged(file, f"format {whole['format']}, not {_FORMAT}: written by another version?")
        state = loads(json.dumps(whole["state"]))
        if type(number) is not int or whole["sha256"] != _digest(dumps(state), number):
            raise _damaged(file, "its content does not have its hash")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, f"{type(error).__name__}: {error}") from error
    return state, number


def contributed(path: Path) -> list[tuple[UpdateRecord, bytes]]:
    """Return the contributed updates that the app's `history` kept, each with its packed words as they were masked."""
    records = [record for record in inspect(path).updates if record.state is UpdateState.CONTRIBUTED]
    return [(record, _read(path / record.words_file)) for record in records]


def _digest(body: str, number: int) -> str:
    return hashlib.sha256(body.encode() + (str(number).encode() if number else b"")).hexdigest()


def _file_number(file: Path) -> int:
    """Return the inode number, or 0 where it need not last: a file system without permissions of its own makes numbers up."""
    status = file.stat()
    return status.st_ino if os.name == "posix" and stat.S_IMODE(status.st_mode) == 0o600 else 0


def _damaged(file: Path, reason: str) -> ProtocolError:
    return ProtocolError(Code.STATE_DAMAGED, f"{file}: {reason}. Nothing was changed; remove the directory to enrol anew")


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise _damaged(file, f"cannot be read: {error.strerror}") from error


def _write(file: Path, data: bytes) -> None:
    """Replace a file by another that only its owner may read: after a crash there is the old one or the new one, whole."""
    draft = file.with_name(file.name + ".new")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
    _sync_directory(file.parent)


def _sync_directory(path: Path) -> None:
    if os.name != "posix":  # other systems cannot open a directory, and need not
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _locked(file: Path) -> IO[bytes]:
    """Open the lock file and hold its lock until it is closed; the system lets go when the process dies."""
    lock = file.open("a+b")
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(lock.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ProtocolError(Code.STATE_LOCKED, f"{file.parent} is in use by another process") from error
    return lock
