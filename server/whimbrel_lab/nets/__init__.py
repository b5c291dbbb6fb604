"""Untrained inference models of ordinary ONNX operators."""
