"""What the authority signs for the whole fleet: policies by the root, plans by the plan signer. Pure: time is an argument.

The numbers that a policy may not go below stand here, because a weak policy cannot be taken back from a device that saw it
before its successor. What belongs to single devices is in `issuing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

from whimbrel_authority.issuing import BACKDATE_S, DAY_S
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import PlanBody
from whimbrel_protocol.primitives import SIGNATURE_BYTES, SigningKey
from whimbrel_protocol.signed import UNMASKED_ALLOWED, Plan, Policy
from whimbrel_protocol.trust import LEAST_COHORT
from whimbrel_protocol.wire import COHORT, decode

# What devices accept (masking protocol, section 1.4), and graph security between the tables' 40 bits and beyond reason.
GAMMA_MILLI_MAX = 333
SIGMA_FLOOR, SIGMA_MAX = 40, 128
DAYS_MAX = 30


@dataclass(frozen=True)
class Terms:
    """A policy's numbers as the operator gives them: gamma in thousandths, cohort sizes, bits of graph security, days."""

    n_min: int = 32
    n_max: int = COHORT
    gamma_milli: int = 200
    sigma: int = 48
    days: int = DAYS_MAX
    unmasked: bool = False

    def check(self) -> None:
        """Raise RuleError 215 where devices would refuse the policy, or should."""
        for holds, reason in (
            (0 <= self.gamma_milli <= GAMMA_MILLI_MAX, f"gamma is {self.gamma_milli / 1000}, not 0 to a third"),
            (SIGMA_FLOOR <= self.sigma <= SIGMA_MAX, f"sigma is {self.sigma}, not {SIGMA_FLOOR} to {SIGMA_MAX}"),
            (self.n_min >= LEAST_COHORT, f"n_min is {self.n_min}, not at least {LEAST_COHORT}"),
            (self.n_min <= self.n_max <= COHORT, f"n_max is {self.n_max}, not n_min to {COHORT}"),
            (1 <= self.days <= DAYS_MAX, f"the policy would hold for {self.days} days, not 1 to {DAYS_MAX}"),
        ):
            if not holds:
                raise RuleError(Code.POLICY_TOO_WEAK, reason)


def terms_of(policy: Policy) -> Terms:
    """Return the numbers of a policy, with the usual number of days: what its successor has unless told otherwise."""
    sizes = (policy.n_min, policy.n_max)
    return Terms(*sizes, policy.gamma_milli, policy.sigma, unmasked=policy.unmasked_allowed)


def first_policy(root: SigningKey, fleet: bytes, issuer: bytes, plan_signer: bytes, terms: Terms, now: int) -> Policy:
    """Return policy 1 of a new fleet; `issuer` and `plan_signer` are public keys. Raises RuleError 215."""
    values = {"fleet": fleet, "serial": 1, "min_epoch": 0, "issuers": (issuer,), "plan_signers": (plan_signer,)}
    return _sign(root, values, terms, now)


def next_policy(root: SigningKey, policy: Policy, terms: Terms, min_epoch: int, now: int) -> Policy:
    """Return the successor of `policy`: its serial plus one, its keys, other numbers. Raises RuleError 215."""
    values = {
        "fleet": policy.fleet,
        "serial": policy.serial + 1,
        "min_epoch": max(min_epoch, policy.min_epoch),
        "issuers": policy.issuers,
        "plan_signers": policy.plan_signers,
    }
    return _sign(root, values, terms, now)


def _sign(root: SigningKey, values: dict[str, object], terms: Terms, now: int) -> Policy:
    terms.check()
    return Policy.sign(
        root,
        **values,
        # An hour short of the full days, so that no honest clock that is slow finds it dated too far ahead.
        not_after=now + terms.days * DAY_S - BACKDATE_S,
        gamma_milli=terms.gamma_milli,
        sigma=terms.sigma,
        n_min=terms.n_min,
        n_max=terms.n_max,
        flags=UNMASKED_ALLOWED if terms.unmasked else 0,
    )


def sign_plan(key: SigningKey, policy: Policy, data: bytes, now: int) -> Plan:
    """Return the signed plan for `data`, a plan without signature.

    Raises WireError 1xx or 20x for what is no plan, 203 where its numbers give no vector spec, RuleError 208 for another fleet,
    216 where the policy does not name `key`, 218 past its date, 220 without masks unless the policy allows that.
    """
    plan = Plan.decode(data + bytes(SIGNATURE_BYTES))
    decode(plan.body, PlanBody)
    for scale in (plan.scale_min, plan.scale_max):
        plan.spec(scale)
    if plan.fleet != policy.fleet:
        raise RuleError(Code.OTHER_FLEET, f"the plan names fleet {plan.fleet.hex()}")
    if key.public not in policy.plan_signers:
        raise RuleError(Code.BAD_PLAN, "the policy does not name this plan signer")
    if plan.not_after < now:
        raise RuleError(Code.PLAN_EXPIRED)
    if not plan.masked and not policy.unmasked_allowed:
        raise RuleError(Code.PLAN_UNMASKED)
    return Plan.decode(data + key.sign(Plan.KIND, plan.signature_input()))
