"""Graphs inside nodes (the branches of an If, the bodies of loops): their names, and the weights they hold.

Works on protobufs alone, in place. What such nodes mean, and when a branch is chosen, is not known here.
"""

from collections.abc import Iterable, Iterator, Mapping

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, TensorProto

WEIGHT_TYPES = frozenset({TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16})


def subgraphs(node: NodeProto) -> list[GraphProto]:
    return [graph for attr in node.attribute for graph in ((attr.g,) if attr.type == AttributeProto.GRAPH else attr.graphs)]


def all_graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """The graph, then every graph inside it, outer before inner, in the file's order."""
    yield graph
    for node in graph.node:
        for inner in subgraphs(node):
            yield from all_graphs(inner)


def reads(node: NodeProto) -> list[str]:
    """Every tensor a node reads, those that its graphs capture included."""
    return [*filter(None, node.input), *(name for graph in subgraphs(node) for name in captured_names(graph))]


def captured_names(graph: GraphProto) -> list[str]:
    """What a graph inside a node reads from outside, each name once, in the order of first use."""
    defined = set(_defined(graph))
    used = [name for node in graph.node for name in reads(node)] + [info.name for info in graph.output]
    return [name for name in dict.fromkeys(used) if name not in defined]


def rename(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Replaces tensor names wherever they are defined or read, graphs inside included."""
    for inner in all_graphs(graph):
        for item in (*inner.input, *inner.output, *inner.value_info, *inner.initializer):
            item.name = names.get(item.name, item.name)
        for node in inner.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def make_names_unique(graph: GraphProto) -> None:
    """Gives every tensor of the graphs inside a name that nothing else has: two branches may share names."""
    taken = set(_defined(graph))
    for node in graph.node:
        for inner in subgraphs(node):
            _make_unique(inner, taken)


def _make_unique(graph: GraphProto, taken: set[str]) -> None:
    fresh = {}
    for name in _defined(graph):
        if name in taken:
            fresh[name] = next(f"{name}_{n}" for n in range(2, len(taken) + 3) if f"{name}_{n}" not in taken)
        taken.add(fresh.get(name, name))
    rename(graph, fresh)
    for node in graph.node:
        for inner in subgraphs(node):
            _make_unique(inner, taken)


def hoist_weights(graph: GraphProto) -> None:
    """Moves the floating-point weights of the graphs inside to the outermost graph, where they are found.

    A weight that is directly an inner graph's output stays: outputs must be made where they are given.
    """
    for inner in list(all_graphs(graph))[1:]:
        outputs = {info.name for info in inner.output}
        for tensor in [t for t in inner.initializer if t.data_type in WEIGHT_TYPES and t.name not in outputs]:
            graph.initializer.append(tensor)
            inner.initializer.remove(tensor)
        for node in [n for n in inner.node if _is_weight(n) and n.output[0] not in outputs]:
            graph.initializer.append(node.attribute[0].t)
            graph.initializer[-1].name = node.output[0]
            inner.node.remove(node)


def _is_weight(node: NodeProto) -> bool:
    return node.op_type == "Constant" and node.attribute[0].name == "value" and node.attribute[0].t.data_type in WEIGHT_TYPES


def _defined(graph: GraphProto) -> list[str]:
    """The names a graph itself defines, each once: inputs, initialisers, results of nodes."""
    return list(dict.fromkeys([*_names(graph.input), *_names(graph.initializer), *_results(graph.node)]))


def _names(items: Iterable[onnx.ValueInfoProto | onnx.TensorProto]) -> list[str]:
    return [item.name for item in items]


def _results(nodes: Iterable[NodeProto]) -> list[str]:
    return [name for node in nodes for name in node.output if name]
