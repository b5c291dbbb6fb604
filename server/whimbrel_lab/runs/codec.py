"""`whimbrel-lab codec`: what so many bits a value cost in accuracy, measured on real updates of a given model.

What belongs here: updates trained on this machine, their way through the very encoding that devices and server use, and the
error of the decoded mean. What does not: masks, which change no sum, and the choice of bits for a task (`settings.py`).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from whimbrel.actions import TrainingJob
from whimbrel.examples import Examples, from_npz, gather
from whimbrel.trainer import Trainer
from whimbrel_kernels import ring_add
from whimbrel_lab.data import digits, samples
from whimbrel_protocol import wire
from whimbrel_protocol.encoding import Encoding, Float32, Float64, Measured, Total, mean_update, scale_for
from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_protocol.messages import Binding, PlanBody
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.packing import decode_sum, pack
from whimbrel_server import plans
from whimbrel_server.settings import TaskSettings

SETTINGS = TaskSettings(epochs=3, batch=8, lr=0.05, momentum=0.9)
SKEW = 0.3  # of the devices' label shares: lower is more uneven
_LANE = hashlib.sha256(b"whimbrel-lab codec").digest()

Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Options:
    """What `whimbrel-lab codec` takes. Without `data` (an .npz file of plan inputs and `label`) the examples are digits."""

    model: Path
    bits: tuple[int, ...] = (8, 12, 16, 21)
    data: Path | None = None
    devices: int = 32
    loss: str = "softmax_cross_entropy"
    seed: int = 1


@dataclass(frozen=True)
class Row:
    """One way to encode: `nmse` is the squared error of the decoded mean over the true mean's square.

    `clamped` is the share of values that met the limit M; `bytes_per_value` what a member sends for each.
    """

    bits: int
    rotation: bool
    limit: int
    scale: float
    clamped: float
    nmse: float
    bytes_per_value: float


def run(options: Options, as_json: bool) -> None:
    """Measure and print. Raises ProtocolError for a model, data or bits that do not fit."""
    for width in options.bits:  # before the training, not after it
        VectorSpec.make(width, options.devices, 1, 1.0, 1)
    updates = train(options)
    rows = list(measure(updates, options.bits, options.seed))
    if as_json:
        facts = {"model": str(options.model), "parameters": updates.shape[1], "devices": len(updates)}
        print(json.dumps({**facts, "rows": [asdict(row) for row in rows]}))
        return
    norms = np.linalg.norm(updates, axis=1)
    print(
        f"{options.model}: {updates.shape[1]} parameters, {len(updates)} devices, norms {norms.min():.3g} to {norms.max():.3g}"
    )
    print("error of the decoded mean against float32 (NMSE), largest sum that fits each lane")
    print(f"{'bits':>4} {'rotation':>8} {'M':>9} {'scale':>10} {'clamped':>9} {'NMSE':>9} {'bytes/value':>11}")
    for row in rows:
        turned = "yes" if row.rotation else "no"
        numbers = f"{row.limit:9d} {row.scale:10g} {row.clamped:9.2g} {row.nmse:9.2g} {row.bytes_per_value:11.2f}"
        print(f"{row.bits:4d} {turned:>8} {numbers}")


def measure(updates: Float32, bits: Sequence[int], seed: int) -> Iterator[Row]:
    """Encode, sum and decode `updates` [devices, parameters] in each width, without and with rotation."""
    exact = np.mean(updates, axis=0, dtype=np.float64)
    for width in bits:
        for rotation in (False, True):
            encoding = encoding_for(updates, width, rotation)
            decoded, clamped = _through(encoding, updates, seed)
            error = float(np.sum(np.square(decoded - exact)) / np.sum(np.square(exact)))
            spec = encoding.spec
            yield Row(width, rotation, spec.limit, spec.scale, clamped, error, 8 / spec.lanes)


def encoding_for(updates: Float32, bits: int, rotation: bool) -> Encoding:
    """The encoding of a cohort of just these devices.

    With rotation the scale follows from the largest norm, as a server would have it; without, it is the finest that clamps
    nothing, which no server could know. Raises WireError BAD_SPEC where the bits do not hold so many devices.
    """
    devices, size = updates.shape
    spec = VectorSpec.make(bits, devices, size, 1.0, 1)
    norm, peak = float(np.linalg.norm(updates, axis=1).max()), float(np.abs(updates).max())
    scale = scale_for(norm if rotation else peak, spec.limit, size, rotation)
    return Encoding(replace(spec, scale=scale), rotate=rotation)


def _through(encoding: Encoding, updates: Float32, seed: int) -> tuple[Float64, float]:
    """The decoded mean, and the share of clamped values."""
    spec, rng = encoding.spec, np.random.default_rng(seed)
    total, clamped = bytearray(8 * spec.words), 0
    for update in updates:
        values, weight = encoding.encode(Measured(update, 1, {}), _LANE, rng.random(encoding.size))
        clamped += int(np.count_nonzero(np.abs(values) == spec.limit))
        ring_add(total, pack(spec, values, weight))
    sum_ = decode_sum(spec, bytes(total), len(updates))
    mean = mean_update(encoding, [Total(sum_.values, sum_.count, sum_.weight_sum, _LANE)])
    return mean, clamped / updates.size


# --- real updates -----------------------------------------------------------------------------------------------------


def train(options: Options) -> Float32:
    """The updates of devices that train the model alone, from its shipped weights: float32 [devices, parameters]."""
    model = options.model.read_bytes()
    settings = TaskSettings.from_json({**SETTINGS.to_json(), "loss": options.loss})
    body = wire.decode(plans.draft(model, settings, bytes(16), "codec", 0).plan.body, PlanBody)
    base = tuple(plans.first_parameters(model, settings).values())
    updates = []
    for number, part in enumerate(_parts(options, body)):
        seed = hashlib.sha256(f"codec {options.seed} {number}".encode()).digest()
        trainer = Trainer(TrainingJob(seed, body, base, settings.header(1), seed), part)
        while not trainer.done:
            trainer.run(slice_s=60.0)
        updates.append(trainer.update())
    return np.stack(updates)


def _parts(options: Options, body: PlanBody) -> Iterator[Examples]:
    """Each device's examples as columns of the plan."""
    columns = _own_data(options, options.data, body) if options.data else _digits(options, body)
    return (gather([part], body.inputs) for part in columns)


