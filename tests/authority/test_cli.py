"""The operator's command: what it makes, what it refuses, and what others then believe."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.authority.fleet import Device, Fleet
from whimbrel_authority.cli import main
from whimbrel_authority.ledger import Ledger
from whimbrel_protocol.errors import ProtocolError
from whimbrel_protocol.messages import Binding, PlanBody
from whimbrel_protocol.objects import Certificate
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import Plan
from whimbrel_protocol.trust import accept_certificate, accept_policy
from whimbrel_protocol.wire import encode

NOW = int(time.time())


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_init_makes_a_private_directory(fleet: Fleet) -> None:
    assert mode(fleet.path) == 0o700
    for name in ("root.key", "issuer.key", "plan.key", "ledger.sqlite", "policy.bin"):
        assert mode(fleet.path / name) == 0o600, name
    seeds = {(fleet.path / f"{name}.key").read_bytes() for name in ("root", "issuer", "plan")}
    assert len(seeds) == 3 and {len(seed) for seed in seeds} == {32}


def test_init_never_overwrites(fleet: Fleet) -> None:
    before = (fleet.path / "root.key").read_bytes()
    status, _, err = fleet.attempt("init")
    assert status == 2 and "error 431" in err
    assert (fleet.path / "root.key").read_bytes() == before


@pytest.mark.parametrize("skew", [-600, 0, 600])
def test_devices_accept_the_policy_whatever_honest_clock_they_have(fleet: Fleet, skew: int) -> None:
    policy = accept_policy(fleet.policy().encode(), fleet.root, fleet.fleet, NOW + skew, 0)
    assert (policy.serial, policy.n_min, policy.n_max, policy.gamma_milli, policy.sigma) == (1, 8, 1024, 200, 48)
    assert not policy.unmasked_allowed
    assert policy.issuers == (SigningKey((fleet.path / "issuer.key").read_bytes()).public,)


def test_the_next_policy_keeps_what_is_not_given(fleet: Fleet) -> None:
    fleet.run("sign-policy", "--gamma", 0.1, "--allow-unmasked", "--policy-days", 2)
    second = fleet.policy()
    assert (second.serial, second.gamma_milli, second.n_min, second.unmasked_allowed) == (2, 100, 8, True)
    assert 86_400 < second.not_after - NOW <= 2 * 86_400
    copy = fleet.path / "copy"
    fleet.run("sign-policy", "--no-allow-unmasked", "--out", copy)
    third = fleet.policy()
    assert (third.serial, third.gamma_milli, third.unmasked_allowed) == (3, 100, False)
    assert copy.read_bytes() == third.encode()
    accept_policy(third.encode(), fleet.root, fleet.fleet, NOW, 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--gamma", 0.34),
        ("--gamma", -0.1),
        ("--n-min", 7),
        ("--n-max", 7),
        ("--n-max", 1025),
        ("--sigma", 39),
        ("--policy-days", 31),
    ],
    ids=str,
)
def test_no_weak_policy_is_signed(fleet: Fleet, arguments: tuple[object, ...]) -> None:
    status, _, err = fleet.attempt("sign-policy", *arguments)
    assert status == 2 and "error 215" in err
    assert fleet.policy().serial == 1


def test_keys_that_others_may_read_are_not_used(fleet: Fleet) -> None:
    (fleet.path / "root.key").chmod(0o640)
    status, _, err = fleet.attempt("sign-policy")
    assert status == 2 and "root.key" in err
    assert fleet.policy().serial == 1


def test_commands_on_no_directory_make_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["issue", str(tmp_path / "none"), "--tokens", "1"]) == 2
    assert "error 431" in capsys.readouterr().err
    assert not (tmp_path / "none").exists()


def test_tokens_are_distinct_and_kept_as_hashes(fleet: Fleet) -> None:
    tokens = fleet.tokens(5)
    assert len(set(tokens)) == 5 and all(len(token) >= 32 for token in tokens)
    stored = b"".join(path.read_bytes() for path in fleet.path.glob("ledger*"))
    assert not any(token.encode() in stored for token in tokens)


def test_a_request_is_certified_offline(fleet: Fleet, tmp_path: Path) -> None:
    device = Device(fleet.fleet)
    (tmp_path / "request").write_bytes(device.request())
    fleet.run("issue", "--request", tmp_path / "request", "--out", tmp_path / "certificate")
    certificate = accept_certificate((tmp_path / "certificate").read_bytes(), fleet.root, fleet.policy(), NOW)
    assert (certificate.device, certificate.public_key) == (device.device, device.key().public)
    assert (certificate.attest_class, certificate.flags, certificate.serial) == (3, 5, 1)
    # A server wants ten minutes of validity on either side.
    assert certificate.not_before <= NOW - 600 and certificate.not_after - NOW == pytest.approx(90 * 86_400, abs=60)


def test_an_altered_request_is_not_certified(fleet: Fleet, tmp_path: Path) -> None:
    request = bytearray(Device(fleet.fleet).request())
    request[80] ^= 1
    (tmp_path / "request").write_bytes(request)
    status, _, err = fleet.attempt("issue", "--request", tmp_path / "request", "--out", tmp_path / "certificate")
    assert status == 2 and "error 211" in err
    assert not (tmp_path / "certificate").exists()


def test_revoking_raises_the_epoch_once(fleet: Fleet, tmp_path: Path) -> None:
    device = Device(fleet.fleet)
    (tmp_path / "request").write_bytes(device.request())
    fleet.run("issue", "--request", tmp_path / "request", "--out", tmp_path / "certificate")
    for _ in range(2):
        fleet.run("revoke", "--device", device.device.hex())
    policy = fleet.policy()
    assert (policy.serial, policy.min_epoch) == (2, 1)
    with pytest.raises(ProtocolError, match="error 207"):
        accept_certificate((tmp_path / "certificate").read_bytes(), fleet.root, policy, NOW)
    status, _, err = fleet.attempt("issue", "--request", tmp_path / "request", "--out", tmp_path / "again")
    assert status == 2 and "error 223" in err


def test_a_revocation_holds_in_every_later_policy(fleet: Fleet, tmp_path: Path) -> None:
    """The mark is written first: if the policy was never signed, the next one asks for the epoch all the same."""
    device = Device(fleet.fleet)
    (tmp_path / "request").write_bytes(device.request())
    fleet.run("issue", "--request", tmp_path / "request", "--out", tmp_path / "certificate")
    ledger = Ledger(fleet.path / "ledger.sqlite")
    ledger.revoke(device.device, 1)
    ledger.close()
    fleet.run("sign-policy")
    assert fleet.policy().min_epoch == 1


@pytest.mark.parametrize(("device", "number"), [("00" * 16, 413), ("00" * 15, 431), ("zz" * 16, 431)])
def test_revoking_nobody_changes_nothing(fleet: Fleet, device: str, number: int) -> None:
    status, _, err = fleet.attempt("revoke", "--device", device)
    assert status == 2 and f"error {number}" in err
    assert fleet.policy().serial == 1


def test_a_ledger_of_a_newer_program_is_left_alone(fleet: Fleet) -> None:
    ledger = Ledger(fleet.path / "ledger.sqlite")
    ledger._db.execute("PRAGMA user_version = 2")
    ledger.close()
    status, _, err = fleet.attempt("issue", "--tokens", 1)
    assert status == 2 and "error 432" in err


# --- plans ----------------------------------------------------------------------------------------------------------


def plan(fleet: bytes, **changes: object) -> Plan:
    binding = (Binding("param", "w", "float32", (3,)),)
    body = PlanBody("mse", 8, b"train", b"eval", binding, binding, binding, binding)
    head = {"serial": 1, "not_after": NOW + 86_400, "flags": 1, "bits": 21, "n_max": 64, "weight_bits": 1, "d": 3}
    fields = {"fleet": fleet, "scale_min": 1.0, "scale_max": 1024.0, "task": "digits", "body": encode(body)}
    return Plan(**{**head, **fields, **changes})  # type: ignore[arg-type]


def sign(fleet: Fleet, data: bytes) -> tuple[int, str, bytes]:
    (fleet.path / "plan").write_bytes(data)
    status, _, err = fleet.attempt("sign-plan", fleet.path / "plan", "--out", fleet.path / "signed")
    return status, err, (fleet.path / "signed").read_bytes() if status == 0 else b""


def test_a_signed_plan_is_the_plan_and_a_signature_of_the_policys_signer(fleet: Fleet) -> None:
    unsigned = plan(fleet.fleet).signed_bytes()
    status, err, signed = sign(fleet, unsigned)
    assert status == 0, err
    assert signed[:-64] == unsigned
    assert Plan.decode(signed).signed_by(fleet.policy().plan_signers[0])


@pytest.mark.parametrize(
    ("changes", "number"),
    [
        ({"fleet": bytes(16)}, 208),
        ({"not_after": NOW - 1}, 218),
        ({"flags": 0}, 220),
        ({"bits": 1}, 203),
        ({"d": 0}, 203),
        ({"scale_min": 0.0}, 203),
        ({"scale_max": float("nan")}, 203),
        ({"scale_min": 2048.0}, 203),
        ({"body": b"nonsense"}, 100),
    ],
    ids=str,
)
def test_what_is_not_signed(fleet: Fleet, changes: dict[str, object], number: int) -> None:
    status, err, _ = sign(fleet, plan(**{"fleet": fleet.fleet, **changes}).signed_bytes())  # type: ignore[arg-type]
    assert status == 2 and f"error {number}" in err
    assert not (fleet.path / "signed").exists()


@pytest.mark.parametrize("data", [b"", b"MWN1", os.urandom(300)], ids=["empty", "short", "random"])
def test_what_is_no_plan_is_not_signed(fleet: Fleet, data: bytes) -> None:
    status, err, _ = sign(fleet, data)
    assert status == 2 and "error 20" in err


def test_a_signed_plan_is_not_signed_again(fleet: Fleet) -> None:
    _, _, signed = sign(fleet, plan(fleet.fleet).signed_bytes())
    status, err, _ = sign(fleet, signed)
    assert status == 2 and "error 200" in err


def test_a_plan_without_masks_is_signed_where_the_policy_allows_it(fleet: Fleet) -> None:
    fleet.run("sign-policy", "--allow-unmasked")
    status, err, signed = sign(fleet, plan(fleet.fleet, flags=0).signed_bytes())
    assert status == 0, err
    assert not Plan.decode(signed).masked


def test_certificates_of_one_fleet_mean_nothing_in_another(fleet: Fleet, tmp_path: Path) -> None:
    other = Fleet(tmp_path / "other", fleet.capture).init()
    (tmp_path / "request").write_bytes(Device(other.fleet).request())
    status, _, err = fleet.attempt("issue", "--request", tmp_path / "request", "--out", tmp_path / "certificate")
    assert status == 2 and "error 208" in err
    other.run("issue", "--request", tmp_path / "request", "--out", tmp_path / "certificate")
    assert Certificate.decode((tmp_path / "certificate").read_bytes()).fleet == other.fleet
