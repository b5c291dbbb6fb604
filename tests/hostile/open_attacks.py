"""Attacks on OPEN: another cohort, other numbers, other members than the policy and the authority stand for.

Here belong the rows and the few functions that only they need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from tests.client.fake_server import DAY
from tests.hostile.attack import Attack, Reply, SetUp, Update
from tests.hostile.cohort import Companion
from tests.hostile.forging import (
    STRANGER,
    MixedOrderKey,
    certified,
    entry,
    malleated,
    params,
    roster,
    somebody,
    with_key,
)
from tests.hostile.life_attacks import header, offer
from tests.hostile.world import HostileServer, joined_entries
from whimbrel_protocol import messages as m
from whimbrel_protocol.errors import Code, RuleError
from whimbrel_protocol.objects import JoinEntry, Params
from whimbrel_protocol.primitives import th

FREE = Update.FREE
N, C, T, FLOOR = 10, 2, 7, 8
COMPLETE = 2**32 - 1


class SmallOrderKey:
    """The neutral element as a key: a signature of zeros holds for any message, where nobody looks."""

    public = b"\x01" + bytes(31)

    def sign(self, kind: str, body: bytes) -> bytes:
        """R neutral, S zero."""
        return self.public + bytes(32)


def mixed_order() -> MixedOrderKey:
    return MixedOrderKey(b"mixed")


def magic(server: HostileServer, honest: m.Open) -> m.Open:
    return m.Open(b"MWO2" + honest.params[4:], honest.roster)


def few(server: HostileServer, honest: m.Open) -> m.Open:
    """A cohort of three and its rightly computed numbers, of which two may be the server's own."""
    small = sorted([server.i, *server.others[:2]])
    numbers: dict[str, Any] = {"n": 3, "t": 2, "s_min": FLOOR, "c": 0, "p32": COMPLETE}
    kept = tuple(honest.roster[i] for i in small)
    made: m.Open = params(**numbers)(server, m.Open(honest.params, kept))
    return made


def crowd(server: HostileServer, honest: m.Open) -> m.Open:
    """More members than the plan's spec adds up without overflow."""
    more = [Companion(server, 100 + k).join() for k in range(7)]
    data = tuple(sorted([*honest.roster, *more], key=lambda one: JoinEntry.decode(one).device))
    made: m.Open = params(n=17, c=3, t=11, s_min=11)(server, m.Open(honest.params, data))
    return made


def own_changed(server: HostileServer, data: list[bytes]) -> list[bytes]:
    """The client's mask key is replaced by one of the server's."""
    data[server.i] = data[server.i][:240] + STRANGER.public + data[server.i][272:]
    return data


def own_missing(server: HostileServer, data: list[bytes]) -> Iterable[bytes]:
    """The client's entry is left out and another member put in, to keep the number."""
    others = [one for i, one in enumerate(data) if i != server.i]
    return sorted([*others, Companion(server, 99).join()], key=lambda one: JoinEntry.decode(one).device)


def replaying(changed: Callable[[m.Open], m.Open]) -> SetUp:
    """The first roster is withheld until the client joins again; it then opens for the new entry, as it was or changed."""

    def set_up(server: HostileServer) -> None:
        def ticket(ticket: bytes) -> Any:
            if len(joined_entries(server)) == 1:
                raise RuleError(Code.UNKNOWN_TICKET)
            server.strike()
            return changed(server.window.collector.open)

        server._ticket = ticket  # type: ignore[method-assign]

    return set_up


def as_window_two(old: m.Open) -> m.Open:
    """The old entries, the client's among them, in a roster of another name."""
    return m.Open(replace(Params.decode(old.params), window_id=2).encode(), old.roster)


def twice(server: HostileServer, data: list[bytes]) -> list[bytes]:
    i = somebody(server)
    data[i] = data[i - 1] if i - 1 != server.i else data[i - 2]
    return sorted(data, key=lambda one: JoinEntry.decode(one).device)


def two_entries(server: HostileServer, data: list[bytes]) -> list[bytes]:
    """One device with two entries under one certificate stands for two members."""
    i = somebody(server)
    one = server.companion_at(i)
    j = next(k for k in server.others if k != i)
    data[j] = one.join()
    return sorted(data, key=lambda each: JoinEntry.decode(each).device)


