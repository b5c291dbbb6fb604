"""The authority's directory: three keys, the policy in force, the ledger's place, and who may read them.

    root.key     signs the policy; nothing else needs it, so it can live on a machine that is off
    issuer.key   signs certificates; the only key that the enrolment service opens
    plan.key     signs plans
    policy.bin   the newest signed policy
    ledger.sqlite

A key file holds the 32-byte Ed25519 seed. The directory has mode 0700 and each key 0600; a key that others may read is not
used. What does not belong here: what is signed (`signing.py`, `issuing.py`) and who is enrolled (`ledger.py`).
"""

from __future__ import annotations

import os
from pathlib import Path

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.primitives import KEY_BYTES, SigningKey

_OTHERS = 0o077


class Directory:
    """An authority's directory; nothing is opened before it is asked for."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger_path = path / "ledger.sqlite"
        self._policy = path / "policy.bin"

    @classmethod
    def create(cls, path: Path, seeds: tuple[bytes, bytes, bytes]) -> Directory:
        """Make the directory with the seeds of the root, the issuer and the plan signer. Raises 431 if it holds anything."""
        path.mkdir(parents=True, exist_ok=True)
        if any(path.iterdir()):
            raise ProtocolError(Code.CONFIGURATION, f"{path} is not empty; an authority is never overwritten")
        path.chmod(0o700)
        for name, seed in zip(("root", "issuer", "plan"), seeds, strict=True):
            _write(path / f"{name}.key", seed)
        return cls(path)

    @property
    def root(self) -> SigningKey:
        """The key that signs policies."""
        return self._key("root")

    @property
    def issuer(self) -> SigningKey:
        """The key that signs certificates."""
        return self._key("issuer")

    @property
    def plan_signer(self) -> SigningKey:
        """The key that signs plans."""
        return self._key("plan")

    def policy(self) -> bytes:
        """Return the signed policy in force. Raises 431 where there is none."""
        return _read(self._policy)

    def replace_policy(self, signed: bytes) -> None:
        """Put a newer signed policy in force: readers see the old one or the new one, never a part."""
        draft = self._policy.with_suffix(".new")
        draft.unlink(missing_ok=True)
        _write(draft, signed)
        draft.replace(self._policy)
        _sync_directory(self.path)

    def _key(self, name: str) -> SigningKey:
        file = self.path / f"{name}.key"
        seed = _read(file)
        if len(seed) != KEY_BYTES:
            raise ProtocolError(Code.CONFIGURATION, f"{file} holds {len(seed)} bytes, not a seed of {KEY_BYTES}")
        if os.name == "posix" and file.stat().st_mode & _OTHERS:
            raise ProtocolError(Code.CONFIGURATION, f"{file} can be read by others; chmod 600 it, and ask who did")
        return SigningKey(seed)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ProtocolError(Code.CONFIGURATION, f"cannot read {file}: {error.strerror}; make it with `init`") from error


def _write(file: Path, data: bytes) -> None:
    """Write a new file that only its owner may read, durably."""
    handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def _sync_directory(path: Path) -> None:
    if os.name != "posix":  # other systems cannot open a directory, and need not
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
