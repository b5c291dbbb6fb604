"""The fixed-layout blobs of a device and a window: certificate, requests, join entry, window parameters, vector spec.

Here belong the bytes (masking protocol, section 1.4) and what makes them well-formed. Whether a blob is to be believed belongs
in `trust.py` and `checks.py`; what the authority signs for the whole fleet belongs in `signed.py`. Times are Unix seconds.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from struct import Struct
from typing import Any, ClassVar, Self

from whimbrel_protocol.errors import Code, RuleError, WireError
from whimbrel_protocol.layout import FixedLayout, Signed, SignedLayout, expect, pack
from whimbrel_protocol.primitives import SIGNATURE_BYTES, SigningKey, in_prime_subgroup

SUITE = 1
ISSUER_BYTES = 8
CAPS = 1
WORD_BITS = 64

# In a renewal the present key signs the new request, its signature included, under this kind.
RENEW_KIND = "renew"


@dataclass(frozen=True)
class Certificate(SignedLayout):
    """A device's name and Ed25519 key, vouched for by the authority or one of its issuers: 172 bytes.

    `issuer` is the first 8 bytes of the signing key; `epoch` below the policy's means revoked.
    """

    MAGIC: ClassVar[bytes] = b"MWC1"
    KIND: ClassVar[str] = "cert"
    LAYOUT: ClassVar[Struct] = Struct("<16s16s32sQQQHHI8s")

    fleet: bytes
    device: bytes
    public_key: bytes
    not_before: int
    not_after: int
    serial: int
    attest_class: int
    flags: int
    epoch: int
    issuer: bytes

    @classmethod
    def issue(cls, key: SigningKey, **values: Any) -> Self:
        """Certify a device: all fields but `issuer` and `signature`.

        Raises RuleError WEAK_KEY for a key outside the prime-order subgroup: libraries disagree on its signatures, and one
        such member would stop a whole cohort.
        """
        if not in_prime_subgroup(values["public_key"]):
            raise RuleError(Code.WEAK_KEY, values["public_key"].hex())
        return cls.sign(key, issuer=key.public[:ISSUER_BYTES], **values)


@dataclass(frozen=True)
class CertificateRequest(SignedLayout):
    """A device asks for a certificate and proves that it has the key: 152 bytes."""

    MAGIC: ClassVar[bytes] = b"MWR1"
    KIND: ClassVar[str] = "request"
    LAYOUT: ClassVar[Struct] = Struct("<16s16s32sHH16s")

    fleet: bytes
    device: bytes
    public_key: bytes
    attest_class: int
    flags: int
    nonce: bytes

    def proves_possession(self) -> bool:
        """Whether the request is signed by the key that it names."""
        return self.signed_by(self.public_key)


@dataclass(frozen=True)
class CheckInBody(SignedLayout):
    """Signed presence of a device at a time, with the serial of the policy that it knows: 132 bytes."""

    MAGIC: ClassVar[bytes] = b"MWK1"
    KIND: ClassVar[str] = "checkin"
    LAYOUT: ClassVar[Struct] = Struct("<16s16sQ16sQ")

    fleet: bytes
    device: bytes
    now: int
    nonce: bytes
    policy_serial: int


@dataclass(frozen=True)
class JoinEntry(Signed):
    """A certificate and fresh window keys for one lane, signed by the certificate's key: 404 bytes.

    `mask_key` and `channel_key` are X25519 public keys for the pairwise masks and for the share channels; two, because the
    first is revealed when its member drops out. The signature covers the part after the certificate.
    """

    MAGIC: ClassVar[bytes] = b"MWJ1"
    KIND: ClassVar[str] = "join"
    LAYOUT: ClassVar[Struct] = Struct("<16s16s32s32s32s16sQQI")
    SIZE: ClassVar[int] = 404

    certificate: Certificate
    fleet: bytes
    device: bytes
    lane: bytes
    mask_key: bytes
    channel_key: bytes
    nonce: bytes
    seq: int
    expires: int
    caps: int = CAPS

    def signed_bytes(self) -> bytes:
        """The 168 bytes after the certificate, without the signature."""
        keys = (self.lane, self.mask_key, self.channel_key, self.nonce)
        return self.MAGIC + pack(self.LAYOUT, self.fleet, self.device, *keys, self.seq, self.expires, self.caps)

    def encode(self) -> bytes:
        """The entry: certificate, own part, signature."""
        return self.certificate.encode() + super().encode()

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The entry's fields. Raises WireError BAD_SIZE or BAD_MAGIC; judges nothing else."""
        expect(data, b"", cls.SIZE, cls.__name__)
        certificate = Certificate.decode(data[: Certificate.size()])
        own, signature = data[Certificate.size() : -SIGNATURE_BYTES], data[-SIGNATURE_BYTES:]
        expect(own, cls.MAGIC, len(cls.MAGIC) + cls.LAYOUT.size, "JoinEntry's own part")
        return cls(certificate, *cls.LAYOUT.unpack_from(own, len(cls.MAGIC)), signature=signature)

    def signed_by_certificate(self) -> bool:
        """Whether the entry is signed by the key that its certificate names."""
        return self.signed_by(self.certificate.public_key)


