"""The two ways to one member's update that only rule 7 closes, played to the end, down to the arithmetic.

Thirteen members, two of them corrupt: t = s_min = 8. *Ghosts*: five members whose mask keys were revealed in another window
stand in the client's roster and are named as survivors; its five honest companions are declared dropped. *AnotherU2*: the
client is told a U2 of the corrupt and the five who will be dropped; all others mask and vote under the full U2. In both every
key that the client's pair masks hang on becomes known, and its self seed is revealed: `recovered` takes the masks off. What
honest members refuse is up to the protocol's own code. Here belongs the server's part of it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from tests.hostile.cohort import Companion
from tests.hostile.world import HostileServer
from whimbrel_kernels import shamir_combine
from whimbrel_protocol import messages as m
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import RuleError
from whimbrel_protocol.masks import CIPHERTEXT_BYTES, SHARE_BYTES, MaskKeys, member_masks, pair_mask, self_key
from whimbrel_protocol.objects import JoinEntry
from whimbrel_protocol.primitives import exchange
from whimbrel_protocol.rules import bitmap
from whimbrel_protocol.transcript import tau1_of, vote_body
from whimbrel_protocol.unmask import shares_by_dealer

N, FIVE = 13, 5


def secret_of(responses: list[m.Unmask], dealer: int, n: int, t: int) -> bytes | None:
    """What t revealed shares of a member give, None where there are fewer."""
    shares = shares_by_dealer(responses, n).get(dealer, [])[:t]
    return shamir_combine([i + 1 for i, _ in shares], b"".join(share for _, share in shares)) if len(shares) == t else None


class Plot:
    """A window of the client, two corrupt members and ten others, in which the server says what it likes."""

    def __init__(self, server: HostileServer) -> None:
        self.server = server
        companions = server.companions
        self.corrupt, self.dropped, self.rest = companions[:2], companions[2 : 2 + FIVE], companions[2 + FIVE :]
        self.shares: dict[int, m.Shares] = {}
        self.head: m.MaskedHead | None = None
        self.masked = b""
        self.votes: dict[int, m.Vote] = {}
        self.revealed: list[m.Unmask] = []
        self.secrets: dict[bytes, bytes] = {}  # mask secrets by public key, learnt elsewhere

    # --- who is who -----------------------------------------------------------------------------------------------------

    @property
    def collector(self) -> Collector:
        """The window's roster and numbers; nothing else of it is used."""
        return self.server.window.collector

    @property
    def client(self) -> int:
        """The client's index."""
        return self.server.i

    def indices(self, companions: list[Companion]) -> set[int]:
        """Their places in the roster."""
        return {self.collector.devices.index(one.device) for one in companions}

    @property
    def actors(self) -> list[Companion]:
        """Who takes part beside the client."""
        raise NotImplementedError

    def told(self, i: int) -> set[int]:
        """The U2 that member i is told."""
        raise NotImplementedError

    @property
    def survivors(self) -> set[int]:
        """The survivor set that is put to the vote."""
        raise NotImplementedError

    @property
    def body(self) -> tuple[bytes, bytes]:
        """The tau1 and bitmap that are voted on: those of all but a client who was told otherwise."""
        i = next(iter(self.indices(self.dropped)))
        return self.tau1(i), bitmap(self.survivors, N)

    def tau1(self, i: int) -> bytes:
        """What member i masks under."""
        return tau1_of(self.collector.tau0, bitmap(self.told(i), N))

    # --- the phases, for all --------------------------------------------------------------------------------------------

    def u2_for(self, i: int) -> m.U2:
        """The U2 that member i is told, with garbage where nobody dealt."""
        members = sorted(self.told(i))
        return m.U2(bitmap(members, N), b"".join(self._ciphertext(j, i) for j in members if j != i))

    def _ciphertext(self, dealer: int, to: int) -> bytes:
        message = self.shares.get(dealer)
        at = CIPHERTEXT_BYTES * (to - (to > dealer))
        return bytes(CIPHERTEXT_BYTES) if message is None else message.cts[at : at + CIPHERTEXT_BYTES]

    def _deal(self) -> None:
        for one in self.actors:
            dealt = one.there.on_open(self.collector.open, int(self.server.clock()), self.server.policy)
            self.shares[dealt.i] = dealt

    def msig(self, i: int) -> bytes:
        """What there is of member i's signature: the client's head, or what its companion signs."""
        if i == self.client:
            assert self.head is not None
            return self.head.msig
        return self.server.companion_at(i).key.sign("masked", self.tau1(i))

    def set_of_survivors(self) -> m.Survivors:
        """What is shown to the voters."""
        return m.Survivors(bitmap(self.survivors, N), b"".join(self.msig(i) for i in sorted(self.survivors)))

    def _ballot(self) -> None:
        """Corrupt members sign anything; honest ones look first."""
        for one in self.corrupt:
            i = self.collector.devices.index(one.device)
            body = vote_body(self.collector.tau0, m.VoteKind.COMMIT, *self.body)
            self.votes[i] = m.Vote(i, m.VoteKind.COMMIT, one.key.sign("vote", body))
        for one in self.actors:
            if one not in self.corrupt:
                with suppress(RuleError):
                    one.there.on_u2(self.u2_for(self.collector.devices.index(one.device)))
                    vote = one.there.on_survivors(self.set_of_survivors())
                    self.votes[vote.i] = vote

    def quorum(self) -> m.Quorum | None:
        """The certificate, where there are votes enough."""
        voters = sorted(self.votes)
        if len(voters) < self.collector.t:
            return None
        return m.Quorum(m.VoteKind.COMMIT, *self.body, tuple(voters), b"".join(self.votes[i].sig for i in voters))

    def _release(self, quorum: m.Quorum) -> None:
        for one in self.actors:
            with suppress(RuleError):
                self.revealed.append(self._betrayed(one) if one in self.corrupt else one.there.on_quorum(quorum))

    def _betrayed(self, one: Companion) -> m.Unmask:
        """What a corrupt member holds of the others' secrets, whatever it may have voted for."""
        i = self.collector.devices.index(one.device)
        one.there.on_u2(self.u2_for(i))
        held = one.there._held.shares
        shares = [held[j][:SHARE_BYTES] if j in self.survivors else held[j][SHARE_BYTES:] for j in sorted(held)]
        return m.Unmask(i, bitmap(held, N), b"".join(shares))

    # --- the arithmetic -------------------------------------------------------------------------------------------------

    def recovered(self) -> bytes | None:
        """The client's packed update, or None where a secret that it takes did not become known."""
        quorum = self.quorum()
        if quorum is not None and not {one.i for one in self.revealed} & self.indices(self.actors):
            self._release(quorum)
        v, t = self.client, self.collector.t
        seed = secret_of(self.revealed, v, N, t)
        known = {j: self._mask_secret(j) for j in self.told(v) - {v}}
        if seed is None or None in known.values():
            return None
        mine = JoinEntry.decode(self.collector.open.roster[v]).mask_key
        pairs = [(j, pair_mask(exchange(key, mine), self.tau1(v), v, j)) for j, key in known.items() if key is not None]
        masks = member_masks(v, self_key(seed, self.tau1(v), v), pairs, self.collector.params.p32)
        words = bytearray(self.masked)
        MaskKeys(masks.subtract, masks.add).apply(words)
        return bytes(words)

    def _mask_secret(self, j: int) -> bytes | None:
        public = JoinEntry.decode(self.collector.open.roster[j]).mask_key
        one = self.server.companion_at(j)
        if one in self.corrupt:
            secrets = one.there._secrets
            return None if secrets is None else secrets.keys.mask_secret
        return self.secrets.get(public) or secret_of(self.revealed, j, N, self.collector.t)

    # --- the client's calls ---------------------------------------------------------------------------------------------

    def post(self, phase: str, message: Any) -> Any:
        """Take anything."""
        if phase == "shares" and not self.shares:
            self.shares[self.client] = message
            self._deal()
        elif phase == "masked":
            self.head = message
        elif phase == "vote":
            self.votes[message.i] = message
        elif phase == "unmask":
            self.revealed.append(message)
        return m.Accepted()

    def vector(self, data: bytes) -> m.Accepted:
        """Take the client's masked vector; the others vote."""
        self.masked = data
        self._ballot()
        return m.Accepted()

    def get(self, phase: str) -> Any:
        """Answer as the plot wants it."""
        if phase == "u2" and self.shares:
            return self.u2_for(self.client)
        return m.Wait(0)


