"""ONNX's own examples of every operator, read and run: what is lowered, folded or kept means what the standard says.

Takes a minute, so it runs with `-m deep`. Gradients are tested elsewhere.
"""

import warnings
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import defs, numpy_helper
from onnx.backend.test.case.node import collect_testcases
from onnx.backend.test.case.test_case import TestCase

from tests.compiler.evaluation import Array
from tests.compiler.reading import ANY_SIZE, on_onnxruntime
from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.source.prepare import prepare
from whimbrel_server.compiler.source.reader import Reading, read

NEWEST = 23
LARGEST_SETTING = 100  # elements; smaller operands that are no floats are constants, as exporters write them
SETTINGS = ("axes", "k", "roi", "scales")
# What the standard leaves to chance, and what is read by the running statistics on purpose.
OTHERWISE = ("bernoulli", "training_mode", "dropout")
REFUSED = ("opset", "sparse")  # operators that opset 20 lacks and no lowering knows


def cases() -> Iterator[TestCase]:
    """The examples on tensors, of operators that exist in opset 23 and that onnxruntime itself can run."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = collect_testcases(None)
    for case in found:
        model = case.model
        if model is None or "_expanded" in case.name or any(part in case.name for part in OTHERWISE):
            continue
        tensors = all(isinstance(value, np.ndarray) for values in case.data_sets[0] for value in values)
        if tensors and _as_of(model):
            yield case


def _as_of(model: onnx.ModelProto) -> bool:
    """Makes opset 23 of a newer one where the operators did not change since; tells whether it could."""
    for entry in model.opset_import:
        if entry.domain == "" and entry.version > NEWEST:
            if any(defs.get_schema(n.op_type, entry.version).since_version > NEWEST for n in model.graph.node if not n.domain):
                return False
            entry.version = NEWEST
    return True


def with_constants(case: TestCase) -> tuple[onnx.ModelProto, dict[str, Array]]:
    """The example with its settings as initialisers, and the data that is left."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    model.ir_version = max(model.ir_version, 8)
    data = dict(zip([info.name for info in model.graph.input], case.data_sets[0][0], strict=False))
    for name, array in list(data.items()):
        if name in SETTINGS or (array.dtype.kind in "iub" and array.size < LARGEST_SETTING):
            model.graph.initializer.append(numpy_helper.from_array(data.pop(name), name))
    kept = [info for info in model.graph.input if info.name in data]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model, data


def as_read(model: onnx.ModelProto, output: str, data: dict[str, Array]) -> Array:
    dims = {name: array.shape for name, array in data.items()}
    batch = next(shape[0] for shape in dims.values() if shape)
    source = read(prepare(model), output, batch, dims, (), Reading(run=on_onnxruntime))
    graph = source.graph.export(source.data, {"result@": source.output}, "read", limit=ANY_SIZE)
    return on_onnxruntime(graph, {value.name: data[value.name] for value in source.data})[0]


def close(found: Array, expected: Array) -> bool:
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return False
    if expected.dtype.kind != "f":
        return bool(np.array_equal(found, expected))
    return bool(np.allclose(found, expected, rtol=1e-3, atol=1e-5, equal_nan=True))


@pytest.mark.deep
def test_every_example_of_the_standard_keeps_its_meaning() -> None:
    wrong, tried = [], 0
    for case in cases():
        model, data = with_constants(case)
        if not any(array.shape for array in data.values()) or any(array.dtype.kind not in "fiub" for array in data.values()):
            continue
        if any(array.dtype == np.float16 for array in (*data.values(), *case.data_sets[0][1])):
            continue  # half precision is widened
        try:
            shipped = on_onnxruntime(model, data)
        except Exception:  # an example that the runtime lacks
            continue
        for info, expected, run in zip(model.graph.output, case.data_sets[0][1], shipped, strict=False):
            try:
                found = as_read(model, info.name, data)
            except CompileError as error:
                if error.code not in REFUSED:
                    wrong.append(f"{case.name}: {error}")
                continue
            tried += 1
            if not close(found, expected) and not close(found, run):
                wrong.append(f"{case.name}: {info.name}")
    assert not wrong
    assert tried > 500, "the examples are gone"
