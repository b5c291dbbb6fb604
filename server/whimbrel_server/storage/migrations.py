"""The database's schema, step by step. A step that was released is never edited: add the next one.

Here belongs the shape of the tables and nothing that reads them. The names of applied steps stand in the database itself: so a
server notices that a newer one wrote it.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from sqlite_utils import Database
from sqlite_utils.migrations import Migrations

from whimbrel_protocol.errors import Code, RuleError

migrations = Migrations("whimbrel_server")

_FIRST = """
CREATE TABLE policies (serial INTEGER PRIMARY KEY, body BLOB NOT NULL, installed_at REAL NOT NULL);
CREATE TABLE devices (
    device BLOB PRIMARY KEY, certificate BLOB NOT NULL, app_version TEXT NOT NULL, protocol INTEGER NOT NULL,
    first_seen REAL NOT NULL, last_seen REAL NOT NULL, contributions INTEGER NOT NULL DEFAULT 0) WITHOUT ROWID;
CREATE TABLE tasks (
    name TEXT PRIMARY KEY, settings TEXT NOT NULL, model_sha256 BLOB NOT NULL, plan_sha256 BLOB NOT NULL,
    created_at REAL NOT NULL, state TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE versions (
    task TEXT NOT NULL REFERENCES tasks, version INTEGER NOT NULL, model_hash BLOB NOT NULL, parent INTEGER NOT NULL,
    header BLOB NOT NULL, chain_head BLOB NOT NULL, lane BLOB NOT NULL, snapshot BLOB NOT NULL, master BLOB NOT NULL,
    published_at REAL NOT NULL, deltas TEXT NOT NULL, contributions INTEGER NOT NULL, stage TEXT NOT NULL,
    metrics TEXT NOT NULL, PRIMARY KEY (task, version)) WITHOUT ROWID;
CREATE TABLE assignments (
    id BLOB PRIMARY KEY, device BLOB NOT NULL, task TEXT NOT NULL REFERENCES tasks, version INTEGER NOT NULL,
    expires REAL NOT NULL) WITHOUT ROWID;
CREATE INDEX assignments_by_expiry ON assignments (expires);
CREATE TABLE windows (
    tau0 BLOB NOT NULL UNIQUE, window_id INTEGER NOT NULL, task TEXT NOT NULL REFERENCES tasks, version INTEGER NOT NULL,
    lane BLOB NOT NULL, params BLOB NOT NULL, roster BLOB NOT NULL, opened_at REAL NOT NULL, state TEXT NOT NULL,
    u2 BLOB, u3 BLOB, masked_sum BLOB, quorum BLOB, abort BLOB, sum_sha256 BLOB,
    count INTEGER NOT NULL DEFAULT 0, weight_sum INTEGER NOT NULL DEFAULT 0, dropped TEXT NOT NULL DEFAULT '{}',
    closed_at REAL);
CREATE INDEX windows_by_task ON windows (task, version);
CREATE INDEX windows_by_state ON windows (state);
CREATE INDEX windows_by_opening ON windows (opened_at);
CREATE TABLE applications (
    tau0 BLOB PRIMARY KEY REFERENCES windows (tau0), task TEXT NOT NULL, version INTEGER NOT NULL, position INTEGER NOT NULL,
    UNIQUE (task, version, position)) WITHOUT ROWID;
CREATE TABLE events (
    tau0 BLOB NOT NULL REFERENCES windows (tau0), kind TEXT NOT NULL, member INTEGER NOT NULL, body BLOB NOT NULL,
    UNIQUE (tau0, kind, member));
"""


@migrations()
def first(db: Database) -> None:
    """Everything the sync protocol needs; `applications` lets a window count once."""
    for statement in _FIRST.split(";\n"):
        if statement.strip():
            db.execute(statement)


_BLAME = """
ALTER TABLE windows ADD COLUMN failure INTEGER NOT NULL DEFAULT 0;
CREATE TABLE blames (
    device BLOB NOT NULL, tau0 BLOB NOT NULL REFERENCES windows (tau0), kind TEXT NOT NULL, suspects BLOB NOT NULL,
    detail TEXT NOT NULL, blamed_at REAL NOT NULL, until REAL NOT NULL,
    PRIMARY KEY (device, tau0, kind, suspects)) WITHOUT ROWID;
CREATE INDEX blames_by_window ON blames (tau0);
CREATE INDEX blames_by_end ON blames (until);
"""


@migrations()
def blame(db: Database) -> None:
    """Why windows failed, and who is in quarantine for it."""
    for statement in _BLAME.split(";\n"):
        if statement.strip():
            db.execute(statement)


@migrations()
def joins(db: Database) -> None:
    """The highest join counter of each device (8 bytes, big-endian: it may exceed a signed integer), and its entry."""
    columns = "device BLOB PRIMARY KEY, seq BLOB NOT NULL, entry_sha256 BLOB NOT NULL"
    db.execute(f"CREATE TABLE joins ({columns}) WITHOUT ROWID")


@migrations()
def fixed(db: Database) -> None:
    """The blob of a plan's fixed tensors, which lives as long as its task."""
    db.execute("ALTER TABLE tasks ADD COLUMN fixed_sha256 BLOB")


def migrate(path: Path) -> None:
    """Bring the database at `path` to this server's schema, creating it where there is none.

    Raises RuleError SCHEMA_NEWER, before anything is written, for the database of a newer server, and DATA_DAMAGED for a file
    that is no database.
    """
    connection = sqlite3.connect(path)
    try:
        db = Database(connection)
        ours = {step.name for step in migrations.pending(Database(memory=True))}
        newer = {step.name for step in migrations.applied(db)} - ours
        if newer:
            raise RuleError(Code.SCHEMA_NEWER, f"{path} has the steps {sorted(newer)} of a newer server: start that one")
        migrations.apply(db)
    except sqlite3.DatabaseError as error:
        raise RuleError(Code.DATA_DAMAGED, f"{path} cannot be opened: {error}") from error
    finally:
        connection.close()
