"""Members whose connections break: who is gone holds up no phase that follows, and who comes back counts again."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.server.world import World


async def test_a_member_that_died_in_its_poll_holds_up_no_later_phase(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (_, operator, (dead, *others)):
        await operator.start_task(share_s=60.0, mask_s=60.0)
        await asyncio.gather(*(device.train() for device in (dead, *others)))
        joined = await asyncio.gather(*(device.join() for device in (dead, *others)))
        opened = await asyncio.gather(*(device.open(each) for device, each in zip((dead, *others), joined, strict=True)))
        await dead.shares(opened[0])
        waiting = asyncio.create_task(dead.poll(f"{dead.window}/u2"))
        await asyncio.sleep(0.2)
        waiting.cancel()
        # U2 wakes whoever waits for it: also the call that nobody reads the answer of any more.
        await asyncio.gather(*(device.shares(each) for device, each in zip(others, opened[1:], strict=True)))
        async with asyncio.timeout(10):
            for device in others:
                await device.upload(device.masked(await device.poll(f"{device.window}/u2")))
            await others[0].poll(f"{others[0].window}/survivors")
