"""What the server deletes: old models and sums that nothing needs, never what is young, in use, or about to be."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec
import pytest

from tests.server.world import Device, Operator, Refused, World
from whimbrel_protocol.errors import Code
from whimbrel_server.config import Keep


def aged(folder: Path) -> set[bytes]:
    """Make all blobs old; returns their names."""
    files = [path for path in folder.glob("*/*") if len(path.name) == 64]
    for path in files:
        os.utime(path, (0, 0))
    return {bytes.fromhex(path.name) for path in files}


async def round_of(operator: Operator, devices: list[Device]) -> None:
    """Bring the next version about."""
    catalogue = operator.server.coordinator.catalogue
    before = catalogue.task("digits").version.version
    await asyncio.gather(*(device.train() for device in devices))
    await asyncio.gather(*(device.take_part() for device in devices))
    async with asyncio.timeout(20):
        while catalogue.task("digits").version.version == before:  # noqa: ASYNC110
            await asyncio.sleep(0.02)


async def test_old_models_and_sums_go_and_training_goes_on(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    world.config = msgspec.structs.replace(world.config, keep=Keep(versions=2, sums_s=0.0))
    async with world.serving() as (server, operator, devices):
        await operator.start_task()
        for _ in range(3):
            await round_of(operator, devices)
        blobs, coordinator = server.coordinator.services.blobs, server.coordinator
        young = set(await blobs.names())
        await coordinator.tidy()
        assert set(await blobs.names()) == young, "nothing is an hour old"
        everything = aged(world.data.blobs)
        await coordinator.tidy()
        kept = set(await blobs.names())
        records = await coordinator.services.rounds.versions("digits")
        models = [{each.snapshot, each.master} for each in records]
        assert models[2] | models[3] <= kept and not kept & (models[0] | models[1]) and kept < everything
        for window in await coordinator.services.rounds.windows("digits"):
            assert not {window.masked_sum, window.sum_sha256} & kept
        with pytest.raises(Refused) as caught:
            await operator.call("GET", "/v1/tasks/digits/versions/1/model")
        assert caught.value.number is Code.UNKNOWN_BLOB
        await operator.call("GET", "/v1/tasks/digits/versions/3/model")
        await round_of(operator, devices)
    async with world.serving() as (server, operator, devices):
        assert server.coordinator.catalogue.task("digits").version.version == 5


async def test_an_upload_that_is_old_is_there_for_the_task_that_is_made_of_it(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, _devices):
        coordinator = server.coordinator
        create = coordinator.services.rounds.create_task

        async def swept_before(record: object) -> None:
            await coordinator.tidy()
            await create(record)  # type: ignore[arg-type]

        coordinator.services.rounds.create_task = swept_before  # type: ignore[method-assign, assignment]
        get = coordinator.services.blobs.get

        async def long_ago(sha256: bytes) -> bytes:
            aged(world.data.blobs)
            return await get(sha256)

        coordinator.services.blobs.get = long_ago  # type: ignore[method-assign, assignment]
        await operator.start_task()


async def test_what_a_plan_hands_over_is_served_and_stays_as_long_as_its_task(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    async with world.serving() as (server, operator, devices):
        await operator.start_task(local=["dense2.bias"])
        (ref,) = {task.body.fixed_blob for task in server.coordinator.catalogue.live.values()}
        assert ref is not None
        aged(world.data.blobs)
        await server.coordinator.tidy()
    async with world.serving() as (server, operator, devices):
        assert len(await devices[0].blob(ref.sha256)) == ref.size
