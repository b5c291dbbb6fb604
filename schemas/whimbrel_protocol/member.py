"""A member's side of one masking window, from JOIN to DONE: no I/O, no clock, a function of rho and the messages.

Here belongs what an accepted message causes and what leaves the device in answer. The order of states is `window.py`'s
table, the conditions are `checks.py`'s, the durable part is `spent.py`'s record, which the caller stores where the
methods say so.

Each answer is kept: a byte-identical repeat of a message gets it again, a different message for the same phase is
refused and changes nothing. A first message that fails a check ends the window for this member: it keeps quiet and its
keys are dropped (CPython cannot promise that no copy stays in memory). The caller lets one thread at a time use a
member.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, TypeVar, cast

from whimbrel_protocol.blame import canary_mask
from whimbrel_protocol.checks import (
    BLAME_CHECKS,
    SHARES_CHECKS,
    Accusation,
    Dealing,
    Opening,
    Terms,
    check_all,
    check_certificate,
    check_open,
    check_u2,
    read_open,
)
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.masks import (
    CHUNK_WORDS,
    CIPHERTEXT_BYTES,
    SHARE_BYTES,
    WORD_BYTES,
    Channel,
    MaskKeys,
    PairMask,
    WindowKeys,
    bcommit_of,
    exchange_all,
    member_masks,
    pair_mask,
    self_key,
)
from whimbrel_protocol.messages import (
    U2,
    Blame,
    CanaryMasks,
    Done,
    MaskedHead,
    Open,
    Quorum,
    Shares,
    Survivors,
    Unmask,
    Vote,
    VoteKind,
)
from whimbrel_protocol.objects import Certificate, JoinEntry, VectorSpec
from whimbrel_protocol.primitives import SigningKey, sha256
from whimbrel_protocol.rules import COMPLETE, bitmap, members_of
from whimbrel_protocol.signed import Policy
from whimbrel_protocol.spent import SpentRecord, Verdict, verify_certificate
from whimbrel_protocol.transcript import Cohort, shares_body, tau1_of
from whimbrel_protocol.trust import demand
from whimbrel_protocol.window import MEMBER, Machine, MemberEvent, MemberState, Outcome

Answer = TypeVar("Answer")


@dataclass(frozen=True, repr=False)
class Identity:
    """A device's name, its Ed25519 key and the certificate (172 bytes) that binds them."""

    device: bytes
    key: SigningKey
    certificate: bytes


@dataclass(repr=False)
class _Secrets:
    """All that is dropped when the window ends for the member, however it ends."""

    keys: WindowKeys
    channels: Mapping[int, bytes]
    pairs: Mapping[int, bytes]
    shares: dict[int, bytes]
    p32: int = COMPLETE
    masks: MaskKeys | None = None


class Trust(NamedTuple):
    """What a member believes before any message: the verified policy and the authority's key."""

    policy: Policy
    root: bytes


