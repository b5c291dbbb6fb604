"""What one device refuses, keeps and never does, whatever the server says: each rule attacked once, beside its good case."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from tests.client.fake_server import DAY, TASK, FakeServer
from tests.client.fleet import Fleet, SimDevice
from whimbrel.actions import Ask, Fetch, Send, Sleep, Train
from whimbrel.device import Stage
from whimbrel.device_policy import DevicePolicy
from whimbrel.records import UpdateState
from whimbrel_protocol import forming
from whimbrel_protocol import messages as m
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.messages import CheckedIn, CheckIn
from whimbrel_protocol.objects import Certificate, CertificateRequest, JoinEntry, Params
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import MASKED, UNMASKED_ALLOWED

STRANGER = SigningKey(b"x" * 32)


def one(**knobs: Any) -> tuple[Fleet, FakeServer, SimDevice]:
    """A world with one device, which therefore never comes further than its join."""
    fleet = Fleet(1, **knobs)
    return fleet, fleet.server, fleet.devices[0]


def trained(device: SimDevice) -> int:
    return sum(isinstance(action, Train) for action in device.actions)


def sent(device: SimDevice, path: str) -> list[Send]:
    return [action for action in device.actions if isinstance(action, Send) and action.path.startswith(path)]


def joined(device: SimDevice) -> list[JoinEntry]:
    return [
        JoinEntry.decode(action.message.entry) for action in sent(device, "/v1/joins") if isinstance(action.message, m.Join)
    ]


def run_to_trouble(fleet: Fleet) -> Code:
    fleet.run_until(lambda: fleet.devices[0].life.trouble is not None)
    trouble = fleet.devices[0].life.trouble
    assert trouble is not None
    return trouble.code


# --- the policy -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"serial": 4}, Code.POLICY_ROLLED_BACK),
        ({"fleet": bytes(16)}, Code.OTHER_FLEET),
        ({"not_after": 40 * DAY}, Code.POLICY_EXPIRED),
        ({"not_after": -DAY}, Code.POLICY_EXPIRED),
        ({"gamma_milli": 334}, Code.POLICY_TOO_WEAK),
        ({"gamma_milli": 300}, Code.POLICY_TOO_WEAK),
        ({"n_min": 7}, Code.POLICY_TOO_WEAK),
        ({"n_min": 9}, Code.POLICY_TOO_WEAK),
    ],
)
def test_a_policy_that_is_weaker_or_older_is_refused_and_the_old_one_stays(changes: dict[str, int], code: Code) -> None:
    strict = DevicePolicy(n_min_floor=10, gamma_max=0.25, backoff_min_s=5.0)
    fleet, server, device = one(policy={"n_min": 10}, device_policy=strict)
    server.make_policy(5, n_min=10)
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    before = device.state.policy
    if "not_after" in changes:
        changes = {**changes, "not_after": int(fleet.now) + changes["not_after"]}
    server.make_policy(**{"serial": 6, "n_min": 10, **changes})
    device.start()  # it has no token now, so it checks in
    assert run_to_trouble(fleet) is code
    assert (device.state.policy, device.state.policy_serial) == (before, 5)


def test_a_policy_that_the_root_did_not_sign_is_refused_at_enrolment() -> None:
    fleet, server, device = one()
    server.policy = replace(server.policy, signature=bytes(64))
    assert run_to_trouble(fleet) is Code.BAD_POLICY
    assert not device.state.certificate


def test_a_newer_policy_is_taken_and_joins_use_its_lane() -> None:
    fleet, server, device = one()
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    server.make_policy(2, n_min=9)
    device.start()
    fleet.run_until(lambda: device.state.policy_serial == 2 and len(joined(device)) > 1)
    assert joined(device)[-1].lane == server.lane
    assert trained(device) == 1, "the frozen update serves under the new policy"


# --- plan, header, model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"key": STRANGER}, Code.BAD_PLAN),
        ({"fleet": bytes(16)}, Code.OTHER_FLEET),
        ({"task": "another"}, Code.PLAN_OTHER_TASK),
        ({"not_after": 1}, Code.PLAN_EXPIRED),
        ({"flags": 0}, Code.PLAN_UNMASKED),
        ({"d": 24}, Code.PLAN_UNSUPPORTED),
        ({"scale_max": 1000.0}, Code.BAD_SPEC),
        ({"body": b"no message"}, Code.MALFORMED),
    ],
)
def test_a_plan_that_breaks_a_rule_trains_nothing(changes: dict[str, Any], code: Code) -> None:
    fleet, server, device = one()
    server.make_plan(2, **changes)
    assert run_to_trouble(fleet) is code
    assert trained(device) == 0


def test_a_plan_without_masks_is_not_taken_even_where_the_policy_allows_one() -> None:
    fleet, server, device = one(policy={"flags": UNMASKED_ALLOWED}, plan={"flags": 0})
    assert run_to_trouble(fleet) is Code.PLAN_UNSUPPORTED
    assert trained(device) == 0 and server.plan.flags & MASKED == 0


def test_a_plan_is_never_rolled_back() -> None:
    fleet, server, device = one()
    server.make_plan(7)
    fleet.run_until(lambda: device.state.task(TASK).plan_serial == 7)
    server.make_plan(6)
    device.start()
    device.state = device.life.device.state = replace(device.state, assigned=None)
    assert run_to_trouble(fleet) is Code.PLAN_ROLLED_BACK


def lie(server: FakeServer, **changes: Any) -> None:
    """From now on the server's assignments are changed."""
    honest = server.assignment
    server.assignment = lambda held=(): replace(honest(held), **changes)  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"model_hash": bytes(32)}, Code.BAD_DELTA),
        ({"version": 2}, Code.BAD_FIELD),
        ({"header": b"short"}, Code.BAD_SIZE),
        ({"snapshot": m.BlobRef(bytes(32), 10)}, Code.UNKNOWN_BLOB),
        ({"plan": m.BlobRef(bytes(32), 10)}, Code.UNKNOWN_BLOB),
    ],
)
def test_an_assignment_that_contradicts_itself_trains_nothing(changes: dict[str, Any], code: Code) -> None:
    fleet, server, device = one()
    lie(server, **changes)
    assert run_to_trouble(fleet) is code
    assert trained(device) == 0
    assert device.state.assigned is None


