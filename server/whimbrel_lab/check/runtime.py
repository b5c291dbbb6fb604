"""Running a foreign model on stock onnxruntime, as it stands.

What belongs here: one function from a model and its inputs to its outputs. What does not: train steps, which run through the
device's own trainer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort

Array = npt.NDArray[Any]
_SILENT = 4  # only fatal messages: a refused guess is no news


class Stopped(RuntimeError):
    """onnxruntime refused a model or its inputs; the message is its own, in one line."""


class Model:
    """A session on a model, without optimisation: one shipped model kills the runtime while its branches are optimised.

    Raises Stopped where the runtime refuses the model. Models above protobuf's 2 GB must come as a `path`.
    """

    def __init__(self, model: onnx.ModelProto, path: str | None = None) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = _SILENT
        source = path or model.SerializeToString()
        self._session = _guarded(lambda: ort.InferenceSession(source, options, providers=["CPUExecutionProvider"]))
        self.outputs = [node.name for node in self._session.get_outputs()]

    def __call__(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Return all outputs. Raises Stopped where the runtime stops."""
        options = ort.RunOptions()
        options.log_severity_level = _SILENT
        results = _guarded(lambda: self._session.run(None, dict(feeds), options))
        return [np.asarray(result) for result in results]


def run(model: onnx.ModelProto, feeds: Mapping[str, Array]) -> Sequence[Array]:
    """What the compiler asks for shapes that only a run can tell. Raises Stopped."""
    return Model(model)(feeds)


def _guarded(action: Any) -> Any:
    try:
        return action()
    except Exception as error:  # the runtime's own classes share no other parent
        raise Stopped(" ".join(str(error).split())[:400]) from error
