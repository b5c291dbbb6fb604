"""How a member's window is told: who it is, and each message as a step of its story.

Here belong the steps in plain values, as `whimbrel_protocol/replay_stories.py` takes them. What is said is the chapters'.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from whimbrel_lab.bad_vectors.book import Book
from whimbrel_lab.bad_vectors.scene import LANE, NOW, ROOT, SPEC, Window, policy, rho
from whimbrel_protocol.errors import Code
from whimbrel_protocol.member import Identity
from whimbrel_protocol.messages import U2, Open, Quorum, Survivors
from whimbrel_protocol.signed import Policy

VICTIM, OTHER = 2, 4
ENDED = "ended"

Story = dict[str, Any]


def told(book: Book, who: Identity, seed: bytes, rules: Policy | None = None) -> Story:
    """The member that a story is about; `seed` makes its Ed25519 key."""
    return {
        "device": who.device,
        "sign_seed": seed,
        "certificate": who.certificate,
        "lane": book.share("lane", LANE),
        "spec": book.share("spec", SPEC.encode()),
        "policy": book.share("policy", policy().encode()) if rules is None else rules.encode(),
        "root": book.share("root", ROOT.public),
        "rho": rho(who),
        "seq": 1,
        "expires": NOW + 600,
    }


class Teller:
    """Writes stories of one member of a window; what it is told of all members is shared by name."""

    def __init__(self, book: Book, window: Window, name: str = "") -> None:
        self._book, self._name = book, name
        self.window = window
        rules = None if window.rules == policy() else window.rules
        who = window.identities[VICTIM]
        self.member = book.share(f"member{name}", told(book, who, window.seeds[VICTIM], rules))
        self.policy = book.share("policy", policy().encode()) if rules is None else window.rules.encode()

    def tell(self, name: str, expect: Code | int, steps: Sequence[Any], state: str) -> None:
        """A story: the last step gives `expect`, and leaves the member in `state`."""
        self._book.add(name, "member", expect, member=self.member, steps=list(steps), state=state)

    def open(self, message: Open | None = None, now: int = NOW, policy_now: Policy | None = None) -> Any:
        """OPEN, by default the honest one."""
        message = message or self.window.collector.open
        honest = {entry: f"entry {at}{self._name}" for at, entry in enumerate(self.window.collector.open.roster)}
        roster = [self._book.share(honest[entry], entry) if entry in honest else entry for entry in message.roster]
        params = message.params
        if params == self.window.collector.open.params:
            params = self._book.share(f"params{self._name}", params)  # type: ignore[assignment]
        newest = self.policy if policy_now is None else policy_now.encode()
        return {"step": "open", "params": params, "roster": roster, "now": now, "policy_now": newest}

    def u2(self, message: U2 | None = None) -> Any:
        """U2, by default the honest one."""
        if message is None:
            self.window.shares  # noqa: B018  # they fix U2
            return self._book.share(f"U2{self._name}", _u2(self.window.collector.u2_for(VICTIM)))
        return _u2(message)

    def survivors(self, message: Survivors | None = None) -> Any:
        """SURVIVORS, by default the honest one."""
        if message is None:
            self.window.vectors  # noqa: B018  # they fix the survivors
            return self._book.share(f"SURVIVORS{self._name}", _survivors(self.window.collector.survivors))
        return _survivors(message)

    def masks(self) -> list[Any]:
        """The vector's one chunk, and its announcement."""
        head = self.window.vectors[VICTIM][0]
        plain = self._book.share("update", self.window.plain(VICTIM))
        return [{"step": "mask", "plain": plain, "first_word": 0}, {"step": "head", "sha256": head.sha256}]


def _u2(message: U2) -> Story:
    return {"step": "u2", "bitmap": message.bitmap, "cts": message.cts}


def _survivors(message: Survivors) -> Story:
    return {"step": "survivors", "bitmap": message.bitmap, "msigs": message.msigs, "abort": message.abort}


def quorum(message: Quorum) -> Story:
    """QUORUM."""
    return {"step": "quorum", **_votes(message)}


def certificate(message: Quorum, verdict: str = "") -> Story:
    """A certificate, with what it must say of the update; nothing where it is refused."""
    return {"step": "certificate", **_votes(message), "verdict": verdict}


def _votes(message: Quorum) -> Story:
    votes = {"idx": message.idx, "sigs": message.sigs}
    return {"kind": int(message.kind), "tau1": message.tau1, "u3": message.u3, **votes}


def blame(tau1: bytes) -> Story:
    """The sum is spoiled: what were the canaries masked with?"""
    return {"step": "blame", "tau1": tau1}


def done(lane: bytes = LANE) -> Story:
    """The receipt."""
    return {"step": "done", "lane": lane, "sum_sha256": bytes(32)}


def bare(step: str) -> Story:
    """A step that carries nothing."""
    return {"step": step}