def test_a_blob_of_another_content_is_refused() -> None:
    fleet, server, device = one()
    server.blobs[server.plan_ref.sha256] = b"something else"
    assert run_to_trouble(fleet) is Code.BAD_BLOB
    assert not device.files


def test_all_that_a_device_trains_with_is_in_its_lane() -> None:
    fleet, server, device = one()
    honest_lane = server.lane
    lie(server, header=replace(server.header, lr=0.0).encode())
    fleet.run_until(lambda: len(joined(device)) > 0)
    assert joined(device)[0].lane != honest_lane


# --- models by difference ---------------------------------------------------------------------------------------------


def fetched(device: SimDevice) -> list[bytes]:
    return [action.ref.sha256 for action in device.actions if isinstance(action, Fetch)]


@pytest.mark.parametrize("fault", ["", "delta", "held model"])
def test_the_next_model_comes_as_a_delta_and_where_that_fails_as_a_snapshot(fault: str) -> None:
    fleet = Fleet(8)
    server, device = fleet.server, fleet.devices[0]
    fleet.run_until(lambda: server.version == 2)
    assert server.delta_ref is not None
    if fault == "delta":
        server.blobs[server.delta_ref.sha256] = b"x" * server.delta_ref.size
    if fault == "held model":
        device.files[device.state.task(TASK).model_file] = b"rotten"
    fleet.run_until(lambda: device.state.task(TASK).version == 2)
    by_delta, by_snapshot = server.delta_ref.sha256 in fetched(device), server.snapshot_ref.sha256 in fetched(device)
    assert (by_delta, by_snapshot) == {"": (True, False), "delta": (True, True), "held model": (False, True)}[fault]


# --- certificates and clocks ------------------------------------------------------------------------------------------


def test_a_certificate_for_another_key_is_refused() -> None:
    fleet, server, device = one()
    certify = server.certify
    server.certify = lambda request, **changes: certify(replace(request, public_key=STRANGER.public), **changes)  # type: ignore[method-assign]
    assert run_to_trouble(fleet) is Code.KEY_MISMATCH
    assert not device.state.certificate


def pretend_certified(fleet: Fleet, **changes: Any) -> None:
    """Give the device a certificate with these values, as if it had enrolled long ago."""
    device, server = fleet.devices[0], fleet.server
    values = {"fleet": server.fleet, "device": device.state.device, "public_key": SigningKey(device.seed).public}
    request = CertificateRequest.sign(STRANGER, **values, attest_class=0, flags=0, nonce=bytes(16))
    certificate = server.certify(request, **changes)
    device.state = replace(device.state, certificate=certificate, policy=server.policy.encode(), policy_serial=1)
    device.start()


