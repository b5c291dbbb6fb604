"""The two ways to run a graph, as the tests of the compiler use them. The mended evaluator itself is the laboratory's."""

from whimbrel_lab.evaluation import Array, directional_difference, in_double, reference, stock

__all__ = ["Array", "directional_difference", "in_double", "reference", "stock"]
