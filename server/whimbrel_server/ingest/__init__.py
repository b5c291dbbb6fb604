"""Masked vectors on their way in: bounded blocks, a hash, an addition, on the worker that owns the window."""