@pytest.mark.parametrize(
    ("left_s", "renewed"), [(-DAY, True), (29 * DAY, True), (31 * DAY, False)], ids=["expired", "due", "fresh"]
)
def test_certificates_are_renewed_in_good_time(left_s: int, renewed: bool) -> None:
    fleet, _, device = one()
    end = int(fleet.now) + left_s
    pretend_certified(fleet, not_before=end - 90 * DAY, not_after=end)
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    assert (len(sent(device, "/v1/renew")) == 1) is renewed
    assert (Certificate.decode(device.state.certificate).not_after != end) is renewed


def test_a_raised_epoch_means_renewing_before_anything_else() -> None:
    fleet, server, device = one()
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    server.make_policy(2, min_epoch=3)
    device.start()
    fleet.run_until(lambda: Certificate.decode(device.state.certificate).epoch == 3)
    assert len(sent(device, "/v1/renew")) == 1


def test_a_device_that_hears_of_a_raised_epoch_by_a_refusal_renews_and_comes_back() -> None:
    fleet, server, device = one()
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    check_in = server._check_in

    def strict(message: CheckIn) -> CheckedIn:
        if Certificate.decode(message.certificate).epoch < 3:
            raise RuleError(Code.CERTIFICATE_REVOKED)
        return check_in(message)

    server._check_in = strict  # type: ignore[method-assign]
    server.make_policy(2, min_epoch=3)
    device.state = replace(device.state, assigned=None)
    device.start()
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    assert len(sent(device, "/v1/renew")) == 1
    assert Certificate.decode(device.state.certificate).epoch == 3


def test_a_renewal_that_fails_does_not_stop_a_device_whose_certificate_still_holds() -> None:
    fleet, server, device = one()
    end = int(fleet.now) + 20 * DAY
    pretend_certified(fleet, not_before=end - 90 * DAY, not_after=end)
    route = server._route

    def without_renewal(method: str, parts: list[str], *rest: Any) -> Any:
        if parts == ["renew"]:
            raise RuleError(Code.ENROLMENT_DOWN)
        return route(method, parts, *rest)

    server._route = without_renewal  # type: ignore[method-assign]
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    assert len(sent(device, "/v1/renew")) == 1


def test_a_clock_more_than_a_day_ahead_joins_nothing() -> None:
    fleet, server, device = one()
    check_in = server._check_in
    server._check_in = lambda message: replace(check_in(message), now=int(fleet.now) - DAY - 60)  # type: ignore[method-assign]
    assert run_to_trouble(fleet) is Code.CLOCK_WRONG
    assert not joined(device)


def test_the_device_goes_by_the_latest_time_that_it_knows() -> None:
    fleet, _, device = one()
    fleet.run_until(lambda: device.life.stage is Stage.JOIN)
    own = device.life.device
    assert own.time == int(own.now)
    own.state = replace(own.state, server_time=int(own.now) + 100)
    assert own.time == int(own.now) + 100
    own.state = replace(own.state, authority_time=int(own.now) + 500)
    assert own.time == int(own.now) + 500


# --- at most once -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lied", ["the same version again", "the same model as a new version", "an older version"])
def test_a_base_is_contributed_to_once_whatever_is_offered(lied: str) -> None:
    fleet = Fleet(8)
    server, device = fleet.server, fleet.devices[0]
    first = server.assignment()
    versions = 3 if lied == "an older version" else 2
    fleet.run_until(lambda: server.version == versions)
    header, version = first.header, 1
    if lied == "the same model as a new version":
        version = 9
        header = replace(server.header, version=9).encode()
    server.assignment = lambda held=(): replace(first, header=header, version=version)  # type: ignore[method-assign]
    server.done_by.clear()
    fleet.run_until(lambda: len(device.state.task(TASK).contributions) == versions - 1)
    done, offers = trained(device), len(sent(device, "/v1/check-in"))
    fleet.run_until(lambda: len(sent(device, "/v1/check-in")) >= offers + 3)
    assert trained(device) == done
    assert len(joined(device)) == versions - 1
    assert {one.code for one in server.reports} == {Code.CONTRIBUTED_BEFORE}


