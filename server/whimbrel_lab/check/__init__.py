"""`whimbrel-lab check`: can this ONNX file be trained on devices, what would a round cost, and does a step really learn?

`command.py` is the way in. It opens foreign files in child processes only: `compilation.py` reads, chooses and compiles,
`training.py` runs the compiled step the way a device does, `exact.py` repeats the gradient in float64.
"""
