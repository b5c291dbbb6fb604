"""What an operator is shown of a version: what devices reported, and what follows from it."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.server.test_storage import task, version
from whimbrel_protocol.signed import VersionHeader
from whimbrel_server.listeners import admin_views

HEADER = VersionHeader(2, 1.0, 0.0, 0.1, 0.9, 0.0, 0.0, 1, 20, 0, 1, 0)


def shown(mean: float, **settings: Any) -> dict[str, float]:
    record = replace(version(2), header=HEADER.encode(), metrics={"loss": mean})
    found: dict[str, float] = admin_views.version(record, replace(task(), settings=settings))["metrics"]
    return found


def test_perplexity_is_shown_for_a_loss_of_tokens_only() -> None:
    assert shown(2.0, loss="token_cross_entropy") == {"loss": 2.0, "perplexity": pytest.approx(math.exp(2.0))}
    assert shown(2.0, loss="cross_entropy") == {"loss": 2.0}
    assert shown(2.0, loss="token_cross_entropy", label_smoothing=0.1) == {"loss": 2.0}
    assert shown(800.0, loss="token_cross_entropy") == {"loss": 800.0}
