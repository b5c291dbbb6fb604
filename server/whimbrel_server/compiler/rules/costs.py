"""From which sizes on one form of an operator is faster than another, as measured; no form is built here.

`whimbrel-lab bench costs` measures each limit's candidates again, on this machine and its runtime, and prints the best.
"""

MOST_PATCHED_CHANNELS = 4  # data of so few channels are collected into patches once, for forward and weight gradient
LARGEST_BAND = 1024  # elements of a depthwise kernel's band matrix, one channel and block
MOMENTS_PER_CHANNEL = 12  # K*K products of K inputs' moments are cheaper than passes over M outputs where K*K <= 12 M
WIDE_CHANNELS = 16  # from here on one product per kernel tap beats collecting the patches for a weight gradient ...
PATCHES_IN_CACHE = 512 * 1024  # ... unless all patches together (floats) stay in the cache
LARGEST_FILTERED = 32  # side of maps up to which, and up to the channels, minimal filtering beats direct convolution ...
FEWEST_FILTERED = 8  # ... from this batch on
TURNED_HIDDEN = 192  # recurrent layers of so many units have their samples on the last axis, if those fill whole vectors
