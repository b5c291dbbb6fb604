"""Cases of `rules/recurrent.py`; operands in the order X, W, R, B, sequence_lens, initial_h, initial_c, P."""

import numpy as np

from tests.compiler.cases.case import Case

STEPS, BATCH, INPUTS, HIDDEN = 4, 3, 2, 3
LENGTHS = np.array([4, 2, 3], np.int32)
OUTPUTS = {"LSTM": ("y", "y_h", "y_c"), "GRU": ("y", "y_h"), "RNN": ("y", "y_h")}
ROWS = {"LSTM": 4 * HIDDEN, "GRU": 3 * HIDDEN, "RNN": HIDDEN}


def layer(op: str, directions: int, *others: object, outputs: tuple[str, ...] = (), **attrs: object) -> Case:
    """A layer with X, W, R, and `others` from B on."""
    weights = [directions, ROWS[op], INPUTS], [directions, ROWS[op], HIDDEN]
    operands = ([STEPS, BATCH, INPUTS], *weights, *others)
    return Case(op, operands, {"hidden_size": HIDDEN, **attrs}, outputs=outputs or OUTPUTS[op])


def bias(op: str, directions: int) -> list[int]:
    return [directions, 2 * ROWS[op]]


ONE, BOTH = [1, BATCH, HIDDEN], [2, BATCH, HIDDEN]
HARD = {"activations": ["HardSigmoid", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.45]}

CASES = {
    "gru": layer("GRU", 1, bias("GRU", 1), None, ONE, linear_before_reset=1),
    "gru-both-lengths": layer("GRU", 2, bias("GRU", 2), LENGTHS, BOTH, linear_before_reset=1, direction="bidirectional"),
    "gru-functions": layer("GRU", 1, None, None, ONE, linear_before_reset=1, **HARD),
    "gru-reset-first": layer("GRU", 1, bias("GRU", 1), None, ONE),
    "gru-reset-first-both": layer("GRU", 2, None, LENGTHS, BOTH, direction="bidirectional"),
    "gru-state-only": layer("GRU", 1, outputs=("", "y_h"), linear_before_reset=1),
    "lstm": layer("LSTM", 1, bias("LSTM", 1), None, ONE, ONE),
    "lstm-reverse": layer("LSTM", 1, None, None, ONE, ONE, direction="reverse"),
    "lstm-both": layer("LSTM", 2, bias("LSTM", 2), None, BOTH, BOTH, direction="bidirectional"),
    "lstm-both-lengths": layer("LSTM", 2, bias("LSTM", 2), LENGTHS, BOTH, BOTH, direction="bidirectional"),
    "lstm-reverse-lengths": layer("LSTM", 1, None, LENGTHS, direction="reverse"),
    "lstm-cell-state-only": layer("LSTM", 1, bias("LSTM", 1), outputs=("", "", "y_c")),
    "lstm-functions": layer("LSTM", 1, bias("LSTM", 1), activations=["HardSigmoid", "Relu", "Softsign"]),
    "rnn": layer("RNN", 1, bias("RNN", 1), None, ONE),
    "rnn-both-lengths": layer("RNN", 2, bias("RNN", 2), LENGTHS, BOTH, direction="bidirectional"),
    "rnn-both-functions": layer("RNN", 2, activations=["Relu", "Sigmoid"], direction="bidirectional"),
}
