"""A real client process that dies by its own hand at a moment that nobody outside can see: around a write of its journal.

Here belongs the fault alone: the product knows nothing of it. Moments that a server can see are killed from there.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.client.fake_server import TOKEN
from tests.client.tasks import examples
from tests.hostile.victim import POLICY
from whimbrel import Participant
from whimbrel.journal import Journal
from whimbrel.records import DeviceState, UpdateState


def live(url: str, root: str, state: str, point: str) -> None:
    """Be a device until the process dies; `point` is a moment at the write of a state: `before spent`, `within`, `after`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if point:
        _die_at(*point.split())
    asyncio.run(_live(url, root, state))


async def _live(url: str, root: str, state: str) -> None:
    def batches() -> Iterator[dict[str, Any]]:
        yield examples(24)

    async with Participant.open(url, state=state, examples=batches, authority=root, token=TOKEN, policy=POLICY) as device:
        await device.run()


def _die_at(moment: str, written: str) -> None:
    commit, replace = Journal.commit, Path.replace
    within = False

    def doomed_commit(journal: Journal, state: DeviceState, files: Mapping[str, bytes | None] | None = None) -> None:
        nonlocal within
        here = written in _news(journal, state)
        if here and moment == "before":
            _die()
        within = here and moment == "within"
        commit(journal, state, files)
        if here and moment == "after":
            _die()

    def doomed_replace(draft: Path, target: Path) -> Path:
        if within and target.name == "journal.json":
            _die()  # the new journal is written and synced under another name; the old one is still in force
        return replace(draft, target)

    Journal.commit = doomed_commit  # type: ignore[method-assign, assignment]
    Path.replace = doomed_replace  # type: ignore[method-assign, assignment]


def _news(journal: Journal, state: DeviceState) -> set[str]:
    """What a state says that the journal does not yet."""
    known = _facts(journal.load()) if (journal.path / "journal.json").exists() else set()
    return _facts(state) - known


def _facts(state: DeviceState) -> set[str]:
    facts = {str(record.state) for record in state.updates}
    voted = [record for record in state.updates if record.state is UpdateState.SPENT and (record.spent or {}).get("vote")]
    return facts | ({"vote"} if voted else set())


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
