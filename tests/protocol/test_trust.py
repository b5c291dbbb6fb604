"""What is believed of the authority's objects, and what a server admits: each reason to refuse, beside what passes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.protocol import world
from tests.protocol.world import AUTHORITY, FLEET, LANE, NOW, identity, join, policy, resigned, secret
from whimbrel_protocol.errors import Code, ProtocolError, WireError
from whimbrel_protocol.forming import check_entry, choose_roster
from whimbrel_protocol.member import Member
from whimbrel_protocol.objects import JoinEntry
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Plan, Policy
from whimbrel_protocol.trust import accept_certificate, accept_plan, accept_policy

ISSUER, SIGNER, STRANGER = (SigningKey(secret(name)) for name in ("issuer", "signer", "stranger"))
DAY = 86_400


def strong(key: SigningKey = AUTHORITY, **changes: Any) -> Policy:
    """A policy that an app accepts."""
    keys = {"issuers": (ISSUER.public,), "plan_signers": (SIGNER.public,)}
    return resigned(policy(sigma=48, n_min=32, n_max=1024, **keys), key, **changes)


def test_a_policy_of_the_root_is_accepted() -> None:
    assert accept_policy(strong().encode(), AUTHORITY.public, FLEET, NOW, 7) == strong()


@pytest.mark.parametrize(
    ("rules", "code"),
    [
        (strong(STRANGER), Code.BAD_POLICY),
        (strong(fleet=bytes(16)), Code.OTHER_FLEET),
        (strong(serial=6), Code.POLICY_ROLLED_BACK),
        (strong(not_after=NOW - 601), Code.POLICY_EXPIRED),
        (strong(not_after=NOW + 30 * DAY + 601), Code.POLICY_EXPIRED),
        (strong(gamma_milli=334), Code.POLICY_TOO_WEAK),
        (strong(n_min=7), Code.POLICY_TOO_WEAK),
        (strong(n_min=64, n_max=63), Code.POLICY_TOO_WEAK),
        (strong(sigma=0), Code.POLICY_TOO_WEAK),
    ],
    ids=lambda value: value.name if isinstance(value, Code) else "",
)
def test_a_policy_is_refused_for_each_reason(rules: Policy, code: Code) -> None:
    with pytest.raises(ProtocolError) as refused:
        accept_policy(rules.encode(), AUTHORITY.public, FLEET, NOW, 7)
    assert refused.value.code is code


def test_the_floor_of_four_honest_survivors_stands_by_itself() -> None:
    """n_min 4 gives t = 3, s_min = 4, c = 0 or 1: three honest survivors at n = 5."""
    with pytest.raises(ProtocolError, match="four honest"):
        accept_policy(strong(n_min=4).encode(), AUTHORITY.public, FLEET, NOW, 0, least_cohort=4)


@pytest.mark.parametrize(
    ("changes", "key", "code"),
    [
        ({}, AUTHORITY, None),
        ({}, ISSUER, None),
        ({"not_after": NOW - 600}, AUTHORITY, None),
        ({"not_before": NOW + 600}, AUTHORITY, None),
        ({}, STRANGER, Code.BAD_CERTIFICATE),
        ({"fleet": bytes(16)}, AUTHORITY, Code.OTHER_FLEET),
        ({"not_after": NOW - 601}, AUTHORITY, Code.CERTIFICATE_EXPIRED),
        ({"not_before": NOW + 601}, AUTHORITY, Code.CERTIFICATE_EXPIRED),
        ({"epoch": 2}, AUTHORITY, Code.CERTIFICATE_REVOKED),
    ],
)
def test_a_certificate_is_judged_by_signer_dates_and_epoch(changes: dict[str, Any], key: SigningKey, code: Code | None) -> None:
    data = identity("a", key, **changes).certificate
    if code is None:
        assert accept_certificate(data, AUTHORITY.public, strong(), NOW).encode() == data
        return
    with pytest.raises(ProtocolError) as refused:
        accept_certificate(data, AUTHORITY.public, strong(), NOW)
    assert refused.value.code is code


def plan(key: SigningKey = SIGNER, **changes: Any) -> Plan:
    fields: dict[str, Any] = {
        "fleet": FLEET, "serial": 3, "not_after": NOW, "flags": 1, "bits": 16, "n_max": 64, "weight_bits": 0, "d": 9,
        "scale_min": 1.0, "scale_max": 2.0, "task": "digits", "body": b"body",
    }  # fmt: skip
    return Plan.sign(key, **(fields | changes))


@pytest.mark.parametrize(
    ("offered", "flags", "code"),
    [
        (plan(), 0, None),
        (plan(flags=0), 2, None),
        (plan(STRANGER), 0, Code.BAD_PLAN),
        (replace(plan(), body=b"BODY"), 0, Code.BAD_PLAN),
        (plan(fleet=bytes(16)), 0, Code.OTHER_FLEET),
        (plan(task="letters"), 0, Code.PLAN_OTHER_TASK),
        (plan(serial=2), 0, Code.PLAN_ROLLED_BACK),
        (plan(not_after=NOW - 601), 0, Code.PLAN_EXPIRED),
        (plan(flags=0), 0, Code.PLAN_UNMASKED),
        (plan(flags=0), 1, Code.PLAN_UNMASKED),
    ],
)
def test_a_plan_is_judged_by_signer_task_serial_date_and_masks(offered: Plan, flags: int, code: Code | None) -> None:
    rules = strong(flags=flags)
    if code is None:
        assert accept_plan(offered.encode(), rules, "digits", NOW, 3) == offered
        return
    with pytest.raises(ProtocolError) as refused:
        accept_plan(offered.encode(), rules, "digits", NOW, 3)
    assert refused.value.code is code


# --- what a server admits at JOIN -------------------------------------------------------------------------------------


def entry(name: str = "a", signer: SigningKey | None = None, changes: dict[str, Any] | None = None, **dates: Any) -> bytes:
    """A device's entry, with fields changed before the device (or another key) signs it."""
    who = identity(name, **dates)
    made = JoinEntry.decode(join(who, policy()).entry)
    return resigned(made, signer or who.key, **(changes or {})).encode()


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (entry(), None),
        (entry(changes={"expires": NOW + 60}), None),
        (entry(changes={"expires": NOW + 900}), None),
        (entry(changes={"expires": NOW + 59}), Code.ENTRY_SHORT_LIVED),
        (entry(changes={"expires": NOW + 901}), Code.ENTRY_SHORT_LIVED),
        (entry(changes={"expires": NOW - 1}), Code.ENTRY_EXPIRED),
        (entry(not_before=NOW - 600, not_after=NOW + 600), None),
        (entry(not_before=NOW - 599), Code.ENTRY_CERTIFICATE_DATES),
        (entry(not_after=NOW + 599), Code.ENTRY_CERTIFICATE_DATES),
        (entry(epoch=2), Code.ENTRY_EPOCH),
        (entry(signer=STRANGER), Code.ENTRY_SIGNATURE),
        (entry(changes={"lane": bytes(32)}), Code.ENTRY_LANE),
        (entry(changes={"fleet": bytes(16)}), Code.ENTRY_FLEET),
        (entry(changes={"device": bytes(16)}), Code.ENTRY_DEVICE),
        (entry(changes={"mask_key": bytes(32)}), Code.LOW_ORDER_KEY),
        (entry(changes={"channel_key": (1).to_bytes(32, "little")}), Code.LOW_ORDER_KEY),
        (entry(changes={"mask_key": b"k" * 32, "channel_key": b"k" * 32}), Code.ROSTER_KEYS),
        (entry()[:-1], Code.BAD_SIZE),
    ],
)
def test_a_server_admits_what_every_peer_will(data: bytes, code: Code | None) -> None:
    if code is None:
        assert check_entry(data, FLEET, LANE, policy(), AUTHORITY.public, NOW).encode() == data
        return
    with pytest.raises(ProtocolError) as refused:
        check_entry(data, FLEET, LANE, policy(), AUTHORITY.public, NOW)
    assert refused.value.code is code


