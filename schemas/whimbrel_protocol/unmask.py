"""From t revealed shares of each member to the plain sum: the server's last computation of a window.

Here belongs recovering what each member committed to, although some responders lie, and taking the masks off a sum of masked
vectors (masking protocol, section 1.6). Nothing that does not fit its commitment is used: a wrong share is corrected or an
error, never a wrong sum. When to do it belongs in `collector.py`, the decoding in `reed_solomon.py`, whose fault a wrong
share is in `blame.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from whimbrel_kernels import shamir_combine
from whimbrel_protocol.blame import Fault, FaultKind, Pair, Spoiled, canary_mask, share_faults
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.masks import SHARE_BYTES, MaskKeys, PairMask, bcommit_of, exchange_all, pair_mask, self_key
from whimbrel_protocol.messages import Unmask
from whimbrel_protocol.primitives import x25519_public
from whimbrel_protocol.reed_solomon import decode, shares_at
from whimbrel_protocol.rules import members_of
from whimbrel_protocol.transcript import Cohort
from whimbrel_protocol.window import Shortage


@dataclass(frozen=True)
class Masked:
    """A window whose survivor set is fixed: what unmasking needs to know of it.

    `c` members may collude. `bcommits` are the commitments of the members of U2, `mask_keys` all members' public mask keys in
    roster order.
    """

    cohort: Cohort
    c: int
    tau1: bytes
    p32: int
    u2: tuple[int, ...]
    u3: tuple[int, ...]
    bcommits: Mapping[int, bytes]
    mask_keys: Sequence[bytes]

    @property
    def dropped(self) -> tuple[int, ...]:
        """Who dealt shares and did not survive, ascending."""
        return tuple(sorted(set(self.u2) - set(self.u3)))


class Held(NamedTuple):
    """A share of some dealer's secret and the member that revealed it."""

    responder: int
    share: bytes


def shares_by_dealer(responses: Iterable[Unmask], n: int) -> dict[int, list[Held]]:
    """For each dealer the revealed 32-byte shares, in the order of the responses."""
    dealt: dict[int, list[Held]] = {}
    for response in responses:
        for at, j in enumerate(members_of(response.present, n)):
            share = response.shares[SHARE_BYTES * at : SHARE_BYTES * (at + 1)]
            dealt.setdefault(j, []).append(Held(response.i, share))
    return dealt


