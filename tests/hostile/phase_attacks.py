"""Attacks after OPEN: on U2, SURVIVORS, the vote, QUORUM and DONE, and with messages that come in the wrong form or order.

Here belong the rows and the few functions that only they need.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.hostile.attack import Attack, Cut, Late, Reply, Update
from tests.hostile.forging import STRANGER, commit_to, malleated, survivors_of, u2_of, votes, with_msig
from tests.hostile.rule_seven import Ghosts
from tests.hostile.world import HostileServer
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code
from whimbrel_protocol.rules import bitmap
from whimbrel_protocol.transcript import tau1_of

FREE, SPENT, COUNTED = Update.FREE, Update.SPENT, Update.COUNTED
N, FLOOR = 10, 8
ALL = set(range(N))
VOTE, UNMASK = frozenset({"vote"}), frozenset({"unmask"})
CANARIES = frozenset({"canaries"})
COMMIT, ABORT = m.VoteKind.COMMIT, m.VoteKind.ABORT


def without(count: int) -> Callable[[HostileServer], set[int]]:
    """All but some members, the client never among those."""
    return lambda server: ALL - set(server.others[:count])


def u2(members: Callable[[HostileServer], set[int]]) -> Reply:
    """U2 of these members."""
    return lambda server, honest: u2_of(server, members(server))


def changed(**changes: Any) -> Reply:
    """The honest answer with other fields; a change may be a function of server and answer."""

    def reply(server: HostileServer, honest: Any) -> Any:
        return replace(honest, **{name: value(server, honest) if callable(value) else value for name, value in changes.items()})

    return reply


def mostly_garbage(server: HostileServer, honest: m.U2) -> bytes:
    """One ciphertext too few can be opened."""
    return bytes(80 * (N + 1 - FLOOR)) + honest.cts[80 * (N + 1 - FLOOR) :]


def misrouted(server: HostileServer, honest: m.U2) -> bytes:
    """The ciphertexts for another member."""
    return server.window.collector.u2_for(server.others[0]).cts


def padded(server: HostileServer, honest: Any) -> bytes:
    """A bitmap with a bit above the last member."""
    return b"\xff\xff"


# --- SURVIVORS ------------------------------------------------------------------------------------------------------


def msig(make: Callable[[HostileServer, int], bytes]) -> Reply:
    """The survivors, one of them with another signature."""

    def reply(server: HostileServer, honest: m.Survivors) -> m.Survivors:
        i = server.others[2]
        return with_msig(server, honest, i, make(server, i))

    return reply


def own_msig(server: HostileServer, i: int) -> bytes:
    return server.window.collector._heads[i].msig


def over_another_u2(server: HostileServer, i: int) -> bytes:
    """What a member signs that was told another U2."""
    collector = server.window.collector
    return server.companion_at(i).key.sign("masked", tau1_of(collector.tau0, bitmap(ALL - {server.others[0]}, N)))


def of_an_old_window(server: HostileServer, i: int) -> bytes:
    return server.companion_at(i).key.sign("masked", tau1_of(bytes(32), bitmap(ALL, N)))


def of_a_stranger(server: HostileServer, i: int) -> bytes:
    return STRANGER.sign("masked", server.window.collector.tau1)


def of_another_kind(server: HostileServer, i: int) -> bytes:
    return server.companion_at(i).key.sign("vote", server.window.collector.tau1)


def never_dealt(server: HostileServer, honest: m.Survivors) -> m.Survivors:
    """A survivor that the client's U2 left out, with a true signature over the client's tau1."""
    collector = server.window.collector
    absent = next(i for i in range(N) if i not in collector.u2)
    signatures = {i: collector._heads[i].msig for i in collector.u3}
    signatures[absent] = server.companion_at(absent).key.sign("masked", collector.tau1)
    return m.Survivors(bitmap(signatures, N), b"".join(signatures[i] for i in sorted(signatures)))


def one_never_deals(server: HostileServer) -> None:
    server.companions[0].act = lambda collector: None  # type: ignore[method-assign]


# --- votes and certificates -----------------------------------------------------------------------------------------


def ask_abort(server: HostileServer, honest: m.Survivors) -> m.Survivors:
    """The server gives the window up, rightly."""
    server.window.collector.ask_abort()
    return m.Survivors(b"", b"", abort=True)


def on_its_word(server: HostileServer, honest: Any) -> m.Failure:
    """No certificate, but the assurance that the window is over and the update free."""
    return m.Failure(int(Code.PHASE_OVER), "the window was aborted: your update is free")


def abort_by(voters: Callable[[HostileServer], list[int]]) -> Reply:
    return lambda server, honest: votes(server, ABORT, voters(server))


def repeated(server: HostileServer) -> list[int]:
    """As many votes as a certificate needs, of half as many members."""
    half = server.others[:4]
    return sorted([*half, *half])


def few(server: HostileServer) -> list[int]:
    return server.others[: server.window.collector.t - 1]


def forged_abort(server: HostileServer, honest: m.Quorum) -> m.Quorum:
    made = votes(server, ABORT, server.others)
    return replace(made, sigs=STRANGER.sign("vote", b"abort") + made.sigs[64:])


def aborted(name: str, rule: str, code: Code | None, update: Update, certificate: Reply) -> Attack:
    """The client is asked for an abort, and gets a certificate that is none."""
    replies = {"survivors": ask_abort, "quorum": certificate}
    return Attack(name, rule, code, update, replies, after=VOTE)


def malleable_vote(server: HostileServer, honest: m.Quorum) -> bytes:
    return malleated(honest.sigs[:64]) + honest.sigs[64:]


def descending(server: HostileServer, honest: m.Quorum) -> tuple[int, ...]:
    return honest.idx[::-1]


# --- form and order -------------------------------------------------------------------------------------------------


def truncated(server: HostileServer, honest: Any) -> bytes:
    data = wire.encode(honest)
    return data[: len(data) // 2]


def instead(make: Callable[[HostileServer], Any]) -> Reply:
    """Another message altogether."""
    return lambda server, honest: make(server)


def once_cut(name: str) -> Reply:
    """The first answer of this name is lost: the client repeats itself."""
    return lambda server, honest: Cut() if server.told[name] == 1 else honest


def busy_at_first(server: HostileServer, honest: Any) -> Any:
    """The answer is withheld twice after the message was taken: will the client say it otherwise?"""
    return m.Failure(int(Code.BUSY), "once more, please") if server.told["accepted unmask"] <= 2 else honest


def late(server: HostileServer, honest: Any) -> Late:
    """Every answer takes its time, but within the client's patience."""
    return Late(honest, 0.4)


