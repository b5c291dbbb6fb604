"""The suite against the RFCs' own numbers, and what it must refuse."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.primitives import (
    SigningKey,
    exchange,
    hkdf_sha256,
    in_prime_subgroup,
    kdf,
    seal,
    stream,
    th,
    unseal,
    verify,
    x25519_public,
)

ORDER = 2**252 + 27742317777372353535851937790883648493
P = 2**255 - 19


def test_hkdf_gives_the_answers_of_rfc_5869() -> None:
    """Appendix A, cases 1 and 3."""
    okm = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf_sha256(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42).hex() == okm
    okm = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8"
    assert hkdf_sha256(b"\x0b" * 22, b"", b"", 42).hex() == okm


@pytest.mark.parametrize(
    ("scalar", "u", "shared"),
    [
        (
            "a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4",
            "e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c",
            "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552",
        ),
        (  # the top bit of u is set and must be ignored
            "4b66e9d4d1b4673c5ad22691957d6af5c11b6421e0ea01d42ca4169e7918ba0d",
            "e5210f12786811d3f4b7959d0538ae2c31dbe7106fc03c3efc4cd549c715a493",
            "95cbde9476e8907d7aade45cb4b873f88b595a68799fa152e6f8f7647aac7957",
        ),
    ],
)
def test_key_agreement_gives_the_answers_of_rfc_7748(scalar: str, u: str, shared: str) -> None:
    """Section 5.2."""
    assert exchange(bytes.fromhex(scalar), bytes.fromhex(u)).hex() == shared


def test_a_non_canonical_coordinate_is_taken_modulo_p() -> None:
    """RFC 7748, section 5: implementations must accept u >= p."""
    assert exchange(b"\x07" * 32, (P + 9).to_bytes(32, "little")) == x25519_public(b"\x07" * 32)


@pytest.mark.parametrize("u", [0, 1, P - 1, P, P + 1, 2**255])
def test_key_agreement_refuses_an_all_zero_secret(u: int) -> None:
    with pytest.raises(RuleError) as refused:
        exchange(b"\x07" * 32, u.to_bytes(32, "little"))
    assert refused.value.code is Code.LOW_ORDER_KEY


def test_the_stream_is_the_keystream_of_rfc_8439_from_block_one() -> None:
    """Appendix A.1, test vectors 2 (block 1 of the zero key) and 4 (block 2 of another)."""
    block = (
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )
    assert stream(bytes(32), 64).hex() == block
    block = (
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096"
    )
    assert stream(b"\x00\xff" + bytes(30), 64, 64).hex() == block


@given(key=st.binary(min_size=32, max_size=32), start=st.integers(0, 200), length=st.integers(0, 200))
def test_the_stream_can_be_sought_and_is_the_encryption_of_zeros(key: bytes, start: int, length: int) -> None:
    zeros = seal(key, b"", bytes(start + length))[: start + length]
    assert stream(key, length, start) == zeros[start:]


@pytest.mark.parametrize(
    ("seed", "public"),
    [
        (
            "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
            "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        ),
        (
            "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb",
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
        ),
    ],
)
def test_keys_are_those_of_rfc_8032(seed: str, public: str) -> None:
    """Section 7.1, tests 1 and 2."""
    assert SigningKey(bytes.fromhex(seed)).public.hex() == public


def test_a_signature_holds_for_its_kind_body_and_key_alone() -> None:
    key, other = SigningKey(bytes(32)), SigningKey(b"\x01" * 32)
    signature = key.sign("vote", b"body")
    assert verify("vote", key.public, b"body", signature)
    assert not verify("masked", key.public, b"body", signature)
    assert not verify("vote", key.public, b"body!", signature)
    assert not verify("vote", other.public, b"body", signature)
    assert not verify("vote", key.public, b"body", signature[:-1])
    assert not verify("vote", key.public[:-1], b"body", signature)


def test_lax_signatures_are_refused() -> None:
    """S + L is the same scalar; under the neutral element every message has a signature."""
    key = SigningKey(bytes(32))
    signature = key.sign("vote", b"body")
    lifted = int.from_bytes(signature[32:], "little") + ORDER
    assert not verify("vote", key.public, b"body", signature[:32] + lifted.to_bytes(32, "little"))
    neutral = (1).to_bytes(32, "little")
    assert not verify("vote", neutral, b"body", neutral + bytes(32))


def test_only_points_of_the_prime_order_subgroup_may_be_certified() -> None:
    """Adding the point of order two negates both coordinates of an Ed25519 point: a mixed-order key of canonical form."""
    public = SigningKey(bytes(32)).public
    y, sign = int.from_bytes(public, "little") % 2**255, public[31] >> 7
    mixed = (P - y | (1 - sign) << 255).to_bytes(32, "little")
    assert in_prime_subgroup(public)
    assert not in_prime_subgroup(mixed)
    assert not in_prime_subgroup((1).to_bytes(32, "little"))
    assert not in_prime_subgroup(public[:-1])


def test_sealed_shares_open_under_their_key_and_context_alone() -> None:
    key, ciphertext = b"k" * 32, seal(b"k" * 32, b"context", b"shares")
    assert unseal(key, b"context", ciphertext) == b"shares"
    assert unseal(key, b"other", ciphertext) is None
    assert unseal(b"K" * 32, b"context", ciphertext) is None
    assert unseal(key, b"context", ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])) is None
    assert unseal(key, b"context", ciphertext[:10]) is None


@given(parts=st.lists(st.binary(max_size=4), min_size=1, max_size=4))
def test_hashes_tell_where_one_part_ends_and_the_next_begins(parts: list[bytes]) -> None:
    assert th("label", *parts) != th("label", *parts, b"")
    assert th("label", *parts) != th("label", b"".join(parts) + b"x")
    assert th("label", *parts) != th("labe", b"l", *parts)


def test_derived_keys_differ_by_label_context_and_salt() -> None:
    keys = {kdf(b"i", b"s", "a"), kdf(b"i", b"s", "b"), kdf(b"i", b"s", "a", b"x"), kdf(b"i", b"t", "a"), kdf(b"j", b"s", "a")}
    assert len(keys) == 5
