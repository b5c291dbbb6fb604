"""How a device encodes: rotated, weighted and measured as the signed plan says, for the lane that it joins, or not at all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.client.fleet import Fleet, SimDevice
from whimbrel.actions import Action, Send, Train
from whimbrel.device_policy import DevicePolicy
from whimbrel.records import UpdateState
from whimbrel_protocol.encoding import WITHIN_CLIP
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import Join, Metric
from whimbrel_protocol.objects import JoinEntry

ROTATED: dict[str, Any] = {"rotate": True}
CLIP = 2.0**-6


def trained(device: SimDevice) -> int:
    return sum(isinstance(action, Train) for action in device.actions)


def lanes(device: SimDevice) -> list[bytes]:
    joins = [a.message for a in device.actions if isinstance(a, Send) and isinstance(a.message, Join)]
    return [JoinEntry.decode(join.entry).lane for join in joins]


def test_rotated_weighted_measured_updates_come_back_as_their_mean() -> None:
    metrics = (Metric("loss", 8.0, 16), Metric(WITHIN_CLIP, 1.0, 1))
    body = {**ROTATED, "metrics": metrics, "weight_max": 20, "clip_min": CLIP, "clip_max": CLIP}
    fleet = Fleet(8, body=body, plan={"weight_bits": 16}, header={"scale": 2.0**14, "clip": CLIP})
    for number, device in enumerate(fleet.devices):
        device.measured = (5 + number, {"loss": number / 4})
    before = np.concatenate([array.ravel() for array in fleet.server.master])
    fleet.run_until(lambda: fleet.server.version == 2)
    shares = np.array([device.measured[0] / 20 for device in fleet.devices])
    updates = [device.trained[1][-1] * share for device, share in zip(fleet.devices, shares, strict=True)]
    norms = [np.linalg.norm(update) for update in updates]
    bounded = [update * min(1, CLIP / norm) for update, norm in zip(updates, norms, strict=True)]
    moved = np.concatenate([array.ravel() for array in fleet.server.master]) - before
    assert np.allclose(moved, np.sum(bounded, axis=0) / shares.sum(), atol=5 / 2**14)
    assert 0 < sum(norm > CLIP for norm in norms) < 8
    assert fleet.server.metrics["loss"] == pytest.approx(np.mean(np.arange(8) / 4), abs=1e-3)
    assert fleet.server.metrics[WITHIN_CLIP] == sum(norm <= CLIP for norm in norms) / 8


@pytest.mark.parametrize("rotate", [True, False])
def test_under_a_new_policy_a_rotated_update_is_made_anew_and_any_other_serves(rotate: bool) -> None:
    fleet = Fleet(1, body={"rotate": rotate})
    server, (device,) = fleet.server, fleet.devices
    fleet.run_until(lambda: len(lanes(device)) == 1)
    before = device.state.updates[0]
    server.make_policy(2, n_min=9)
    device.start()  # it has no token now, so it checks in and learns of the policy
    fleet.run_until(lambda: len(lanes(device)) > 1 and device.state.policy_serial == 2)
    fleet.run_until(lambda: lanes(device)[-1] == server.lane)
    (after,) = device.state.updates
    assert after.lane == server.lane != before.lane and after.state is UpdateState.JOINED
    assert (after.words_sha256 != before.words_sha256, trained(device)) == (rotate, 1 + rotate)
    assert set(device.files) == device.state.files()


@pytest.mark.parametrize("rotate", [True, False])
def test_a_device_that_waits_or_joins_under_an_older_policy_checks_in_and_joins_the_new_lane(rotate: bool) -> None:
    fleet = Fleet(1, body={"rotate": rotate})
    server, (device,) = fleet.server, fleet.devices
    fleet.run_until(lambda: bool(server.tickets))
    before = device.state.updates[0]
    server.make_policy(2, n_min=9)
    server.withdraw()
    fleet.run_until(lambda: bool(server.tickets))  # with the token that it had, and without a refusal on the way
    (after,) = device.state.updates
    assert after.lane == server.lane != before.lane and device.state.policy_serial == 2
    assert (after.words_sha256 != before.words_sha256, trained(device)) == (rotate, 1 + rotate)
    assert device.life.trouble is None


def test_a_policy_that_comes_between_training_and_the_join_is_noticed() -> None:
    first: list[bytes] = []

    def dies(device: SimDevice, action: Action) -> bool:
        if first or not device.state.updates:
            return False
        first.append(device.state.updates[0].lane)
        device.fleet.server.make_policy(2, n_min=9)
        return True  # it comes back without a token: the check-in before the join brings the policy

    fleet = Fleet(1, dies, body=ROTATED)
    server, (device,) = fleet.server, fleet.devices
    fleet.run_until(lambda: bool(lanes(device)))
    assert set(lanes(device)) == {server.lane} == {one.lane for one in device.state.updates} != set(first)
    assert trained(device) == 2


@pytest.mark.parametrize(
    ("knobs", "code"),
    [
        ({"body": {"metrics": (Metric("battery", 1.0, 8),)}}, Code.PLAN_UNSUPPORTED),
        ({"body": {"metrics": (Metric("loss", 1.0, 8), Metric("loss", 1.0, 8))}}, Code.PLAN_UNSUPPORTED),
        ({"body": {"clip_min": 0.5, "clip_max": 1.0}, "header": {"clip": 2.0}}, Code.BAD_SPEC),
        ({"body": {"clip_min": 0.5, "clip_max": 1.0}}, Code.BAD_SPEC),
        ({"header": {"clip": 1.0}}, Code.BAD_SPEC),
        ({"plan": {"d": 24}}, Code.PLAN_UNSUPPORTED),
    ],
    ids=["unknown metric", "metric twice", "clip too high", "no clip", "clip where the plan has none", "another d"],
)
def test_a_plan_or_header_that_does_not_fit_stops_before_training(knobs: dict[str, Any], code: Code) -> None:
    fleet = Fleet(1, device_policy=DevicePolicy(backoff_min_s=5.0), **knobs)
    (device,) = fleet.devices
    fleet.run_until(lambda: device.life.trouble is not None)
    assert device.life.trouble is not None and device.life.trouble.code is code
    assert trained(device) == 0


@pytest.mark.parametrize(
    ("body", "left", "code"),
    [
        ({"weight_max": 100}, (20, {}), Code.TOO_FEW_EXAMPLES),
        ({"metrics": (Metric("accuracy", 1.0, 8),)}, (20, {"loss": 1.0}), Code.PLAN_UNSUPPORTED),
    ],
    ids=["lighter than a quarter", "a metric that this graph does not count"],
)
def test_an_update_that_cannot_be_encoded_is_not_sent(
    body: dict[str, Any], left: tuple[int, dict[str, float]], code: Code
) -> None:
    fleet = Fleet(1, body=body, plan={"weight_bits": 16}, device_policy=DevicePolicy(backoff_min_s=5.0))
    (device,) = fleet.devices
    device.measured = left
    fleet.run_until(lambda: device.life.trouble is not None)
    assert device.life.trouble is not None and device.life.trouble.code is code
    assert trained(device) == 1 and not lanes(device) and not device.state.updates
