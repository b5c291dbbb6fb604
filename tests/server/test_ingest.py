"""Uploads: bounded memory, resumption, the least rate, and a sum that holds exactly what was accepted."""

from __future__ import annotations

import asyncio
import hashlib
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from aiohttp import StreamReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server.ingest.staging import StagedVector, Staging
from whimbrel_server.ingest.upload import Accumulator, Pace, Upload
from whimbrel_server.ingest.workers import Workers

BLOCK = 4096
PACE = Pace(bytes_per_s=1, grace_s=5.0)


@pytest.fixture
def workers() -> Iterator[Workers]:
    made = Workers(2)
    yield made
    made.close()


def staging(tmp_path: Path, budget: int = 64 * BLOCK, spill: int = 2**20, connection: int = 0) -> Staging:
    return Staging(tmp_path / "spill", budget, spill, BLOCK, connection)


def stream(*chunks: bytes, end: bool = True) -> StreamReader:
    reader = StreamReader(Mock(_reading_paused=False), 2**16, loop=asyncio.get_running_loop())
    for chunk in chunks:
        reader.feed_data(chunk)
    if end:
        reader.feed_eof()
    return reader


def vector(seed: int, words: int) -> bytes:
    return np.random.default_rng(seed).integers(0, 2**64, words, np.uint64).tobytes()


def uploaded(store: Staging, data: bytes, sha256: bytes | None = None) -> Upload:
    return Upload(store, len(data), sha256 or hashlib.sha256(data).digest())


async def sent(upload: Upload, data: bytes, offset: int = 0) -> None:
    await upload.receive(offset, len(data) - offset, stream(data[offset:]), PACE)


@given(data=st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
async def test_any_cut_of_a_vector_is_put_together_again(tmp_path: Path, data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=5 * BLOCK))
    store = staging(tmp_path, budget=data.draw(st.integers(0, 5)) * BLOCK)
    staged, position = StagedVector(store, len(content)), 0
    try:
        while position < len(content):
            step = data.draw(st.integers(1, len(content)))
            position = await staged.write(position, content[position : position + step])
            if data.draw(st.booleans()):  # the connection broke: the device begins again at a whole word
                position -= position % 8
        assert b"".join(piece for _, piece in staged.pieces(0, len(content))) == content
    finally:
        staged.release()
    assert store.idle


@pytest.mark.parametrize("inline", [0, 2**20])
async def test_the_sum_is_exactly_the_accepted_vectors(tmp_path: Path, workers: Workers, inline: int) -> None:
    words, members = 3 * BLOCK // 8 + 5, 12
    store = staging(tmp_path, budget=9 * BLOCK)  # most of them spill
    accumulator = Accumulator(words, workers.pinned(b"window"), inline)
    accepted: list[int] = []

    def accept(i: int, ends: bytes) -> None:
        assert ends == vector(i, words)[:8] + vector(i, words)[-8:]
        if i % 3 == 0:
            raise ProtocolError(Code.TOO_LATE)
        accepted.append(i)

    async def member(i: int) -> None:
        upload = uploaded(store, vector(i, words))
        await sent(upload, vector(i, words))
        await upload.finish(accumulator, lambda ends: accept(i, ends))

    results = await asyncio.gather(*(member(i) for i in range(members)), return_exceptions=True)
    assert sum(isinstance(result, ProtocolError) for result in results) == 4
    expected = np.zeros(words, np.uint64)
    for i in accepted:
        expected += np.frombuffer(vector(i, words), np.uint64)
    assert len(accepted) == 8
    assert await accumulator.copy() == expected.tobytes()


async def test_a_copy_given_right_after_an_acceptance_holds_that_vector(tmp_path: Path, workers: Workers) -> None:
    accumulator = Accumulator(4, workers.pinned(b"w"), 0)
    copies: list[asyncio.Task[bytes]] = []
    upload = uploaded(staging(tmp_path), vector(1, 4))
    await sent(upload, vector(1, 4))
    await upload.finish(accumulator, lambda _: copies.append(asyncio.create_task(accumulator.copy())))
    assert await copies[0] == vector(1, 4)


async def test_a_wrong_hash_adds_nothing_and_the_upload_may_begin_again(tmp_path: Path, workers: Workers) -> None:
    accumulator, data = Accumulator(4, workers.pinned(b"w"), 0), vector(1, 4)
    upload, accepted = uploaded(staging(tmp_path), data), Mock()
    await sent(upload, vector(2, 4))
    with pytest.raises(ProtocolError) as caught:
        await upload.finish(accumulator, accepted)
    assert caught.value.code is Code.UPLOAD_HASH
    assert upload.words_held == 0 and not accepted.called
    assert await accumulator.copy() == bytes(32)
    await sent(upload, data)
    await upload.finish(accumulator, accepted)
    assert await accumulator.copy() == data


