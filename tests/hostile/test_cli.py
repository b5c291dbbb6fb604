"""The command line that any client is pointed at: it names every attack, and judges a client that it knows nothing of."""

from __future__ import annotations

import asyncio
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.client.tasks import examples
from tests.hostile.__main__ import HELD, main
from tests.hostile.attacks import ATTACKS

LIMIT_S = 40.0


def test_the_list_names_every_attack(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--list"]) == HELD
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == list(ATTACKS)


@pytest.mark.processes
async def test_a_foreign_client_is_attacked_and_judged(tmp_path: Path) -> None:
    np.savez(tmp_path / "mine.npz", x=examples(24)["x"], label=examples(24)["@label"])
    environment = {"PYTHONPATH": ":".join(sys.path)}
    words = [sys.executable, "-m", "tests.hostile", "--attack", "survivors-under-the-floor", "--quiet", "1"]
    server = await asyncio.create_subprocess_exec(*words, env=environment, stdout=asyncio.subprocess.PIPE)
    assert server.stdout is not None
    async with asyncio.timeout(LIMIT_S):
        told = dict(line.split(maxsplit=1) for line in [(await server.stdout.readline()).decode() for _ in range(5)])
        device = [sys.executable, "-m", "whimbrel.cli", "run", told["url"].strip(), "--data", str(tmp_path / "mine.npz")]
        device += ["--state", str(tmp_path / "state"), "--authority", told["root"].strip(), "--token", told["token"].strip()]
        client = await asyncio.create_subprocess_exec(*device, env=environment, stderr=asyncio.subprocess.DEVNULL)
        try:
            verdict = (await server.stdout.read()).decode()
        finally:
            client.kill()
            await client.wait()
    assert re.fullmatch(r"HELD: error 352 SURVIVORS_TOO_FEW, update spent \(it reported 352, 510\)\n", verdict)
    assert await server.wait() == HELD
