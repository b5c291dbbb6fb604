"""All cases, put together from the topics of the rules."""

from tests.compiler.cases import (
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
    stops,
)

TOPICS = (
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
    stops,
    convolution,
    pooling,
)

CASES = {name: case for topic in TOPICS for name, case in topic.CASES.items()}
