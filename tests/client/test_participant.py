"""The participant in one process over real HTTP: training, windows, broken connections, restarts, refusals."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.client.fake_server import TASK, TOKEN, FakeServer
from tests.client.http_fake import HttpFake
from tests.client.tasks import compiled, examples, personal
from whimbrel import Cost, DevicePolicy, Participant
from whimbrel.cli import main
from whimbrel.device import Stage
from whimbrel.journal import contributed
from whimbrel.records import UpdateState
from whimbrel_kernels import ring_add
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.window import ServerState

QUICK = {"backoff_min_s": 0.2, "backoff_max_s": 1.0, "refused_s": 0.1, "poll_s": 1.0}
HEADER = {"epochs": 10, "momentum": 0.9, "scale": 4096.0}


def policy(**changes: Any) -> DevicePolicy:
    return DevicePolicy(**{**QUICK, **changes})


@pytest.fixture
async def fake() -> AsyncIterator[HttpFake]:
    server = FakeServer(*compiled(), time.time, header=HEADER)
    async with HttpFake(server).serving() as http:
        yield http


def device(fake: HttpFake, path: Path, number: int = 0, **changes: Any) -> Participant:
    def batches() -> Iterator[dict[str, Any]]:
        yield examples(40, number)

    values = {"state": path / f"device{number}", "examples": batches, "token": TOKEN, "policy": policy(history=5)}
    return Participant.open(fake.url, authority=fake.server.root.public.hex(), **{**values, **changes})


async def until(participant: Participant, true: Any, limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not true(participant):  # noqa: ASYNC110  # each tick changes what is waited for
            await asyncio.sleep(await participant.tick())


def contributions(participant: Participant) -> int:
    return len(participant.state.task(TASK).contributions)


def steps(participant: Participant) -> int:
    return participant._trainer[1].steps if participant._trainer is not None else 0


async def live(participant: Participant, count: int) -> None:
    async with participant:
        await until(participant, lambda p: contributions(p) >= count)


async def test_eight_devices_learn_over_http_and_each_sum_is_the_plain_sum(fake: HttpFake, tmp_path: Path) -> None:
    fake.break_uploads, fake.break_blobs, fake.garbage = 3, 3, 3
    await asyncio.gather(*(live(device(fake, tmp_path, number), 2) for number in range(8)))
    windows = [w for w in fake.server.windows.values() if w.collector.state is ServerState.DONE]
    assert [len(w.collector.u3) for w in windows] == [8, 8]
    records = [one for number in range(8) for one in contributed(tmp_path / f"device{number}")]
    for window in windows:
        plain = bytearray(8 * window.collector.spec.words)
        for record, words in records:
            if record.tau0 == window.collector.tau0:
                ring_add(plain, words)
        assert window.collector.result is not None
        assert window.collector.result.words == bytes(plain)
    resumed = [text for method, text in fake.requests if method == "PUT" and not text.endswith("from 0")]
    assert len(resumed) >= 3, "broken uploads begin where they broke"
    assert fake.requests.count(("PUT", "masked from 0")) == 16, "and never send again what has arrived"
    assert any(text.startswith("blob from ") and not text.endswith(" 0") for _, text in fake.requests)
    async with device(fake, tmp_path, 0) as first:
        await until(first, lambda p: p.state.task(TASK).version == 3)
        metrics = await first.evaluate(TASK)
    assert metrics.accuracy is not None and metrics.accuracy > 0.9


async def test_a_killed_training_goes_on_from_its_checkpoint_or_from_its_base(fake: HttpFake, tmp_path: Path) -> None:
    fake.server.header_changes = {"epochs": 4000}
    fake.server._publish()
    slow = policy(slice_s=1e-9)  # one step a slice
    async with device(fake, tmp_path, policy=slow) as first:
        await until(first, lambda p: steps(p) == 7)
    async with device(fake, tmp_path, policy=slow) as second:
        assert second.state.assigned is not None
        await until(second, lambda p: steps(p) > 0)
        assert steps(second) == 8
        second.restore()
        (tmp_path / "device0" / "checkpoint").unlink()
        await until(second, lambda p: steps(p) > 0)
        assert steps(second) == 1
        assert not second.state.updates, "an unfinished training is no update"


async def test_a_trained_update_is_frozen_and_waits_in_the_journal(fake: HttpFake, tmp_path: Path) -> None:
    async with device(fake, tmp_path) as first:
        await until(first, lambda p: p.stage is Stage.JOIN)
        (record,) = first.state.updates
        words = (tmp_path / "device0" / record.words_file).read_bytes()
    async with device(fake, tmp_path) as second:
        await until(second, lambda p: p.stage is Stage.JOIN)
        assert [one.update_id for one in second.state.updates] == [record.update_id]
        assert (tmp_path / "device0" / record.words_file).read_bytes() == words
        assert second.state.updates[0].state is UpdateState.JOINED


async def test_an_old_state_put_back_stops_the_device_for_a_person_to_look(fake: HttpFake, tmp_path: Path) -> None:
    async with device(fake, tmp_path) as first:
        await until(first, lambda p: p.state.certificate)
    journal = tmp_path / "device0" / "journal.json"
    old = journal.read_bytes()
    async with device(fake, tmp_path) as second:
        await until(second, lambda p: fake.server.counters)
    journal.write_bytes(old)
    async with device(fake, tmp_path) as third:
        with pytest.raises(ProtocolError) as caught:
            async with asyncio.timeout(20):
                await third.run()
        assert caught.value.code is Code.STATE_ROLLED_BACK
    assert fake.requests.count(("POST", "/v1/joins")) == 2, "and it does not ask again"


async def test_the_app_is_asked_before_each_cost_and_its_no_is_kept(fake: HttpFake, tmp_path: Path) -> None:
    asked: list[Cost] = []

    def allow(cost: Cost) -> bool:
        asked.append(cost)
        return cost.stage not in ("train", "window")

    async with device(fake, tmp_path, policy=policy(allow=allow)) as first:
        await until(first, lambda p: len([cost for cost in asked if cost.stage == "train"]) == 3)
        assert not first.state.updates
    plan = next(cost for cost in asked if cost.stage == "fetch")
    assert plan.bytes_down == fake.server.plan_ref.size
    assert [cost.stage for cost in asked[:5]] == ["enrol", "check_in", "fetch", "fetch", "train"]
    trains = [cost for cost in asked if cost.stage == "train"]
    assert {cost.seconds for cost in trains} == {5.0}


async def test_a_refused_token_is_for_people_and_raises(fake: HttpFake, tmp_path: Path) -> None:
    async with device(fake, tmp_path, token="wrong") as first:
        with pytest.raises(ProtocolError) as caught:
            await asyncio.wait_for(first.run(), 5)
    assert caught.value.code is Code.ENROLMENT_TOKEN
    async with device(fake, tmp_path, token="") as second:
        with pytest.raises(ProtocolError):
            await asyncio.wait_for(second.run(), 5)


async def test_a_server_that_is_not_there_means_backing_off(tmp_path: Path, fake: HttpFake) -> None:
    fake.url = "http://127.0.0.1:9"
    async with device(fake, tmp_path, policy=DevicePolicy(backoff_min_s=1000.0)) as first:
        delays = [await first.tick() for _ in range(3)]
        assert first.trouble is not None and first.trouble.code is Code.UNREACHABLE
    assert 0 < delays[-1] <= 1000


async def test_two_processes_cannot_share_a_state(fake: HttpFake, tmp_path: Path) -> None:
    async with device(fake, tmp_path):
        with pytest.raises(ProtocolError) as caught:
            async with device(fake, tmp_path):
                pass
    assert caught.value.code is Code.STATE_LOCKED


async def test_examples_that_fail_are_reported_by_number_and_the_device_lives_on(fake: HttpFake, tmp_path: Path) -> None:
    def broken() -> Iterator[dict[str, Any]]:
        raise RuntimeError("no such table")
        yield {}

    async with device(fake, tmp_path, examples=broken) as first:
        await until(first, lambda p: p.trouble is not None)
        assert first.trouble is not None and first.trouble.code is Code.DATA_UNUSABLE
        assert not first.state.assigned
    report = fake.server.reports[0]
    assert (report.code, report.step, report.task, report.version) == (502, Stage.TRAIN, TASK, 1)


async def test_a_cancelled_tick_is_done_again(fake: HttpFake, tmp_path: Path) -> None:
    async with device(fake, tmp_path) as first:
        while first.stage is not Stage.JOIN:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(first.tick(), 0.01)
        assert len(first.state.updates) == 1


async def test_no_secret_is_logged(fake: HttpFake, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="whimbrel"):
        async with device(fake, tmp_path) as first:
            await until(first, lambda p: p.stage is Stage.JOIN)
            seed = (tmp_path / "device0" / "identity.key").read_bytes()
            bearer = first.state.device.hex()  # the fake's bearer tokens
        assert "stage train" in caplog.text
        assert not [word for word in (TOKEN, seed.hex(), f"Bearer {bearer}") if word in caplog.text]


async def test_the_command_line_runs_a_device_to_its_first_contribution(
    fake: HttpFake, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "mine.npz", x=examples(40)["x"], label=examples(40)["@label"])
    words = ["run", fake.url, "--data", tmp_path / "mine.npz", "--state", tmp_path / "cli", "--once", "--backoff-min", "0.2"]
    words += ["--authority", fake.server.root.public.hex(), "--token", TOKEN]
    command = [sys.executable, "-m", "whimbrel.cli", *map(str, words)]
    env = {"PYTHONPATH": ":".join(sys.path)}
    process = await asyncio.create_subprocess_exec(*command, env=env)
    await asyncio.gather(*(live(device(fake, tmp_path, number), 1) for number in range(1, 8)))
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert main(["status", "--state", str(tmp_path / "cli")]) == 0
    assert f"{TASK}: holds version 1, 1 contributions" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "number"),
    [(["--authority", "zz"], "error 431"), (["--n-min-floor", "3"], "n_min_floor 3"), (["--data", "/nowhere"], "no file")],
)
def test_the_command_line_refuses_nonsense_with_exit_code_2(
    words: list[str], number: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "mine.npz", x=np.zeros((2, 6)), label=np.zeros(2))
    given = ["run", "http://127.0.0.1:9", "--data", str(tmp_path / "mine.npz"), "--state", str(tmp_path / "s")]
    assert main([*given, "--authority", "00" * 32, *words]) == 2
    assert number in capsys.readouterr().err


def test_a_status_of_nothing_is_an_error_with_its_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--state", str(tmp_path)]) == 2
    assert "error 501" in capsys.readouterr().err


async def test_what_is_fixed_is_fetched_once_and_what_is_local_stays_and_is_trained_on(tmp_path: Path) -> None:
    body, base, blob = personal()
    server = FakeServer(body, base, time.time, header=HEADER)
    server.put_blob(blob)
    async with HttpFake(server).serving() as http, contextlib.AsyncExitStack() as stack:
        fleet = [await stack.enter_async_context(device(http, tmp_path, number)) for number in range(8)]
        await asyncio.gather(*(until(one, lambda p: contributions(p) == 1) for one in fleet))
        first = [one.state.task(TASK).local_sha256 for one in fleet]
        assert len(set(first)) == 8 and all(first), "each keeps its own"
        assert all((tmp_path / f"device{i}" / fleet[i].state.task(TASK).fixed_file).exists() for i in range(8))
        del server.blobs[hashlib.sha256(blob).digest()]  # nobody may need it again
        judged = await fleet[0].evaluate(TASK, lambda: [examples(40, 0)])
        await asyncio.gather(*(until(one, lambda p: contributions(p) == 2) for one in fleet))
        assert all(one.state.task(TASK).local_sha256 != before for one, before in zip(fleet, first, strict=True))
        assert (await fleet[0].evaluate(TASK, lambda: [examples(40, 0)])).loss < judged.loss
