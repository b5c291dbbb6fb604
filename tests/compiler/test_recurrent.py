"""Recurrent layers beyond single rules: PyTorch's answers, layouts, refusals, what stays fused, what a graph holds.

Each rule is held against finite differences in `test_rules.py`.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tests.compiler.evaluation import Array, reference, stock
from whimbrel_server.compiler import StepSpec, UnsupportedOperator, compile_eval, compile_step, initial_parameters
from whimbrel_server.compiler.grad import grad
from whimbrel_server.compiler.graph.ir import Graph
from whimbrel_server.compiler.rules import LOWERINGS, costs, recurrent

GOLDEN = dict(np.load(Path(__file__).parent / "golden" / "recurrent.npz"))
OPERANDS = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c")
OUTPUTS = ("Y", "Y_h", "Y_c")
EXACT, SINGLE = np.dtype(np.float64), np.dtype(np.float32)
STEPS, INPUTS, HIDDEN, BATCH, CLASSES = 9, 3, 4, 3, 4


def settings(name: str) -> dict[str, Any]:
    """The attributes of a known answer's node."""
    both = name.endswith("both ways")
    attrs: dict[str, Any] = {"hidden_size": 3, "direction": "bidirectional" if both else "forward"}
    if name.startswith("GRU"):
        attrs["linear_before_reset"] = 1
    return attrs | ({"activations": ["Relu", "Relu"]} if name == "RNN both ways" else {})


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("dtype", [EXACT, SINGLE], ids=str)
@pytest.mark.parametrize("name", sorted({key.split("/")[0] for key in GOLDEN}))
def test_layer_and_gradients_equal_pytorch(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: np.dtype[Any], turned: bool
) -> None:
    """Ragged sequences where the layer runs both ways; with samples first and last."""
    monkeypatch.setattr(costs, "TURNED_HIDDEN", 1 if turned else costs.TURNED_HIDDEN)
    monkeypatch.setattr(recurrent, "VECTOR", 1)
    case = {key.split("/")[1]: value for key, value in GOLDEN.items() if key.startswith(f"{name}/")}
    case = {key: value.astype(dtype) if value.dtype.kind == "f" else value for key, value in case.items()}
    graph = Graph()
    ins = {key: graph.input(key, case[key].dtype, case[key].shape, trained=True) for key in OPERANDS if key in case}
    outputs = dict(zip(OUTPUTS, LOWERINGS[name.split()[0]](graph, *ins.values(), **settings(name)), strict=False))
    parts = [value * graph.constant(case[f"to_{key}"]) for key, value in outputs.items()]
    loss = sum((part.sum(range(part.rank), keepdims=False) for part in parts[1:]), parts[0].sum(range(4), keepdims=False))
    slopes = grad(loss, {key: value for key, value in ins.items() if value.is_float})
    results = outputs | {f"d_{key}": value for key, value in slopes.items()}
    model = graph.export(list(ins.values()), results, "layer")
    found = (reference if dtype == EXACT else stock)(model)({key: case[key] for key in ins})
    tolerance = 1e-12 if dtype == EXACT else 2e-5
    for key in results:
        np.testing.assert_allclose(found[key], case[key], rtol=tolerance, atol=tolerance, err_msg=key)


