"""Good and bad cases for clients in any language, each with the number of its one error, made from names alone.

`python -m whimbrel_lab.bad_vectors` writes `schemas/vectors/bad.json`. Here belongs what is said and done wrong, one thing in
each case; the format and what replays it are `whimbrel_protocol/replay_cases.py`'s. What a case must give is stated here, never
computed.
"""
