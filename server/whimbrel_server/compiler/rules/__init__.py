"""The one table of gradients, of lowerings and of operators that no gradient passes, put together from their topics."""

from whimbrel_server.compiler.rules import (
    activations,
    arithmetic,
    attention,
    batch_normalization,
    convolution,
    einsum,
    indexing,
    likelihoods,
    moving,
    noise,
    normalisations,
    pooling,
    products,
    recurrent,
    reductions,
    resizing,
    sampling,
    slicing,
)
from whimbrel_server.compiler.rules.stops import STOPS, no_gradient
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

_TOPICS = (
    batch_normalization,
    arithmetic,
    activations,
    products,
    recurrent,
    reductions,
    likelihoods,
    attention,
    einsum,
    normalisations,
    noise,
    moving,
    slicing,
    indexing,
    resizing,
    sampling,
    convolution,
    pooling,
)

RULES: dict[str, Rule] = dict.fromkeys(STOPS, no_gradient) | {op: rule for topic in _TOPICS for op, rule in topic.RULES.items()}
LOWERINGS: dict[str, Lowering] = {op: lowering for topic in _TOPICS for op, lowering in topic.LOWERINGS.items()}

__all__ = ["LOWERINGS", "RULES", "STOPS", "Gradients", "Lowering", "Rule"]
