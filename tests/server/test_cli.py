"""The command line against a real server process: what an operator types, from an empty directory to a running task."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from tests.server.world import FLEET, PLAN_SIGNER, ROOT, SETTINGS, model, policy
from whimbrel_protocol.signed import Plan
from whimbrel_server import cli
from whimbrel_server.cli import main


def command(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "policy.bin").write_bytes(policy())
    (tmp_path / "model.onnx").write_bytes(model())
    return tmp_path


def init(files: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    folder = files / "data"
    status, out, err = command(capsys, "init", folder, "--root", ROOT.public.hex(), "--policy", files / "policy.bin")
    assert status == 0, err
    assert f"fleet {FLEET.hex()}" in out
    return folder


@pytest.fixture
def served(files: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[tuple[Path, str]]:
    """A server process on a new directory, and the address that it printed for devices."""
    folder = init(files, capsys)
    words = [sys.executable, "-m", "whimbrel_server.cli", "serve", str(folder), "--device-port", "0", "--admin-port", "0"]
    environment = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        first, second = process.stdout.readline(), process.stdout.readline()
        assert first.startswith("listening on http://127.0.0.1:") and second.startswith("admin on http://127.0.0.1:")
        yield folder, first.split()[-1]
        process.terminate()
        assert process.wait(10) == 0


def test_from_a_model_to_a_running_task(
    files: Path, served: tuple[Path, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    where = ("--dir", served[0])
    options = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", value)]
    model_file = ("--model", files / "model.onnx")
    status, out, err = command(capsys, "task", "create", *where, "digits", *model_file, "--train", "*", *options)
    assert (status, "unsigned" in out) == (0, True), err
    assert command(capsys, "task", "plan", *where, "digits", "--out", files / "plan")[0] == 0
    unsigned = (files / "plan").read_bytes()
    signature = PLAN_SIGNER.sign(Plan.KIND, Plan.decode(unsigned + bytes(64)).signature_input())
    (files / "signed").write_bytes(unsigned + signature)
    assert "digits is running, version 1" in command(capsys, "task", "sign", *where, "digits", files / "signed")[1]

    assert "running" in command(capsys, "task", "list", *where)[1]
    with monkeypatch.context() as environment:
        environment.setenv("WHIMBREL_ADMIN_TOKEN", "another")
        assert "error 403" in command(capsys, "task", "list", *where)[2]
    shown = command(capsys, "task", "show", *where, "digits")[1]
    assert "contributions" in shown and "softmax_cross_entropy" in shown
    assert command(capsys, "window", "list", *where, "digits")[1].startswith("window")
    assert command(capsys, "device", "list", *where)[1].startswith("device")
    assert command(capsys, "model", "export", *where, "digits", "--out", files / "out.onnx")[0] == 0
    assert (files / "out.onnx").read_bytes()[:2] == model()[:2]

    (files / "newer.bin").write_bytes(policy(serial=2))
    assert "policy 2" in command(capsys, "policy", "install", *where, files / "newer.bin")[1]
    for words, number in (
        (("task", "create", *where, "digits", *model_file, *options), 415),
        (("task", "create", *where, "again", *model_file, "--window", "3", "--contributions", "3"), 429),
        (("task", "create", *where, "again", *model_file, "--lr", "fast"), 431),
        (("task", "show", *where, "nobody"), 408),
        (("window", "show", *where, "00"), 410),
        (("model", "export", *where, "digits", "--version", "9", "--out", files / "x"), 409),
        (("policy", "install", *where, files / "policy.bin"), 213),
        (("policy", "install", *where, files / "model.onnx"), 201),
    ):
        status, _, err = command(capsys, *words)
        assert (status, f"error {number} " in err) == (2, True), (words, err)


def test_a_second_server_on_the_directory_is_refused(served: tuple[Path, str], capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = command(capsys, "serve", served[0], "--device-port", "0", "--admin-port", "0")
    assert (status, "another server uses" in err) == (2, True)


def test_check_prints_what_is_in_force(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = init(files, capsys)
    monkeypatch.setenv("WHIMBREL_LIMITS_POLLS", "77")
    monkeypatch.setenv("WHIMBREL_ADMIN_TOKEN", "hush")
    status, out, _ = command(capsys, "check", folder)
    assert status == 0 and "polls = 77" in out and "hush" not in out
    monkeypatch.setenv("WHIMBREL_LIMITS_POLL", "77")
    assert command(capsys, "check", folder)[0] == 2


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("init", "data", "--root", "12", "--policy", "policy.bin"), "64 hex digits"),
        (("init", "data", "--root", "00" * 32, "--policy", "policy.bin"), "error 212"),
        (("init", "data", "--root", ROOT.public.hex(), "--policy", "model.onnx"), "error 201"),
        (("init", "data", "--root", ROOT.public.hex(), "--policy", "missing"), "No such file"),
        (("serve", "nowhere"), "whimbrel.toml"),
        (("check", "nowhere"), "whimbrel.toml"),
        (("task", "list", "--dir", "nowhere"), "no server is running"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_number(
    files: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], reason: str
) -> None:
    monkeypatch.chdir(files)
    status, _, err = command(capsys, *words)
    assert (status, err.startswith("error "), reason in err) == (2, True, True), err
    assert not (files / "data" / "whimbrel.toml").exists()


def test_init_changes_nothing_where_a_directory_exists(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = init(files, capsys)
    before = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    status, _, err = command(capsys, "init", folder, "--root", ROOT.public.hex(), "--policy", files / "policy.bin")
    assert (status, "exists already" in err) == (2, True)
    assert {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


class _Blamed:
    """An admin listener that knows one blamed device and one window."""

    blame: ClassVar[dict[str, Any]] = {
        "device": "aa" * 16,
        "window": "bb" * 32,
        "kind": "mask",
        "detail": "differ",
        "suspects": ["aa" * 16, "cc" * 16],
        "blamed_at": 1.0,
        "until": 4e9,
    }

    def __init__(self, _: object) -> None:
        """As the real one."""

    def get(self, path: str) -> Any:
        if path.startswith("/v1/windows/"):
            return {"tau0": "bb" * 32, "failure": 378, "blames": [self.blame]}
        seen = {"last_seen": 1.0, "contributions": 0, "app_version": "1"}
        spared = {"device": "cc" * 16, **seen, "blames": [], "quarantined_until": None}
        known = {"device": "aa" * 16, **seen, "blames": [self.blame], "quarantined_until": 4e9}
        return [known, spared] if path.endswith("after=") else []


def test_operators_see_who_was_blamed_and_for_how_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "AdminClient", _Blamed)
    _, blamed, spared = command(capsys, "device", "list", "--dir", tmp_path)[1].splitlines()
    assert "mask (one of 2) in bbbbbbbb, no work until 2096" in blamed
    assert "mask" not in spared
    shown = command(capsys, "window", "show", "--dir", tmp_path, "bb" * 32)[1]
    assert "378" in shown and "aa" * 16 in shown.splitlines()[-1] and "differ" in shown