def test_the_plans_cap_on_contributions_holds_for_its_period() -> None:
    patient = DevicePolicy(backoff_min_s=5.0, backoff_max_s=20.0)
    fleet = Fleet(8, body={"contributions_cap": 1, "cap_period_s": 600}, device_policy=patient)
    device = fleet.devices[0]
    fleet.run_until(lambda: bool(device.state.task(TASK).contributions))
    contributed_at = fleet.now
    assert run_to_trouble(fleet) is Code.CONTRIBUTION_CAP
    fleet.run_until(lambda: len(device.state.task(TASK).contributions) == 2)
    assert fleet.now >= contributed_at + 599


# --- joins and windows ------------------------------------------------------------------------------------------------


def assert_fresh_keys(entries: list[JoinEntry]) -> None:
    keys = [key for entry in entries for key in (entry.mask_key, entry.channel_key, entry.nonce)]
    assert len(keys) == len(set(keys))
    assert [entry.seq for entry in entries] == sorted({entry.seq for entry in entries})


def test_a_ticket_that_the_server_forgot_means_joining_again_with_fresh_keys() -> None:
    fleet, server, device = one()
    for count in (1, 2, 3):
        fleet.run_until(lambda count=count: len(joined(device)) == count)
        server.forget()
    assert_fresh_keys(joined(device))
    assert trained(device) == 1


def test_the_join_counter_survives_death() -> None:
    fleet, _, device = one()
    fleet.run_until(lambda: len(joined(device)) == 1)
    device.start()
    fleet.run_until(lambda: len(joined(device)) == 2)
    assert_fresh_keys(joined(device))


def test_a_closed_lane_drops_the_update_and_the_device_checks_in_again() -> None:
    fleet, server, device = one()
    fleet.run_until(lambda: len(joined(device)) == 1)
    server.version, server.lattices[2] = 2, server.lattices[1]
    server.master = [array + 1 for array in server.master]
    server.lattices[2] = server._lattice()
    server._publish()
    fleet.run_until(lambda: any(one.version == 2 for one in device.state.updates))
    assert [one.version for one in device.state.updates] == [2]
    assert trained(device) == 2


def test_an_open_that_breaks_a_rule_is_reported_left_and_costs_nothing() -> None:
    fleet = Fleet(8)
    server, device = fleet.server, fleet.devices[0]
    ticket, lies = server._ticket, []

    def lying(name: bytes) -> Any:
        answer = ticket(name)
        if not isinstance(answer, m.Open) or lies:
            return answer
        lies.append(name)
        params = Params.decode(answer.params)
        return replace(answer, params=replace(params, c=params.c - 1).encode())

    server._ticket = lying  # type: ignore[method-assign]
    fleet.run_until(lambda: server.version == 2)
    assert [report.code for report in server.reports] == [Code.OPEN_CORRUPT_COUNT]
    assert all(sum(isinstance(action, Train) for action in one.actions) <= 2 for one in fleet.devices)
    liar = next(one for one in fleet.devices if sent(one, "/v1/reports"))
    assert_fresh_keys(joined(liar))
    assert device.fleet.server.windows


def test_an_expired_token_is_replaced_by_a_check_in_and_the_call_is_made_again() -> None:
    fleet, server, device = one()
    route, refused = server._route, []

    def strict(method: str, parts: list[str], message: Any, name: bytes) -> Any:
        if parts == ["joins"] and not refused:
            refused.append(name)
            raise RuleError(Code.TOKEN_EXPIRED)
        return route(method, parts, message, name)

    server._route = strict  # type: ignore[method-assign]
    fleet.run_until(lambda: device.state.join_seq == 1 and bool(server.joins))
    first, second = joined(device)
    assert first == second
    assert len(sent(device, "/v1/check-in")) == 2


def test_inside_a_window_the_app_is_not_asked_again_not_even_for_a_new_token() -> None:
    fleet = Fleet(8)
    server, device = fleet.server, fleet.devices[0]
    route, refused = server._route, []

    def strict(method: str, parts: list[str], message: Any, name: bytes) -> Any:
        if parts[-1] == "u2" and name == device.state.device and not refused:
            refused.append(name)
            raise RuleError(Code.TOKEN_EXPIRED)
        return route(method, parts, message, name)

    server._route = strict  # type: ignore[method-assign]
    fleet.run_until(lambda: bool(device.state.task(TASK).contributions))
    asked = [action.cost.stage for action in device.actions if isinstance(action, Ask)]
    at = max(i for i, action in enumerate(device.actions) if isinstance(action, Ask) and action.cost.stage == "window")
    after = device.actions[at + 1 :]
    assert asked[-1] == "window" and not [action for action in after if isinstance(action, Ask)]
    calls = [action.path for action in after if isinstance(action, Send)]
    assert "/v1/check-in" in calls and any(path.endswith("/unmask") for path in calls)


