"""How the tests of reading see a model: as text, read into a graph, and run as that graph tells. No test belongs here."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper, shape_inference

from tests.compiler.evaluation import Array, stock
from whimbrel_server.compiler.choice.selection import weights_of
from whimbrel_server.compiler.contract import Run
from whimbrel_server.compiler.source.prepare import prepare
from whimbrel_server.compiler.source.reader import Reading, Source, read

ANY_SIZE = 1 << 62


def parsed(body: str, opset: int = 17, **domains: int) -> onnx.ModelProto:
    """A model from its text `(inputs) => (outputs) <weights> { nodes }`; types that it leaves out are inferred."""
    imports = "".join(f', "{domain.replace("_", ".")}" : {version}' for domain, version in domains.items())
    return shape_inference.infer_shapes(
        onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}{imports}]> net {body}')
    )


def on_onnxruntime(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Sequence[Array]:
    """What a caller of the compiler passes to execute parts of a model."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    results: Sequence[Array] = session.run(None, dict(feeds))
    return results


def sources(model: onnx.ModelProto, train: Sequence[str] = (), batch: int = 1, **options: Any) -> Source:
    run: Run | None = options.get("run", on_onnxruntime)
    first = model.graph.output[0].name
    return read(prepare(model), first, batch, options.get("dims", {}), train, Reading(options.get("values", {}), run))


def as_read(source: Source, model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Array:
    """The output of the graph that was read, with the weights that the model ships."""
    inputs = [*source.data, *(value for value in source.weights.values())]
    graph = source.graph.export(inputs, {"result@": source.output}, "forward", limit=ANY_SIZE)
    shipped = {name: numpy_helper.to_array(tensor) for name, tensor in weights_of(prepare(model).graph).items()}
    return stock(graph)({**{name: shipped[name] for name in source.weights}, **feeds})["result@"]


def random_feeds(model: onnx.ModelProto, seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    weights = {tensor.name for tensor in model.graph.initializer}
    shapes = {i.name: [d.dim_value for d in i.type.tensor_type.shape.dim] for i in model.graph.input if i.name not in weights}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
