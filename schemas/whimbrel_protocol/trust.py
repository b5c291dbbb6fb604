"""What may be believed of the authority's objects: certificates, the policy, plans. The rules of masking protocol section 1.4.

Here belong the judgements that are the same on a device, a server and an authority, each with its own error number.
They are pure: the time, the root key and the highest serial seen are arguments. What a window's messages must satisfy
belongs in `checks.py`. Times are Unix seconds.
"""

from __future__ import annotations

from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.objects import ISSUER_BYTES, Certificate
from whimbrel_protocol.primitives import th
from whimbrel_protocol.rules import corrupt, survivor_floor, threshold
from whimbrel_protocol.signed import Plan, Policy

# What two honest clocks may differ by, seconds.
SKEW_S = 600

# No policy is valid for longer, so that a stolen server cannot keep an old one alive.
POLICY_LIFETIME_S = 30 * 86_400

# The floors below which no app accepts a policy, whoever signed it.
LEAST_COHORT = 8
LEAST_HONEST = 4


def demand(holds: bool, code: Code, detail: str = "") -> None:
    """Raise RuleError `code` unless the condition holds."""
    if not holds:
        raise RuleError(code, detail)


def fleet_of(root: bytes) -> bytes:
    """The fleet's id, 16 bytes: it follows from the root key, the one thing of a fleet that a device knows before it enrols."""
    return th("mw1/fleet", root)[:16]


def issued_by_authority(certificate: Certificate, root: bytes, policy: Policy) -> bool:
    """Whether the root, or an issuer key of the policy, signed the certificate; `issuer` says which to try."""
    trusted = (root, *policy.issuers)
    return any(certificate.signed_by(key) for key in trusted if key[:ISSUER_BYTES] == certificate.issuer)


def dates_hold(certificate: Certificate, now: int, skew: int = 0) -> bool:
    """Whether the certificate is valid at some time within `skew` seconds of `now`; a negative skew: at all of them."""
    return certificate.not_before - skew <= now <= certificate.not_after + skew


def accept_certificate(data: bytes, root: bytes, policy: Policy, now: int, skew: int = SKEW_S) -> Certificate:
    """The certificate, if it is the fleet's, valid now and not revoked.

    Raises WireError for bytes that are none, RuleError OTHER_FLEET, BAD_CERTIFICATE, CERTIFICATE_EXPIRED,
    CERTIFICATE_REVOKED.
    """
    certificate = Certificate.decode(data)
    demand(certificate.fleet == policy.fleet, Code.OTHER_FLEET)
    demand(issued_by_authority(certificate, root, policy), Code.BAD_CERTIFICATE)
    demand(dates_hold(certificate, now, skew), Code.CERTIFICATE_EXPIRED)
    demand(certificate.epoch >= policy.min_epoch, Code.CERTIFICATE_REVOKED)
    return certificate


def least_honest(policy: Policy) -> int:
    """The fewest honest survivors (m = s_min - c) that any cohort size of the policy guarantees."""
    return min(_honest(n, policy) for n in range(policy.n_min, policy.n_max + 1))


def _honest(n: int, policy: Policy) -> int:
    c = corrupt(n, policy.gamma_milli)
    return survivor_floor(threshold(n, c), policy.n_min) - c


def accept_policy(
    data: bytes, root: bytes, fleet: bytes, now: int, highest_serial: int, least_cohort: int = LEAST_COHORT
) -> Policy:
    """The policy, if the root signed it for this fleet and its numbers protect.

    `highest_serial` is the highest ever accepted (0 for none): the caller persists it. Raises WireError for bytes that are
    none, RuleError OTHER_FLEET, BAD_POLICY, POLICY_ROLLED_BACK, POLICY_EXPIRED (past its date, or dated more than 30 days
    ahead), or POLICY_TOO_WEAK (gamma above 1/3, n_min below the floor, a cohort with fewer than four honest survivors).
    """
    policy = Policy.decode(data)
    demand(policy.fleet == fleet, Code.OTHER_FLEET)
    demand(policy.signed_by(root), Code.BAD_POLICY)
    seen = f"serial {policy.serial}, seen {highest_serial}"
    demand(policy.serial >= highest_serial, Code.POLICY_ROLLED_BACK, seen)
    demand(now - SKEW_S <= policy.not_after <= now + POLICY_LIFETIME_S + SKEW_S, Code.POLICY_EXPIRED)
    _demand_strength(policy, least_cohort)
    return policy


def _demand_strength(policy: Policy, least_cohort: int) -> None:
    weak = Code.POLICY_TOO_WEAK
    demand(3 * policy.gamma_milli <= 1000, weak, f"gamma {policy.gamma_milli}/1000 is above 1/3")
    demand(policy.n_min >= least_cohort, weak, f"n_min {policy.n_min} is below {least_cohort}")
    demand(policy.n_max >= policy.n_min, weak, f"n_max {policy.n_max} is below n_min {policy.n_min}")
    demand(policy.sigma >= 1, weak, "sigma is 0")
    demand(least_honest(policy) >= LEAST_HONEST, weak, "fewer than four honest survivors are guaranteed")


def accept_plan(data: bytes, policy: Policy, task: str, now: int, highest_serial: int) -> Plan:
    """The plan, if a plan signer of the policy signed it for this fleet and task.

    `highest_serial` is the highest ever accepted for the task (0 for none). Raises WireError for bytes that are none,
    RuleError OTHER_FLEET, BAD_PLAN, PLAN_OTHER_TASK, PLAN_ROLLED_BACK, PLAN_EXPIRED, PLAN_UNMASKED.
    """
    plan = Plan.decode(data)
    demand(plan.fleet == policy.fleet, Code.OTHER_FLEET)
    demand(any(plan.signed_by(key) for key in policy.plan_signers), Code.BAD_PLAN)
    demand(plan.task == task, Code.PLAN_OTHER_TASK, f"{plan.task!r}, not {task!r}")
    seen = f"serial {plan.serial}, seen {highest_serial}"
    demand(plan.serial >= highest_serial, Code.PLAN_ROLLED_BACK, seen)
    demand(now <= plan.not_after + SKEW_S, Code.PLAN_EXPIRED)
    demand(plan.masked or policy.unmasked_allowed, Code.PLAN_UNMASKED)
    return plan