def blamed_otherwise(server: HostileServer, honest: m.Done) -> m.Blame:
    """The client is asked for its canary masks rightly, and then with another word."""
    return m.Blame(server.window.collector.tau1 if server.told["done"] == 1 else bytes(32))


def haunted(server: HostileServer) -> None:
    server.plot = Ghosts(server)


def struck(name: str, rule: str, code: Code | None, update: Update, reply: Reply, **more: Any) -> Attack:
    """An attack whose one stroke is an answer of the phase that its name begins with."""
    return Attack(name, rule, code, update, {name.split("-")[0]: reply}, **more)


PHASE_ATTACKS: tuple[Attack, ...] = (
    struck("u2-of-wrong-length", "1.5 U2: well-formed", Code.U2_MALFORMED, FREE, changed(cts=lambda s, h: h.cts[:-80])),
    struck("u2-with-a-padding-bit", "1.5 U2: well-formed", Code.U2_MALFORMED, FREE, changed(bitmap=padded)),
    struck("u2-without-the-client", "1.5 U2: self in it", Code.U2_WITHOUT_SELF, FREE,
           lambda s, h: m.U2(bitmap(ALL - {s.i}, N), h.cts[80:])),
    struck("u2-under-the-floor", "1.5 U2: s_min members", Code.U2_TOO_SMALL, FREE, u2(without(3))),
    struck("u2-of-dead-members", "1.5 U2: s_min shares at hand", Code.U2_SHARES_MISSING, FREE, changed(cts=mostly_garbage)),
    struck("u2-misrouted", "1.5 U2: s_min shares at hand", Code.U2_SHARES_MISSING, FREE, changed(cts=misrouted)),
    struck("u2-before-its-time", "1.9 order: the table's", Code.OUT_OF_TURN, FREE,
           instead(lambda s: m.Survivors(bitmap(ALL, N), bytes(64 * N)))),
    struck("u2-truncated", "1.5 repeats: one message a phase", Code.MALFORMED, FREE, truncated),
    struck("u2-another-open", "1.5 OPEN: the first only", Code.UNEXPECTED_MESSAGE, FREE,
           instead(lambda s: m.Open(s.window.collector.open.params, s.window.collector.open.roster))),
    struck("survivors-of-wrong-length", "1.5 SURVIVORS: well-formed", Code.SURVIVORS_MALFORMED, SPENT,
           changed(msigs=lambda s, h: h.msigs[:-1])),
    struck("survivors-with-a-padding-bit", "1.5 SURVIVORS: well-formed", Code.SURVIVORS_MALFORMED, SPENT,
           changed(bitmap=padded)),
    struck("survivors-not-in-u2", "1.5 SURVIVORS: within U2", Code.SURVIVORS_NOT_IN_U2, SPENT,
           never_dealt, set_up=one_never_deals),
    struck("survivors-under-the-floor", "1.5 SURVIVORS: s_min members", Code.SURVIVORS_TOO_FEW, SPENT,
           lambda s, h: survivors_of(s, without(3)(s))),
    struck("survivors-missing-signature", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT,
           msig(lambda s, i: bytes(64))),
    struck("survivors-foreign-signature", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT, msig(of_a_stranger)),
    struck("survivors-old-signature", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT, msig(of_an_old_window)),
    struck("survivors-signature-of-another-kind", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT,
           msig(of_another_kind)),
    struck("survivors-malleable-signature", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT,
           msig(lambda s, i: malleated(own_msig(s, i)))),
    struck("survivors-with-another-u2", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT, msig(over_another_u2)),
    Attack("survivors-who-are-ghosts", "1.5 SURVIVORS: every msig", Code.SURVIVORS_SIGNATURE, SPENT, set_up=haunted, n=13),
    struck("survivors-another-u2-message", "1.5 U2: the first only", Code.UNEXPECTED_MESSAGE, SPENT,
           instead(lambda s: u2_of(s, without(1)(s)))),
    struck("survivors-before-their-time", "1.9 order: the table's", Code.UNEXPECTED_MESSAGE, SPENT,
           instead(lambda s: commit_to(s, ALL))),
    struck("quorum-two-survivor-sets", "1.5 QUORUM: the body voted for", Code.QUORUM_OTHER_BODY, SPENT,
           lambda s, h: commit_to(s, without(1)(s))),
    struck("quorum-another-u2", "1.5 QUORUM: the body voted for", Code.QUORUM_OTHER_BODY, SPENT,
           lambda s, h: votes(s, COMMIT, s.others, bytes(32), bitmap(ALL, N))),
    struck("quorum-too-few", "1.5 QUORUM: t votes", Code.QUORUM_TOO_FEW, SPENT, lambda s, h: commit_to(s, ALL, few(s))),
    struck("quorum-of-repeated-members", "1.5 QUORUM: indices ascend", Code.QUORUM_INDICES, SPENT,
           lambda s, h: commit_to(s, ALL, repeated(s))),
    struck("quorum-out-of-order", "1.5 QUORUM: indices ascend", Code.QUORUM_INDICES, SPENT, changed(idx=descending)),
    struck("quorum-of-a-stranger", "1.5 QUORUM: indices ascend", Code.QUORUM_INDICES, SPENT,
           changed(idx=lambda s, h: (*h.idx[:-1], N))),
    struck("quorum-forged", "1.5 QUORUM: every vote", Code.QUORUM_SIGNATURE, SPENT,
           changed(sigs=lambda s, h: STRANGER.sign("vote", b"") + h.sigs[64:])),
    struck("quorum-malleable", "1.5 QUORUM: every vote", Code.QUORUM_SIGNATURE, SPENT, changed(sigs=malleable_vote)),
    struck("quorum-of-wrong-length", "1.5 QUORUM: well-formed", Code.QUORUM_MALFORMED, SPENT,
           changed(sigs=lambda s, h: h.sigs[64:])),
    struck("quorum-with-a-padding-bit", "1.5 QUORUM: well-formed", Code.QUORUM_MALFORMED, SPENT, changed(u3=padded)),
    struck("quorum-truncated", "1.5 repeats: one message a phase", Code.MALFORMED, SPENT, truncated),
    struck("quorum-vote-asked-twice", "1.5 VOTE: one in a window", Code.UNEXPECTED_MESSAGE, SPENT,
           instead(lambda s: m.Survivors(b"", b"", abort=True))),
    struck("quorum-second-survivor-set", "1.5 VOTE: one in a window", Code.UNEXPECTED_MESSAGE, SPENT,
           instead(lambda s: survivors_of(s, without(1)(s)))),
    aborted("abort-on-the-servers-word", "3 freed by a certificate alone", Code.PHASE_OVER, SPENT, on_its_word),
    aborted("abort-forged", "1.5 abort certificate: t votes", Code.QUORUM_SIGNATURE, SPENT, forged_abort),
    aborted("abort-by-too-few", "1.5 abort certificate: t votes", Code.QUORUM_TOO_FEW, SPENT, abort_by(few)),
    aborted("abort-by-repeated-members", "1.5 abort certificate: t votes", Code.QUORUM_INDICES, SPENT, abort_by(repeated)),
    aborted("abort-vote-then-commit", "1.5 VOTE: one in a window", None, SPENT, lambda s, h: commit_to(s, ALL)),
    Attack("abort-rightly", "1.5 abort certificate: t votes", None, FREE, {"survivors": ask_abort}, after=VOTE),
    struck("done-another-lane", "1.5 DONE: own lane", Code.DONE_LANE, SPENT, changed(lane=bytes(32))),
    struck("done-both-shares-asked", "1.5 UNMASK: never both, only once", Code.UNEXPECTED_MESSAGE, SPENT,
           instead(lambda s: commit_to(s, without(1)(s)))),
    struck("done-blame-of-another-window", "1.9 blame: own window", Code.BLAME_OTHER_WINDOW, SPENT,
           instead(lambda s: m.Blame(bytes(32)))),
    struck("done-blame-twice", "1.9 blame: only once", Code.SECOND_BODY, SPENT, blamed_otherwise, after=CANARIES),
    struck("done-blame-without-end", "1.9 blame: only once", None, COUNTED,
           instead(lambda s: m.Blame(s.window.collector.tau1)), after=CANARIES),
    Attack("unmask-asked-again", "1.5 UNMASK: never both, only once", None, COUNTED,
           {"accepted unmask": busy_at_first}, after=UNMASK),
    Attack("answers-lost", "1.5 repeats: the stored answer again", None, COUNTED,
           {f"accepted {name}": once_cut(f"accepted {name}") for name in ("shares", "masked", "put", "vote", "unmask")},
           after=frozenset({"shares", "masked", "put", "vote", "unmask"})),
    Attack("answers-delayed", "1.5 repeats: the stored answer again", None, COUNTED,
           dict.fromkeys(("u2", "survivors", "quorum", "done"), late),
           after=frozenset({"masked", "put", "vote", "unmask"})),
)  # fmt: skip
