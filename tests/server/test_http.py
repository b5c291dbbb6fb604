"""Both listeners over real HTTP: a whole window, its numbers, and a numbered no for everything that is wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
from whimbrel_protocol import messages as m
from whimbrel_protocol.packing import decode_sum

from tests.server.world import World


async def test_a_window_ends_with_the_exact_sum_and_the_next_version(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, devices):
        assert (await operator.start_task())["state"] == "running"
        await asyncio.gather(*(device.train() for device in devices))
        done = await asyncio.gather(*(device.take_part() for device in devices))
        assert len({each.sum_sha256 for each in done if each}) == 1 and None not in done

        (window,) = await operator.call("GET", "/v1/tasks/digits/windows")
        assert (window["state"], window["count"], len(window["u3"])) == ("done", 10, 10)
        words = await operator.call("GET", f"/v1/windows/{window['tau0']}/sum")
        assert devices[0].spec is not None
        total = decode_sum(devices[0].spec, words, 10)
        assert np.array_equal(total.values, np.sum([device.values for device in devices], axis=0))

        for _ in range(100):
            versions = await operator.call("GET", "/v1/tasks/digits/versions")
            if len(versions) == 2:
                break
            await asyncio.sleep(0.05)
        assert versions[1]["windows"] == [window["tau0"]]
        checked = await devices[0].check_in()
        assert isinstance(checked.assignment, m.Assignment) and checked.assignment.version == 2
