"""The codec report: its error is the error, rotation earns its place on heavy tails, and any model can be measured."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from whimbrel_lab.cli import main
from whimbrel_lab.nets.models import digits_cnn, mlp
from whimbrel_lab.runs import codec

BITS = (10, 12, 16, 21)


def test_what_lies_on_the_lattice_has_no_error_and_half_a_step_off_has_its_own() -> None:
    steps = np.random.default_rng(1).integers(-100, 101, (4, 500))
    scale = codec.encoding_for(np.array([[100.0, 0.0]] * 4, np.float32), 16, False).spec.scale
    steps[0, 0] = 100  # the largest value, which the scale follows from
    (exact, _) = codec.measure(steps.astype(np.float32), (16,), 1)
    assert (exact.nmse, exact.clamped, exact.scale) == (0.0, 0.0, scale) and scale >= 64
    between = (steps + 0.5 / scale).astype(np.float32)
    (rounded, _) = codec.measure(between, (16,), 1)
    # A fair coin a value: the mean of four has the variance 1/4/4 in steps.
    expected = 500 * 0.0625 / scale**2 / float(np.sum(np.square(between.mean(0, dtype=np.float64))))
    assert rounded.nmse == pytest.approx(expected, rel=0.2)


def test_rotation_pays_where_values_have_heavy_tails_and_bits_pay_always() -> None:
    rng = np.random.default_rng(2)
    updates = (rng.standard_t(3, (16, 6000)) + 0.5 * rng.standard_t(3, 6000)).astype(np.float32)
    rows = list(codec.measure(updates, BITS, 1))
    plain, rotated = rows[::2], rows[1::2]
    assert [row.rotation for row in plain + rotated] == [False] * 4 + [True] * 4
    assert all(a.nmse > 10 * b.nmse for a, b in zip(plain[:3], rotated[:3], strict=True))
    for one in (plain, rotated):
        assert all(a.nmse > 5 * b.nmse for a, b in pairwise(one))
    assert [row.bytes_per_value for row in rotated] == [8 / 6, 8 / 5, 2, 8 / 3]


def test_a_model_is_trained_and_measured_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "digits.onnx"
    model.write_bytes(digits_cnn(1).SerializeToString())
    assert main(["codec", str(model), "--bits", "12,16", "--devices", "8", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["parameters"], told["devices"]) == (6090, 8)
    assert [(row["bits"], row["rotation"]) for row in told["rows"]] == [(12, False), (12, True), (16, False), (16, True)]
    assert 0 < told["rows"][3]["nmse"] < 1e-4 and told["rows"][3]["nmse"] < told["rows"][2]["nmse"]


def test_own_data_and_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = tmp_path / "mlp.onnx", tmp_path / "mine.npz"
    model.write_bytes(mlp(1, (6, 5, 3)).SerializeToString())
    rng = np.random.default_rng(1)
    np.savez(data, x=rng.normal(size=(40, 6)).astype(np.float32), label=rng.integers(0, 3, 40))
    assert main(["codec", str(model), "--data", str(data), "--bits", "16", "--devices", "4"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "53 parameters, 4 devices" in lines[0]
    assert [line.split()[:2] for line in lines[3:]] == [["16", "no"], ["16", "yes"]]
    assert main(["codec", str(model), "--bits", "8", "--devices", "200"]) == 2
    assert "203" in capsys.readouterr().err


def test_any_input_shape_and_number_of_classes_gets_its_digits(tmp_path: Path) -> None:
    model = tmp_path / "mlp.onnx"
    model.write_bytes(mlp(1, (100, 4, 3)).SerializeToString())
    updates = codec.train(codec.Options(model, devices=3))
    assert updates.shape == (3, 100 * 4 + 4 + 4 * 3 + 3) and np.isfinite(updates).all() and (updates != 0).any(axis=1).all()


@pytest.mark.parametrize("bits", ["7", "33", "16,40"])
def test_widths_that_no_task_can_have_are_refused(bits: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["codec", "model.onnx", "--bits", bits])
    assert ended.value.code == 2
