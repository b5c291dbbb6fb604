"""What the server saw of the client, judged: silence, one body a phase, fresh keys, and an update that is spent at most once.

Here belongs all that can be said without looking into the client, so that it holds for a client in any language.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.hostile.attack import Update
from tests.hostile.world import HostileServer, Seen, joined_entries
from whimbrel_protocol.errors import Code

LEAVING = ("shares", "masked", "put", "vote", "unmask", "canaries")
"""What carries a share, a masked byte or a signature of the client out of its window."""


def faults(server: HostileServer) -> list[str]:
    """Everything that the client should not have done, in words; none if it held."""
    if server.struck is None:
        return ["the attack was never carried out: the client did not come so far"]
    return [*_noise(server), *contradictions(server), *_fate(server), *_reports(server)]


def contradictions(server: HostileServer) -> list[str]:
    """What no client may do in any life, attacked or not: say two things in one phase, or use a key twice."""
    return [*_second_bodies(server), *_stale_keys(server)]


def _noise(server: HostileServer) -> Iterator[str]:
    """After the stroke nothing may leave but what the attack's row says."""
    for one in server.seen[server.struck :]:
        if one.kind in LEAVING and one.kind not in server.attack.after:
            yield f"{one.kind} left the client after the attack"


def _second_bodies(server: HostileServer) -> Iterator[str]:
    """One body a phase and window, byte for byte; masked words of one window never differ."""
    first: dict[tuple[str, bytes], object] = {}
    words: dict[tuple[bytes, int], int] = {}
    for one in server.seen:
        if one.kind == "put":
            yield from _changed_words(one, words)
        elif one.kind in LEAVING and first.setdefault((one.kind, one.tau0), one.body) != one.body:
            yield f"two different {one.kind} in one window"


def _changed_words(one: Seen, words: dict[tuple[bytes, int], int]) -> Iterator[str]:
    offset, data = one.body
    for at, byte in enumerate(data, 8 * offset):
        if words.setdefault((one.tau0, at), byte) != byte:
            yield f"byte {at} of the masked vector changed"
            return


def _stale_keys(server: HostileServer) -> Iterator[str]:
    """Every join has fresh keys and a higher counter, and does not outlive its quarter of an hour."""
    entries = list(dict.fromkeys(joined_entries(server)))
    keys = [key for entry in entries for key in (entry.mask_key, entry.channel_key, entry.nonce)]
    if len(set(keys)) != len(keys):
        yield "a window key served twice"
    if [entry.seq for entry in entries] != sorted({entry.seq for entry in entries}):
        yield "the join counter did not grow"
    if any(entry.expires > server.clock() + 15 * 60 for entry in entries):
        yield "an entry lives longer than 15 minutes"


def _fate(server: HostileServer) -> Iterator[str]:
    """An update that may have been counted joins no other window; nothing joins where nothing may be trained."""
    entries, update = joined_entries(server), server.attack.update
    if update is Update.NONE and entries:
        yield "the client joined a window"
    left = next((at for at, one in enumerate(server.seen) if one.kind in ("masked", "put")), len(server.seen))
    later = [one for one in server.seen[left:] if one.kind == "joins"]
    if update in (Update.SPENT, Update.COUNTED) and any(one.body.entry for one in later):
        yield "the client joined again with an update that was spent"
    if update is Update.COUNTED and not any(one.kind == "unmask" for one in server.seen):
        yield "the client did not finish a window that was in order"


def _reports(server: HostileServer) -> Iterator[str]:
    """A client that reports why it left names the rule that was broken; it may also say that it contributed before."""
    for report in server.reports:
        if report.code not in (server.attack.code, Code.CONTRIBUTED_BEFORE):
            yield f"the client reported error {report.code}"