def unsorted(server: HostileServer, data: list[bytes]) -> list[bytes]:
    return data[::-1]


def mask_key_of_another(server: HostileServer, _: JoinEntry) -> bytes:
    return JoinEntry.decode(server.window.collector.open.roster[server.others[0]]).mask_key


def malleable_entry(server: HostileServer, data: list[bytes]) -> list[bytes]:
    i = somebody(server)
    data[i] = data[i][:-64] + malleated(data[i][-64:])
    return data


def malleable_certificate(server: HostileServer, data: list[bytes]) -> list[bytes]:
    i = somebody(server)
    data[i] = data[i][:108] + malleated(data[i][108:172]) + data[i][172:]
    return data


def another_model(server: HostileServer, _: JoinEntry) -> bytes:
    """The lane of a member that trains from another base model."""
    return th("another model", server.lane)


def lane_of_the_client(server: HostileServer, honest: m.Open) -> m.Open:
    """The parameters name the client's lane; the others' entries are of the honest one."""
    lane = JoinEntry.decode(honest.roster[server.i]).lane
    return m.Open(_with_lane(honest.params, lane), honest.roster)


def _with_lane(data: bytes, lane: bytes) -> bytes:
    decoded = Params.decode(data)
    return data.replace(decoded.lane, lane)


def policy_epoch(server: HostileServer) -> None:
    """Certificates below epoch 3 are revoked; the client's and its cohort's are not."""
    server.make_policy(2, min_epoch=3)
    honest = server.certify
    server.certify = lambda request, **changes: honest(request, **{"epoch": 3, **changes})  # type: ignore[method-assign]


def now(shift: int) -> Any:
    return lambda server, *_: int(server.clock()) + shift


def opened(name: str, rule: str, code: Code, reply: Reply, **more: Any) -> Attack:
    """An attack whose one stroke is the OPEN."""
    return Attack(name, rule, code, FREE, {"open": reply, **more.pop("replies", {})}, **more)


