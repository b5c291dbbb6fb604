"""Devices that ask again before they were answered, as after a time-out on a bad line."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.server.world import Device, World


async def test_check_ins_of_a_device_that_overlap_get_the_same_assignment(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task(contributions=1000)

        async def again(device: Device, k: int) -> bytes:
            await asyncio.sleep(0.0007 * k * (device.number % 7) / 7)
            checked = await device.check_in()
            assert checked.assignment is not None
            return checked.assignment.id

        for number in range(20, 120):
            device = Device(number, server, devices[0].http)
            assert len(set(await asyncio.gather(*(again(device, k) for k in range(4))))) == 1
