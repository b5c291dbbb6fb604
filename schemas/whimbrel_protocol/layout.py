"""How a fixed-layout blob turns into a dataclass and back: the byte rules that all signed objects share.

Here belongs the mechanism only. A blob is four letters of its kind, then its fields little-endian without padding, then for a
signed one 64 bytes of signature over all before. Each blob's own fields belong in `objects.py` and `signed.py`. The layout has
no redundancy, so encoding what was decoded gives the same bytes: received blobs may be kept as objects and still be hashed.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field, fields, replace
from struct import Struct
from struct import error as StructError
from typing import Any, ClassVar, Self

from whimbrel_protocol.errors import Code, WireError
from whimbrel_protocol.primitives import SIGNATURE_BYTES, SigningKey, verify


def pack(layout: Struct, *values: Any) -> bytes:
    """Pack values; a number out of range or a byte string of another length is a WireError BAD_FIELD."""
    try:
        data = layout.pack(*values)
    except (StructError, OverflowError) as reason:
        raise WireError(Code.BAD_FIELD, str(reason)) from None
    # struct cuts or pads byte strings silently: a short key must not become another key.
    for value, packed in zip(values, layout.unpack(data), strict=True):
        if isinstance(packed, bytes) and packed != value:
            raise WireError(Code.BAD_FIELD, f"{len(packed)} bytes are needed, not {len(value)}")
    return data


def expect(data: bytes, magic: bytes, size: int, name: str) -> None:
    """Refuse with WireError BAD_SIZE or BAD_MAGIC what is no `name` of exactly `size` bytes."""
    if len(data) != size:
        raise WireError(Code.BAD_SIZE, f"{name} has {size} bytes, not {len(data)}")
    if not data.startswith(magic):
        raise WireError(Code.BAD_MAGIC, f"{name} begins with {magic!r}, not {data[: len(magic)]!r}")


@dataclass(frozen=True)
class FixedLayout:
    """A frozen dataclass whose fields, in order, are the blob's."""

    MAGIC: ClassVar[bytes]
    LAYOUT: ClassVar[Struct]

    @classmethod
    def size(cls) -> int:
        """Length of the blob in bytes."""
        return len(cls.MAGIC) + cls.LAYOUT.size

    def encode(self) -> bytes:
        """The blob. Raises WireError BAD_FIELD where a field does not fit its place."""
        return self.MAGIC + pack(self.LAYOUT, *self._values())

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The blob's fields. Raises WireError BAD_SIZE or BAD_MAGIC; judges nothing else."""
        expect(data, cls.MAGIC, cls.size(), cls.__name__)
        return cls(*cls.LAYOUT.unpack_from(data, len(cls.MAGIC)))

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, each.name) for each in fields(self) if not each.kw_only)


@dataclass(frozen=True)
class Signed(ABC):
    """A blob that ends with a signature of a kind that no other blob has. Subclasses give `signed_bytes`."""

    KIND: ClassVar[str]
    signature: bytes = field(default=bytes(SIGNATURE_BYTES), kw_only=True)

    @abstractmethod
    def signed_bytes(self) -> bytes:
        """The blob without its signature."""

    def signature_input(self) -> bytes:
        """What the signature is over, after the kind."""
        return self.signed_bytes()

    def encode(self) -> bytes:
        """The blob with its signature. Raises WireError BAD_FIELD where a field does not fit its place."""
        if len(self.signature) != SIGNATURE_BYTES:
            raise WireError(Code.BAD_FIELD, f"a signature has {SIGNATURE_BYTES} bytes, not {len(self.signature)}")
        return self.signed_bytes() + self.signature

    @classmethod
    def sign(cls, key: SigningKey, **values: Any) -> Self:
        """The blob of these fields (all but `signature`), signed by `key`."""
        unsigned = cls(**values)
        return replace(unsigned, signature=key.sign(cls.KIND, unsigned.signature_input()))

    def signed_by(self, public: bytes) -> bool:
        """Whether the signature is this key's."""
        return verify(self.KIND, public, self.signature_input(), self.signature)


@dataclass(frozen=True)
class SignedLayout(Signed, FixedLayout):
    """A fixed-layout blob with a signature at its end."""

    @classmethod
    def size(cls) -> int:
        """Length of the blob in bytes, signature included."""
        return len(cls.MAGIC) + cls.LAYOUT.size + SIGNATURE_BYTES

    def signed_bytes(self) -> bytes:
        """The blob without its signature."""
        return FixedLayout.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """The blob's fields. Raises WireError BAD_SIZE or BAD_MAGIC; judges nothing else, not the signature either."""
        expect(data, cls.MAGIC, cls.size(), cls.__name__)
        return cls(*cls.LAYOUT.unpack_from(data, len(cls.MAGIC)), signature=data[-SIGNATURE_BYTES:])
