"""The operator's page, typed line by line; and no command, setting or variable is missing from the documentation."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import urllib.request
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from tests.processes.test_readme import Shell
from whimbrel import cli as device_cli
from whimbrel.journal import Journal
from whimbrel_authority import cli as authority_cli
from whimbrel_lab import cli as lab_cli
from whimbrel_lab.nets import models
from whimbrel_protocol.objects import CertificateRequest
from whimbrel_protocol.primitives import SigningKey
from whimbrel_server import cli as server_cli
from whimbrel_server import config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operating.md").read_text()
DOCUMENTS = "\n".join(file.read_text() for file in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
DEVICE = bytes(range(16))


class Operator(Shell):
    """Types the page's lines: services are processes, and what is not ours is done in its meaning."""

    def run(self, line: str) -> str:
        """Run a line; variables before a command hold for it alone."""
        words = line.split("#")[0].split()
        given = [word for word in words if re.match(r"[A-Z_]+=", word) and words[0] != "export"]
        self.ports |= {"7411": str(self.admin_port)}
        os.environ.update(word.split("=", 1) for word in given)
        try:
            return super().run(line.replace(" ".join(given), "", 1) if given else line)
        finally:
            for word in given:
                del os.environ[word.split("=")[0]]

    def _one(self, words: list[str]) -> str:
        match words:
            case ["cp", "-r", source, target]:
                shutil.copytree(self.directory / source, self.directory / target)
                return ""
            case ["kill", "PID"]:
                os.kill(json.loads((self.directory / "server/server.json").read_text())["pid"], signal.SIGTERM)
                self.background[-1].process.wait(10)
                return ""
            case ["curl", *_, url]:
                token = (self.directory / "server/admin.token").read_text().strip()
                headers = {"Authorization": f"Bearer {token}"} if "-H" in words else {}
                with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=10) as answer:
                    return str(answer.read().decode())
        return super()._one(words) if words[1] == "serve" else self._at_once(words)

    def _at_once(self, words: list[str]) -> str:
        """A command that ends by itself, without a process of its own: there are many."""
        mains = {"whimbrel-server": server_cli, "whimbrel-authority": authority_cli, "whimbrel-device": device_cli}
        out, err = StringIO(), StringIO()
        with contextlib.chdir(self.directory), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = mains[words[0]].main(words[1:])
        assert status == 0, f"{words}: {err.getvalue()}"
        return out.getvalue()


@pytest.fixture
def operator(tmp_path: Path) -> Iterator[Operator]:
    operator = Operator(tmp_path)
    yield operator
    operator.stop()


@pytest.mark.processes
def test_an_operators_year(operator: Operator) -> None:
    (operator.directory / "model.onnx").write_bytes(models.digits_cnn(1).SerializeToString())
    journal = Journal.open(operator.directory / "state", os.urandom)
    journal.close()
    printed: dict[str, str] = {}
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            printed[line.split("#")[0].strip()] = output = operator.run(line)
            if line.startswith("whimbrel-authority init"):
                names = dict(row.split(maxsplit=1) for row in output.splitlines())
                operator.variables |= {"ROOT": names["root"], "DEVICE": DEVICE.hex()}
                (operator.directory / "device.request").write_bytes(request(bytes.fromhex(names["fleet"])))

    def said(start: str) -> list[str]:
        found = [output for line, output in printed.items() if line.startswith(start)]
        assert found, start
        return found

    assert (operator.directory / "device.certificate").stat().st_size == 172
    assert len(said("whimbrel-authority issue authority --tokens")[0].split()) == 3
    assert "serial" in said("whimbrel-server policy show")[0]
    assert "policy 3 is in force" in said("whimbrel-server policy install authority/")[0]
    assert "staging_bytes = 67108864" in said("WHIMBREL_LIMITS")[0] and 'level = "warning"' in said("WHIMBREL_LIMITS")[0]
    assert [text for text in said("curl") if "whimbrel_peak_rss_bytes" in text]
    assert "running" in said("whimbrel-server task show")[0], "the copy knows the task, as it was"
    assert (operator.directory / "newest.onnx").stat().st_size > 20_000
    assert "device" in said("whimbrel-device status")[0]


def request(fleet: bytes) -> bytes:
    """What a device without a token hands in."""
    key = SigningKey(bytes(32))
    fields = {"fleet": fleet, "device": DEVICE, "public_key": key.public, "attest_class": 0, "flags": 0, "nonce": bytes(16)}
    return CertificateRequest.sign(key, **fields).encode()


# --- nothing is missing ---------------------------------------------------------------------------------------------


def commands(parser: argparse.ArgumentParser, name: str) -> Iterator[str]:
    """All commands of a program, with their groups."""
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name
    for group in groups:
        for word, sub in group.choices.items():
            yield from commands(sub, f"{name} {word}")


ALL = [name for cli in (server_cli, authority_cli, device_cli, lab_cli) for name in commands(cli._parser(), cli._parser().prog)]


@pytest.mark.parametrize("command", ALL)
def test_every_command_is_documented(command: str) -> None:
    assert re.search(rf"\b{re.escape(command)}\b", DOCUMENTS), f"no document names `{command}`"


def test_the_programs_are_all_there() -> None:
    scripts = re.search(r"\[project\.scripts\]\n(.*?)\n\n", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert scripts is not None
    assert {line.split(" = ")[0] for line in scripts[1].splitlines()} == {name.split()[0] for name in ALL}


def test_no_document_names_a_command_that_is_not_there() -> None:
    for program in {name.split()[0] for name in ALL}:
        for words in re.findall(rf"\b{program} ([a-z][a-z-]*(?: [a-z]+)?)", DOCUMENTS):
            known = [name.split(maxsplit=1)[1] for name in ALL if name.startswith(program)]
            alike = [name for name in known if words == name or words.split()[0] == name.split()[0]]
            assert alike, f"{program} {words}"


def test_every_setting_of_the_server_is_in_the_table() -> None:
    table = PAGE[PAGE.index("| section |") : PAGE.index("Rule of thumb")]
    for section in config.Config.__struct_fields__:
        assert f"`[{section}]`" in table
        for key in getattr(config, section.capitalize()).__struct_fields__:
            assert f"`{key}`" in table, f"[{section}] {key}"


def test_every_metric_is_named() -> None:
    source = (ROOT / "server/whimbrel_server/listeners/metrics.py").read_text()
    names = set(re.findall(r"\bwhimbrel_[a-z_]+(?:total|bytes)\b", source))
    assert len(names) >= 5
    assert all(f"`{name}`" in PAGE for name in names)
