"""Rule 7 by computation: without the check of msigs a server takes the masks off one update, with it it cannot."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

import whimbrel_protocol.spent
from tests.hostile.attack import Attack, Update
from tests.hostile.listener import Listener
from tests.hostile.rule_seven import AnotherU2, Ghosts, Plot
from tests.hostile.victim import Trial
from tests.hostile.world import HostileServer
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import Survivors
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.transcript import Cohort

LIMIT_S, AFTERWARDS_S = 20.0, 0.5
RULE = "1.5 SURVIVORS: every msig"


def credulous(message: Survivors, cohort: Cohort, tau1: bytes, u2: bytes) -> tuple[int, ...]:
    """A voter that believes whatever survivors it is shown."""
    return members_of(message.bitmap, cohort.n)


async def played(kind: type[Plot], path: Path) -> tuple[Plot, bytes]:
    """The plot against a participant, and the packed update that it tried to hide."""
    plots: list[Plot] = []

    def set_up(server: HostileServer) -> None:
        plots.append(kind(server))
        server.plot = plots[0]

    server = HostileServer(Attack("rule 7", RULE, None, Update.SPENT, set_up=set_up, n=13))
    trial = Trial(server, path)
    async with Listener(server).serving() as listener, trial.participant(listener.url) as participant:
        end = time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            await asyncio.sleep(min(await participant.tick(), 0.1))
            if plots[0].masked and end > time.monotonic() + AFTERWARDS_S:
                end = time.monotonic() + AFTERWARDS_S
        (record,) = participant.state.updates
        return plots[0], (path / record.words_file).read_bytes()


@pytest.mark.rule("1.5 SURVIVORS: every msig")
@pytest.mark.parametrize("kind", [Ghosts, AnotherU2])
async def test_without_the_check_the_server_reads_the_update(
    kind: type[Plot], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(whimbrel_protocol.spent, "check_survivors", credulous)
    plot, secret = await played(kind, tmp_path)
    assert plot.masked != secret
    assert plot.recovered() == secret


@pytest.mark.rule("1.5 SURVIVORS: every msig")
@pytest.mark.parametrize("kind", [Ghosts, AnotherU2])
async def test_with_the_check_it_gets_neither_votes_nor_secrets(kind: type[Plot], tmp_path: Path) -> None:
    plot, _ = await played(kind, tmp_path)
    assert plot.masked, "the vector did leave the client"
    assert sorted(plot.votes) == sorted(plot.indices(plot.corrupt)), "only the corrupt vote"
    assert plot.recovered() is None
    assert plot.revealed == []
    refused = [report for report in plot.server.reports if report.code == Code.SURVIVORS_SIGNATURE]
    assert bool(refused) is (kind is Ghosts), "here the client itself was asked to vote"
