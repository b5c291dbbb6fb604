"""All cases, put together from the topics of the rules."""

from tests.compiler.cases import arithmetic, indexing, moving, products, reductions, slicing, stops, windows

CASES = {
    name: case
    for topic in (arithmetic, products, reductions, moving, slicing, indexing, stops, windows)
    for name, case in topic.CASES.items()
}
