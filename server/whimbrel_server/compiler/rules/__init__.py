"""The one table of gradients and the one table of lowerings, put together from their topics."""

from whimbrel_server.compiler.rules import arithmetic, moving, products, reductions, windows
from whimbrel_server.compiler.rules.table import Gradients, Lowering, Rule

_TOPICS = (arithmetic, products, reductions, moving, windows)

RULES: dict[str, Rule] = {op: rule for topic in _TOPICS for op, rule in topic.RULES.items()}
LOWERINGS: dict[str, Lowering] = {op: lowering for topic in _TOPICS for op, lowering in topic.LOWERINGS.items()}

__all__ = ["LOWERINGS", "RULES", "Gradients", "Lowering", "Rule"]
