"""Brings any supported model to one form: checked, one flat set of names and weights, float32, opset 20 or newer.

What an operator means stays as it was. Choosing weights and reading nodes are the business of others; operators
of a newer opset are the reader's, which lowers them.
"""

from collections.abc import Iterator

import onnx
from onnx import AttributeProto, defs, external_data_helper, helper, inliner, version_converter

from whimbrel_server.compiler.errors import CompileError
from whimbrel_server.compiler.graph.ir import OPSET
from whimbrel_server.compiler.graph.nested import all_graphs, hoist_weights, make_names_unique
from whimbrel_server.compiler.source.precision import to_single

OLDEST_OPSET = 7  # onnx's version converter and broadcasting rules are dependable from here
STANDARD_DOMAINS = ("", "ai.onnx")
# Operators whose old meaning the converter loses, and the last opset that had it.
CHANGED = {"Scan": 8, "Hardmax": 12}
# Runtimes write some operators into files of an older opset. There they belong to nobody, until the opset is raised.
EARLY_DOMAIN = "early"
ASYMMETRIC_RESIZE = 10  # until then Resize and Upsample scaled coordinates without a half-pixel shift


def prepare(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same model, flattened, in single precision and with every operator at opset 20 or newer.

    Raises CompileError: "model-invalid", "external-data", "sparse" or "opset".
    """
    _check_weights(model)
    try:
        allowed = _with_early_set_aside(model)
        _check(allowed)
        flat = flatten(allowed)
        if flat.ir_version < 4:  # there an initialiser must also be an input, which the converter rejects
            flat.ir_version = 8
        raised = _raise_opset(flat)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise CompileError("model-invalid", str(error)) from error
    for node in _nodes(raised.graph):
        node.domain = "" if node.domain == EARLY_DOMAIN else node.domain
    make_names_unique(raised.graph)  # the converter's own constants have equal names in different branches
    to_single(raised.graph)
    return raised


def _with_early_set_aside(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = opset_of(model)
    if not any(_is_early(node, opset) for node in _nodes(model.graph)):
        return model
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    for node in _nodes(changed.graph):
        node.domain = EARLY_DOMAIN if _is_early(node, opset) else node.domain
    changed.opset_import.append(helper.make_opsetid(EARLY_DOMAIN, 1))
    return changed


def _is_early(node: onnx.NodeProto, opset: int) -> bool:
    return node.domain in STANDARD_DOMAINS and not defs.has(node.op_type, opset) and defs.has(node.op_type, OPSET)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    return (node for inner in all_graphs(graph) for node in inner.node)


def _check(model: onnx.ModelProto) -> None:
    """The first GroupNormalization was withdrawn, which the checker refuses; opset 21 has its successor of the same form."""
    checked = model
    if 18 <= opset_of(model) < 21 and any(node.op_type == "GroupNormalization" for node in model.graph.node):
        checked = onnx.ModelProto()
        checked.CopyFrom(model)
        for entry in checked.opset_import:
            entry.version = 21 if entry.domain in STANDARD_DOMAINS else entry.version
    onnx.checker.check_model(checked)


def flatten(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy without local functions, with all weights in the outermost graph and no name used twice."""
    if model.functions:
        flat = inliner.inline_local_functions(model)
    else:
        flat = onnx.ModelProto()
        flat.CopyFrom(model)
    make_names_unique(flat.graph)
    hoist_weights(flat.graph)
    return flat


def opset_of(model: onnx.ModelProto) -> int:
    """The version of the standard operators that a model uses."""
    return max((entry.version for entry in model.opset_import if entry.domain in STANDARD_DOMAINS), default=OPSET)


def _check_weights(model: onnx.ModelProto) -> None:
    if any(external_data_helper.uses_external_data(tensor) for tensor in _tensors(model.graph)):
        raise CompileError("external-data", "the model keeps weights in other files; save it as one file")
    if any(inner.sparse_initializer for inner in all_graphs(model.graph)):
        raise CompileError("sparse", "the model keeps weights in sparse tensors; save them as dense ones")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    for inner in all_graphs(graph):
        yield from inner.initializer
        yield from (attr.t for node in inner.node for attr in node.attribute if attr.type == AttributeProto.TENSOR)


def _raise_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = opset_of(model)
    if opset >= OPSET:
        return model
    if opset < OLDEST_OPSET:
        raise CompileError("opset", f"the model uses opset {opset}; export it with opset {OLDEST_OPSET} or newer")
    resized = _before_conversion(model.graph, opset)
    try:
        raised = version_converter.convert_version(model, OPSET)
    except (RuntimeError, version_converter.ConvertError) as error:
        raise CompileError("opset", f"opset {opset} cannot be brought to {OPSET}: {error}") from error
    _restore_resizing(raised.graph, resized)
    return raised


def _before_conversion(graph: onnx.GraphProto, opset: int) -> set[str]:
    """Refuses what the converter would change; gives the results of the resizings that it will change."""
    resized = set()
    _drop_unread_statistics(graph)
    for node in _nodes(graph):
        where = f"{node.op_type} (node {node.name or node.output[0]!r})"
        if opset <= CHANGED.get(node.op_type, 0):
            raise CompileError("opset", f"{where} means something else since opset {CHANGED[node.op_type] + 1}; export it anew")
        if node.op_type == "BatchNormalization" and opset < 14 and any(node.output[1:]):
            raise CompileError("opset", f"{where} gives the batch's statistics away; export the model for inference")
        if node.op_type in ("Resize", "Upsample") and opset <= ASYMMETRIC_RESIZE:
            resized.add(node.output[0])
    return resized


def _drop_unread_statistics(graph: onnx.GraphProto) -> None:
    """Makes a BatchNormalization that was exported in training form one in inference form, as newer opsets' are read."""
    read = {name for node in _nodes(graph) for name in node.input}
    read.update(info.name for inner in all_graphs(graph) for info in inner.output)
    for node in _nodes(graph):
        if node.op_type == "BatchNormalization" and read.isdisjoint(node.output[1:]):
            del node.output[1:]


def _restore_resizing(graph: onnx.GraphProto, results: set[str]) -> None:
    old = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    for node in _nodes(graph):
        if node.op_type == "Resize" and node.output[0] in results:
            node.attribute.extend(helper.make_attribute(name, value) for name, value in old.items())
