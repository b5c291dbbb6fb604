"""A member's window keys and what is derived from them: shares, share channels, pair seeds and edges, self masks.

Here belong the computations of masking protocol section 1.6, each once, for both sides of a window. Who may compute
what, and when, belongs in `member.py` and `collector.py`. All of it is a function of rho and the messages: nothing is
drawn here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

from whimbrel_kernels import mask_add, mask_sub, shamir_share
from whimbrel_protocol.primitives import exchange, kdf, seal, stream, th, u16, unseal, x25519_public
from whimbrel_protocol.rules import COMPLETE

SHARE_BYTES = 32
CIPHERTEXT_BYTES = 80
NONCE_BYTES = 16

# 2^16 words are 512 KiB: the piece of a vector that travels and is masked at once; it stays in a core's cache.
CHUNK_WORDS = 2**16
WORD_BYTES = 8


@dataclass(frozen=True, repr=False)
class WindowKeys:
    """What one JOIN's rho gives: two X25519 secrets, the self seed b, and the polynomials' coefficient keys."""

    mask_secret: bytes
    channel_secret: bytes
    self_seed: bytes
    seed_coefficients: bytes
    secret_coefficients: bytes
    nonce: bytes

    @classmethod
    def derive(cls, rho: bytes, device: bytes) -> Self:
        """The keys of 32 bytes of fresh entropy; `rho` serves one JOIN and one OPEN."""
        return cls(
            mask_secret=kdf(rho, device, "skm"),
            channel_secret=kdf(rho, device, "skc"),
            self_seed=kdf(rho, device, "b"),
            seed_coefficients=kdf(rho, device, "coef-b"),
            secret_coefficients=kdf(rho, device, "coef-s"),
            nonce=kdf(rho, device, "nonce", length=NONCE_BYTES),
        )

    @property
    def mask_key(self) -> bytes:
        """The public key of the pairwise masks."""
        return x25519_public(self.mask_secret)

    @property
    def channel_key(self) -> bytes:
        """The public key of the share channels."""
        return x25519_public(self.channel_secret)

    def deal(self, n: int, t: int) -> list[bytes]:
        """For each of `n` members 64 bytes: its share of b, then its share of the mask secret; any `t` recover either."""
        degree = SHARE_BYTES * (t - 1)
        of_seed = shamir_share(self.self_seed, stream(self.seed_coefficients, degree), n)
        of_secret = shamir_share(self.mask_secret, stream(self.secret_coefficients, degree), n)
        cuts = range(0, SHARE_BYTES * n, SHARE_BYTES)
        return [of_seed[at : at + SHARE_BYTES] + of_secret[at : at + SHARE_BYTES] for at in cuts]


class Channel(NamedTuple):
    """The way of shares from one member to another in one window: their X25519 secret and their indices."""

    shared: bytes
    tau0: bytes
    sender: int
    recipient: int

    def _key(self) -> bytes:
        return kdf(self.shared, self.tau0, "share", u16(self.sender) + u16(self.recipient))

    def _ad(self) -> bytes:
        return b"mw1/share" + self.tau0 + u16(self.sender) + u16(self.recipient)

    def seal(self, shares: bytes) -> bytes:
        """64 bytes of shares as a ciphertext of 80 bytes."""
        return seal(self._key(), self._ad(), shares)

    def unseal(self, ciphertext: bytes) -> bytes | None:
        """The shares, or None where the ciphertext is not the sender's for this recipient and window."""
        return unseal(self._key(), self._ad(), ciphertext)


def bcommit_of(tau0: bytes, i: int, self_seed: bytes) -> bytes:
    """Member i's commitment to its self seed; the mask secret is committed to by its public key."""
    return th("mw1/bcommit", tau0, u16(i), self_seed)


class PairMask(NamedTuple):
    """What two members derive from their X25519 secret: the seed of their mask, the coin that decides on its use."""

    seed: bytes
    coin: int

    def is_edge(self, p32: int) -> bool:
        """Whether the pair masks: hidden from all others until one of the two secrets is revealed."""
        return p32 == COMPLETE or self.coin < p32


def pair_mask(shared: bytes, tau1: bytes, i: int, j: int) -> PairMask:
    """The pair's mask, the same from both ends; `shared` is X25519 of their mask keys."""
    output = kdf(shared, tau1, "pair", u16(min(i, j)) + u16(max(i, j)), 36)
    return PairMask(output[:32], int.from_bytes(output[32:], "little"))


def self_key(self_seed: bytes, tau1: bytes, i: int) -> bytes:
    """The key of member i's self mask."""
    return kdf(self_seed, tau1, "self", u16(i))


class MaskKeys(NamedTuple):
    """Keys of the streams to add to a vector and of those to subtract from it."""

    add: Sequence[bytes]
    subtract: Sequence[bytes]

    def apply(self, words: bytearray | memoryview, first_word: int = 0) -> None:
        """Add and subtract the streams from `first_word` on, in place, piece by piece."""
        view = memoryview(words)
        for start in range(0, len(view), WORD_BYTES * CHUNK_WORDS):
            piece, word = view[start : start + WORD_BYTES * CHUNK_WORDS], first_word + start // WORD_BYTES
            for key in self.add:
                mask_add(piece, key, word)
            for key in self.subtract:
                mask_sub(piece, key, word)


def member_masks(i: int, own_self_key: bytes, pairs: Sequence[tuple[int, PairMask]], p32: int) -> MaskKeys:
    """What member i masks with: its self mask, and each edge's mask with the sign that cancels at the other end."""
    edges = [(j, pair.seed) for j, pair in pairs if pair.is_edge(p32)]
    return MaskKeys([own_self_key, *(seed for j, seed in edges if i < j)], [seed for j, seed in edges if i > j])


def exchange_all(secret: bytes, others: Sequence[tuple[int, bytes]]) -> dict[int, bytes]:
    """X25519 with each (index, public key). Raises RuleError LOW_ORDER_KEY if one gives zero."""
    return {j: exchange(secret, public) for j, public in others}
