"""All cases, put together from the topics of the rules."""

from tests.compiler.cases import arithmetic, moving, products, reductions, windows

CASES = {name: case for topic in (arithmetic, products, reductions, moving, windows) for name, case in topic.CASES.items()}
