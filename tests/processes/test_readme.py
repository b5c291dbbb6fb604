"""The README's promises, run as a new user would: the ten lines, and the commands of an afternoon."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from whimbrel_lab.data import digits, samples
from whimbrel_lab.fleet.world import Service, command, environment, free_port
from whimbrel_lab.nets import models

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DEVICES = 14
DEADLINE_S = 60.0
SMALL = "--contributions 12 --contributions-min 8 --window 12 --rounds 1 --expected-window-dropout 0 --come-back-max-s 1"

pytestmark = pytest.mark.processes


def block(language: str, heading: str) -> str:
    found = re.search(rf"## {heading}\n.*?```{language}\n(.*?)```", README, re.S)
    assert found is not None, f"the README has no {language} block under {heading!r}"
    return found[1]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.stop()


class Shell:
    """A user at a terminal: runs the README's lines one by one; programs that end in `&` go on in the background."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.variables = directory, {"ROOT": ""}
        self.ports = {"7443": str(free_port())}
        self.device_port, self.admin_port = free_port(), free_port()
        self.background: list[Service] = []
        self.devices: list[subprocess.Popen[bytes]] = []

    def run(self, line: str) -> str:
        line = line.split("#")[0].strip()
        for name, value in (*self.variables.items(), *self.ports.items()):
            line = re.sub(rf"\b{name}\b", value, line)
        if line.startswith("export "):
            name, value = line.removeprefix("export ").split("=")
            os.environ[name] = str(self.directory / value)
            return ""
        outputs = [self._one(shlex.split(part)) for part in line.removesuffix("&").split("&&")]
        return "".join(outputs)

    def _one(self, words: list[str]) -> str:
        module = {"whimbrel-authority": "whimbrel_authority.cli", "whimbrel-server": "whimbrel_server.cli"}[words[0]]
        line = command(module, *words[1:])
        if words[1] == "serve":
            return self._serve(words[0], line)
        done = subprocess.run(line, cwd=self.directory, env=environment(), capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout

    def _serve(self, name: str, line: list[str]) -> str:
        if name == "whimbrel-server":
            line += ["--device-port", str(self.device_port), "--admin-port", str(self.admin_port)]
            url = f"http://127.0.0.1:{self.device_port}/health"
        else:
            line += ["--port", self.ports["7443"]]
            url = f"http://127.0.0.1:{self.ports['7443']}/health"
        at = line.index("serve") + 1
        line[at] = str(self.directory / line[at])
        service = Service(self.directory / f"{name}.log", line)
        service.start()
        self.background.append(service)
        service.await_health(url)
        return ""

    def stop(self) -> None:
        os.environ.pop("WHIMBREL_DIR", None)
        for device in self.devices:
            device.kill()
            device.wait()
        for service in reversed(self.background):
            service.stop()


def test_a_fleet_in_an_afternoon_with_devices_of_ten_lines(shell: Shell) -> None:
    (shell.directory / "model.onnx").write_bytes(models.digits_cnn(1).SerializeToString())
    tokens: list[str] = []
    train, _ = digits.load(1)
    for line in block("sh", "A fleet in an afternoon").splitlines():
        if line.startswith("whimbrel-server task create"):
            line = line.split("--contributions")[0] + SMALL
        printed = shell.run(line)
        if line.startswith("whimbrel-authority init"):
            shell.variables["ROOT"] = dict(row.split(maxsplit=1) for row in printed.splitlines())["root"]
        if line.startswith("whimbrel-authority issue"):
            tokens = printed.split()
            shell.devices = [_device(shell, index, tokens[index], train) for index in range(DEVICES)]
            _wait_for_version(shell, 2)
    assert len(tokens) == 100
    assert (shell.directory / "newest.onnx").stat().st_size > 20_000
    assert "done" in shell.run("whimbrel-server window list digits")


def _device(shell: Shell, index: int, token: str, train: samples.Examples) -> subprocess.Popen[bytes]:
    """One device: the README's lines with its three names filled in, as a script of its own."""
    home = shell.directory / f"device-{index}"
    home.mkdir()
    part = train.take(np.arange(index * 20, index * 20 + 20))
    np.savez(home / "mine.npz", **part.columns)
    names = {"URL": f"http://127.0.0.1:{shell.device_port}", "ROOT": shell.variables["ROOT"], "TOKEN": token}
    script = "".join(f"{name} = {value!r}\n" for name, value in names.items()) + block("python", "A device in ten lines")
    script = script.replace("DevicePolicy()", "DevicePolicy(backoff_min_s=0.5, backoff_max_s=2)")
    (home / "device.py").write_text(script)
    return subprocess.Popen([sys.executable, "device.py"], cwd=home, env=environment(), stderr=subprocess.DEVNULL)


def _wait_for_version(shell: Shell, version: int) -> None:
    end = time.monotonic() + DEADLINE_S
    while not re.search(rf"^version +{version}$", shown := shell.run("whimbrel-server task show digits"), re.M):
        assert time.monotonic() < end, shown
        time.sleep(0.5)


def test_the_ten_lines_are_ten() -> None:
    code = [
        line for line in block("python", "A device in ten lines").splitlines() if line.strip() and not line.startswith("import")
    ]
    assert len(code) <= 10
