"""Who is enrolled: the authority's one database.

Verbs over four small tables: devices with their newest certificate, enrolment tokens (only their hashes), which device used
which token, and the next serial number. A device keeps one row however often it renews, so nobody can fill the disk.
What does not belong here: whether a request deserves a certificate (`enrolment.py`).
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from whimbrel_protocol.errors import Code, ProtocolError

_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE devices (
    device BLOB PRIMARY KEY,
    public_key BLOB NOT NULL UNIQUE,
    request_sha256 BLOB NOT NULL,
    certificate BLOB NOT NULL,
    enrolled_at INTEGER NOT NULL,
    revoked_epoch INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE tokens (
    sha256 BLOB PRIMARY KEY,
    uses_left INTEGER NOT NULL CHECK (uses_left >= 0),
    expires_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE token_uses (
    sha256 BLOB NOT NULL REFERENCES tokens,
    device BLOB NOT NULL,
    PRIMARY KEY (sha256, device)
) STRICT, WITHOUT ROWID;
CREATE TABLE serials (next INTEGER NOT NULL) STRICT;
INSERT INTO serials VALUES (1);
"""

# Not INSERT OR REPLACE: that would silently delete the row of another device with the same key.
_RECORD = """
INSERT INTO devices VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (device) DO UPDATE SET public_key = excluded.public_key,
request_sha256 = excluded.request_sha256, certificate = excluded.certificate, revoked_epoch = excluded.revoked_epoch
"""


@dataclass(frozen=True)
class Enrolment:
    """A device's row: its present key, the request that its newest certificate answers, and whether it was revoked."""

    device: bytes
    public_key: bytes
    request_sha256: bytes
    certificate: bytes
    enrolled_at: int
    revoked_epoch: int | None = None


class Ledger:
    """One connection to the ledger; not for several threads at a time."""

    def __init__(self, path: Path) -> None:
        """Open the database, or make it. Raises 432 where a newer program wrote it, 433 where it is none."""
        path.touch(mode=0o600)
        self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            self._prepare(path)
        except sqlite3.DatabaseError as error:
            self._db.close()
            raise ProtocolError(Code.DATA_DAMAGED, f"{path}: {error}") from error
        except ProtocolError:
            self._db.close()
            raise

    def _prepare(self, path: Path) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        with self.transaction():
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > _SCHEMA_VERSION:
                raise ProtocolError(Code.SCHEMA_NEWER, f"{path} has schema {version}, this program knows {_SCHEMA_VERSION}")
            if version == 0:
                for statement in _SCHEMA.split(";\n"):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def close(self) -> None:
        """Close the connection."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing, and nobody else writes in between."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    # --- tokens ---------------------------------------------------------------------------------------------------------

    def add_tokens(self, tokens: Sequence[str], uses: int, expires_at: int) -> None:
        """Admit `uses` devices with each token until `expires_at` (Unix seconds)."""
        rows = [(_token_hash(token), uses, expires_at) for token in tokens]
        with self.transaction():
            self._db.executemany("INSERT INTO tokens VALUES (?, ?, ?)", rows)

    def token_used_by(self, token: str, device: bytes) -> bool:
        """Whether this device was enrolled with this token."""
        query = "SELECT 1 FROM token_uses WHERE sha256 = ? AND device = ?"
        return self._db.execute(query, (_token_hash(token), device)).fetchone() is not None

    def token_valid(self, token: str, now: int) -> bool:
        """Whether the token admits one more device."""
        query = "SELECT 1 FROM tokens WHERE sha256 = ? AND uses_left > 0 AND expires_at >= ?"
        return self._db.execute(query, (_token_hash(token), now)).fetchone() is not None

    def use_token(self, token: str, device: bytes) -> None:
        """Take one use of the token, for this device."""
        self._db.execute("UPDATE tokens SET uses_left = uses_left - 1 WHERE sha256 = ?", (_token_hash(token),))
        self._db.execute("INSERT INTO token_uses VALUES (?, ?)", (_token_hash(token), device))

    # --- devices --------------------------------------------------------------------------------------------------------

    def find(self, device: bytes) -> Enrolment | None:
        """Return the device's row."""
        return self._one("SELECT * FROM devices WHERE device = ?", device)

    def holder(self, public_key: bytes) -> Enrolment | None:
        """Return the row of the device that has this key."""
        return self._one("SELECT * FROM devices WHERE public_key = ?", public_key)

    def _one(self, query: str, value: bytes) -> Enrolment | None:
        row = self._db.execute(query, (value,)).fetchone()
        return None if row is None else Enrolment(*row)

    def next_serial(self) -> int:
        """Take the next serial number; no two certificates have the same."""
        serial: int = self._db.execute("UPDATE serials SET next = next + 1 RETURNING next - 1").fetchone()[0]
        return serial

    def record(self, row: Enrolment) -> None:
        """Write the device's row, in place of the one that it had."""
        values = (row.device, row.public_key, row.request_sha256, row.certificate, row.enrolled_at, row.revoked_epoch)
        self._db.execute(_RECORD, values)

    def revoke(self, device: bytes, epoch: int) -> None:
        """Mark the device: no certificate of an epoch below `epoch` may count, and it gets no other."""
        self._db.execute("UPDATE devices SET revoked_epoch = ? WHERE device = ?", (epoch, device))

    def least_epoch(self) -> int:
        """Return the epoch that the policy must at least ask for, so that every revocation holds."""
        epoch: int = self._db.execute("SELECT COALESCE(MAX(revoked_epoch), 0) FROM devices").fetchone()[0]
        return epoch


def _token_hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