class Ghosts(Plot):
    """`rest` are the ghosts: their keys are in this roster, their mask secrets were revealed in another window."""

    def __init__(self, server: HostileServer) -> None:
        super().__init__(server)
        self._haunt([Companion(server, 200 + k) for k in range(N - FIVE)])

    def _haunt(self, crowd: list[Companion]) -> None:
        """Another window, of which the ghosts deal and vanish: its members rightly reveal their mask secrets."""
        server, everybody = self.server, [*self.rest, *crowd]
        entries = [one.join() for one in everybody]
        other = Collector.form(entries, server.fleet, server.lane, server.spec, server.policy, 99)
        for one in everybody:
            other.on_shares(one.there.on_open(other.open, int(server.clock()), server.policy))
        other.close_shares()
        for one in crowd:
            one.mask(other, other.devices.index(one.device))
        other.close_masked()
        for one in crowd:
            other.on_vote(one.there.on_survivors(other.survivors))
        assert other.quorum is not None
        revealed = [one.there.on_quorum(other.quorum) for one in crowd]
        for one in self.rest:
            found = secret_of(revealed, other.devices.index(one.device), other.n, other.t)
            assert found is not None
            self.secrets[JoinEntry.decode(one.there.entry).mask_key] = found

    @property
    def actors(self) -> list[Companion]:
        """All but the ghosts, who never hear of this window."""
        return [*self.corrupt, *self.dropped]

    def told(self, i: int) -> set[int]:
        """Everybody is told that everybody dealt."""
        return set(range(N))

    @property
    def survivors(self) -> set[int]:
        """The client, the corrupt and the ghosts: eight, as it must be."""
        return {self.client} | self.indices(self.corrupt) | self.indices(self.rest)

    def msig(self, i: int) -> bytes:
        """A ghost signed the U2 of its own window, never this one."""
        if i in self.indices(self.rest):
            return self.server.companion_at(i).key.sign("masked", tau1_of(bytes(32), b"\x1f"))
        return super().msig(i)

    def get(self, phase: str) -> Any:
        """The client itself is asked to vote for ghosts."""
        if phase == "survivors" and self.masked:
            self.server.strike()
            return self.set_of_survivors()
        if phase == "quorum":
            return self.quorum() or m.Wait(0)
        return super().get(phase)


class AnotherU2(Plot):
    """`rest` are honest survivors, who are told of everybody; the client alone is told of those who will drop."""

    @property
    def actors(self) -> list[Companion]:
        """All of them."""
        return self.server.companions

    def told(self, i: int) -> set[int]:
        """The client's U2 holds only members whose keys will be known."""
        if i != self.client:
            return set(range(N))
        return {i} | self.indices(self.corrupt) | self.indices(self.dropped)

    @property
    def survivors(self) -> set[int]:
        """The client, the corrupt and the rest."""
        return {self.client} | self.indices(self.corrupt) | self.indices(self.rest)
