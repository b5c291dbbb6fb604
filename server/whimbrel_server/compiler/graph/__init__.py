"""The expression graph over ONNX operators, its rewrites, and its way to a file. Knows no model and no gradient."""
