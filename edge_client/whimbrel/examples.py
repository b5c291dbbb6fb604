"""The app's examples, held against what a plan asks for.

What belongs here: names, shapes, types and row counts of examples, and their gathering into whole columns. What does not: which
rows make a batch (`trainer.py`). Nothing here leaves the device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Binding

Array = npt.NDArray[Any]
Source = Callable[[], Iterable[Mapping[str, Array]]]
"""What an embedder hands over: called at each training, it gives batches of any sizes by input name, and `@label`.

`@weight` (float32, the label's sample axes) may be among them; without it every example has weight 1.
"""

LABEL, WEIGHT = "@label", "@weight"
_ROLES = ("data", "label", "weight")


@dataclass(frozen=True)
class Examples:
    """One array a plan input, all with `count` rows and the plan's type and trailing shape."""

    columns: Mapping[str, Array]
    count: int


def gather(batches: Iterable[Mapping[str, Array]], inputs: Iterable[Binding]) -> Examples:
    """Return the batches joined to columns as the plan's `inputs` want them.

    `label` stands for `@label` unless the model has a data input of that name. Raises ProtocolError 502 for a missing name,
    another shape, a type that would lose its meaning, unequal row counts, or a negative class.
    """
    wanted = [binding for binding in inputs if binding.role in _ROLES]
    names = {binding.name for binding in wanted}
    parts: dict[str, list[Array]] = {binding.name: [] for binding in wanted}
    for batch in batches:
        fitted = _batch(batch, wanted, names)
        for name, column in fitted.items():
            parts[name].append(column)
    columns = {binding.name: _join(parts[binding.name], binding) for binding in wanted}
    return Examples(columns, len(columns[LABEL]))


def _batch(batch: Mapping[str, Array], wanted: list[Binding], names: set[str]) -> dict[str, Array]:
    given = dict(batch)
    if "label" in given and "label" not in names:
        given[LABEL] = given.pop("label")
    label = given.get(LABEL)
    if label is None:
        raise _unusable(f"a batch has no {LABEL}; it has {sorted(given)}")
    rows = len(np.atleast_1d(label))
    return {binding.name: _column(binding, given, rows) for binding in wanted}


def _column(binding: Binding, given: Mapping[str, Array], rows: int) -> Array:
    shape, dtype = (rows, *binding.shape[1:]), np.dtype(binding.dtype)
    if binding.name not in given:
        if binding.role == "weight":
            return np.ones(shape, dtype)
        raise _unusable(f"a batch has no {binding.name!r}; it has {sorted(given)}")
    array = np.asarray(given[binding.name])
    if array.shape != shape:
        raise _unusable(f"{binding.name!r} has shape {array.shape}, not {shape}")
    if not np.can_cast(array.dtype, dtype, "same_kind"):
        raise _unusable(f"{binding.name!r} is {array.dtype}, which does not become {dtype}")
    if binding.role == "label" and dtype.kind == "i" and array.size and int(array.min()) < 0:
        raise _unusable("a class is negative; give an example that does not count a @weight of 0")
    return array.astype(dtype, copy=False)


def _join(parts: list[Array], binding: Binding) -> Array:
    return np.concatenate(parts) if parts else np.empty((0, *binding.shape[1:]), np.dtype(binding.dtype))


def _unusable(detail: str) -> ProtocolError:
    return ProtocolError(Code.DATA_UNUSABLE, detail)


def from_npz(path: str) -> Source:
    """Return a source that reads one `.npz` file anew at each training: arrays named like the model's inputs, and the label."""

    def batches() -> Iterable[Mapping[str, Array]]:
        with np.load(path, allow_pickle=False) as arrays:
            yield {name: arrays[name] for name in arrays.files}

    return batches
