"""Everything the gradient compiler refuses, as exceptions with stable codes.

Only the exception types belong here; what is wrong is decided where it is found.
"""

from collections.abc import Sequence


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

    `trainable` holds the weights that no refused node separates from the loss: the largest set that can
    be trained instead.
    """

    def __init__(self, op: str, node: str, reason: str, blocked: str, trainable: Sequence[str]) -> None:
        advice = f"train only the weights after it: train={list(trainable)!r}" if trainable else "no weight lies after it"
        why = f" ({reason})" if reason else ""
        super().__init__(
            "unsupported-operator",
            f"{op} (node {node!r}) has no gradient{why} and lies between the loss and {blocked!r}; {advice}",
        )
        self.op = op
        self.node = node
        self.trainable = tuple(trainable)
