"""scikit-learn's handwritten digits.

What belongs here: the data of the demo and its tests. What does not: how they are spread over devices (`samples.py`), models
(`models.py`) and training.
"""

from __future__ import annotations

import numpy as np

from whimbrel_lab.data.samples import Examples, shuffled


def load(seed: int) -> tuple[Examples, Examples]:
    """Return (training, test) examples, shuffled by `seed`: "image" float32 [N, 1, 8, 8] in 0..1, labels 0..9."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    image = (raw.images[:, None] / 16.0).astype(np.float32)
    return shuffled(Examples({"image": image}, raw.target.astype(np.int64)), seed)
