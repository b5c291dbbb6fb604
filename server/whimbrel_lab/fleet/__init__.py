"""Authority, server and devices as real processes on loopback, their faults, and what is proved of their sums."""