# --- backing off ------------------------------------------------------------------------------------------------------


def test_without_an_answer_the_device_stays_away_longer_and_longer_up_to_the_limit() -> None:
    fleet, server, device = one(device_policy=DevicePolicy(backoff_min_s=10.0, backoff_max_s=100.0))
    server.deaf = True
    fleet.run_until(lambda: len(sent(device, "/v1/enrol")) == 40, limit_s=8000)
    waits = [action.until for action in device.actions if isinstance(action, Sleep)]
    gaps = [b - a for a, b in pairwise(waits)]
    assert max(gaps) <= 101
    assert 25 < sum(gaps[10:]) / len(gaps[10:]) < 75, "full jitter: half the limit on average"
    assert fleet.devices[0].life.trouble is not None


def test_the_servers_wish_to_be_left_alone_is_kept() -> None:
    fleet, server, device = one()
    server._check_in = lambda message: (_ for _ in ()).throw(RuleError(Code.BUSY))  # type: ignore[method-assign]
    call = server.call

    def busy(method: str, path: str, message: Any, token: str) -> Any:
        answer = call(method, path, message, token)
        return replace(answer, come_back_s=300) if isinstance(answer, m.Failure) else answer

    server.call = busy  # type: ignore[method-assign]
    fleet.run_until(lambda: len(sent(device, "/v1/check-in")) == 3)
    waits = [action.until for action in device.actions if isinstance(action, Sleep)]
    assert waits[1] - waits[0] >= 300


def test_training_that_fails_is_reported_and_its_assignment_given_up() -> None:
    fleet, server, device = one()
    device._train = lambda action: m.Failure(int(Code.NOT_FINITE), "loss nan")  # type: ignore[method-assign, assignment]
    assert run_to_trouble(fleet) is Code.NOT_FINITE
    assert [(one.code, one.step, one.version) for one in server.reports] == [(Code.NOT_FINITE, Stage.TRAIN, 1)]
    assert device.state.assigned is None and not device.state.updates


def test_what_was_left_by_a_dead_process_is_kept_until_a_certificate_or_thirty_days() -> None:
    fleet = Fleet(8)
    server, device = fleet.server, fleet.devices[0]
    fleet.run_until(lambda: any(one.state is UpdateState.SPENT for one in device.state.updates))
    server.windows.clear()
    device.start()
    fleet.run_until(lambda: len(sent(device, "/v1/windows")) > 20)
    assert [one.state for one in device.state.updates] == [UpdateState.SPENT]
    spent = device.state.updates[0]
    device.state = device.state.with_update(replace(spent, spent_at=spent.spent_at - 31 * DAY))
    device.start()
    fleet.run_until(lambda: not device.state.updates)
    assert device.state.task(TASK).contributed_to(1, spent.model_hash), "given up, it counts as contributed: never repeated"


# --- rendezvous -------------------------------------------------------------------------------------------------------


def test_a_device_signs_for_the_rendezvous_and_sleeps_until_then(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, server, device = one()
    plain, meets = server._join, int(server.clock()) + 2000

    def join(message: m.Join, who: bytes) -> m.Joined:
        left = meets - int(server.clock())
        if JoinEntry.decode(message.entry).expires < meets + 60:
            raise RuleError(Code.ENTRY_SHORT_LIVED, come_back_s=left)
        monkeypatch.setattr(forming, "ENTRY_LIFE_S", left + forming.ENTRY_LIFE_S)
        return m.Joined(plain(message, who).ticket, left)

    monkeypatch.setattr(server, "_join", join)
    fleet.run_until(lambda: bool(sent(device, "/v1/joins/")), limit_s=3000)
    first, second = joined(device)
    assert first.expires < meets < second.expires <= meets + 15 * 60
    assert second.seq == first.seq + 1 and second.mask_key != first.mask_key, "another entry has other keys"
    assert server.clock() >= meets, "and there was no call before"


def test_no_server_has_a_device_sign_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    fleet, server, device = one()

    def join(message: m.Join, who: bytes) -> m.Joined:
        raise RuleError(Code.ENTRY_SHORT_LIVED, come_back_s=20 * 86_400)

    monkeypatch.setattr(server, "_join", join)
    fleet.run_until(lambda: len(joined(device)) > 1)
    assert joined(device)[1].expires <= server.clock() + DAY + 15 * 60
