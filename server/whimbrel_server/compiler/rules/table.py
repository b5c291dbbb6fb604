"""The types of the two tables: what a gradient rule and a lowering are.

A rule `rule(node, *gradients)` gets the gradient of each output (None where none arrives) and returns one
gradient or None per input, about a line an operator. It may return any gradient whose shape broadcasts with
its operand's: `grad.fit` is the only place that undoes broadcasting.

A lowering `lowering(graph, *ins, **attrs)` rewrites a source operator, while a model is read, into operators
that have rules, in the form that is fast on onnxruntime's CPU kernels.
"""

from collections.abc import Callable, Sequence

from whimbrel_server.compiler.graph.ir import Value

Gradients = Sequence[Value | None]
Rule = Callable[..., Gradients]
Lowering = Callable[..., Value | tuple[Value, ...]]
