"""All cases, put together from the topics of the rules."""

from tests.compiler.cases import (
    activations,
    arithmetic,
    batch_normalization,
    convolution,
    indexing,
    moving,
    normalisations,
    pooling,
    products,
    reductions,
    slicing,
    stops,
)

TOPICS = (
    batch_normalization,
    arithmetic,
    activations,
    products,
    reductions,
    normalisations,
    moving,
    slicing,
    indexing,
    stops,
    convolution,
    pooling,
)

CASES = {name: case for topic in TOPICS for name, case in topic.CASES.items()}
