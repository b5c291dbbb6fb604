"""Cases of a member after OPEN: U2, the masked vector, SURVIVORS, QUORUM, certificates, repeats, and a restart."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from typing import Any

from whimbrel_lab.bad_vectors.book import GOOD, Book
from whimbrel_lab.bad_vectors.openings import params
from whimbrel_lab.bad_vectors.scene import N, Window, policy
from whimbrel_lab.bad_vectors.stories import ENDED, OTHER, VICTIM, Teller, bare, blame, certificate, done, quorum
from whimbrel_protocol.errors import Code
from whimbrel_protocol.messages import U2, Quorum, Survivors, VoteKind
from whimbrel_protocol.rules import bitmap

ALL = frozenset(range(N))
FIVE = [0, 1, 3, 4, 6]
MASKING, COMMITTED, RELEASED, ABORTED = "masking", "committed", "released", "aborted"
ABORT = Survivors(b"", b"", abort=True)


def write(book: Book) -> None:
    """All of the chapter."""
    chapter = Chapter(book)
    chapter.write_u2()
    chapter.write_vectors()
    chapter.write_survivors()
    chapter.write_quorums()
    chapter.write_blames()
    chapter.write_certificates()
    chapter.write_order()
    chapter.write_restarts()
    _write_outsider(book)


class Chapter:
    """The stories, each told from the start."""

    def __init__(self, book: Book) -> None:
        self.window = Window()
        self.teller = Teller(book, self.window)
        self.tell = self.teller.tell
        self.window.votes  # noqa: B018  # everything honest is made once
        self.opened = [self.teller.open()]
        self.dealt = [*self.opened, self.teller.u2()]
        self.masked = [*self.dealt, *self.teller.masks()]
        self.voted = [*self.masked, self.teller.survivors()]

    # --- U2 -----------------------------------------------------------------------------------------------------------

    def write_u2(self) -> None:
        """Each check of U2."""
        honest, other = (self.window.collector.u2_for(i) for i in (VICTIM, OTHER))
        self.tell("U2: good", GOOD, self.dealt, MASKING)
        two_unreadable = bytes(160) + honest.cts[160:]
        self.tell(
            "U2: two shares that cannot be read", GOOD, [*self.opened, self.teller.u2(U2(b"\x7f", two_unreadable))], MASKING
        )
        for name, code, message in (
            ("a padding bit", Code.U2_MALFORMED, U2(b"\xff", honest.cts)),
            ("a bitmap too long", Code.U2_MALFORMED, U2(b"\x7f\0", honest.cts)),
            ("a ciphertext left out", Code.U2_MALFORMED, U2(b"\x7f", honest.cts[:-80])),
            ("without this member", Code.U2_WITHOUT_SELF, self.u2_of(ALL - {VICTIM}, bytes(400))),
            ("below the survivor floor", Code.U2_TOO_SMALL, self.u2_of({0, 1, VICTIM, 3})),
            ("three shares that cannot be read", Code.U2_SHARES_MISSING, U2(b"\x7f", bytes(240) + honest.cts[240:])),
            ("another member's shares", Code.U2_SHARES_MISSING, U2(b"\x7f", other.cts)),
        ):
            self.tell(f"U2: {name}", code, [*self.opened, self.teller.u2(message)], ENDED)

    def u2_of(self, members: Collection[int], cts: bytes | None = None) -> U2:
        """U2 of these members, with their ciphertexts."""
        honest = self.window.collector.u2_for(VICTIM).cts
        senders = [j for j in range(N) if j != VICTIM]
        kept = b"".join(honest[80 * at : 80 * at + 80] for at, j in enumerate(senders) if j in members)
        return U2(bitmap(members, N), kept if cts is None else cts)

    # --- the vector ---------------------------------------------------------------------------------------------------

    def write_vectors(self) -> None:
        """A chunk is masked whole, in its place, and never changed."""
        plain = self.window.plain(VICTIM)
        changed = bytes([plain[0] ^ 1]) + plain[1:]

        def mask(data: bytes, first_word: int = 0) -> dict[str, Any]:
            return {"step": "mask", "plain": data, "first_word": first_word}

        self.tell("MASKED: good", GOOD, self.masked, MASKING)
        self.tell("MASKED: a chunk again", GOOD, [*self.masked, mask(plain)], MASKING)
        for name, code, step in (
            ("a chunk that changed", Code.UPDATE_CHANGED, mask(changed)),
            ("a chunk cut", Code.UPDATE_OUT_OF_RANGE, mask(plain[:-8])),
            ("a chunk too long", Code.UPDATE_OUT_OF_RANGE, mask(plain + bytes(8))),
            ("a chunk at an odd place", Code.UPDATE_OUT_OF_RANGE, mask(plain, 1)),
            ("a second announcement", Code.SECOND_BODY, {"step": "head", "sha256": bytes(32)}),
        ):
            self.tell(f"MASKED: {name}", code, [*self.masked, step], MASKING)

    # --- SURVIVORS ----------------------------------------------------------------------------------------------------

    def write_survivors(self) -> None:
        """Each check of the survivors; nothing is voted for after one that fails."""
        self.tell("SURVIVORS: good", GOOD, self.voted, COMMITTED)
        without = self.survivors_of(ALL - {VICTIM})
        self.tell("SURVIVORS: without this member", GOOD, [*self.masked, self.teller.survivors(without)], COMMITTED)
        self.tell("SURVIVORS: an abort is asked for", GOOD, [*self.masked, self.teller.survivors(ABORT)], ABORTED)
        for name, code, message in self.bad_survivors():
            self.tell(f"SURVIVORS: {name}", code, [*self.masked, self.teller.survivors(message)], ENDED)

    def survivors_of(self, members: Collection[int]) -> Survivors:
        """SURVIVORS of these members, with their signatures."""
        honest = self.window.collector.survivors.msigs
        return Survivors(bitmap(members, N), b"".join(honest[64 * i : 64 * i + 64] for i in sorted(members)))

    def bad_survivors(self) -> Iterator[tuple[str, Code, Survivors]]:
        """Each check of the survivors."""
        honest = self.window.collector.survivors
        yield "a padding bit", Code.SURVIVORS_MALFORMED, replace(honest, bitmap=b"\xff")
        yield "no bitmap", Code.SURVIVORS_MALFORMED, Survivors(b"", b"")
        yield "a signature cut", Code.SURVIVORS_MALFORMED, replace(honest, msigs=honest.msigs[:-1])
        yield "a signature left out", Code.SURVIVORS_MALFORMED, replace(honest, msigs=honest.msigs[:-64])
        yield "below the floor", Code.SURVIVORS_TOO_FEW, self.survivors_of({0, 1, 2, 3})
        yield "a missing signature", Code.SURVIVORS_SIGNATURE, replace(honest, msigs=bytes(64) + honest.msigs[64:])
        swapped = honest.msigs[64:128] + honest.msigs[:64] + honest.msigs[128:]
        yield "two signatures exchanged", Code.SURVIVORS_SIGNATURE, replace(honest, msigs=swapped)
        told = Window(dealers=range(N - 1))
        told.vectors  # noqa: B018
        yield "members that were told another U2", Code.SURVIVORS_SIGNATURE, told.collector.survivors
        elsewhere = Window(policy(n_min=6))
        elsewhere.vectors  # noqa: B018
        ghost = elsewhere.collector.survivors.msigs[64 * OTHER : 64 * OTHER + 64]
        msigs = honest.msigs[: 64 * OTHER] + ghost + honest.msigs[64 * OTHER + 64 :]
        yield "a ghost: a true signature from another window", Code.SURVIVORS_SIGNATURE, replace(honest, msigs=msigs)

    # --- QUORUM -------------------------------------------------------------------------------------------------------

    def commit(self, voters: list[int], u3: Collection[int] = ALL, tau1: bytes | None = None) -> Quorum:
        """A commit certificate with these members' true signatures."""
        return self.window.certificate(VoteKind.COMMIT, voters, tau1, bitmap(u3, N))

    def abort(self, voters: list[int], **parts: bytes) -> Quorum:
        """An abort certificate with these members' true signatures."""
        return self.window.certificate(VoteKind.ABORT, voters, **parts)

    def write_quorums(self) -> None:
        """Each check of the quorum; nothing is revealed after one that fails."""
        good = quorum(self.commit(FIVE))
        self.tell("QUORUM: good", GOOD, [*self.voted, good], RELEASED)
        self.tell("QUORUM: all members", GOOD, [*self.voted, quorum(self.commit(sorted(ALL)))], RELEASED)
        others = quorum(self.commit([0, 1, 2, 3, 5]))
        self.tell("QUORUM: again, proved by other votes", GOOD, [*self.voted, good, others], RELEASED)
        for name, code, message in self.bad_quorums():
            self.tell(f"QUORUM: {name}", code, [*self.voted, quorum(message)], ENDED)

    def bad_quorums(self) -> Iterator[tuple[str, Code, Quorum]]:
        """Each check of the quorum."""
        good = self.commit(FIVE)
        yield "other survivors than voted for", Code.QUORUM_OTHER_BODY, self.commit(FIVE, ALL - {6})
        yield "another U2 than voted for", Code.QUORUM_OTHER_BODY, self.commit(FIVE, tau1=bytes(32))
        yield "an abort certificate", Code.QUORUM_OTHER_BODY, self.abort(FIVE)
        yield "one vote too few", Code.QUORUM_TOO_FEW, self.commit(FIVE[:-1])
        yield "indices that descend", Code.QUORUM_INDICES, self.commit([0, 1, 3, 6, 4])
        yield "one vote twice", Code.QUORUM_INDICES, self.commit([0, 1, 3, 3, 4])
        yield "one member five times", Code.QUORUM_INDICES, self.commit([0] * 5)
        yield "an index above the members", Code.QUORUM_INDICES, replace(good, idx=(0, 1, 3, 4, 7))
        yield "a signature left out", Code.QUORUM_MALFORMED, replace(good, sigs=good.sigs[:-64])
        yield "a signature of zeros", Code.QUORUM_SIGNATURE, replace(good, sigs=bytes(64) + good.sigs[64:])
        yield "votes under other members' names", Code.QUORUM_SIGNATURE, replace(good, idx=(0, 1, 2, 3, 4))

    # --- BLAME --------------------------------------------------------------------------------------------------------

    def write_blames(self) -> None:
        """What a member tells of a spoiled sum, once, after its own UNMASK."""
        released = [*self.voted, quorum(self.commit(FIVE))]
        tau1 = self.window.collector.tau1
        left_out = self.teller.survivors(self.survivors_of(ALL - {VICTIM}))
        excluded = [*self.masked, left_out, quorum(self.commit(FIVE, ALL - {VICTIM}))]
        self.tell("BLAME: good", GOOD, [*released, blame(tau1)], "shown")
        self.tell("BLAME: again", GOOD, [*released, blame(tau1), blame(tau1)], "shown")
        for name, code, steps, state in (
            ("of another window", Code.BLAME_OTHER_WINDOW, [*released, blame(bytes(32))], ENDED),
            ("for a member that is not in the sum", Code.BLAME_NOT_SURVIVED, [*excluded, blame(tau1)], ENDED),
            ("before UNMASK", Code.OUT_OF_TURN, [*self.voted, blame(tau1)], COMMITTED),
            ("another, after the first", Code.SECOND_BODY, [*released, blame(tau1), blame(bytes(32))], "shown"),
        ):
            self.tell(f"BLAME: {name}", code, steps, state)

    # --- what frees an update -----------------------------------------------------------------------------------------

    def write_certificates(self) -> None:
        """An abort or an exclusion frees, a commit spends, and nothing less than t votes does anything."""
        before = self.masked
        without = self.commit(FIVE, ALL - {VICTIM})
        for name, message, verdict, state in (
            ("an abort frees", self.abort(FIVE), "freed", ENDED),
            ("an exclusion frees", without, "freed", MASKING),
            ("an exclusion under any U2 frees", self.commit(FIVE, ALL - {VICTIM}, bytes(32)), "freed", MASKING),
            ("a commit spends", self.commit(FIVE), "spent", MASKING),
        ):
            self.tell(f"certificate: {name}", GOOD, [*before, certificate(message, verdict)], state)
        for name, code, message in self.bad_certificates():
            self.tell(f"certificate: {name}", code, [*before, certificate(message)], MASKING)
        released = [*self.voted, quorum(self.commit(FIVE)), certificate(self.abort(FIVE))]
        self.tell("certificate: an abort after shares were revealed", Code.OUT_OF_TURN, released, RELEASED)

    def bad_certificates(self) -> Iterator[tuple[str, Code, Quorum]]:
        """Each check of a certificate."""
        good, excluded = self.commit(FIVE), ALL - {VICTIM}
        yield "an abort with one vote too few", Code.QUORUM_TOO_FEW, self.abort(FIVE[:-1])
        yield "an abort with repeated votes", Code.QUORUM_INDICES, self.abort([0, 0, 1, 1, 3])
        yield "an abort that names a U2", Code.QUORUM_MALFORMED, self.abort(FIVE, tau1=b"1" * 32)
        yield "an abort that names survivors", Code.QUORUM_MALFORMED, self.abort(FIVE, u3=b"\x7f")
        yield "a commit without a bitmap", Code.QUORUM_MALFORMED, replace(good, u3=b"")
        yield "a commit with a padding bit", Code.QUORUM_MALFORMED, replace(good, u3=b"\xfb")
        yield "an abort with a signature cut", Code.QUORUM_MALFORMED, replace(self.abort(FIVE), sigs=bytes(319))
        forged = replace(good, u3=bitmap(excluded, N))
        yield "a commit with other survivors than signed", Code.QUORUM_SIGNATURE, forged
        elsewhere = Window(policy(n_min=6)).certificate(VoteKind.ABORT, FIVE)
        yield "an abort of another window", Code.QUORUM_SIGNATURE, elsewhere
        relabelled = replace(self.abort(FIVE), kind=VoteKind.COMMIT, u3=bitmap(excluded, N))
        yield "abort votes shown as commits", Code.QUORUM_SIGNATURE, relabelled

    # --- order, repeats, receipts -------------------------------------------------------------------------------------

    def write_order(self) -> None:
        """Messages before or after their time, again, and with another body."""
        teller, commit, abort = self.teller, quorum(self.commit(FIVE)), bare("abort")
        vector, released = teller.masks()[0], [*self.voted, commit]
        fewer, freed = ALL - {6}, certificate(self.abort(FIVE), "freed")
        twice = [step for step in (*released, done()) for _ in range(2)]
        for name, code, steps, state in (
            ("U2 before OPEN", Code.OUT_OF_TURN, [self.teller.u2()], "joined"),
            ("SURVIVORS before U2", Code.OUT_OF_TURN, [*self.opened, self.teller.survivors()], "shared"),
            ("QUORUM before SURVIVORS", Code.OUT_OF_TURN, [*self.masked, commit], MASKING),
            ("a vector before U2", Code.OUT_OF_TURN, [*self.opened, vector], "shared"),
            ("the receipt before QUORUM", Code.OUT_OF_TURN, [*self.voted, done()], COMMITTED),
            ("an abort vote before OPEN", Code.OUT_OF_TURN, [bare("abort")], "joined"),
            ("another OPEN", Code.SECOND_BODY, [*self.opened, teller.open(params(self.window, window_id=2))], "shared"),
            ("another U2", Code.SECOND_BODY, [*self.dealt, teller.u2(self.u2_of(fewer))], MASKING),
            (
                "other survivors",
                Code.SECOND_BODY,
                [*self.voted, self.teller.survivors(self.survivors_of(ALL - {6}))],
                COMMITTED,
            ),
            ("another QUORUM", Code.SECOND_BODY, [*released, quorum(self.commit(FIVE, fewer))], RELEASED),
            ("an abort vote after a commit", Code.TOO_LATE, [*self.voted, bare("abort")], COMMITTED),
            ("an abort is asked for after a commit", Code.TOO_LATE, [*self.voted, self.teller.survivors(ABORT)], COMMITTED),
            ("survivors after an abort vote", Code.TOO_LATE, [*self.masked, bare("abort"), self.teller.survivors()], ABORTED),
            ("U2 after an abort vote", Code.TOO_LATE, [*self.opened, bare("abort"), self.teller.u2()], ABORTED),
            ("a vector after an abort vote", Code.TOO_LATE, [*self.dealt, abort, vector], ABORTED),
            ("QUORUM after an abort vote", Code.OUT_OF_TURN, [*self.masked, abort, commit], ABORTED),
            ("a vector after an abort certificate", Code.WINDOW_ENDED, [*self.dealt, freed, vector], ENDED),
            ("the receipt of another lane", Code.DONE_LANE, [*released, done(bytes(32))], RELEASED),
            ("a receipt", GOOD, [*released, done()], "done"),
            ("everything twice", GOOD, twice, "done"),
        ):
            self.tell(f"order: {name}", code, steps, state)

    # --- after the process's death ------------------------------------------------------------------------------------

    def write_restarts(self) -> None:
        """A restarted device has no keys: it casts the one vote that it has not cast, and judges certificates."""
        masked, voted = [*self.masked, bare("restart")], [*self.voted, bare("restart")]
        good, other = self.teller.survivors(), self.teller.survivors(self.survivors_of(ALL - {6}))
        for name, expect, steps in (
            ("commits", GOOD, [*masked, good]),
            ("commits to the same again", GOOD, [*voted, good]),
            ("aborts", GOOD, [*masked, bare("abort")]),
            ("aborts again", GOOD, [*masked, bare("abort"), bare("abort")]),
            ("is freed by an abort", GOOD, [*masked, certificate(self.abort(FIVE), "freed")]),
            ("is spent by a commit", GOOD, [*voted, certificate(self.commit(FIVE), "spent")]),
            ("commits to others than before", Code.VOTED_BEFORE, [*voted, other]),
            ("aborts after a commit", Code.VOTED_BEFORE, [*voted, bare("abort")]),
            ("commits after an abort", Code.VOTED_BEFORE, [*masked, bare("abort"), good]),
            ("commits before U2", Code.OUT_OF_TURN, [*self.opened, bare("restart"), good]),
            ("is told of too few votes", Code.QUORUM_TOO_FEW, [*masked, certificate(self.abort(FIVE[1:]))]),
        ):
            self.tell(f"restart: the device {name}", expect, steps, "restarted")


def _write_outsider(book: Book) -> None:
    """A survivor that never dealt, though its signature over this U2 is right."""
    window = Window(dealers=range(N - 1))
    teller = Teller(book, window)
    window.vectors  # noqa: B018
    honest = window.collector.survivors
    padded = Survivors(b"\x7f", honest.msigs + window.identities[N - 1].key.sign("masked", window.collector.tau1))
    steps = [teller.open(), teller.u2(window.collector.u2_for(VICTIM)), teller.survivors(padded)]
    teller.tell("SURVIVORS: a member that is not in U2", Code.SURVIVORS_NOT_IN_U2, steps, ENDED)