async def test_finishing_twice_adds_once(tmp_path: Path, workers: Workers) -> None:
    accumulator, data = Accumulator(4, workers.pinned(b"w"), 0), vector(1, 4)
    upload, accepted = uploaded(staging(tmp_path), data), Mock()
    await sent(upload, data)
    await asyncio.gather(upload.finish(accumulator, accepted), upload.finish(accumulator, accepted))
    assert accepted.call_count == 1
    assert await accumulator.copy() == data


async def test_a_broken_upload_goes_on_at_the_next_whole_word(tmp_path: Path) -> None:
    data = vector(1, 100)
    upload = uploaded(staging(tmp_path), data)
    with pytest.raises(ProtocolError):
        await upload.receive(0, 800, stream(data[:333]), PACE)
    assert upload.words_held == 333 // 8
    with pytest.raises(ProtocolError) as caught:
        await sent(upload, data, 400)
    assert caught.value.code is Code.BAD_OFFSET
    await sent(upload, data, 328)
    assert upload.whole


async def test_a_second_connection_takes_the_upload_over(tmp_path: Path) -> None:
    data, slow = vector(1, 100), stream(end=False)
    upload = uploaded(staging(tmp_path), data)
    first = asyncio.create_task(upload.receive(0, 800, slow, PACE))
    await asyncio.sleep(0)
    await sent(upload, data)
    slow.feed_data(bytes(800))
    with pytest.raises(ProtocolError) as caught:
        await first
    assert caught.value.code is Code.BAD_OFFSET
    assert b"".join(piece for _, piece in upload._staged.pieces(0, 800)) == data


async def test_a_trickle_is_cut_off_and_what_came_is_kept(tmp_path: Path) -> None:
    trickle = stream(bytes(80), end=False)
    upload = uploaded(staging(tmp_path), bytes(8000))
    with pytest.raises(ProtocolError) as caught:
        await upload.receive(0, 8000, trickle, Pace(bytes_per_s=4000, grace_s=0.1))
    assert caught.value.code is Code.UPLOAD_TOO_SLOW
    assert upload.words_held == 10


async def test_an_upload_that_is_dropped_while_it_spills_harms_no_other_file(tmp_path: Path) -> None:
    store, data = staging(tmp_path, budget=0), vector(1, 100_000)
    upload = uploaded(store, data)
    sending = asyncio.create_task(sent(upload, data))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    upload.drop()
    with (tmp_path / "other").open("wb"), pytest.raises(ProtocolError) as caught:
        await sending
    assert caught.value.code in (Code.PHASE_OVER, Code.BAD_OFFSET)
    assert (tmp_path / "other").read_bytes() == b"" and store.idle


async def test_over_both_budgets_an_upload_is_told_to_come_back(tmp_path: Path) -> None:
    store = staging(tmp_path, budget=BLOCK, spill=3 * BLOCK)
    first, second, third = (uploaded(store, bytes(2 * BLOCK)) for _ in range(3))
    await sent(first, bytes(2 * BLOCK))
    await sent(second, bytes(2 * BLOCK))
    with pytest.raises(ProtocolError) as caught:
        await sent(third, bytes(2 * BLOCK))
    assert caught.value.code is Code.BUSY
    first.drop()
    await sent(third, bytes(2 * BLOCK))
    second.drop()
    third.drop()
    assert store.idle


async def test_what_a_connection_buffers_leaves_less_for_blocks(tmp_path: Path) -> None:
    store = staging(tmp_path, budget=2 * BLOCK, spill=0, connection=BLOCK)
    small, large = uploaded(store, bytes(BLOCK)), uploaded(store, bytes(2 * BLOCK))
    with pytest.raises(ProtocolError) as caught:
        await sent(large, bytes(2 * BLOCK))
    assert caught.value.code is Code.BUSY
    large.drop()
    await sent(small, bytes(BLOCK))
    small.drop()
    assert store.idle


async def test_a_thousand_uploads_at_once_stay_within_the_budget(tmp_path: Path) -> None:
    budget, size = 64 * BLOCK, 4 * BLOCK
    store = staging(tmp_path, budget=budget, spill=2**30)
    uploads = [uploaded(store, bytes(size)) for _ in range(300)]
    tracemalloc.start()
    for upload in uploads:
        await upload.receive(0, size, stream(bytes(size)), PACE)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < budget + 2**20 < 300 * size
    for upload in uploads:
        upload.drop()
    assert not list((tmp_path / "spill").iterdir())
