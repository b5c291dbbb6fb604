"""A small real world on loopback: an authority, a server and device processes, started, killed and started again.

What belongs here: processes and their addresses. What does not: what the devices do (`device.py`), what is shown (`demo.py`),
and what is proved of the result (`proof.py`).
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

READY_S = 30.0
STOP_S = 10.0


class WorldError(Exception):
    """A process of the world did not do what it should; the message carries its last words."""


def free_port() -> int:
    """Return a loopback port that was free a moment ago, for a server that must come back at the same address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(module: str, *words: object) -> list[str]:
    """Return the command line of one of our console programs under this interpreter."""
    return [sys.executable, "-m", module, *map(str, words)]


def environment() -> dict[str, str]:
    """Return this environment with our packages on the path, installed or not."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


def run(module: str, *words: object) -> str:
    """Run one of our programs to its end and return what it printed. Raises WorldError with its last words on failure."""
    done = subprocess.run(command(module, *words), env=environment(), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise WorldError(f"{module} {words[0]} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done.stdout


class Service:
    """One long-running program of ours, its log in a file."""

    def __init__(self, log: Path, words: list[str], settings: Mapping[str, str] | None = None) -> None:
        self._words, self._log, self._environment = words, log, {**environment(), **(settings or {})}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the program; its output is appended to the log."""
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._words, env=self._environment, stdout=log, stderr=log, start_new_session=True)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The running program."""
        assert self._process is not None, "not started"
        return self._process

    def await_health(self, url: str) -> None:
        """Return when `url` answers 200. Raises WorldError if the program ends or the time is over."""
        end = time.monotonic() + READY_S
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise WorldError(f"{' '.join(self._words)} ended at start: {self.last_words()}")
            try:
                with urllib.request.urlopen(url, timeout=2):
                    return
            except OSError:
                time.sleep(0.05)
        raise WorldError(f"{url} did not answer within {READY_S:.0f} s: {self.last_words()}")

    def last_words(self) -> str:
        """Return the end of the log."""
        return self._log.read_text(errors="replace")[-2000:]

    def kill(self) -> None:
        """End the program as a power cut would (SIGKILL)."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """Ask the program to end, and end it where it does not."""
        if self._process is None or self._process.poll() is not None:
            return
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self.kill()


class Admin:
    """The server's admin interface, as a person with curl would use it."""

    def __init__(self, url: str, token: str) -> None:
        self._url, self._token = url, token

    def bytes(self, path: str, body: bytes | None = None, method: str | None = None, kind: str = "application/json") -> bytes:
        """Return the raw answer to a GET, or to a POST (or `method`) of `body`. Raises urllib's HTTPError on a refusal."""
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": kind}
        request = urllib.request.Request(self._url + path, body, headers, method=method)
        with urllib.request.urlopen(request, timeout=30) as answer:
            data: bytes = answer.read()
            return data

    def get(self, path: str) -> Any:
        """Return the JSON answer to a GET; None while the server is away (it may be on its way back)."""
        try:
            return json.loads(self.bytes(path))
        except (ConnectionError, TimeoutError):
            return None
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError:
            return None


class World:
    """An authority and a server under one directory, with everything that a task needs to run.

    `settings` are environment variables for the server (WHIMBREL_SECTION_KEY).
    """

    def __init__(self, directory: Path, settings: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self.authority_dir, self.server_dir = directory / "authority", directory / "server"
        self.authority_port, self.device_port, self.admin_port = free_port(), free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.device_port}"
        self.root = ""
        directory.mkdir(parents=True, exist_ok=True)
        serve = command("whimbrel_authority.cli", "serve", self.authority_dir, "--port", self.authority_port)
        self.authority = Service(directory / "authority.log", serve)
        ports = ("--device-port", self.device_port, "--admin-port", self.admin_port)
        serve = command("whimbrel_server.cli", "serve", self.server_dir, *ports)
        self.server = Service(directory / "server.log", serve, settings)

    def found(self, n_min: int) -> None:
        """Create the authority and the server's directory."""
        printed = run("whimbrel_authority.cli", "init", self.authority_dir, "--n-min", n_min)
        self.root = dict(line.split(maxsplit=1) for line in printed.splitlines() if " " in line)["root"]
        policy = self.authority_dir / "policy.bin"
        url = f"http://127.0.0.1:{self.authority_port}"
        run("whimbrel_server.cli", "init", self.server_dir, "--root", self.root, "--policy", policy, "--authority", url)

    def start(self) -> None:
        """Start both services and wait until they answer."""
        self.authority.start()
        self.authority.await_health(f"http://127.0.0.1:{self.authority_port}/health")
        self.start_server()

    def start_server(self) -> None:
        """Start the server (again: starting is always recovering) and wait until it answers."""
        self.server.start()
        self.server.await_health(f"{self.url}/health")

    @property
    def admin(self) -> Admin:
        """The admin interface with the operator's token."""
        token = (self.server_dir / "admin.token").read_text().strip()
        return Admin(f"http://127.0.0.1:{self.admin_port}", token)

    def tokens(self, count: int) -> list[str]:
        """Return `count` enrolment tokens of the authority."""
        return run("whimbrel_authority.cli", "issue", self.authority_dir, "--tokens", count).split()

    def create_task(self, name: str, model: Path, *options: object) -> None:
        """Create a task, have its plan signed by the authority, and start it: the operator's three commands."""
        plan, signed = self.directory / f"{name}.plan", self.directory / f"{name}.signed"
        where = ("--dir", self.server_dir)
        run("whimbrel_server.cli", "task", "create", name, *where, "--model", model, *options)
        run("whimbrel_server.cli", "task", "plan", name, *where, "--out", plan)
        run("whimbrel_authority.cli", "sign-plan", self.authority_dir, plan, "--out", signed)
        run("whimbrel_server.cli", "task", "sign", name, signed, *where)

    def stop(self) -> None:
        """Stop both services."""
        self.server.stop()
        self.authority.stop()
