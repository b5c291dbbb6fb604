"""The data directory: where each file lies, the secrets that the server makes for itself, and the lock.

What belongs here: names of files, modes, the lock that keeps two servers apart, the note that tells the command line where
the running server listens. What does not: what the database and the blobs hold (`storage/`), the configuration's keys
(`config.py`).
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whimbrel_protocol.errors import Code, ProtocolError


@dataclass(frozen=True)
class DataDir:
    """The paths inside one data directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "whimbrel.toml"

    @property
    def policy(self) -> Path:
        return self.root / "policy.bin"

    @property
    def admin_token(self) -> Path:
        return self.root / "admin.token"

    @property
    def token_key(self) -> Path:
        return self.root / "token.key"

    @property
    def database(self) -> Path:
        return self.root / "whimbrel.sqlite"

    @property
    def blobs(self) -> Path:
        return self.root / "blobs"

    @property
    def spill(self) -> Path:
        return self.root / "spill"

    @property
    def running(self) -> Path:
        """Where the running server listens, for the command line: {"device": url, "admin": url, "pid": n}."""
        return self.root / "server.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process. Raises ProtocolError CONFIGURATION where another server holds it."""
        handle = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ProtocolError(Code.CONFIGURATION, f"{self.root}: another server uses this data directory") from None
            yield
        finally:
            os.close(handle)

    def make_secrets(self) -> None:
        """Write the operator's token and the key of the devices' tokens, where they are missing."""
        if not self.admin_token.exists():
            write_private(self.admin_token, secrets.token_urlsafe(32).encode() + b"\n")
        if not self.token_key.exists():
            write_private(self.token_key, secrets.token_bytes(32))

    def note_running(self, device: str, admin: str) -> None:
        """Write down where this process listens."""
        note = {"device": device, "admin": admin, "pid": os.getpid()}
        write_private(self.running, json.dumps(note).encode() + b"\n")

    def admin_address(self) -> str:
        """Return the admin listener's URL. Raises ProtocolError CONFIGURATION where no server has been started here."""
        try:
            return str(json.loads(self.running.read_bytes())["admin"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ProtocolError(Code.CONFIGURATION, f"{self.root}: no server is running here: start `serve` first") from error

    def read(self, path: Path) -> bytes:
        """Return a file of this directory. Raises ProtocolError CONFIGURATION where it cannot be read."""
        try:
            return path.read_bytes()
        except OSError as error:
            hint = f"run `whimbrel-server init {self.root}` first"
            raise ProtocolError(Code.CONFIGURATION, f"{path}: {error.strerror or error}; {hint}") from error


def write_private(path: Path, data: bytes) -> None:
    """Replace `path` by `data` at once and durably, readable by its owner alone."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(handle, data)
        os.fsync(handle)
    finally:
        os.close(handle)
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
