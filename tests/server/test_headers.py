"""What plans and headers say of the encoding, and a round in which devices encode as they say."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import numpy_helper

from tests.server.world import Device, Operator, World, model
from whimbrel_protocol import wire
from whimbrel_protocol.encoding import WITHIN_CLIP, Encoding, Measured
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import Metric, PlanBody
from whimbrel_protocol.signed import Plan, VersionHeader
from whimbrel_server import plans
from whimbrel_server.rounds import headers
from whimbrel_server.settings import TaskSettings

ADAPTIVE = TaskSettings(clip=0.3, clip_quantile=0.5, clip_span=8.0, scale=0.0)


def drafted(settings: TaskSettings) -> tuple[Plan, PlanBody, int]:
    plan = plans.draft(model(), settings, bytes(16), "digits", 0).plan
    body = wire.decode(plan.body, PlanBody)
    return plan, body, sum(math.prod(one.shape) for one in body.inputs if one.role == "param")


@given(
    within=st.lists(st.floats(0, 1), max_size=30),
    clip=st.floats(1e-6, 1e6),
    quantile=st.sampled_from([0.0, 0.1, 0.5, 0.9]),
    span=st.floats(1, 1e6),
    rotate=st.booleans(),
    bits=st.sampled_from([12, 16, 21]),
)
def test_every_header_lies_within_its_plan(
    within: list[float], clip: float, quantile: float, span: float, rotate: bool, bits: int
) -> None:
    settings = TaskSettings(clip=clip, clip_quantile=quantile, clip_span=span, scale=0.0, rotate=rotate, bits=bits, clip_rate=2)
    low, high = headers.clip_range(settings)
    least, most = headers.scale_range(settings, 500)
    header = headers.first_header(settings, 500)
    for share in within:
        header = VersionHeader.decode(header.encode())  # as devices read it, bounds in float32
        assert low <= header.clip <= high and least <= header.scale <= most
        assert math.frexp(header.scale)[0] == 0.5
        header = headers.next_header(settings, header, {WITHIN_CLIP: share}, 500)


def test_the_clip_bound_finds_the_quantile_of_norms_that_nobody_sees() -> None:
    norms = np.random.default_rng(1).lognormal(0.7, 0.5, 400)
    header = headers.first_header(ADAPTIVE, 500)
    for _ in range(60):
        header = headers.next_header(ADAPTIVE, header, {WITHIN_CLIP: float(np.mean(norms <= header.clip))}, 500)
    assert header.clip == pytest.approx(np.median(norms), rel=0.05)
    assert header.scale < headers.first_header(ADAPTIVE, 500).scale
    stuck = headers.next_header(ADAPTIVE, header, {}, 500)
    assert (stuck.clip, stuck.version) == (header.clip, 62)


def test_a_plan_holds_what_the_settings_ask_for() -> None:
    settings = TaskSettings(metrics=("loss", "accuracy"), loss_max=4.0, weight_max=30, clip=0.5, clip_quantile=0.8, scale=0.0)
    plan, body, size = drafted(settings)
    assert body.metrics == (Metric("loss", 4.0, 16), Metric("accuracy", 1.0, 16), Metric(WITHIN_CLIP, 1.0, 1))
    # 511 summed 64 times fit 16 bits: limbs of 9 bits, two for each mean and one for the bit.
    assert (plan.d, plan.bits, plan.weight_bits) == (size + 5, 16, 16)
    assert (body.rotate, body.weight_max, body.min_examples) == (True, 30, 8)
    encoding = Encoding.of(plan, body, headers.first_header(settings, size))
    assert (encoding.size, encoding.clip, encoding.metric_lanes) == (size, 0.5, 5)


def test_by_default_updates_are_rotated_and_nothing_is_told_beside_them() -> None:
    plan, body, size = drafted(TaskSettings())
    assert (plan.d, plan.bits, plan.weight_bits) == (size, 16, 1)
    assert (body.rotate, body.metrics, body.weight_max, body.clip_min, body.clip_max) == (True, (), 0, 0.0, 0.0)
    assert plan.scale_min == plan.scale_max == 1024


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": 3.0},
        {"scale": 0.0},
        {"clip_quantile": 0.5, "scale": 0.0},
        {"clip_quantile": 0.5, "clip": 1.0},
        {"clip_quantile": 0.5, "clip": 1e9, "clip_span": 1e6, "scale": 0.0},
        {"metrics": ("loss", "loss")},
    ],
)
def test_settings_that_make_no_encoding_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RuleError) as refused:
        TaskSettings(**changes)._check_sense()
    assert refused.value.code is Code.CONFIGURATION


def test_accuracy_needs_a_loss_that_counts() -> None:
    with pytest.raises(RuleError, match="accuracy") as refused:
        drafted(TaskSettings(metrics=("accuracy",), loss="mse"))
    assert refused.value.code is Code.CONFIGURATION


# --- over HTTP --------------------------------------------------------------------------------------------------------


async def encoded(device: Device, update: np.ndarray, loss: float) -> Encoding:
    """Train, but with this update and this loss."""
    await device.train()
    assert device.checked is not None and device.checked.assignment is not None
    plan = Plan.decode(await device.blob(device.checked.assignment.plan.sha256))
    header = VersionHeader.decode(device.checked.assignment.header)
    encoding = Encoding.of(plan, wire.decode(plan.body, PlanBody), header)
    measured = Measured(update[: encoding.size], 20, {"loss": loss})
    device.values = encoding.encode(measured, device.lane, np.full(encoding.size, 0.5)).values.astype(np.int64)
    return encoding


async def weights(operator: Operator, version: int) -> np.ndarray:
    data = await operator.call("GET", f"/v1/tasks/digits/versions/{version}/model")
    return np.concatenate([numpy_helper.to_array(one).ravel() for one in onnx.load_from_string(data).graph.initializer])


async def test_a_version_moves_by_the_clipped_mean_and_shows_what_devices_measured(tmp_path: Path) -> None:
    world = await World.make(tmp_path)
    updates = np.random.default_rng(2).normal(size=(10, 100)).astype(np.float32) / 50
    async with world.serving() as (_, operator, devices):
        await operator.start_task(metrics=["loss"], clip=0.15, clip_quantile=0.5, scale=0.0, step_fraction=0.01)
        started = zip(devices, updates, strict=True)
        made = await asyncio.gather(*(encoded(device, update, device.number / 4) for device, update in started))
        await asyncio.gather(*(device.take_part() for device in devices))
        for _ in range(200):
            versions = await operator.call("GET", "/v1/tasks/digits/versions")
            if len(versions) == 2:
                break
            await asyncio.sleep(0.05)
        before, after = await weights(operator, 1), await weights(operator, 2)
    size, bound = made[0].size, made[0].clip
    norms = np.linalg.norm(updates[:, :size], axis=1)
    within = float(np.mean(norms <= bound))
    assert 0 < within < 1
    mean = np.mean(updates[:, :size] * np.minimum(1, bound / norms)[:, None], axis=0)
    assert np.allclose(after - before, mean, atol=2e-3)
    assert versions[0]["metrics"] == {}
    assert versions[1]["metrics"] == pytest.approx({"loss": np.mean(np.arange(1, 11) / 4), WITHIN_CLIP: within}, abs=1e-3)
    assert versions[1]["clip"] == pytest.approx(bound * math.exp(-0.2 * (within - 0.5)), rel=1e-6)
