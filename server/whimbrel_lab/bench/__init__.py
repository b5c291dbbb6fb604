"""Benchmarks, each beside its baseline in the same run; the costs that choose lowerings."""
