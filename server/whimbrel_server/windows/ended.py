"""Windows that are no longer in memory: what their members still get, for as long as certificates are kept.

What belongs here: answers from a window's record. What does not: windows that run (`live.py`).
"""

from __future__ import annotations

from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.objects import JoinEntry
from whimbrel_server.storage.records import CERTIFICATE_S, WindowRecord

# The votes that a window lacks come when their devices do: nobody need ask often.
_VOTES_S = 30


def devices(record: WindowRecord) -> list[bytes]:
    """Return the members' ids in the order of the roster."""
    return [JoinEntry.decode(entry).device for entry in record.roster]


def waits_for_votes(record: WindowRecord, now: float) -> bool:
    """Whether the window was given up and the votes that settle its updates are not in, nor forgotten yet."""
    kept = (record.closed_at or now) > now - CERTIFICATE_S
    return record.state == "aborted" and record.abort is None and kept


def may_want_commits(record: WindowRecord, device: bytes, now: float) -> bool:
    """Whether a member that has not voted may be wanted for the commit: only the votes tell, and those the window knows."""
    return record.u3 is not None and waits_for_votes(record, now) and device in devices(record)


def answer(record: WindowRecord, phase: str, device: bytes, now: float) -> m.Message:
    """Return what a member of an ended window gets for a phase.

    Who asks for a certificate that is not complete is told to wait: a member that never voted casts its vote upon that.
    Raises RuleError NOT_YOURS, PHASE_OVER for what is no longer told, and for the receipt of a failed window what it failed of.
    """
    if device not in devices(record):
        raise RuleError(Code.NOT_YOURS, "this device is not in the window's roster")
    if phase == "quorum":
        return m.Wait(_VOTES_S) if waits_for_votes(record, now) else _certificate(record)
    if record.state == "aborted":
        return m.Survivors(b"", b"", abort=True)
    if phase == "done" and record.state == "failed":
        failure = next((code for code in Code if code == record.failure), Code.SHORTAGE)
        raise RuleError(failure, "the window's sum was lost: its updates stay spent")
    if phase == "done" and record.sum_sha256 is not None:
        return m.Done(record.lane, record.sum_sha256)
    raise RuleError(Code.PHASE_OVER)


def _certificate(record: WindowRecord) -> m.Message:
    certificate = record.quorum or record.abort
    if certificate is None:
        raise RuleError(Code.PHASE_OVER, "the window's certificate is no longer kept")
    return wire.decode(certificate, m.Quorum)
