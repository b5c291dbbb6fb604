"""Attacks before a window: on the policy, the plan, the version, the model, the time, and on what a device does but once.

Here belong the rows and the few functions that only they need. Windows are attacked in `open_attacks.py` and
`phase_attacks.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tests.client.fake_server import DAY
from tests.hostile.attack import Attack, Reply, SetUp, Update
from tests.hostile.forging import STRANGER, certified
from tests.hostile.world import HostileServer
from whimbrel_protocol import messages as m
from whimbrel_protocol.errors import Code
from whimbrel_protocol.signed import UNMASKED_ALLOWED
from whimbrel_protocol.trust import SKEW_S

NONE, FREE, COUNTED = Update.NONE, Update.FREE, Update.COUNTED
HOUR = 3600


def policy(key: Any = None, **changes: Any) -> Reply:
    """The check-in brings another policy; a change may be a function of the server's time."""

    def reply(server: HostileServer, honest: m.CheckedIn) -> m.CheckedIn:
        now = int(server.clock())
        made = {name: value(now) if callable(value) else value for name, value in changes.items()}
        unsigned = replace(server.policy, **made)
        signature = (key or server.root).sign(unsigned.KIND, unsigned.signature_input())
        return replace(honest, policy=replace(unsigned, signature=signature).encode())

    return reply


def plan(**changes: Any) -> SetUp:
    """The task has another plan; a change may be a function of the server's time."""

    def set_up(server: HostileServer) -> None:
        now = int(server.clock())
        server.make_plan(**{"serial": 2, **{name: value(now) if callable(value) else value for name, value in changes.items()}})
        server.strike()

    return set_up


def offer(**changes: Any) -> Reply:
    """The client alone gets another assignment; a change may be a function of the server."""

    def reply(server: HostileServer, honest: m.CheckedIn) -> m.CheckedIn:
        if honest.assignment is None:
            return honest
        made = {name: value(server) if callable(value) else value for name, value in changes.items()}
        return replace(honest, assignment=replace(honest.assignment, **made))

    return reply


def header(**changes: Any) -> Any:
    """The version's header, with other values."""
    return lambda server: replace(server.header, **changes).encode()


def forged_plan(server: HostileServer) -> None:
    plan(key=STRANGER)(server)


def swapped(server: HostileServer) -> None:
    """The plan's address holds another plan, rightly signed."""
    honest = server.plan_ref
    server.make_plan(2)
    server.blobs[honest.sha256] = server.plan.encode()
    server.plan_ref = honest
    server.strike()


def older_plan(server: HostileServer) -> None:
    """The client knows plan 7 of the task; an older one without masks comes back."""
    server.make_plan(7)


def replayed_plan(server: HostileServer, honest: m.CheckedIn) -> m.CheckedIn:
    """First plan 7, with a model that does not fit, so that the plan is kept and no more; then plan 6."""
    assert honest.assignment is not None
    if server.told["checked-in"] == 1:
        return replace(honest, assignment=replace(honest.assignment, snapshot=m.BlobRef(bytes(32), 1)))
    server.make_plan(6, flags=0)
    return replace(honest, assignment=replace(honest.assignment, plan=server.plan_ref))


# --- the version that is trained ------------------------------------------------------------------------------------


def again_as_new(server: HostileServer, honest: m.CheckedIn) -> m.CheckedIn:
    """Once the client was counted, the same model is offered as version 9."""
    if server.victim not in server.done_by:
        return honest
    made = replace(server.assignment(), version=9, header=replace(server.header, version=9).encode())
    return replace(honest, assignment=made)


def again_the_same(server: HostileServer, honest: m.CheckedIn) -> m.CheckedIn:
    """Once the client was counted, the same version is offered."""
    return replace(honest, assignment=server.assignment()) if server.victim in server.done_by else honest


def next_version(server: HostileServer, honest: m.CheckedIn) -> m.CheckedIn:
    """Once the client was counted, a next version is offered at once, above the plan's cap."""
    if server.victim not in server.done_by:
        return honest
    server.done_by.clear()
    server.version = 2
    server.master = [array + 0.5 for array in server.master]
    server.lattices[2] = server._lattice()
    server._publish()
    return replace(honest, assignment=server.assignment())


# --- the time -------------------------------------------------------------------------------------------------------


def frozen(seconds: int) -> SetUp:
    """From the first check-in on, the server's clock is so far behind, in all that it says and signs for."""

    def set_up(server: HostileServer) -> None:
        true = server.clock
        server.clock = lambda: true() - (seconds if server.known else 0)
        server.strike()

    return set_up


def newer_policy(server: HostileServer, honest: m.Open) -> Any:
    """Between JOIN and OPEN a newer policy is shown; then the old roster."""
    if server.told["open"] == 1:
        server.make_policy(2)
        return m.Failure(int(Code.TOKEN_EXPIRED), "check in again")
    return m.Open(honest.params, honest.roster)


def short_policy(server: HostileServer) -> None:
    """The policy is in force for three seconds more."""
    server.make_policy(1, not_after=int(server.clock()) - SKEW_S + 3)


def old_policy(server: HostileServer) -> None:
    """The server goes by a time at which the policy was in force."""
    server.make_policy(1, not_after=int(server.clock()) - 19 * HOUR)
    frozen(20 * HOUR)(server)


def late_open(server: HostileServer, honest: m.Open) -> Any:
    """The roster is kept back until the policy is over, and the client is not told."""
    if server.clock() < server.policy.not_after + SKEW_S + 1:
        return m.Wait(0)
    return m.Open(honest.params, honest.roster)