def _own_data(options: Options, data: Path, body: PlanBody) -> Iterator[Columns]:
    everything = gather(from_npz(str(data))(), body.inputs)
    order = np.random.default_rng(options.seed).permutation(everything.count)
    for rows in np.array_split(order, options.devices):
        yield {name: column[rows] for name, column in everything.columns.items()}


def _digits(options: Options, body: PlanBody) -> Iterator[Columns]:
    images = [one for one in body.inputs if one.role == "data"]
    (label,) = [one for one in body.inputs if one.role == "label"]
    if len(images) != 1 or not label.dtype.startswith("int"):
        raise ProtocolError(Code.DATA_UNUSABLE, "digits fit one input and a loss on classes: give examples with --data")
    examples, _ = digits.load(options.seed)
    classes = min(_outputs(options.model), 10)
    for part in samples.dirichlet_split(examples, options.devices, SKEW, options.seed):
        yield {images[0].name: _in_shape(part.inputs["image"], images[0]), label.name: part.label % classes}


def _outputs(model: Path) -> int:
    """How many classes the model tells apart."""
    shape = ort.InferenceSession(str(model), providers=["CPUExecutionProvider"]).get_outputs()[0].shape
    return shape[1] if len(shape) > 1 and isinstance(shape[1], int) else 10


def _in_shape(image: npt.NDArray[np.float32], binding: Binding) -> npt.NDArray[Any]:
    """The 64 grey values, repeated or cut to the input's size: like digits, whatever the model was made for."""
    shape, pixels = binding.shape[1:], image.reshape(len(image), -1)
    count = math.prod(shape)
    repeated = np.tile(pixels, (1, -(-count // pixels.shape[1])))[:, :count]
    return repeated.reshape(len(image), *shape).astype(binding.dtype)
