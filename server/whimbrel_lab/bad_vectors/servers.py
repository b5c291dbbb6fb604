"""Cases of the server's side of a window: what members send it, in turn, out of turn, and wrong."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from whimbrel_lab.bad_vectors.book import GOOD, Book
from whimbrel_lab.bad_vectors.scene import SPEC, N, Window
from whimbrel_lab.bad_vectors.stories import bare
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import CanaryMasks, MaskedHead, Shares, Unmask, Vote, VoteKind
from whimbrel_protocol.transcript import shares_body, vote_body

LAST = N - 1
SHARE, MASK, VOTE, ABORTING, ABORTED = "share", "mask", "vote", "aborting", "aborted"
UNMASK, FAILED = "unmask", "failed"


def write(book: Book) -> None:
    """All of the chapter."""
    chapter = Chapter(book)
    chapter.write_openings()
    chapter.write_shares()
    chapter.write_heads()
    chapter.write_votes()
    chapter.write_answers()
    chapter.write_sums()
    chapter.write_canaries()


def shares(message: Shares) -> dict[str, Any]:
    """SHARES arrives."""
    return {"step": "shares", **vars(message)}


def head(message: MaskedHead) -> dict[str, Any]:
    """The announcement of a vector arrives."""
    return {"step": "head", **vars(message)}


def vector(i: int) -> dict[str, Any]:
    """A vector is complete."""
    return {"step": "vector", "i": i}


def vote(message: Vote) -> dict[str, Any]:
    """A vote arrives."""
    return {"step": "vote", "i": message.i, "kind": int(message.kind), "sig": message.sig}


def unmask(message: Unmask) -> dict[str, Any]:
    """Revealed shares arrive."""
    return {"step": "unmask", **vars(message)}


def canaries(message: CanaryMasks) -> dict[str, Any]:
    """The masks of canary words arrive."""
    return {"step": "canaries", **vars(message)}


class Chapter:
    """The stories, each told from the start; all seven members are honest until the last step."""

    def __init__(self, book: Book) -> None:
        self._book, self.window = book, Window()
        window = self.window
        opening = window.collector.open
        roster = [book.share(f"entry {at}", entry) for at, entry in enumerate(opening.roster)]
        spec = book.share("spec", SPEC.encode())
        self._scene = book.share("window", {"params": book.share("params", opening.params), "roster": roster, "spec": spec})
        self._answers = window.answers
        self.dealt = [*self.shared("SHARES", (shares(window.shares[i]) for i in range(N)))]
        self.masking = [*self.dealt, bare("close shares")]
        arrived = [*self.shared("MASKED", (head(window.vectors[i][0]) for i in range(N))), *map(vector, range(N))]
        self.masked = [*self.masking, *arrived]
        self.voting = [*self.masked, bare("close masked")]
        self.votes = self.shared("VOTE", (vote(window.votes[i]) for i in range(N)))
        self.unmasking = [*self.voting, *self.votes[: window.collector.t]]
        self.answers = self.shared("UNMASK", (unmask(window.answers[i]) for i in range(N)))

    def shared(self, name: str, steps: Iterable[dict[str, Any]]) -> list[str]:
        """The members' steps, by name."""
        return [self._book.share(f"{name} {i}", step) for i, step in enumerate(steps)]

    def tell(self, name: str, expect: Code | int, steps: Iterable[Any], state: str) -> None:
        """A story: the last step gives `expect`, and leaves the server in `state`."""
        self._book.add(f"server: {name}", "server", expect, window=self._scene, steps=list(steps), state=state)

    def write_openings(self) -> None:
        """A roster that is not n entries long."""
        opening = self.window.collector.open
        wrong = {"params": opening.params, "roster": opening.roster[:-1], "spec": SPEC.encode()}
        self._book.add("server: a roster of another length", "server", Code.OPEN_COUNT, window=wrong, steps=[], state="")

    # --- SHARES -------------------------------------------------------------------------------------------------------

    def write_shares(self) -> None:
        """Each check of SHARES, and of U2's size."""
        honest = self.window.shares[0]
        other = replace(honest, bcommit=bytes(32))
        signed = replace(other, sig=self._sign(0, "shares", shares_body(other.tau0, 0, other.bcommit, other.cts)))
        self.tell("SHARES: good", GOOD, self.dealt[:1], SHARE)
        self.tell("SHARES: again", GOOD, [self.dealt[0], self.dealt[0]], SHARE)
        enough = [*self.dealt[:5], bare("close shares")]
        self.tell("SHARES: enough for U2", GOOD, enough, MASK)
        for name, code, steps, state in (
            ("SHARES: of another window", Code.SHARES_MALFORMED, [shares(replace(honest, tau0=bytes(32)))], SHARE),
            ("SHARES: a ciphertext left out", Code.SHARES_MALFORMED, [shares(replace(honest, cts=honest.cts[:-80]))], SHARE),
            ("SHARES: another commitment than signed", Code.BAD_SIGNATURE, [shares(other)], SHARE),
            ("SHARES: under another member's name", Code.BAD_SIGNATURE, [shares(replace(honest, i=1))], SHARE),
            ("SHARES: of no member", Code.NO_SUCH_MEMBER, [shares(replace(honest, i=N))], SHARE),
            ("SHARES: others, after the first", Code.SECOND_BODY, [self.dealt[0], shares(signed)], SHARE),
            ("SHARES: after U2", Code.TOO_LATE, [*enough, self.dealt[LAST]], MASK),
            ("U2: below the floor", Code.SHORTAGE, [*self.dealt[:4], bare("close shares")], SHARE),
            (
                "U2: for a member outside",
                Code.NO_SUCH_MEMBER,
                [*self.dealt[:5], bare("close shares"), {"step": "u2 for", "i": 6}],
                MASK,
            ),
        ):
            self.tell(name, code, steps, state)

    def _sign(self, i: int, kind: str, body: bytes) -> bytes:
        return self.window.identities[i].key.sign(kind, body)

    # --- MASKED -------------------------------------------------------------------------------------------------------

    def write_heads(self) -> None:
        """Each check of the announcement, and of the survivors' number."""
        honest = self.window.vectors[0][0]
        self.tell("MASKED: good", GOOD, self.masked, MASK)
        for name, code, message in (
            ("under another U2", Code.MASKED_MALFORMED, replace(honest, tau1=bytes(32))),
            ("of another number of words", Code.MASKED_MALFORMED, replace(honest, words=SPEC.words + 1)),
            ("without the own share", Code.MASKED_MALFORMED, replace(honest, present=b"\x7e")),
            ("with a padding bit", Code.MASKED_MALFORMED, replace(honest, present=b"\xff")),
            ("signed by another member", Code.BAD_SIGNATURE, replace(honest, msig=self.window.vectors[1][0].msig)),
            ("of no member", Code.NO_SUCH_MEMBER, replace(honest, i=N)),
        ):
            self.tell(f"MASKED: {name}", code, [*self.masking, head(message)], MASK)
        second = head(replace(honest, sha256=bytes(32)))
        self.tell("MASKED: another announcement", Code.SECOND_BODY, [*self.masking, head(honest), second], MASK)
        self.tell("MASKED: a vector that nobody announced", Code.NO_SUCH_MEMBER, [*self.masking, vector(0)], MASK)
        self.tell("MASKED: before U2", Code.OUT_OF_TURN, [self.dealt[0], head(honest)], SHARE)
        few = [
            *self.masking,
            *(head(self.window.vectors[i][0]) for i in range(4)),
            *map(vector, range(4)),
            bare("close masked"),
        ]
        self.tell("SURVIVORS: below the floor", Code.SHORTAGE, few, MASK)
        present = [head(replace(self.window.vectors[i][0], present=b"\x3f")) for i in range(3)]
        missing = [*self.masking, *present, *self.masked[-2 * N + 3 : -N], *map(vector, range(N)), bare("close masked")]
        self.tell("SURVIVORS: a dealer whose shares too few hold", Code.SHORTAGE, missing, MASK)

    # --- VOTE ---------------------------------------------------------------------------------------------------------

    def write_votes(self) -> None:
        """Each check of a vote, and both certificates."""
        tau0, honest = self.window.collector.tau0, self.window.votes[0]
        aborts = [Vote(i, VoteKind.ABORT, self._sign(i, "vote", vote_body(tau0, VoteKind.ABORT))) for i in range(N)]
        asked = [*self.masking, bare("ask abort")]
        self.tell("VOTE: t commits", GOOD, self.unmasking, UNMASK)
        self.tell("VOTE: t aborts", GOOD, [*asked, *map(vote, aborts[:5])], ABORTED)
        nothing = bytes(64)
        for name, code, steps, state in (
            ("a signature of zeros", Code.BAD_SIGNATURE, [*self.voting, vote(replace(honest, sig=nothing))], VOTE),
            ("under another member's name", Code.BAD_SIGNATURE, [*self.voting, vote(replace(honest, i=1))], VOTE),
            ("of no member", Code.NO_SUCH_MEMBER, [*self.voting, vote(replace(honest, i=N))], VOTE),
            ("an abort that nobody asked for", Code.OUT_OF_TURN, [*self.voting, vote(aborts[0])], VOTE),
            ("a commit before the survivors are fixed", Code.OUT_OF_TURN, [*self.masked, vote(honest)], MASK),
            ("both kinds of one member", Code.SECOND_BODY, [*asked, vote(aborts[0]), vote(honest)], ABORTING),
            ("after the quorum", Code.TOO_LATE, [*self.unmasking, self.votes[LAST]], UNMASK),
            ("after the abort", Code.TOO_LATE, [*asked, *map(vote, aborts[:6])], ABORTED),
        ):
            self.tell(f"VOTE: {name}", code, steps, state)

    # --- UNMASK -------------------------------------------------------------------------------------------------------

    def write_answers(self) -> None:
        """Each check of the revealed shares."""
        honest = self.window.answers[0]
        self.tell("UNMASK: good", GOOD, [*self.unmasking, self.answers[0]], UNMASK)
        for name, code, steps in (
            ("a share left out", Code.UNMASK_MALFORMED, [unmask(replace(honest, shares=honest.shares[:-32]))]),
            ("a padding bit", Code.UNMASK_MALFORMED, [unmask(replace(honest, present=b"\xff"))]),
            ("of no member", Code.NO_SUCH_MEMBER, [unmask(replace(honest, i=N))]),
            ("others, after the first", Code.SECOND_BODY, [self.answers[0], unmask(replace(honest, shares=bytes(32 * N)))]),
        ):
            self.tell(f"UNMASK: {name}", code, [*self.unmasking, *steps], UNMASK)
        self.tell("UNMASK: before the quorum", Code.OUT_OF_TURN, [*self.voting, self.answers[0]], VOTE)

    # --- the sum ------------------------------------------------------------------------------------------------------

    def write_sums(self) -> None:
        """From enough right shares to the one right sum, or to none."""
        total = self.window.total()
        result = _sum(self.window)

        def finish(data: bytes) -> dict[str, Any]:
            return {"step": "finish", "total": data, "sum_sha256": result}

        four = [*self.unmasking, *self.answers[:4]]
        enough = [*four, self.answers[4]]
        garbage = Unmask(4, b"\x7f", bytes(range(32)) * N)
        spoilt = bytes([total[0] ^ 1]) + total[1:]
        for name, expect, steps, state in (
            ("of t answers", GOOD, [*enough, finish(total)], "done"),
            ("of all answers", GOOD, [*self.unmasking, *self.answers, finish(total)], "done"),
            ("again", GOOD, [*enough, finish(total), finish(bytes(8))], "done"),
            ("of too few answers", Code.SHORTAGE, [*four, finish(total)], UNMASK),
            (
                "of t answers, one of them wrong",
                Code.BAD_SHARES,
                [*four, unmask(garbage), finish(total)],
                UNMASK,
            ),
            ("of another length", Code.MASKED_MALFORMED, [*enough, finish(total[:-8])], UNMASK),
            ("of a wrong vector", Code.SPOILED_SUM, [*enough, finish(spoilt)], FAILED),
        ):
            self.tell(f"the sum {name}", expect, steps, state)

    # --- CANARIES -----------------------------------------------------------------------------------------------------

    def write_canaries(self) -> None:
        """What survivors tell of a spoiled sum; its truth is judged elsewhere."""
        total = self.window.total()
        spoilt = {"step": "spoiled", "total": bytes([total[0] ^ 1]) + total[1:]}
        failed = [*self.unmasking, *self.answers[:5], spoilt]
        honest = CanaryMasks(0, b"\x7e", bytes(16 * 6))
        self.tell("CANARIES: good", GOOD, [*failed, canaries(honest)], FAILED)
        for name, code, message in (
            ("with an edge to itself", Code.CANARIES_MALFORMED, replace(honest, edges=b"\x7f", masks=bytes(16 * 7))),
            ("with a mask left out", Code.CANARIES_MALFORMED, replace(honest, masks=bytes(16 * 5))),
            ("with a padding bit", Code.CANARIES_MALFORMED, replace(honest, edges=b"\xfe", masks=bytes(16 * 7))),
            ("of no member", Code.NO_SUCH_MEMBER, replace(honest, i=N)),
        ):
            self.tell(f"CANARIES: {name}", code, [*failed, canaries(message)], FAILED)
        self.tell("CANARIES: before the sum", Code.OUT_OF_TURN, [*self.unmasking, canaries(honest)], UNMASK)


def _sum(window: Window) -> bytes:
    """The SHA-256 of the sum that the window must give."""
    collector = Collector.restore(
        window.collector.params.encode(), window.collector.open.roster, SPEC, window.collector.events()
    )
    for answer in window.answers.values():
        collector.on_unmask(answer)
    return collector.finish(bytearray(window.total())).sha256
