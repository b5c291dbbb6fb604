"""A running window from what storage remembers of it.

Here belongs the way from records back to the collector's events; what the window does next belongs in `window_run.py`.
"""

from __future__ import annotations

from collections.abc import Sequence

from whimbrel_protocol import wire
from whimbrel_protocol.collector import Arrived, Collector, Decision, Event
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import MaskedHead, Shares, Unmask, Vote, VoteKind
from whimbrel_protocol.objects import VectorSpec
from whimbrel_protocol.rules import bitmap
from whimbrel_server.settings import WindowLimits
from whimbrel_server.storage.records import EventRecord, WindowRecord
from whimbrel_server.windows.window_effects import WindowEffect
from whimbrel_server.windows.window_run import WindowRun


def restore(
    record: WindowRecord, events: Sequence[EventRecord], spec: VectorSpec, limits: WindowLimits, now: float
) -> tuple[WindowRun, list[WindowEffect]]:
    """The window, and the effects that bring it on its way again.

    Raises RuleError DATA_DAMAGED where the stored messages do not lead to what was fixed.
    """
    collector = Collector.restore(record.params, record.roster, spec, _history(record, events))
    fixed = {"u2": (record.u2, collector.u2), "u3": (record.u3, collector.u3)}
    wrong = [name for name, (bits, members) in fixed.items() if bits is not None and bits != bitmap(members, collector.n)]
    if wrong or collector.tau0 != record.tau0:
        raise RuleError(Code.DATA_DAMAGED, f"window {record.tau0.hex()} is not what its messages say: {wrong or 'tau0'}")
    run = WindowRun(collector, limits, now)
    return run, run.resume(record.state, now)


def _history(record: WindowRecord, events: Sequence[EventRecord]) -> list[Event]:
    """The collector's events as storage kept them, with the decisions that it kept as fixed sets."""
    bodies = {kind: [event.body for event in events if event.kind == kind] for kind in ("shares", "masked", "vote", "unmask")}
    canaries = {event.member: event.body for event in events if event.kind == "canaries"}
    heads = [wire.decode(body, MaskedHead) for body in bodies["masked"]]
    votes = [wire.decode(body, Vote) for body in bodies["vote"]]
    history: list[Event] = [wire.decode(body, Shares) for body in bodies["shares"]]
    if record.u2 is not None:
        history.append(Decision.CLOSE_SHARES)
    history += [*heads, *(Arrived(head.i, canaries.get(head.i, b"")) for head in heads)]
    if record.u3 is not None:
        history.append(Decision.CLOSE_MASKED)
    if record.u3 is None or record.state == "aborted" or any(vote.kind is VoteKind.ABORT for vote in votes):
        history.append(Decision.ASK_ABORT)
    return [*history, *votes, *(wire.decode(body, Unmask) for body in bodies["unmask"])]
