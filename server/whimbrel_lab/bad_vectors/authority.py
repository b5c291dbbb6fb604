"""Cases of what the authority signs, and of entries at a server's door: certificates, policies, plans, JOIN."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from whimbrel_lab.bad_vectors.book import GOOD, Book
from whimbrel_lab.bad_vectors.objects import good_objects, plan, put
from whimbrel_lab.bad_vectors.scene import (
    DAY,
    FLEET,
    ISSUER,
    LANE,
    NOW,
    ROOT,
    STRANGER,
    identity,
    join,
    policy,
    resigned,
)
from whimbrel_protocol.errors import Code
from whimbrel_protocol.objects import Certificate, JoinEntry
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Policy

SKEW = 600


def write(book: Book) -> None:
    """All of the chapter."""
    _write_requests(book)
    _write_certificates(book)
    _write_policies(book)
    _write_plans(book)
    _write_entries(book)


def _write_requests(book: Book) -> None:
    data = good_objects()["CertificateRequest"]
    book.add("request: good", "request", GOOD, request=data)
    book.add("request: another key", "request", Code.BAD_REQUEST_SIGNATURE, request=put(data, 36, STRANGER.public))
    book.add("request: another device", "request", Code.BAD_REQUEST_SIGNATURE, request=put(data, 20, bytes(16)))


def _write_certificates(book: Book) -> None:
    rules = book.share("policy", policy().encode())
    for name, expect, key, changes in (
        ("of an issuer", GOOD, ISSUER, {}),
        ("of the root", GOOD, ROOT, {}),
        ("over for ten minutes", GOOD, ISSUER, {"not_after": NOW - SKEW}),
        ("valid in ten minutes", GOOD, ISSUER, {"not_before": NOW + SKEW}),
        ("of a stranger", Code.BAD_CERTIFICATE, STRANGER, {}),
        ("of another fleet", Code.OTHER_FLEET, ISSUER, {"fleet": bytes(16)}),
        ("over", Code.CERTIFICATE_EXPIRED, ISSUER, {"not_after": NOW - SKEW - 1}),
        ("not valid yet", Code.CERTIFICATE_EXPIRED, ISSUER, {"not_before": NOW + SKEW + 1}),
        ("revoked", Code.CERTIFICATE_REVOKED, ISSUER, {"epoch": 2}),
    ):
        data = identity("certified", key, **changes).certificate
        _certificate(book, name, expect, rules, data)
    honest = Certificate.decode(identity("certified").certificate)
    _certificate(book, "by a stranger in an issuer's name", Code.BAD_CERTIFICATE, rules, resigned(honest, STRANGER).encode())
    altered = replace(honest, serial=2).encode()
    _certificate(book, "with another serial than was signed", Code.BAD_CERTIFICATE, rules, altered)


def _certificate(book: Book, name: str, expect: Code | int, rules: str, data: bytes) -> None:
    given = {"certificate": data, "root": ROOT.public, "policy": rules, "now": NOW}
    book.add(f"certificate: {name}", "certificate", expect, **given)


def strong(key: SigningKey = ROOT, **changes: Any) -> Policy:
    """A policy that an app accepts."""
    return policy(key, **({"sigma": 48, "n_min": 32, "n_max": 1024} | changes))


def _write_policies(book: Book) -> None:
    for name, expect, rules in (
        ("good", GOOD, strong()),
        ("over for ten minutes", GOOD, strong(not_after=NOW - SKEW)),
        ("for 30 days", GOOD, strong(not_after=NOW + 30 * DAY)),
        ("gamma a third", GOOD, strong(gamma_milli=333)),
        ("the least cohort", GOOD, strong(n_min=8)),
        ("of a stranger", Code.BAD_POLICY, strong(STRANGER)),
        ("of an issuer", Code.BAD_POLICY, strong(ISSUER)),
        ("altered after it was signed", Code.BAD_POLICY, replace(strong(), n_min=8)),
        ("of another fleet", Code.OTHER_FLEET, strong(fleet=bytes(16))),
        ("rolled back", Code.POLICY_ROLLED_BACK, strong(serial=6)),
        ("over", Code.POLICY_EXPIRED, strong(not_after=NOW - SKEW - 1)),
        ("dated too far ahead", Code.POLICY_EXPIRED, strong(not_after=NOW + 30 * DAY + SKEW + 1)),
        ("gamma above a third", Code.POLICY_TOO_WEAK, strong(gamma_milli=334)),
        ("n_min below the floor", Code.POLICY_TOO_WEAK, strong(n_min=7)),
        ("n_max below n_min", Code.POLICY_TOO_WEAK, strong(n_min=64, n_max=63)),
        ("no security of the graph", Code.POLICY_TOO_WEAK, strong(sigma=0)),
    ):
        _policy(book, name, expect, rules, 8)
    _policy(book, "three honest survivors", Code.POLICY_TOO_WEAK, strong(n_min=4), 4)


def _policy(book: Book, name: str, expect: Code | int, rules: Policy, floor: int) -> None:
    given = {"root": ROOT.public, "fleet": FLEET, "now": NOW, "highest_serial": 7, "least_cohort": floor}
    book.add(f"policy: {name}", "policy", expect, policy=rules.encode(), **given)


def _write_plans(book: Book) -> None:
    open_ = policy(flags=2)
    for name, expect, offered, rules, scale in (
        ("good", GOOD, plan(), policy(), 2.0),
        ("over for ten minutes", GOOD, plan(not_after=NOW - SKEW), policy(), 2.0),
        ("without masks, where that is allowed", GOOD, plan(flags=0), open_, 2.0),
        ("of the root", Code.BAD_PLAN, resigned(plan(), ROOT), policy(), 2.0),
        ("of a stranger", Code.BAD_PLAN, resigned(plan(), STRANGER), policy(), 2.0),
        ("of a signer that the policy does not name", Code.BAD_PLAN, plan(), policy(plan_signers=()), 2.0),
        ("altered after it was signed", Code.BAD_PLAN, replace(plan(), body=b"another plan"), policy(), 2.0),
        ("of another fleet", Code.OTHER_FLEET, plan(fleet=bytes(16)), policy(), 2.0),
        ("for another task", Code.PLAN_OTHER_TASK, plan(task="letters"), policy(), 2.0),
        ("rolled back", Code.PLAN_ROLLED_BACK, plan(serial=2), policy(), 2.0),
        ("over", Code.PLAN_EXPIRED, plan(not_after=NOW - SKEW - 1), policy(), 2.0),
        ("without masks", Code.PLAN_UNMASKED, plan(flags=0), policy(), 2.0),
        ("without masks, allowed by another bit", Code.PLAN_UNMASKED, plan(flags=0), policy(flags=1), 2.0),
        ("a scale below its range", Code.BAD_SPEC, plan(), policy(), 0.5),
        ("a scale above its range", Code.BAD_SPEC, plan(), policy(), 4097.0),
        ("lanes too narrow", Code.BAD_SPEC, plan(bits=8, n_max=128), policy(), 2.0),
    ):
        given = {"plan": offered.encode(), "policy": rules.encode(), "task": "digits", "scale": scale}
        book.add(f"plan: {name}", "plan", expect, **given, now=NOW, highest_serial=3)


# --- what a server admits at JOIN -------------------------------------------------------------------------------------


def _write_entries(book: Book) -> None:
    rules = book.share("policy", policy().encode())
    for name, expect, data in (*_good_entries(), *_bad_entries()):
        given = {"entry": data, "fleet": FLEET, "lane": LANE, "policy": rules, "root": ROOT.public, "now": NOW}
        book.add(f"JOIN: {name}", "entry", expect, **given)


def entry(signer: SigningKey | None = None, certified: dict[str, Any] | None = None, **changes: Any) -> bytes:
    """A device's entry with fields changed before the device (or another key) signs it."""
    who = identity("joins", **(certified or {}))
    return resigned(JoinEntry.decode(join(who, policy()).entry), signer or who.key, **changes).encode()


