"""Deleting the blobs that nothing needs any more.

What belongs here: which of the stored blobs go, and when. What does not: what a task, a version or a window still needs
(`storage.Rounds.referenced`), and that a put of the same bytes at the same moment wins (`storage.Blobs.delete`).
"""

from __future__ import annotations

from whimbrel_server.config import Keep
from whimbrel_server.storage.protocols import Blobs, Rounds

YOUNG_S = 3600.0
"""So long a blob may wait for the record that names it: an upload for its task, a sum for its window."""


async def sweep(rounds: Rounds, blobs: Blobs, keep: Keep, now: float) -> int:
    """Delete what nothing references and nobody put within the last hour; returns how many blobs that were."""
    # In this order: what is put from here on is not among the names, and what is put again is young.
    names = await blobs.names()
    needed = await rounds.referenced(keep.versions, keep.sums_s, now)
    return sum([await blobs.delete(name, YOUNG_S) for name in names if name not in needed])
