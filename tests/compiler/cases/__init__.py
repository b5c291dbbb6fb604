"""All cases, put together from the topics of the rules."""

from tests.compiler.cases import (
    activations,
    arithmetic,
    batch_normalization,
    convolution,
    indexing,
    moving,
    pooling,
    products,
    reductions,
    slicing,
    stops,
)

CASES = {
    name: case
    for topic in (
        batch_normalization,
        arithmetic,
        activations,
        products,
        reductions,
        moving,
        slicing,
        indexing,
        stops,
        convolution,
        pooling,
    )
    for name, case in topic.CASES.items()
}
