"""From the faults of a window to what they cost: who gets no work, and until when.

Here belongs this judgement alone: who was at fault is the protocol's (`whimbrel_protocol.blame`), keeping it the storage's,
sending devices away the engine's. Pure; times are Unix seconds.
"""

from __future__ import annotations

from collections.abc import Sequence

from whimbrel_protocol.blame import Fault, FaultKind
from whimbrel_server.config import Quarantine
from whimbrel_server.storage.records import BlameRecord


def records(faults: Sequence[Fault], tau0: bytes, devices: Sequence[bytes], terms: Quarantine, now: float) -> list[BlameRecord]:
    """One record for each device of each fault; `devices` in roster order.

    Of one wrong share nobody knows whose fault it is, and it was corrected: it is kept as evidence and costs nothing, or
    dealers could send honest holders away. Where a sum was lost, each of the suspects goes for the shorter time, so that a
    device which does it again and again is away as well.
    """
    found = []
    for fault in faults:
        suspects = tuple(devices[i] for i in fault.members)
        seconds = 0.0 if fault.kind is FaultKind.SHARE else terms.suspect_seconds
        if len(suspects) == 1 and fault.kind is not FaultKind.SILENT:
            seconds = terms.seconds
        until = now + seconds if seconds else 0.0
        found += [BlameRecord(device, tau0, fault.kind.value, suspects, fault.detail, now, until) for device in suspects]
    return found
