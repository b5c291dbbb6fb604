"""The fixed cryptographic suite 0x01: hash, key derivation, signature, key agreement, share encryption, mask stream.

Here belongs each primitive once, with its domain separation and its refusals. What the keys are for belongs in `keys.py`, what
is signed in `objects.py` and `signed.py`. Randomness is never drawn here: every key comes in as an argument.

Not goals: post-quantum security (X25519), another suite beside this one, erasing secrets from CPython's memory.
"""

from __future__ import annotations

import hashlib
import hmac

from nacl import bindings
from nacl.exceptions import BadSignatureError, CryptoError

from whimbrel_kernels import mask_add
from whimbrel_protocol.errors import Code, RuleError

KEY_BYTES = 32
HASH_BYTES = 32
SIGNATURE_BYTES = 64
TAG_BYTES = 16

# Each share key encrypts one message ever, so a constant nonce is safe; the mask stream follows the same convention.
_NONCE = bytes(12)


def u16(value: int) -> bytes:
    """An index as it enters hashes, key derivations and associated data: two bytes, little-endian."""
    return value.to_bytes(2, "little")


def u64(value: int) -> bytes:
    """A number as it enters hashes: eight bytes, little-endian."""
    return value.to_bytes(8, "little")


def sha256(data: bytes | bytearray | memoryview) -> bytes:
    """SHA-256 of `data`, 32 bytes."""
    return hashlib.sha256(data).digest()


def th(label: str, *parts: bytes) -> bytes:
    """SHA-256 over a labelled tuple of byte strings, 32 bytes; no two different tuples give the same input.

    TH(label, p1..pk) = SHA256(u16 len(label) || label || for each p: u64 len(p) || p).
    """
    name = label.encode()
    digest = hashlib.sha256(u16(len(name)) + name)
    for part in parts:
        digest.update(u64(len(part)))
        digest.update(part)
    return digest.digest()


def hkdf_sha256(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF with SHA-256 (RFC 5869), `length` bytes of output, at most 255 * 32."""
    if not 0 < length <= 255 * HASH_BYTES:
        raise ValueError(f"HKDF-SHA256 gives 1 to 8160 bytes, not {length}")
    pseudorandom_key = hmac.digest(salt, ikm, "sha256")
    block, output = b"", b""
    for counter in range(1, -(-length // HASH_BYTES) + 1):
        block = hmac.digest(pseudorandom_key, block + info + bytes([counter]), "sha256")
        output += block
    return output[:length]


def kdf(ikm: bytes, salt: bytes, label: str, context: bytes = b"", length: int = KEY_BYTES) -> bytes:
    """Derive `length` bytes for one purpose: HKDF with info "mw1/" || label || 0x00 || context."""
    return hkdf_sha256(ikm, salt, b"mw1/" + label.encode() + b"\0" + context, length)


class SigningKey:
    """An Ed25519 key (RFC 8032) from its 32-byte seed. It signs only with a kind, so that no signature serves twice."""

    def __init__(self, seed: bytes) -> None:
        self.public, self._secret = bindings.crypto_sign_seed_keypair(seed)

    def sign(self, kind: str, body: bytes) -> bytes:
        """64-byte signature over "mw1/<kind>" || 0x00 || body."""
        return bindings.crypto_sign(_signed_bytes(kind, body), self._secret)[:SIGNATURE_BYTES]

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.hex()})"


def _signed_bytes(kind: str, body: bytes) -> bytes:
    return b"mw1/" + kind.encode() + b"\0" + body


def verify(kind: str, public: bytes, body: bytes, signature: bytes) -> bool:
    """Whether `signature` is the key's over this kind and body.

    Strict, as libsodium is: S >= L, a key of small order and a non-canonical key are refused. Never raises for bad input.
    """
    if len(public) != KEY_BYTES or len(signature) != SIGNATURE_BYTES:
        return False
    try:
        bindings.crypto_sign_open(signature + _signed_bytes(kind, body), public)
    except BadSignatureError:
        return False
    return True


def in_prime_subgroup(public: bytes) -> bool:
    """Whether an Ed25519 public key is a canonical point of the prime-order subgroup.

    Issuers certify no other key: with a mixed-order key one library accepts a signature that another refuses.
    """
    return len(public) == KEY_BYTES and bool(bindings.crypto_core_ed25519_is_valid_point(public))


def x25519_public(secret: bytes) -> bytes:
    """The X25519 public key (RFC 7748) of a 32-byte secret, clamped inside."""
    return bindings.crypto_scalarmult_base(secret)


def exchange(secret: bytes, public: bytes) -> bytes:
    """X25519 shared secret, 32 bytes. The top bit of `public` is ignored and u >= p accepted (RFC 7748).

    Raises RuleError LOW_ORDER_KEY for an all-zero output: the other side would know the secret without a key.
    """
    try:
        return bindings.crypto_scalarmult(secret, public)
    except RuntimeError:
        # libsodium reports an all-zero output as its one failure and PyNaCl turns it into a RuntimeError.
        raise RuleError(Code.LOW_ORDER_KEY, f"key agreement with {public.hex()} gives zero") from None


def seal(key: bytes, ad: bytes, plaintext: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439) under a key that is used this once: ciphertext and 16-byte tag."""
    return bindings.crypto_aead_chacha20poly1305_ietf_encrypt(plaintext, ad, _NONCE, key)


def unseal(key: bytes, ad: bytes, ciphertext: bytes) -> bytes | None:
    """The plaintext of `seal`, or None where key, associated data or ciphertext do not fit together."""
    if len(ciphertext) < TAG_BYTES:
        return None
    try:
        return bindings.crypto_aead_chacha20poly1305_ietf_decrypt(ciphertext, ad, _NONCE, key)
    except CryptoError:
        return None


def stream(key: bytes, length: int, start_byte: int = 0) -> bytes:
    """Bytes `start_byte` and on of the key's mask stream: ChaCha20, nonce 0^12, counter from 1 (RFC 8439)."""
    first_word, skip = divmod(start_byte, 8)
    words = bytearray(8 * (-(-(skip + length) // 8)))
    mask_add(words, key, first_word)
    return bytes(words[skip : skip + length])