def test_a_rendezvous_lets_an_entry_live_longer() -> None:
    late = entry(changes={"expires": NOW + 1800})
    assert check_entry(late, FLEET, LANE, policy(), AUTHORITY.public, NOW, rendezvous=NOW + 900).expires == NOW + 1800


def test_a_roster_has_each_device_once_and_each_key_once() -> None:
    thief = entry("thief", changes={"mask_key": JoinEntry.decode(entry("a")).channel_key})
    newer = entry("b", changes={"seq": 2, "nonce": bytes(16)})
    roster = choose_roster([entry("a"), entry("b"), newer, thief, entry("c")])
    assert roster == tuple(sorted([entry("a"), newer, entry("c")], key=lambda data: JoinEntry.decode(data).device))


@pytest.mark.parametrize("other", ["device", "key", "certificate"])
def test_a_device_joins_with_its_own_certificate_alone(other: str) -> None:
    mine, theirs = identity("a"), identity("b")
    mixed = replace(mine, **{other: getattr(theirs, other)})
    with pytest.raises(ProtocolError) as refused:
        join(mixed, policy())
    assert refused.value.code is Code.KEY_MISMATCH
    with pytest.raises(ProtocolError) as refused:
        join(identity("a", fleet=bytes(16)), policy())
    assert refused.value.code is Code.OTHER_FLEET
    with pytest.raises(WireError):
        join(replace(mine, certificate=b""), policy())


def test_one_rho_makes_one_entry() -> None:
    def made(rho: bytes) -> Member:
        shared: dict[str, Any] = {"lane": LANE, "spec": world.SPEC, "policy": policy(), "root": AUTHORITY.public}
        return Member.join(identity("a"), rho=rho, seq=1, expires=NOW, **shared)

    assert made(secret(1)).entry == made(secret(1)).entry
    one, two = JoinEntry.decode(made(secret(1)).entry), JoinEntry.decode(made(secret(2)).entry)
    assert {one.mask_key, one.channel_key, one.nonce}.isdisjoint({two.mask_key, two.channel_key, two.nonce})
