"""How a task's updates are encoded: what its plan says once and for all, and what each version's header says within that.

Here belong the metrics table, the ranges of clip bound and scale that the plan allows, and the next header's choice among them.
What the numbers do to an update belongs to the protocol (`whimbrel_protocol.encoding`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from whimbrel_protocol.encoding import WITHIN_CLIP, metric_lanes, scale_for
from whimbrel_protocol.messages import Metric
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.signed import VersionHeader
from whimbrel_server.settings import TaskSettings

# Without weights there is one bit for the weight of one; examples as weights get sixteen.
_WEIGHT_BITS, _ONE_BIT = 16, 1

Range = tuple[float, float]


def metrics_of(settings: TaskSettings) -> tuple[Metric, ...]:
    """What devices report in the sum: what the operator asked for, and the bit that an adaptive clip bound lives on."""
    greatest = {"loss": settings.loss_max, "mae": settings.loss_max}
    table = [Metric(name, greatest.get(name, 1.0), settings.metric_bits) for name in settings.metrics]
    return (*table, Metric(WITHIN_CLIP, 1.0, 1)) if settings.clip_quantile else tuple(table)


def weight_bits(settings: TaskSettings) -> int:
    """Bits of an update's weight."""
    return _WEIGHT_BITS if settings.weight_max else _ONE_BIT


def values_of(settings: TaskSettings, size: int) -> int:
    """d: how many values a vector has for `size` trained parameters."""
    return metric_lanes(metrics_of(settings), _spec(settings).limb_bits) + size


def clip_range(settings: TaskSettings) -> Range:
    """The clip bounds that the plan allows."""
    span = settings.clip_span if settings.clip_quantile else 1.0
    return _float32(settings.clip / span), _float32(settings.clip * span)


def scale_range(settings: TaskSettings, size: int) -> Range:
    """The scales that the plan allows."""
    low, high = clip_range(settings)
    return _scale(settings, high, size), _scale(settings, low, size)


def first_header(settings: TaskSettings, size: int) -> VersionHeader:
    """The header of version 1."""
    return _header(settings, 1, settings.clip, size)


def next_header(settings: TaskSettings, previous: VersionHeader, metrics: Mapping[str, float], size: int) -> VersionHeader:
    """The header of the version after `previous`, whose members reported `metrics`.

    The clip bound moves geometrically towards the quantile of the updates' norms that the settings name: C exp(-rate (b - q)),
    b the share that was within C (Andrew et al. 2021, "Differentially Private Learning with Adaptive Clipping", section 2.1).
    """
    clip, within = previous.clip, metrics.get(WITHIN_CLIP)
    if settings.clip_quantile and within is not None:
        clip *= math.exp(-settings.clip_rate * (within - settings.clip_quantile))
    return _header(settings, previous.version + 1, clip, size)


def _header(settings: TaskSettings, version: int, clip: float, size: int) -> VersionHeader:
    low, high = clip_range(settings)
    bound = min(max(_float32(clip), low), high)
    return replace(settings.header(version), clip=bound, scale=_scale(settings, bound, size))


def _scale(settings: TaskSettings, clip: float, size: int) -> float:
    return settings.scale or scale_for(clip, _spec(settings).limit, size, settings.rotate)


def _spec(settings: TaskSettings) -> VectorSpec:
    return VectorSpec.make(settings.bits, settings.n_max, 1, 1.0, 0)


def _float32(value: float) -> float:
    """The value as it arrives in a header, so that plan and header agree on the ends of a range."""
    return float(np.float32(value))
