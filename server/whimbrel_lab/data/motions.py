"""What an accelerometer would show of six activities, made up: waves of three channels, of different lengths, with noise.

What belongs here: the generator. What does not: how recordings are spread over devices (`samples.py`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from whimbrel_lab.data.samples import Examples, shuffled

STEPS, LEAST_STEPS, CHANNELS = 40, 20, 3
NOISE = 0.35
# (cycles a step, its growth over the recording, share of the third harmonic, lag between channels in cycles, strength)
ACTIVITIES = (
    (0.00, 0.0, 0.0, 0.00, 0.2),
    (0.06, 0.0, 0.0, 0.25, 1.0),
    (0.14, 0.0, 0.0, 0.25, 1.0),
    (0.06, 0.0, 0.0, -0.25, 1.0),
    (0.06, 0.0, 0.7, 0.25, 1.0),
    (0.04, 2.0, 0.0, 0.25, 1.0),
)


def load(seed: int, count: int = 2000) -> tuple[Examples, Examples]:
    """Return (training, test) examples: "signal" float32 [N, 40, 3], zero after its end, "length" int32 [N], labels 0..5."""
    rng = np.random.default_rng([seed, 2])
    label = rng.integers(0, len(ACTIVITIES), count)
    length = rng.integers(LEAST_STEPS, STEPS + 1, count).astype(np.int32)
    signal = np.stack([_recording(int(one), rng) for one in label])
    signal *= np.arange(STEPS)[None, :, None] < length[:, None, None]
    return shuffled(Examples({"signal": signal.astype(np.float32), "length": length}, label), seed)


def _recording(activity: int, rng: np.random.Generator) -> npt.NDArray[np.float64]:
    """`[STEPS, CHANNELS]`: somebody's own pace, strength and moment to begin."""
    pace, growth, harmonic, lag, strength = ACTIVITIES[activity]
    time = np.arange(STEPS)[:, None]
    pace *= rng.uniform(0.85, 1.15)
    cycles = rng.uniform() + pace * time * (1 + growth * time / STEPS) + lag * np.arange(CHANNELS)
    wave = np.sin(2 * np.pi * cycles) + harmonic * np.sin(6 * np.pi * cycles)
    held = rng.normal(0, 0.2, CHANNELS)  # how the device lies in the pocket
    wave = rng.uniform(0.8, 1.2) * strength * wave + held + rng.normal(0, NOISE, wave.shape)
    return np.asarray(wave)
