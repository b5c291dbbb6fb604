"""How records look to an operator: plain values for JSON, bytes as hex, times as Unix seconds.

What belongs here: the shape of the admin listener's answers. What does not: how they are found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from whimbrel_protocol.objects import Certificate, Params
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.signed import VersionHeader
from whimbrel_server.fleet import Fleet
from whimbrel_server.rounds.events import TaskView
from whimbrel_server.storage.records import BlameRecord, DeviceRecord, TaskRecord, VersionRecord, WindowRecord
from whimbrel_server.windows import ended
from whimbrel_server.windows.live import LiveWindow

View = dict[str, Any]

_EXP_MAX = 700.0  # JSON has no infinity


def policy(fleet: Fleet) -> View:
    """The policy in force."""
    p = fleet.policy
    return {
        "fleet": p.fleet.hex(),
        "serial": p.serial,
        "not_after": p.not_after,
        "gamma": p.gamma_milli / 1000,
        "sigma": p.sigma,
        "n_min": p.n_min,
        "n_max": p.n_max,
        "min_epoch": p.min_epoch,
        "unmasked_allowed": p.unmasked_allowed,
        "issuers": [key.hex() for key in p.issuers],
        "plan_signers": [key.hex() for key in p.plan_signers],
    }


def device(record: DeviceRecord, blames: Sequence[BlameRecord], now: float) -> View:
    """One device, with what it was blamed for and the end of its quarantine, if it is in one."""
    until = max((one.until for one in blames), default=0.0)
    return {
        "device": record.device.hex(),
        "first_seen": record.first_seen,
        "last_seen": record.last_seen,
        "app_version": record.app_version,
        "protocol": record.protocol,
        "contributions": record.contributions,
        "certificate_not_after": Certificate.decode(record.certificate).not_after,
        "quarantined_until": until if until > now else None,
        "blames": [blame(one) for one in blames],
    }


def blame(record: BlameRecord) -> View:
    """Why a device was blamed: `suspects` are all of whom at least one did it, and it alone where there is no other."""
    return {
        "device": record.device.hex(),
        "window": record.tau0.hex(),
        "kind": record.kind,
        "detail": record.detail,
        "suspects": [device.hex() for device in record.suspects],
        "blamed_at": record.blamed_at,
        "until": record.until or None,
    }


def task(record: TaskRecord, live: TaskView | None) -> View:
    """One task; `live` is missing while it waits for its signed plan."""
    view: View = {
        "name": record.name,
        "state": live.state if live else record.state,
        "model": record.model_sha256.hex(),
        "plan_sha256": record.plan_sha256.hex(),
        "created_at": record.created_at,
        "settings": dict(record.settings),
    }
    if live:
        progress = ("version", "rounds_done", "contributions", "ready", "active", "open_windows", "deadline", "dropout")
        view["round"] = live.rounds_done + 1
        view |= {name: getattr(live, name) for name in (*progress, "window_dropout")}
    return view


def version(record: VersionRecord, owner: TaskRecord) -> View:
    """One version; `metrics` are what its contributors reported, `clip` and `scale` what its own trainers are told.

    `perplexity` is exp of the mean loss, where that is a cross-entropy for each token and its exp a finite number.
    """
    header, metrics = VersionHeader.decode(record.header), dict(record.metrics)
    tokens = owner.settings.get("loss") == "token_cross_entropy" and not owner.settings.get("label_smoothing")
    if tokens and metrics.get("loss", math.inf) < _EXP_MAX:
        metrics["perplexity"] = math.exp(metrics["loss"])
    return {
        "version": record.version,
        "model_hash": record.model_hash.hex(),
        "parent": record.parent,
        "windows": [tau0.hex() for tau0 in record.windows],
        "contributions": record.contributions,
        "metrics": metrics,
        "clip": header.clip,
        "scale": header.scale,
        "published_at": record.published_at,
        "stage": record.stage,
        "chain_head": record.chain_head.hex(),
        "snapshot": record.snapshot.hex(),
    }


def window(record: WindowRecord, live: LiveWindow | None, blames: Sequence[BlameRecord]) -> View:
    """One window, with who was blamed in it; `live` while it runs."""
    params = Params.decode(record.params)
    members = ended.devices(record)

    def named(bits: bytes | None) -> list[str]:
        return [members[i].hex() for i in members_of(bits, params.n)] if bits else []

    return {
        "tau0": record.tau0.hex(),
        "task": record.task,
        "version": record.version,
        "state": record.state,
        "phase": live.run.phase.name.lower() if live else None,
        "n": params.n,
        "t": params.t,
        "s_min": params.s_min,
        "roster": [device.hex() for device in members],
        "u2": named(record.u2),
        "u3": named(record.u3),
        "sum_sha256": record.sum_sha256.hex() if record.sum_sha256 else None,
        "count": record.count,
        "applied_in": record.applied_in,
        "opened_at": record.opened_at,
        "closed_at": record.closed_at,
        "failure": record.failure or None,
        "blames": [blame(one) for one in blames],
        "dropped": dict(live.run.dropped if live else record.dropped),
        "durations": {name: round(spent, 3) for name, spent in live.run.durations.items()} if live else None,
    }