def net(op: str, gates: int, *, table: bool = False, **attrs: Any) -> onnx.ModelProto:
    """A layer over `signal` `[N, T, I]` (with `table`, over rows of a table that `ids` `[N, T]` name) and a class each step."""
    rng, names = np.random.default_rng(2), ["swapped", "W", "R", "B"]
    shapes = {"W": (1, gates * HIDDEN, INPUTS), "R": (1, gates * HIDDEN, HIDDEN), "B": (1, 2 * gates * HIDDEN)}
    shapes |= {"dense": (HIDDEN, CLASSES), **({"table": (11, INPUTS)} if table else {})}
    tensors = [numpy_helper.from_array(rng.normal(size=s).astype(np.float32), name) for name, s in shapes.items()]
    batch_first = bool(attrs.get("layout"))
    axes = numpy_helper.from_array(np.array([2 if batch_first else 1]), "axes")
    back = [0, 1, 2] if batch_first else [1, 0, 2]
    nodes = [
        *([helper.make_node("Gather", ["table", "ids"], ["signal"], "lookup")] if table else []),
        helper.make_node("Transpose", ["signal"], ["swapped"], "swap", perm=back),
        helper.make_node(op, [*names, *attrs.pop("more", [])], ["y"], "layer", hidden_size=HIDDEN, **attrs),
        helper.make_node("Squeeze", ["y", "axes"], ["squeezed"], "squeeze"),
        helper.make_node("Transpose", ["squeezed"], ["states"], "swap.back", perm=back),
        helper.make_node("MatMul", ["states", "dense"], ["logits"], "head"),
    ]
    data = ("ids", TensorProto.INT64, ["N", STEPS]) if table else ("signal", TensorProto.FLOAT, ["N", STEPS, INPUTS])
    result = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", STEPS, CLASSES])
    peepholes = numpy_helper.from_array(np.ones((1, 3 * HIDDEN), np.float32), "P")
    graph = helper.make_graph(nodes, "net", [helper.make_tensor_value_info(*data)], [result], [*tensors, axes, peepholes])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def one_step(model: onnx.ModelProto, spec: StepSpec) -> dict[str, Array]:
    step = compile_step(model, spec)
    rng = np.random.default_rng(3)
    feeds = {b.name: np.full(b.shape, b.default, b.dtype) for b in step.inputs if b.default is not None}
    feeds |= {b.name: rng.normal(size=b.shape).astype(b.dtype) for b in step.inputs if b.role == "data" and b.dtype.kind == "f"}
    feeds |= {b.name: rng.integers(0, 4, b.shape) for b in step.inputs if b.dtype.kind == "i"}
    return dict(stock(step.model)({**feeds, **initial_parameters(model, step), "@lr": np.array(0.1, np.float32)}))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_batch_first_equals_steps_first(op: str, gates: int) -> None:
    spec = StepSpec("token_cross_entropy", "sgd", BATCH)
    first, second = (one_step(net(op, gates, layout=layout), spec) for layout in (0, 1))
    for name, value in first.items():
        np.testing.assert_allclose(second[name], value, rtol=1e-6, atol=1e-7, err_msg=name)


def test_a_frozen_layer_stays_fused() -> None:
    head = compile_step(net("LSTM", 4), StepSpec("token_cross_entropy", "sgd", BATCH, train=("dense",)))
    whole = compile_step(net("LSTM", 4), StepSpec("token_cross_entropy", "sgd", BATCH))
    assert ("LSTM" in head.operators, "Scan" in head.operators) == (True, False)
    assert ("LSTM" in whole.operators, "Scan" in whole.operators) == (False, True)


def test_a_gradient_passes_a_frozen_layer() -> None:
    """What lies before it is trained as if the layer were trained too."""
    spec = StepSpec("token_cross_entropy", "sgd", BATCH, train=("table",))
    alone = one_step(net("GRU", 3, table=True), spec)
    whole = one_step(net("GRU", 3, table=True), StepSpec("token_cross_entropy", "sgd", BATCH))
    np.testing.assert_allclose(alone["table@new"], whole["table@new"], rtol=1e-6, atol=1e-7)
    assert "W@new" not in alone


REFUSED: dict[str, dict[str, Any]] = {
    "clip": {"clip": 1.0},
    "input_forget": {"input_forget": 1},
    "peepholes": {"more": ["", "", "", "P"]},
    "activation Softplus": {"activations": ["Sigmoid", "Softplus", "Tanh"]},
}


