"""What fleets learn beside the demo's digits: each kind of net with its data and the settings that suit both.

What belongs here: the one table. What does not: generators, models, and how a lesson is run (`learn.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from whimbrel_lab.data import digits, motions, sentences, volumes
from whimbrel_lab.data.samples import Examples
from whimbrel_lab.nets import learned_models, models
from whimbrel_server.settings import TaskSettings

# For 20 devices on one machine: phases are short, and a round is content with what is there.
FLEET = TaskSettings(
    contributions=14,
    contributions_min=12,
    window=12,
    n_max=20,
    scale=4096.0,
    batch=16,
    round_deadline_s=20.0,
    assignment_deadline_s=15.0,
    come_back_max_s=1.0,
    expected_dropout=0.2,
    expected_window_dropout=0.1,
    share_s=2.0,
    mask_s=3.0,
    vote_s=3.0,
    unmask_s=3.0,
    early_min_s=0.5,
)


@dataclass(frozen=True)
class Lesson:
    """A model (an ONNX file) by seed, its (training, test) examples by seed, and the settings of its task."""

    model: Callable[[int], bytes]
    load: Callable[[int], tuple[Examples, Examples]]
    settings: TaskSettings


def _settings(**changes: object) -> TaskSettings:
    return msgspec.structs.replace(FLEET, **changes)


# Adam would take the few examples of a device too far; without the bound, momentum alone diverges in one place.
_CLIPPED: dict[str, object] = {"batch": 8, "momentum": 0.9, "clip_norm": 2.0}

LESSONS = {
    "cnn": Lesson(
        lambda seed: models.digits_cnn(seed).SerializeToString(),
        digits.load,
        _settings(rounds=16, epochs=6, batch=8, lr=0.05, momentum=0.9, lr_decay=0.85, decay_after=8),
    ),
    "transformer": Lesson(
        lambda seed: learned_models.transformer(seed, learned_models.SMALL).SerializeToString(),
        sentences.load,
        _settings(**_CLIPPED, rounds=18, epochs=8, lr=0.05, server_lr=1.2, lr_decay=0.85, decay_after=11),
    ),
    "recurrent": Lesson(
        lambda seed: learned_models.recurrent(seed).SerializeToString(),
        motions.load,
        _settings(rounds=18, epochs=6, optimizer="adam", lr=0.01, lr_decay=0.85, decay_after=9),
    ),
    "volume": Lesson(
        lambda seed: learned_models.volume_cnn(seed).SerializeToString(),
        volumes.load,
        _settings(rounds=16, epochs=4, lr=0.02, momentum=0.9, lr_decay=0.8, decay_after=9),
    ),
}

# A large transformer, trained in one place on one domain and on a fleet on another.
PRETRAINING = _settings(rounds=8, epochs=1, optimizer="adam", lr=0.001)
_ADAPTING = {"rounds": 9, "epochs": 5, "batch": 8, "server_lr": 1.2, "lr_decay": 0.8, "decay_after": 6}
ADAPTING = _settings(**{**_CLIPPED, **_ADAPTING}, lr=0.05)
WITH_ADAPTERS = _settings(**_ADAPTING, optimizer="adam", lr=0.005)