class Member:
    """One device in one window. Made by `join`; then each message once, in the order of the protocol."""

    def __init__(self, entry: JoinEntry, key: SigningKey, keys: WindowKeys, spec: VectorSpec, trust: Trust) -> None:
        self._entry = entry
        self._key = key
        self._spec = spec
        self._trust = trust
        self._machine = Machine(MEMBER, MemberState.JOINED)
        self._answers: dict[MemberEvent, tuple[object, object]] = {}
        self._frozen: dict[int, bytes] = {}
        self._secrets: _Secrets | None = _Secrets(keys, {}, {}, {})
        self._canary_masks: dict[int, bytes] = {}  # by edge, 16 bytes: all that outlives the keys, in case of a BLAME
        self._record: SpentRecord | None = None

    # --- JOIN ---------------------------------------------------------------------------------------------------------

    @classmethod
    def join(
        cls,
        identity: Identity,
        *,
        lane: bytes,
        spec: VectorSpec,
        policy: Policy,
        root: bytes,
        rho: bytes,
        seq: int,
        expires: int,
    ) -> Self:
        """A member with fresh window keys for one update of one lane.

        `policy` is verified, `root` the authority's key, `rho` 32 bytes from the operating system that serve this once,
        `seq` the device's join counter, `expires` Unix seconds at most 15 minutes ahead. Raises RuleError KEY_MISMATCH
        or OTHER_FLEET for a certificate that is not this device's.
        """
        certificate = Certificate.decode(identity.certificate)
        named = (certificate.device, certificate.public_key) == (identity.device, identity.key.public)
        demand(named, Code.KEY_MISMATCH)
        demand(certificate.fleet == policy.fleet, Code.OTHER_FLEET)
        keys = WindowKeys.derive(rho, identity.device)
        entry = JoinEntry.sign(
            identity.key,
            certificate=certificate,
            fleet=policy.fleet,
            device=identity.device,
            lane=lane,
            mask_key=keys.mask_key,
            channel_key=keys.channel_key,
            nonce=keys.nonce,
            seq=seq,
            expires=expires,
        )
        return cls(entry, identity.key, keys, spec, Trust(policy, root))

    @property
    def entry(self) -> bytes:
        """The join entry, 404 bytes."""
        return self._entry.encode()

    @property
    def state(self) -> MemberState:
        """Where this member stands."""
        return self._machine.state

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many messages were accepted, repeated, rejected (wrong or early) and discarded (late)."""
        return self._machine.counts

    @property
    def record(self) -> SpentRecord:
        """What must be durable now: the U2 masked with and the vote cast. Raises RuleError OUT_OF_TURN before OPEN."""
        if self._record is None:
            raise RuleError(Code.OUT_OF_TURN, "no window before OPEN")
        return self._record

    # --- OPEN -> SHARES -----------------------------------------------------------------------------------------------

    def on_open(self, message: Open, now: int, policy_now: Policy) -> Shares:
        """Check the roster and deal the shares.

        `now` is the latest of the last check-in, the own clock and any not_before that was verified; `policy_now` the
        newest policy accepted, which must still be the one of the join.
        """
        return self._answer(MemberEvent.OPEN, message, lambda: self._deal(message, now, policy_now))

    def _deal(self, message: Open, now: int, policy_now: Policy) -> Shares:
        params, entries = read_open(message)
        terms = Terms(self._entry.fleet, self._entry.lane, self._trust.policy, self._trust.root, now)
        newest = policy_now.serial
        check_open(Opening(params, entries, message.roster, terms, self._spec, self.entry, newest))
        i, secrets = message.roster.index(self.entry), self._held
        others = [(j, entry) for j, entry in enumerate(entries) if j != i]
        secrets.channels = exchange_all(secrets.keys.channel_secret, [(j, e.channel_key) for j, e in others])
        secrets.pairs = exchange_all(secrets.keys.mask_secret, [(j, e.mask_key) for j, e in others])
        secrets.p32 = params.p32
        self._record = SpentRecord(Cohort.of(params, message.roster, entries), i)
        return self._sealed_shares(secrets)

    def _sealed_shares(self, secrets: _Secrets) -> Shares:
        tau0, i, n, t = self.record.cohort.tau0, self.record.i, self.record.cohort.n, self.record.cohort.t
        dealt = secrets.keys.deal(n, t)
        secrets.shares[i] = dealt[i]
        cts = b"".join(Channel(secrets.channels[j], tau0, i, j).seal(dealt[j]) for j in range(n) if j != i)
        bcommit = bcommit_of(tau0, i, secrets.keys.self_seed)
        return Shares(i, tau0, cts, bcommit, self._key.sign("shares", shares_body(tau0, i, bcommit, cts)))

    # --- U2 -> MASKED -------------------------------------------------------------------------------------------------

    def on_u2(self, message: U2) -> SpentRecord:
        """Take the others' shares and derive the masks.

        The caller stores the record, and with it that the update is spent, before it asks for the first masked byte.
        """
        self._answer(MemberEvent.U2, message, lambda: self._take_shares(message))
        # Not the stored answer: a vote may have been cast since, and a record without it would allow a second one.
        return self.record

    def _take_shares(self, message: U2) -> None:
        cohort, i, secrets = self.record.cohort, self.record.i, self._held
        u2 = check_u2(message, cohort.n, i, cohort.s_min)
        for at, j in enumerate(j for j in u2 if j != i):
            ciphertext = message.cts[CIPHERTEXT_BYTES * at : CIPHERTEXT_BYTES * (at + 1)]
            shares = Channel(secrets.channels[j], cohort.tau0, j, i).unseal(ciphertext)
            if shares is not None:
                secrets.shares[j] = shares
        check_all(SHARES_CHECKS, Dealing(i, cohort.s_min, u2, secrets.shares.keys()))
        self._record = replace(self.record, tau1=tau1_of(cohort.tau0, message.bitmap), u2=message.bitmap)
        secrets.masks = self._masks(u2, secrets)

    def _masks(self, u2: tuple[int, ...], secrets: _Secrets) -> MaskKeys:
        i, tau1 = self.record.i, self.record.tau1
        return member_masks(i, self_key(secrets.keys.self_seed, tau1, i), self._pair_masks(u2, secrets), secrets.p32)

    def _pair_masks(self, u2: tuple[int, ...], secrets: _Secrets) -> list[tuple[int, PairMask]]:
        i, tau1 = self.record.i, self.record.tau1
        return [(j, pair_mask(secrets.pairs[j], tau1, i, j)) for j in u2 if j != i]

    def mask(self, plain: bytes) -> bytes:
        """The whole masked vector, 8 * words bytes, of the packed update; errors as for `mask_chunk`."""
        demand(len(plain) == WORD_BYTES * self._spec.words, Code.UPDATE_OUT_OF_RANGE, "size of the packed update")
        view = memoryview(plain)
        starts = range(0, self._spec.words, CHUNK_WORDS)
        return b"".join(self.mask_chunk(view[WORD_BYTES * at : WORD_BYTES * (at + CHUNK_WORDS)], at) for at in starts)

    def mask_chunk(self, plain: bytes | memoryview, first_word: int) -> bytes:
        """The masked words of one chunk of the packed update: 2^16 words from a multiple of 2^16 on, or what is left.

        Chunks may come in any order and again, for a resumed upload; one that changed is refused, since two vectors
        under one mask give away their difference. Raises RuleError UPDATE_OUT_OF_RANGE, UPDATE_CHANGED, OUT_OF_TURN,
        WINDOW_ENDED.
        """
        self._demand_alive()
        self._machine.demand(MemberEvent.HEAD)
        size = WORD_BYTES * min(CHUNK_WORDS, self._spec.words - first_word)
        whole = first_word % CHUNK_WORDS == 0 and 0 < size == len(plain) and first_word >= 0
        demand(whole, Code.UPDATE_OUT_OF_RANGE, f"{len(plain)} bytes at word {first_word} are no chunk")
        digest = sha256(plain)
        demand(self._frozen.setdefault(first_word, digest) == digest, Code.UPDATE_CHANGED)
        words = bytearray(plain)
        masks = self._held.masks
        if masks is None:
            raise RuleError(Code.OUT_OF_TURN, "no masks before U2")
        masks.apply(words, first_word)
        return bytes(words)

    def head(self, vector_sha256: bytes) -> MaskedHead:
        """The announcement of the masked vector with this hash."""
        return self._answer(MemberEvent.HEAD, vector_sha256, lambda: self._announce(vector_sha256))

    def _announce(self, vector_sha256: bytes) -> MaskedHead:
        record = self.record
        msig = self._key.sign("masked", record.tau1)
        present = bitmap(self._held.shares, record.cohort.n)
        return MaskedHead(record.tau1, record.i, self._spec.words, vector_sha256, msig, present)

    # --- SURVIVORS -> VOTE --------------------------------------------------------------------------------------------

    def on_survivors(self, message: Survivors) -> Vote:
        """The one vote: for these survivors, or for the abort that the message asks for.

        The caller stores `record` before the vote leaves.
        """
        if message.abort:
            return self.abort_vote()
        return self._answer(MemberEvent.SURVIVORS, message, lambda: self._keep(self.record.commit(self._key, message)))

    def abort_vote(self) -> Vote:
        """The vote for an abort; nothing else leaves this member afterwards.

        The caller stores `record` before the vote leaves.
        """
        vote = self._answer(MemberEvent.ABORT, None, lambda: self._keep(self.record.abort(self._key)))
        self._secrets = None
        return vote

    def _keep(self, record: SpentRecord) -> Vote:
        self._record = record
        return record.ballot

    # --- QUORUM -> UNMASK, BLAME -> CANARIES, DONE --------------------------------------------------------------------

    def on_quorum(self, message: Quorum) -> Unmask:
        """Reveal, for each member of U2, a share of its self seed if it survived, else of its mask secret: never both.

        The body must be the one voted for; which t votes prove it does not matter in a repeat. All keys and shares are
        dropped.
        """
        body = (message.kind, message.tau1, message.u3)
        return self._answer(MemberEvent.QUORUM, body, lambda: self._reveal(message))

    def _reveal(self, message: Quorum) -> Unmask:
        record = self.record
        voted = (VoteKind.COMMIT, record.tau1, record.u3)
        demand((message.kind, message.tau1, message.u3) == voted, Code.QUORUM_OTHER_BODY)
        check_certificate(message, record.cohort)
        u3, shares = members_of(record.u3, record.cohort.n), self._held.shares
        self._keep_canary_masks(self._held)
        self._secrets = None
        revealed = [shares[j][:SHARE_BYTES] if j in u3 else shares[j][SHARE_BYTES:] for j in sorted(shares)]
        return Unmask(record.i, bitmap(shares, record.cohort.n), b"".join(revealed))

    def _keep_canary_masks(self, secrets: _Secrets) -> None:
        edges = self._pair_masks(members_of(self.record.u2, self.record.cohort.n), secrets)
        words = self._spec.words
        self._canary_masks = {j: canary_mask(pair.seed, words) for j, pair in edges if pair.is_edge(secrets.p32)}

    def on_blame(self, message: Blame) -> CanaryMasks:
        """Tell what this member masked the two canary words with, so that the server sees who did not do so.

        Once, after the own UNMASK, and nothing but these words: canaries are public, and no other word's mask lies in
        these bytes of the streams. By then the survivors are fixed, so the edges need no hiding any more. Raises
        RuleError BLAME_OTHER_WINDOW, BLAME_NOT_SURVIVED, OUT_OF_TURN.
        """
        return self._answer(MemberEvent.BLAME, message, lambda: self._tell(message))

    def _tell(self, message: Blame) -> CanaryMasks:
        record, masks = self.record, self._canary_masks
        survived = record.i in members_of(record.u3, record.cohort.n)
        check_all(BLAME_CHECKS, Accusation(record.tau1, message.tau1, survived))
        return CanaryMasks(record.i, bitmap(masks, record.cohort.n), b"".join(masks[j] for j in sorted(masks)))

    def on_done(self, message: Done) -> None:
        """Take the receipt; the last answer is dropped. Raises RuleError DONE_LANE for another lane's, changing nothing."""
        self._machine.counted(lambda: self._finish(message))

    def _finish(self, message: Done) -> Outcome:
        demand(message.lane == self._entry.lane, Code.DONE_LANE)
        if self.state is MemberState.DONE:
            return Outcome.REPEATED
        self._machine.advance(MemberEvent.DONE)
        self._forget()
        return Outcome.ACCEPTED

    def on_certificate(self, message: Quorum) -> Verdict:
        """What a certificate means for the update; an abort ends the window here. Raises RuleError where it proves nothing."""
        verdict = verify_certificate(self.record, message)
        if message.kind is VoteKind.ABORT:
            released = (MemberState.RELEASED, MemberState.SHOWN, MemberState.DONE)
            demand(self.state not in released, Code.OUT_OF_TURN, "shares were revealed")
            self.wipe()
        return verdict

    def wipe(self) -> None:
        """Leave the window: drop keys and answers. The record stays."""
        if self.state is not MemberState.DONE:
            self._machine.advance(MemberEvent.END)
        self._secrets = None
        self._forget()

    def _forget(self) -> None:
        self._answers.clear()
        self._canary_masks.clear()

    # --- the discipline that all phases share -------------------------------------------------------------------------

    @property
    def _held(self) -> _Secrets:
        if self._secrets is None:
            raise RuleError(Code.WINDOW_ENDED)
        return self._secrets

    def _demand_alive(self) -> None:
        demand(self.state is not MemberState.ENDED, Code.WINDOW_ENDED)

    def _answer(self, event: MemberEvent, body: object, act: Callable[[], Answer]) -> Answer:
        """The stored answer for the same body, a refusal for another one, and for the first the answer of `act`."""
        self._machine.counted(lambda: self._accept(event, body, act))
        return cast(Answer, self._answers[event][1])

    def _accept(self, event: MemberEvent, body: object, act: Callable[[], object]) -> Outcome:
        known = self._answers.get(event)
        if known is not None:
            demand(known[0] == body, Code.SECOND_BODY, event.value)
            return Outcome.REPEATED
        self._demand_alive()
        self._machine.demand(event)
        try:
            answer = act()
        except Exception:
            self.wipe()
            raise
        self._machine.advance(event)
        self._answers[event] = (body, answer)
        return Outcome.ACCEPTED