OPEN_ATTACKS: tuple[Attack, ...] = (
    opened("open-malformed", "1.5 OPEN: well-formed", Code.OPEN_MALFORMED, magic),
    opened("open-other-fleet", "1.5 OPEN: own fleet", Code.OPEN_FLEET, params(fleet=bytes(16))),
    opened("open-other-lane", "1.5 OPEN: own lane", Code.OPEN_LANE, params(lane=bytes(32))),
    opened("open-other-learning-rate", "1.5 OPEN: own lane", Code.OPEN_LANE,
           lambda s, honest: m.Open(honest.params, honest.roster),
           replies={"checked-in": offer(header=header(lr=0.0))}),
    opened("open-other-step-count", "1.5 OPEN: entries of the own lane", Code.ENTRY_LANE, lane_of_the_client,
           replies={"checked-in": offer(header=header(max_steps=1))}),
    opened("open-mixed-base-models", "1.5 OPEN: entries of the own lane", Code.ENTRY_LANE, entry(lane=another_model)),
    opened("open-wrong-count", "1.5 OPEN: n entries", Code.OPEN_COUNT, params(n=N + 1)),
    opened("open-sybils-under-the-floor", "1.5 OPEN: n_min <= n", Code.OPEN_TOO_SMALL, few),
    opened("open-crowd-over-the-spec", "1.5 OPEN: n <= n_max", Code.OPEN_TOO_LARGE, crowd, scene={"plan": {"n_max": 16}}),
    opened("open-c-from-the-server", "1.5 OPEN: c from the policy", Code.OPEN_CORRUPT_COUNT, params(c=0, t=6)),
    opened("open-gamma-from-the-server", "1.5 OPEN: c from the policy", Code.OPEN_CORRUPT_COUNT, params(c=3)),
    opened("open-threshold-low", "1.5 OPEN: t high enough", Code.OPEN_THRESHOLD_LOW, params(t=T - 1)),
    opened("open-threshold-high", "1.5 OPEN: t <= n", Code.OPEN_THRESHOLD_HIGH, params(t=N + 1, s_min=N + 1)),
    opened("open-floor-low", "1.5 OPEN: s_min high enough", Code.OPEN_FLOOR_LOW, params(s_min=FLOOR - 1)),
    opened("open-floor-high", "1.5 OPEN: s_min <= n", Code.OPEN_FLOOR_HIGH, params(s_min=N + 1)),
    opened("open-graph-sparse", "1.5 OPEN: the graph holds", Code.OPEN_GRAPH_SPARSE, params(p32=2**31)),
    opened("open-graph-empty", "1.5 OPEN: the graph holds", Code.OPEN_GRAPH_SPARSE, params(p32=0)),
    opened("entry-of-another-fleet", "1.5 OPEN: entries of this fleet", Code.ENTRY_FLEET, entry(fleet=bytes(16))),
    opened("certificate-of-another-fleet", "1.5 OPEN: entries of this fleet", Code.ENTRY_FLEET, certified(fleet=bytes(16))),
    opened("entry-under-anothers-certificate", "1.5 OPEN: one device an entry", Code.ENTRY_DEVICE, entry(device=bytes(16))),
    opened("certificate-expired", "1.5 OPEN: certificate dates", Code.ENTRY_CERTIFICATE_DATES, certified(not_after=now(-DAY))),
    opened("certificate-not-yet-valid", "1.5 OPEN: certificate dates", Code.ENTRY_CERTIFICATE_DATES,
           certified(not_before=now(DAY))),
    opened("entry-expired", "1.5 OPEN: entries not expired", Code.ENTRY_EXPIRED, entry(expires=now(-700))),
    opened("certificate-revoked", "1.5 OPEN: certificate epoch", Code.ENTRY_EPOCH, certified(epoch=2), set_up=policy_epoch),
    opened("certificate-forged", "1.5 OPEN: certificate signature", Code.ENTRY_CERTIFICATE, certified(STRANGER)),
    opened("certificate-by-a-stranger", "1.5 OPEN: certificate signature", Code.ENTRY_CERTIFICATE,
           certified(STRANGER, issuer=STRANGER.public[:8])),
    opened("certificate-malleable", "1.5 OPEN: certificate signature", Code.ENTRY_CERTIFICATE, roster(malleable_certificate)),
    opened("certificate-twice", "1.5 OPEN: ids ascend strictly", Code.ROSTER_ORDER, roster(two_entries)),
    opened("member-twice", "1.5 OPEN: ids ascend strictly", Code.ROSTER_ORDER, roster(twice)),
    opened("roster-reordered", "1.5 OPEN: ids ascend strictly", Code.ROSTER_ORDER, roster(unsorted)),
    opened("entry-forged", "1.5 OPEN: entry signature", Code.ENTRY_SIGNATURE, entry(signer=STRANGER)),
    opened("entry-malleable", "1.5 OPEN: entry signature", Code.ENTRY_SIGNATURE, roster(malleable_entry)),
    opened("entry-key-of-mixed-order", "1.5 OPEN: entry signature", Code.ENTRY_SIGNATURE, with_key(mixed_order)),
    opened("entry-key-of-small-order", "1.5 OPEN: entry signature", Code.ENTRY_SIGNATURE, with_key(SmallOrderKey)),
    opened("equal-keys-in-two-entries", "1.5 OPEN: 2n distinct keys", Code.ROSTER_KEYS, entry(mask_key=mask_key_of_another)),
    opened("equal-keys-in-one-entry", "1.5 OPEN: 2n distinct keys", Code.ROSTER_KEYS,
           entry(channel_key=lambda _, e: e.mask_key)),
    opened("low-order-mask-key", "1.5 OPEN: no zero key agreement", Code.LOW_ORDER_KEY, entry(mask_key=bytes(32))),
    opened("low-order-channel-key", "1.5 OPEN: no zero key agreement", Code.LOW_ORDER_KEY,
           entry(channel_key=b"\x01" + bytes(31))),
    opened("own-entry-changed", "1.5 OPEN: entry signature", Code.ENTRY_SIGNATURE, roster(own_changed)),
    Attack("open-replayed", "1.5 OPEN: own entry unchanged", Code.ROSTER_OWN_ENTRY, FREE, set_up=replaying(lambda old: old)),
    Attack("join-replayed", "1.5 OPEN: own entry unchanged", Code.ROSTER_OWN_ENTRY, FREE, set_up=replaying(as_window_two)),
    opened("own-entry-missing", "1.5 OPEN: own entry unchanged", Code.ROSTER_OWN_ENTRY, roster(own_missing)),
)  # fmt: skip