CHECKED_IN = "checked-in"

LIFE_ATTACKS: tuple[Attack, ...] = (
    # name, rule, the client's number, its update
    Attack("policy-forged", "1.4 policy: signed by the root", Code.BAD_POLICY, NONE, {CHECKED_IN: policy(STRANGER, serial=2)}),
    Attack("policy-other-fleet", "1.4 policy: the fleet's", Code.OTHER_FLEET, NONE, {CHECKED_IN: policy(fleet=bytes(16))}),
    Attack("policy-rolled-back", "1.4 policy: never rolled back", Code.POLICY_ROLLED_BACK, NONE,
           {CHECKED_IN: policy(serial=4)}, lambda s: s.make_policy(5)),
    Attack("policy-expired", "1.4 policy: within its dates", Code.POLICY_EXPIRED, NONE,
           {CHECKED_IN: policy(not_after=lambda now: now - DAY)}),
    Attack("policy-dated-far-ahead", "1.4 policy: within its dates", Code.POLICY_EXPIRED, NONE,
           {CHECKED_IN: policy(not_after=lambda now: now + 40 * DAY)}),
    Attack("policy-expires-in-hand", "1.4 policy: within its dates", Code.POLICY_EXPIRED, FREE,
           {"open": late_open}, short_policy),
    Attack("policy-lower-floor", "1.4 policy: strong enough", Code.POLICY_TOO_WEAK, NONE, {CHECKED_IN: policy(n_min=4)}),
    Attack("policy-higher-gamma", "1.4 policy: strong enough", Code.POLICY_TOO_WEAK, NONE,
           {CHECKED_IN: policy(gamma_milli=334)}),
    Attack("policy-newer-than-the-join", "1.5 OPEN: no newer policy", Code.OPEN_POLICY_NEWER, FREE, {"open": newer_policy}),
    Attack("plan-forged", "1.4 plan: signed by a plan signer", Code.BAD_PLAN, NONE, set_up=forged_plan),
    Attack("plan-other-fleet", "1.4 plan: fleet and task", Code.OTHER_FLEET, NONE, set_up=plan(fleet=bytes(16))),
    Attack("plan-other-task", "1.4 plan: fleet and task", Code.PLAN_OTHER_TASK, NONE, set_up=plan(task="another")),
    Attack("plan-expired", "1.4 plan: within its date", Code.PLAN_EXPIRED, NONE, set_up=plan(not_after=lambda now: now - DAY)),
    Attack("plan-without-masks", "1.4 plan: masked", Code.PLAN_UNMASKED, NONE, set_up=plan(flags=0)),
    Attack("plan-without-masks-in-development", "1.4 plan: masked", Code.PLAN_UNSUPPORTED, NONE, set_up=plan(flags=0),
           scene={"policy": {"flags": UNMASKED_ALLOWED}}),
    Attack("plan-without-masks-replayed", "1.4 plan: never rolled back", Code.PLAN_ROLLED_BACK, NONE,
           {CHECKED_IN: replayed_plan}, older_plan),
    Attack("plan-swapped", "1.4 plan: the bytes that were named", Code.BAD_BLOB, NONE, set_up=swapped),
    Attack("plan-other-size", "1.4 spec: consistent", Code.PLAN_UNSUPPORTED, NONE, set_up=plan(d=24)),
    Attack("plan-no-room-for-a-sum", "1.4 spec: consistent", Code.BAD_SPEC, NONE, set_up=plan(bits=8, n_max=1024)),
    Attack("model-other-hash", "1.4 lane: the base model's bytes", Code.BAD_DELTA, NONE,
           {CHECKED_IN: offer(model_hash=bytes(32))}),
    Attack("header-other-version", "1.4 lane: the version's header", Code.BAD_FIELD, NONE,
           {CHECKED_IN: offer(header=header(version=2))}),
    Attack("header-scale-out-of-range", "1.4 lane: the version's header", Code.BAD_SPEC, NONE,
           {CHECKED_IN: offer(header=header(scale=2.0**21))}),
    Attack("same-base-under-a-new-version", "2 at most once for each base", Code.CONTRIBUTED_BEFORE, COUNTED,
           {CHECKED_IN: again_as_new}),
    Attack("same-version-again", "2 at most once for each base", Code.CONTRIBUTED_BEFORE, COUNTED,
           {CHECKED_IN: again_the_same}),
    Attack("more-than-the-cap", "2 at most q in a period", Code.CONTRIBUTION_CAP, COUNTED, {CHECKED_IN: next_version},
           scene={"body": {"contributions_cap": 1, "cap_period_s": 30 * DAY}}),
    Attack("time-frozen-for-days", "1.4 times: the own clock", Code.CLOCK_WRONG, NONE, set_up=frozen(5 * DAY)),
    Attack("time-frozen-for-an-expired-key", "1.4 times: the latest known", Code.ENTRY_CERTIFICATE_DATES, FREE,
           {"open": certified(not_after=lambda s: int(s.clock()) + 60)}, frozen(15 * 60)),
    Attack("time-frozen-for-a-slow-clock", "1.4 times: the latest known", Code.ENTRY_EXPIRED, FREE,
           set_up=frozen(3 * DAY), clock_s=-3 * DAY),
    Attack("time-frozen-for-an-old-policy", "1.4 policy: within its dates", Code.POLICY_EXPIRED, NONE, set_up=old_policy),
)  # fmt: skip