@pytest.mark.parametrize("reason", REFUSED)
def test_refusal_names_the_reason(reason: str) -> None:
    spec = StepSpec("token_cross_entropy", "sgd", BATCH)
    with pytest.raises(UnsupportedOperator, match=reason) as caught:
        compile_step(net("LSTM", 4, **REFUSED[reason]), spec)
    assert (caught.value.op, caught.value.node, caught.value.trainable) == ("LSTM", "layer", ("dense",))


def test_same_bytes_and_nothing_handed_out_for_evaluation() -> None:
    spec = StepSpec("token_cross_entropy", "sgd", BATCH)
    first, second = (compile_step(net("LSTM", 4), spec).model.SerializeToString() for _ in range(2))
    assert first == second
    (scan,) = [node for node in compile_eval(net("LSTM", 4), spec).model.graph.node if node.op_type == "Scan"]
    assert len(scan.output) == 3  # h, c and y: the gates are for the gradient


def test_a_layer_learns_to_transcribe() -> None:
    """CTC: the classes of a signal in their order, though no frame is labelled; the last frames of each are padding."""
    model = net("LSTM", 4)
    step = compile_step(model, StepSpec("ctc", "adam", BATCH))
    run, values = stock(step.model), initial_parameters(model, step)
    label = np.array([[1, 2, 2, -1, -1], [3, -1, -1, -1, -1], [2, 1, 3, 1, -1]])
    weight = (np.arange(STEPS) < np.array([[9], [5], [8]])).astype(np.float32)
    data = {"signal": np.random.default_rng(3).normal(size=(BATCH, STEPS, INPUTS)), "@label": label, "@weight": weight}
    feeds = {b.name: np.full(b.shape, b.default or 0.0, b.dtype) for b in step.inputs} | data | values
    feeds |= {"signal": np.float32(feeds["signal"]), "@lr": np.array(0.05, np.float32)}
    moving = [(i.name, o.name) for role in ("param", "state") for i, o in pairs(step, role)]
    losses = []
    for _ in range(60):
        outputs = run(feeds)
        feeds |= {name: outputs[new] for name, new in moving}
        losses.append(float(outputs["@loss"]))
    assert losses[-1] < 0.1 * losses[0]


def pairs(step: Any, role: str) -> Any:
    sides = ([binding for binding in side if binding.role == role] for side in (step.inputs, step.outputs))
    return zip(*sides, strict=True)


def test_a_scan_lists_what_it_reads_from_outside() -> None:
    graph = Graph()
    state, steps, other = (graph.input(name, SINGLE, shape) for name, shape in (("h", (2,)), ("x", (3, 2)), ("w", (2,))))
    with pytest.raises(AssertionError, match="not listed as captured"):
        graph.scan(lambda h, x: ([h * other + x], []), [state], [steps])
    assert graph.scan(lambda h, x: ([h * other + x], []), [state], [steps], [other])[0].shape == (2,)


@pytest.mark.parametrize(("hidden", "batch", "turned"), [(256, 32, True), (256, 24, False), (64, 32, False)])
def test_samples_are_on_the_last_axis_where_they_fill_vectors(hidden: int, batch: int, turned: bool) -> None:
    """As the states that its Scan carries tell, forward and back."""
    graph = Graph()
    shapes = {"x": (2, batch, 3), "w": (1, 4 * hidden, 3), "r": (1, 4 * hidden, hidden)}
    ins = {name: graph.input(name, SINGLE, shape, trained=True) for name, shape in shapes.items()}
    y = LOWERINGS["LSTM"](graph, *ins.values(), hidden_size=hidden)[0]
    slope = grad((y * y).sum(range(4), keepdims=False), {"r": ins["r"]})["r"]
    model = graph.export([*ins.values()], {"y": y, "r@grad": slope}, "layer")
    bodies = [node.attribute[0].g for node in model.graph.node if node.op_type == "Scan"]
    states = [[dim.dim_value for dim in body.input[0].type.tensor_type.shape.dim] for body in bodies]
    assert states == [[hidden, batch] if turned else [batch, hidden]] * 2