def _good_entries() -> Iterator[tuple[str, Code | int, bytes]]:
    yield "good", GOOD, entry()
    yield "a minute of life", GOOD, entry(expires=NOW + 60)
    yield "15 minutes of life", GOOD, entry(expires=NOW + 900)


def _bad_entries() -> Iterator[tuple[str, Code | int, bytes]]:
    yield "less than a minute of life", Code.ENTRY_SHORT_LIVED, entry(expires=NOW + 59)
    yield "more than 15 minutes of life", Code.ENTRY_SHORT_LIVED, entry(expires=NOW + 901)
    yield "over", Code.ENTRY_EXPIRED, entry(expires=NOW - 1)
    yield "another fleet", Code.ENTRY_FLEET, entry(fleet=bytes(16))
    yield "another device than certified", Code.ENTRY_DEVICE, entry(device=bytes(16))
    yield "another lane", Code.ENTRY_LANE, entry(lane=bytes(32))
    yield "a certificate that ends within ten minutes", Code.ENTRY_CERTIFICATE_DATES, entry(certified={"not_after": NOW + 599})
    yield (
        "a certificate that began within ten minutes",
        Code.ENTRY_CERTIFICATE_DATES,
        entry(certified={"not_before": NOW - 599}),
    )
    yield "a revoked certificate", Code.ENTRY_EPOCH, entry(certified={"epoch": 2})
    yield "a stranger's certificate", Code.ENTRY_CERTIFICATE, entry(certified={"key": STRANGER})
    yield "another key's signature", Code.ENTRY_SIGNATURE, entry(STRANGER)
    yield "one key twice", Code.ROSTER_KEYS, entry(mask_key=b"k" * 32, channel_key=b"k" * 32)
    yield "a low-order mask key", Code.LOW_ORDER_KEY, entry(mask_key=bytes(32))
    yield "a low-order channel key", Code.LOW_ORDER_KEY, entry(channel_key=(1).to_bytes(32, "little"))
    yield "a byte short", Code.BAD_SIZE, entry()[:-1]
