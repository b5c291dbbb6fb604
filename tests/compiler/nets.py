"""Small nets written as text, with random weights; used by more than one test."""

import numpy as np
import onnx
from onnx import numpy_helper


def filled(text: str, opset: int = 17, seed: int = 0) -> onnx.ModelProto:
    """A net whose weights the text declares without values: scales and variances (`*_s`, `*_v`) in [0.5, 1.5), others
    normal with deviation 0.5."""
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
    rng = np.random.default_rng(seed)
    for info in model.graph.value_info:
        shape = [dim.dim_value for dim in info.type.tensor_type.shape.dim]
        positive = info.name.endswith(("_s", "_v"))
        array = rng.uniform(0.5, 1.5, shape) if positive else rng.normal(0.0, 0.5, shape)
        model.graph.initializer.append(numpy_helper.from_array(array.astype(np.float32), info.name))
    del model.graph.value_info[:]
    onnx.checker.check_model(model)
    return model
