"""Kernels of the data path: ring sums, signed lanes, rotation, mask expansion, Shamir sharing over GF(2^16).

Here belongs the choice of implementation and nothing else: the C extension `_native` where it was built,
else its NumPy twin `_numpy`. Both have the same names, give the same bytes and raise the same exception
classes; `IMPLEMENTATION` tells which one runs. WHIMBREL_NO_EXT=1 in the environment chooses the twin.
"""

import os

try:
    if os.environ.get("WHIMBREL_NO_EXT") == "1":
        raise ImportError("the environment asks for the NumPy twin")
    from ._native import (
        IMPLEMENTATION,
        mask_add,
        mask_sub,
        pack_lanes,
        ring_add,
        ring_sub,
        rotate,
        shamir_combine,
        shamir_share,
        unpack_lanes,
        unrotate,
    )
except ImportError:
    from ._numpy import (
        IMPLEMENTATION,
        mask_add,
        mask_sub,
        pack_lanes,
        ring_add,
        ring_sub,
        rotate,
        shamir_combine,
        shamir_share,
        unpack_lanes,
        unrotate,
    )

__all__ = [
    "IMPLEMENTATION",
    "mask_add",
    "mask_sub",
    "pack_lanes",
    "ring_add",
    "ring_sub",
    "rotate",
    "shamir_combine",
    "shamir_share",
    "unpack_lanes",
    "unrotate",
]