class Unmasking:
    """The secrets of one window. `attempt` may be called again with more responses; what was found before stays."""

    def __init__(self, window: Masked) -> None:
        self.window = window
        self._secrets: dict[int, bytes] = {}
        self._right: dict[int, list[Held]] = {}  # by dealer: t shares that gave its secret
        self._wrong: set[tuple[int, int]] = set()  # (responder, dealer)
        self._undecodable: dict[int, int] = {}  # dealer -> shares that were at hand
        self._edges: dict[int, dict[int, PairMask]] = {}  # by dropped member, then survivor

    def attempt(self, responses: Sequence[Unmask]) -> None:
        """Recover the secrets that are still missing.

        From the first t shares; where these do not give what the dealer committed to, from all r of them, which corrects
        floor((r - t) / 2) wrong ones. Raises Shortage where there are fewer than t shares of a member, RuleError BAD_SHARES
        where no secret that is near enough fits: more responses may help.
        """
        dealt = shares_by_dealer(responses, self.window.cohort.n)
        self._undecodable = {}
        for dealer in self.window.u2:
            if dealer not in self._secrets and not self._too_many_lies:
                self._recover(dealer, dealt.get(dealer, []))
        self._convict(dealt)
        if self._undecodable:
            raise RuleError(Code.BAD_SHARES, f"the secrets of members {sorted(self._undecodable)}")

    @property
    def _too_many_lies(self) -> bool:
        """Whether more dealers' secrets cannot be decoded than may collude: it is the responders, and no use to go on."""
        return len(self._undecodable) > max(self.window.c, 1)

    def _recover(self, dealer: int, held: Sequence[Held]) -> None:
        t = self.window.cohort.t
        if len(held) < t:
            raise Shortage(Code.SHORTAGE, f"{len(held)} shares of member {dealer}, {t} are needed")
        liars = {responder for responder, _ in self._wrong}
        trusted = sorted(held, key=lambda one: one.responder in liars)
        secret = shamir_combine([one.responder + 1 for one in trusted[:t]], b"".join(one.share for one in trusted[:t]))
        if self._fits(dealer, secret):
            self._secrets[dealer], self._right[dealer] = secret, trusted[:t]
        else:
            self._decode(dealer, held)

    def _decode(self, dealer: int, held: Sequence[Held]) -> None:
        t = self.window.cohort.t
        decoded = decode([one.responder + 1 for one in held], [one.share for one in held], t)
        if decoded is not None and self._fits(dealer, decoded.secret):
            self._secrets[dealer] = decoded.secret
            self._right[dealer] = [one for at, one in enumerate(held) if at not in decoded.wrong][:t]
            self._wrong |= {(held[at].responder, dealer) for at in decoded.wrong}
        elif dealer not in self._secrets:
            self._undecodable[dealer] = len(held)

    def _fits(self, dealer: int, secret: bytes) -> bool:
        """Whether the dealer committed to this secret: its self seed if it survived, else its mask secret."""
        window = self.window
        if dealer in window.u3:
            return bcommit_of(window.cohort.tau0, dealer, secret) == window.bcommits[dealer]
        return x25519_public(secret) == window.mask_keys[dealer]

    def _convict(self, dealt: Mapping[int, Sequence[Held]]) -> None:
        """Once somebody lied, hold all shares against the secrets: one wrong share may be its dealer's fault."""
        alike: dict[tuple[int, ...], list[int]] = {}
        for dealer, right in self._right.items() if self._wrong else ():
            alike.setdefault(tuple(one.responder for one in right), []).append(dealer)
        for responders, dealers in alike.items():
            others = sorted({one.responder for dealer in dealers for one in dealt[dealer]} - set(responders))
            columns = [[one.share for one in self._right[dealer]] for dealer in dealers]
            for dealer, shares in zip(
                dealers, shares_at([i + 1 for i in responders], columns, [i + 1 for i in others]), strict=True
            ):
                true = dict(zip(others, shares, strict=True))
                self._hold_against(dealer, dealt[dealer], {i for i, share in dealt[dealer] if share != true.get(i, share)})

    def _hold_against(self, dealer: int, held: Sequence[Held], wrong: set[int]) -> None:
        """Take it that these responders are wrong about a dealer, if it is near enough that no others can be.

        Errors of several liars may cancel in the secret, which then is right while the shares that it came from frame others.
        """
        if len(wrong) <= (len(held) - self.window.cohort.t) // 2:
            self._wrong |= {(i, dealer) for i in wrong}
        else:
            self._decode(dealer, held)

    @property
    def faults(self) -> list[Fault]:
        """Whose fault the wrong shares of the last attempt are.

        A dealer whose secret cannot be decoded is at fault only if there were t + 2c shares: with fewer, c liars could frame
        an honest one.
        """
        enough = self.window.cohort.t + 2 * self.window.c
        cheats = [
            Fault(FaultKind.DEALING, (dealer,), f"{shares} revealed shares give no secret that it committed to")
            for dealer, shares in sorted(self._undecodable.items())
            if shares >= enough and not self._too_many_lies
        ]
        return [*share_faults(self._wrong, self.window.c), *cheats]

    # --- what the secrets give ----------------------------------------------------------------------------------------

    def masks_in_sum(self) -> MaskKeys:
        """The masks that are left in the sum of the survivors' vectors, as keys whose removal unmasks it."""
        window = self.window
        add: list[bytes] = []
        subtract = [self_key(self._secrets[i], window.tau1, i) for i in window.u3]
        for j in window.dropped:
            edges = self._edges_of(j)
            add += [edge.seed for i, edge in edges.items() if i > j]  # survivor i subtracted it
            subtract += [edge.seed for i, edge in edges.items() if i < j]
        return MaskKeys(add, subtract)

    def _edges_of(self, j: int) -> dict[int, PairMask]:
        """The masks of a dropped member with the survivors, where the pair has an edge."""
        if j not in self._edges:
            window = self.window
            shared = exchange_all(self._secrets[j], [(i, window.mask_keys[i]) for i in window.u3])
            pairs = {i: pair_mask(shared[i], window.tau1, i, j) for i in window.u3}
            self._edges[j] = {i: pair for i, pair in pairs.items() if pair.is_edge(window.p32)}
        return self._edges[j]

    def spoiled(self, words: int, vectors: Mapping[int, bytes]) -> Spoiled:
        """What is known of a window whose sum failed, before anybody told; `vectors`: the survivors' two canary words."""
        window = self.window
        edges = {j: self._edges_of(j) for j in window.dropped}

        def mask(key: bytes) -> Pair:
            return Pair.read(canary_mask(key, words))

        return Spoiled(
            c=window.c,
            u3=window.u3,
            dropped=window.dropped,
            vectors={i: Pair.read(vectors[i]) for i in window.u3},
            self_masks={i: mask(self_key(self._secrets[i], window.tau1, i)) for i in window.u3},
            known={i: {j: mask(edges[j][i].seed) for j in window.dropped if i in edges[j]} for i in window.u3},
            told={},
        )
