"""The server's configuration: whimbrel.toml, then WHIMBREL_SECTION_KEY from the environment, then the defaults below.

What belongs here: every number and address that an operator may set, its default and its limits; merging; printing with
secrets hidden. What does not: a task's settings (`settings.py`) and the layout of the data directory (`datadir.py`).
Unknown keys are refused in the file and, for the sections below, in the environment: a typing error must not leave a limit
at its default.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from whimbrel_protocol.errors import Code, ProtocolError

Port = Annotated[int, Meta(ge=0, le=65_535)]
Count = Annotated[int, Meta(ge=1)]
Bytes = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Hex32 = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]

_SECRETS = {("admin", "token")}
_PREFIX = "WHIMBREL_"


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file: unknown keys are refused."""


class Listen(Section, frozen=True):
    """The listener for devices. Port 0: any free port."""

    host: str = "127.0.0.1"
    port: Port = 7410


class Admin(Section, frozen=True):
    """The listener for operators. An empty token: the one in DIR/admin.token."""

    host: str = "127.0.0.1"
    port: Port = 7411
    token: str = ""


class Authority(Section, frozen=True):
    """The fleet authority: its root key (hex), and the address of its enrolment service (empty: no enrolment through here)."""

    root: Hex32
    url: str = ""
    timeout_s: Seconds = 10.0


class Limits(Section, frozen=True):
    """What one request, one device and all of them together may take."""

    message_bytes: Bytes = 2**20
    model_bytes: Bytes = 256 * 2**20
    plan_bytes: Bytes = 32 * 2**20
    vector_bytes: Bytes = 4 * 2**30
    staging_bytes: Bytes = 256 * 2**20
    block_bytes: Annotated[int, Meta(ge=4096, multiple_of=8)] = 256 * 2**10
    spill_bytes: Annotated[int, Meta(ge=0)] = 4 * 2**30
    hot_bytes: Annotated[int, Meta(ge=0)] = 256 * 2**20
    connections: Count = 20_000
    polls: Count = 10_000
    poll_s: Annotated[float, Meta(gt=0, le=25)] = 25.0
    idle_s: Seconds = 75.0
    body_s: Seconds = 10.0
    upload_bytes_per_s: Count = 4096
    upload_grace_s: Seconds = 3.0
    token_s: Annotated[int, Meta(ge=60, le=86_400)] = 3600


class Work(Section, frozen=True):
    """How the work is spread: threads (0: one a core), and vectors that are small enough to hash and add on the event loop."""

    threads: Annotated[int, Meta(ge=0, le=256)] = 0
    inline_bytes: Annotated[int, Meta(ge=0)] = 256 * 2**10


class Quarantine(Section, frozen=True):
    """How long a device gets no work that was found at fault in a window, in seconds (0: not at all).

    `seconds` for who is at fault for certain, `suspect_seconds` for each of several of whom one spoiled a window.
    """

    seconds: Annotated[float, Meta(ge=0)] = 86_400.0
    suspect_seconds: Annotated[float, Meta(ge=0)] = 3600.0


class Keep(Section, frozen=True):
    """What is kept of the past: the newest versions of each task with their models, and windows' sums for so many seconds."""

    versions: Count = 64
    sums_s: Annotated[float, Meta(ge=0)] = 30 * 86_400.0


class Log(Section, frozen=True):
    """What is logged: `debug`, `info`, `warning` or `error`, as one JSON object a line."""

    level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"


class Config(Section, frozen=True):
    """The whole configuration."""

    authority: Authority
    listen: Listen = Listen()
    admin: Admin = Admin()
    limits: Limits = Limits()
    work: Work = Work()
    quarantine: Quarantine = Quarantine()
    keep: Keep = Keep()
    log: Log = Log()


def load(path: Path, environ: Mapping[str, str]) -> Config:
    """Return the configuration of the file at `path`, overridden from `environ`.

    Raises ProtocolError CONFIGURATION for anything that cannot be read, is unknown or lies outside its limits.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ProtocolError(Code.CONFIGURATION, f"{path}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(Code.CONFIGURATION, f"{path}: {error}") from error
    return merged(table, environ, str(path))


def merged(table: dict[str, Any], environ: Mapping[str, str], source: str = "configuration") -> Config:
    """Return the configuration of a parsed file and an environment; raises as `load` does."""
    try:
        msgspec.convert(table, Config)  # the file by itself, so that an error names the right place
        return msgspec.convert(_overridden(table, environ), Config, strict=False)
    except msgspec.ValidationError as error:
        raise ProtocolError(Code.CONFIGURATION, f"{source}: {error}") from error


def _overridden(table: dict[str, Any], environ: Mapping[str, str]) -> dict[str, Any]:
    result = {name: dict(section) for name, section in table.items()}
    for section in Config.__struct_fields__:
        prefix = f"{_PREFIX}{section.upper()}_"
        for name in environ:
            if name.startswith(prefix):
                result.setdefault(section, {})[name.removeprefix(prefix).lower()] = environ[name]
    return result


def render(config: Config) -> str:
    """Return the configuration as TOML with every value in force; a secret that is set shows as `(hidden)`."""
    lines = []
    for section, values in msgspec.to_builtins(config).items():
        lines.append(f"[{section}]")
        for key, value in values.items():
            shown = "(hidden)" if (section, key) in _SECRETS and value else value
            lines.append(f"{key} = {json.dumps(shown)}")
        lines.append("")
    return "\n".join(lines)


def initial(root: bytes, authority_url: str) -> str:
    """Return the text of a new whimbrel.toml; `root` is the authority's 32-byte public key."""
    return _INITIAL.format(root=root.hex(), url=json.dumps(authority_url))


_INITIAL = """\
# Configuration of a whimbrel server. Every key that is not set here has the default that `whimbrel-server check` prints.
# The environment overrides the file: WHIMBREL_LISTEN_PORT=8000 sets `port` in [listen]. Unknown keys are refused.

[authority]
# The root key of the fleet's authority. The server can check what the authority signs; it can sign nothing itself.
root = "{root}"
# Where the authority's enrolment service answers; enrolments and renewals are passed on to it unread. Empty: none.
url = {url}

[listen]
# Devices connect here. Use 0.0.0.0 to serve a network, with TLS in front of it.
host = "127.0.0.1"
port = 7410

[admin]
# Operators connect here: keep it on loopback. The token is in admin.token beside this file unless it is set here.
host = "127.0.0.1"
port = 7411

[limits]
# Memory for uploads that are under way; what goes beyond is spilled to files of at most spill_bytes in all, then refused.
staging_bytes = 268435456
spill_bytes = 4294967296
"""