@dataclass(frozen=True)
class Params(FixedLayout):
    """What OPEN fixes for a window: 72 bytes.

    `n` members, threshold `t`, survivor floor `s_min`, at most `c` corrupt members, edge probability `p32` / 2^32.
    """

    MAGIC: ClassVar[bytes] = b"MWO1"
    LAYOUT: ClassVar[Struct] = Struct("<16s32sHHHHIQ")

    fleet: bytes
    lane: bytes
    n: int
    t: int
    s_min: int
    c: int
    p32: int
    window_id: int


@dataclass(frozen=True)
class VectorSpec:
    """How an update of `d` values lies in 64-bit words: 39 bytes (section 1.7).

    `bits` a lane (b), `n_max` summands at most, `limit` the greatest |value| of a member (M), `scale` lattice steps a unit,
    `weight_bits` of the weight. Construction raises WireError BAD_SPEC where a sum could overflow its lane, or nothing fits.
    """

    LAYOUT: ClassVar[Struct] = Struct("<BBBBHQQqdB")
    SIZE: ClassVar[int] = 39

    bits: int
    n_max: int
    d: int
    limit: int
    scale: float
    weight_bits: int
    suite: int = SUITE

    def __post_init__(self) -> None:
        for holds, reason in (
            (self.suite == SUITE, f"suite {self.suite} is not {SUITE}"),
            (2 <= self.bits <= 32, f"{self.bits} bits a lane are not within 2..32"),
            (1 <= self.n_max < 2**16, f"n_max {self.n_max} is not within 1..65535"),
            (1 <= self.d < 2**32, f"d {self.d} is not within 1..2^32-1"),
            (isfinite(self.scale) and self.scale > 0, f"scale {self.scale} is not positive and finite"),
            (0 <= self.weight_bits <= 32, f"{self.weight_bits} weight bits are not within 0..32"),
        ):
            if not holds:
                raise WireError(Code.BAD_SPEC, reason)
        if not 1 <= self.limit <= self.greatest_sum // self.n_max:
            raise WireError(Code.BAD_SPEC, f"{self.n_max} times {self.limit} does not fit {self.bits} bits")

    @classmethod
    def make(cls, bits: int, n_max: int, d: int, scale: float, weight_bits: int) -> Self:
        """The spec with the largest limit M for which n_max * M <= 2^(b-1) - 1."""
        return cls(bits, n_max, d, (2 ** max(bits - 1, 0) - 1) // max(n_max, 1), scale, weight_bits)

    @property
    def greatest_sum(self) -> int:
        """The greatest |sum| that a lane holds."""
        return int(2 ** (self.bits - 1)) - 1

    @property
    def lanes(self) -> int:
        """Lanes a word (L)."""
        return WORD_BITS // self.bits

    @property
    def limb_bits(self) -> int:
        """Bits a weight limb (wq): n_max limbs must fit a lane. At least 1, as a limit of at least 1 fits."""
        return (self.greatest_sum // self.n_max + 1).bit_length() - 1

    @property
    def weight_limbs(self) -> int:
        """Limbs of a weight (wl)."""
        return -(-self.weight_bits // self.limb_bits)

    @property
    def words(self) -> int:
        """Words of a vector: two canaries and the run of count, weight limbs and d values."""
        return 2 + -(-(1 + self.weight_limbs + self.d) // self.lanes)

    def encode(self) -> bytes:
        """The 39 bytes, derived numbers included."""
        head = (self.suite, self.lanes, self.bits, self.limb_bits, self.n_max)
        return pack(self.LAYOUT, *head, self.d, self.words, self.limit, self.scale, self.weight_bits)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The spec of 39 bytes. Raises WireError BAD_SIZE, or BAD_SPEC where L, wq or words do not follow from the rest."""
        expect(data, b"", cls.SIZE, cls.__name__)
        suite, _, bits, _, n_max, d, _, limit, scale, weight_bits = cls.LAYOUT.unpack(data)
        spec = cls(bits, n_max, d, limit, scale, weight_bits, suite)
        if spec.encode() != data:
            raise WireError(Code.BAD_SPEC, "lanes, limb bits or words do not follow from the other numbers")
        return spec
