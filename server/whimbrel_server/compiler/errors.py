"""Everything the gradient compiler refuses, as exceptions with stable codes.

Only the exception types belong here; what is wrong is decided where it is found.
"""

from collections.abc import Mapping, Sequence

LISTED = 12  # names in a message; programs read all of them from the exception


class CompileError(ValueError):
    """A model or a step specification that cannot be compiled.

    `code` is a short stable identifier for programs (`"unsupported-operator"`); the message is for people
    and says what was wrong, where, and what to do.
    """

    code: str

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code


class Refusal(Exception):
    """Raised by a gradient rule for a case it does not cover; the sweep adds the names of node and weight."""


class UnsupportedOperator(CompileError):
    """An operator without a usable gradient between the loss and a trained weight.

    `path` leads from the refused node back to the nearest trained weight, which is its last entry. `trainable` holds
    the weights, of those chosen, that no refused node separates from the loss: the largest set that can be trained instead.
    `layers` is how many layers, counted from the end, hold none but such weights.
    """

    def __init__(self, op: str, node: str, reason: str, path: Sequence[str], trainable: Mapping[str, int], nodes: int) -> None:
        why = f" ({reason})" if reason else ""
        way = " <- ".join(repr(name) for name in path)
        super().__init__(
            "unsupported-operator",
            f"{op} (node {node!r}) has no gradient{why} and lies between the loss and {path[-1]!r}: {way}; "
            + _advice(trainable, nodes),
        )
        self.op = op
        self.node = node
        self.path = tuple(path)
        self.trainable = tuple(trainable)
        self.layers = 0

    def advised(self, layers: int) -> "UnsupportedOperator":
        """This error with a shorter way to name what can be trained: that many layers, counted from the end."""
        self.layers = layers
        if layers:
            self.args = (f"{self}; or train=['last:{layers}']",)
        return self


def _advice(trainable: Mapping[str, int], nodes: int) -> str:
    """What can be trained instead: names and element counts of the weights, and how many nodes depend on them."""
    if not trainable:
        return "none of the chosen weights lies after it"
    names, count = list(trainable), sum(trainable.values())
    shown = f"train={names!r}" if len(names) <= LISTED else f"train=[{names[0]!r}, ... {names[-1]!r}]"
    return (
        f"train only the weights after it, {len(names)} weights of {count:,} numbers in {nodes} nodes: {shown}; "
        "freeze='auto' does so by itself"
    )
