"""An authority and a server in memory, for the client's tests: real signatures and a real Collector behind the device calls.

It publishes a version each time `wanted` contributions are in, opens a window when `cohort` joins wait, and closes a phase when
all answered or 5 s are over. Knobs break it: `deaf` answers nothing, `forget` loses what a crash would lose.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.client.tasks import header
from whimbrel_kernels import ring_add
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.blame import canaries_of
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.delta import LatticeTensor, delta, lattice_hash, quantise, snapshot
from whimbrel_protocol.encoding import Encoding, Total, mean_metrics, mean_update, metric_lanes
from whimbrel_protocol.errors import Code, ProtocolError, RuleError
from whimbrel_protocol.forming import check_entry
from whimbrel_protocol.objects import Certificate, CertificateRequest, CheckInBody, JoinEntry, VectorSpec
from whimbrel_protocol.primitives import SigningKey
from whimbrel_protocol.signed import CHAIN_START, MASKED, Plan, Policy, VersionHeader, chain_next, lane_hash
from whimbrel_protocol.trust import fleet_of
from whimbrel_protocol.window import ServerState, Shortage

DAY = 86_400
PHASE_S = 5.0
TASK = "clouds"
TOKEN = "let-me-in"


@dataclass
class Window:
    """One collector with its deadline, its sum and the vectors that arrived."""

    collector: Collector
    version: int
    deadline: float
    total: bytearray
    uploads: dict[int, bytes] = field(default_factory=dict)
    applied: bool = False

    def index(self, device: bytes) -> int:
        if device not in self.collector.devices:
            raise RuleError(Code.NOT_YOURS)
        return self.collector.devices.index(device)


class FakeServer:
    """Everything behind the device listener, as plain calls; `clock` gives Unix seconds."""

    def __init__(
        self, body: m.PlanBody, base: tuple[npt.NDArray[np.float32], ...], clock: Callable[[], float], **knobs: Any
    ) -> None:
        self.clock = clock
        self.root, self.issuer, self.signer = (SigningKey(bytes([k]) * 32) for k in (1, 2, 3))
        self.fleet = fleet_of(self.root.public)
        self.cohort, self.wanted = knobs.get("cohort", 8), knobs.get("wanted", 8)
        self.blobs: dict[bytes, bytes] = {}
        self.deaf = False
        self.calls: list[tuple[str, bytes]] = []
        self.garbage: set[bytes] = set()  # devices whose vectors go wrong
        self.asked: dict[bytes, int] = {}  # how often a device polled for the receipt of a spoiled window
        self.asks = 1  # how often it is asked for its canary masks
        self.certificates: dict[bytes, bytes] = {}
        self.windows: dict[bytes, Window] = {}
        self.tickets: dict[bytes, tuple[bytes, int]] = {}
        self.joins: dict[bytes, bytes] = {}
        self.counters: dict[bytes, tuple[int, bytes]] = {}  # by device: its highest join counter, and the entry
        self.reports: list[m.Report] = []
        self.metrics: dict[str, float] = {}
        self.body, self._names = body, [one.name for one in body.shared]
        self.make_policy(1, **knobs.get("policy", {}))
        self.make_plan(1, **knobs.get("plan", {}))
        self.header_changes = knobs.get("header", {})
        self.version, self.chain_head = 1, CHAIN_START
        self.master = [array.astype(np.float64) for array in base]
        self.lattices = {1: self._lattice()}
        self._publish()

    # --- what the authority signs -----------------------------------------------------------------------------------

    def make_policy(self, serial: int, **changes: Any) -> None:
        values: dict[str, Any] = {"gamma_milli": 200, "sigma": 48, "n_min": 8, "n_max": 64, "min_epoch": 0, "flags": 0}
        values |= {"serial": serial, "not_after": int(self.clock()) + 20 * DAY, "fleet": self.fleet, **changes}
        keys = {"issuers": (self.issuer.public,), "plan_signers": (self.signer.public,)}
        self.policy = Policy.sign(self.root, **keys, **values)

    def make_plan(self, serial: int, **changes: Any) -> None:
        d = sum(int(np.prod(one.shape)) for one in self.body.shared)
        values: dict[str, Any] = {"bits": 21, "n_max": 64, "weight_bits": 1, "scale_min": 1.0, "scale_max": 2.0**20}
        limb_bits = VectorSpec.make(values["bits"], values["n_max"], 1, 1.0, 1).limb_bits
        values |= {
            "d": d + metric_lanes(self.body.metrics, limb_bits),
            "fleet": self.fleet,
            "serial": serial,
            "not_after": int(self.clock()) + 90 * DAY,
            "flags": MASKED,
            "task": TASK,
        }
        key = changes.pop("key", self.signer)
        self.plan = Plan.sign(key, **{**values, "body": wire.encode(self.body), **changes})
        self.plan_ref = self.put_blob(self.plan.encode())

    def certify(self, request: CertificateRequest, **changes: Any) -> bytes:
        now = int(self.clock())
        values: dict[str, Any] = {"fleet": self.fleet, "device": request.device, "public_key": request.public_key, "serial": 1}
        values |= {"not_before": now - 3600, "not_after": now + 90 * DAY, "attest_class": 0, "flags": 0, "epoch": 0, **changes}
        return Certificate.issue(self.issuer, **values).encode()

    # --- versions ---------------------------------------------------------------------------------------------------

    def put_blob(self, data: bytes) -> m.BlobRef:
        self.blobs[hashlib.sha256(data).digest()] = data
        return m.BlobRef(hashlib.sha256(data).digest(), len(data))

    def _lattice(self) -> tuple[LatticeTensor, ...]:
        return tuple(quantise(array, -12) for array in self.master)

    def _publish(self) -> None:
        lattice, version = self.lattices[self.version], self.version
        self.header: VersionHeader = header(**{"version": version, **self.header_changes})
        self.model_hash = lattice_hash(lattice)
        self.snapshot_ref = self.put_blob(wire.encode(snapshot(version, lattice)))
        old = self.lattices.get(version - 1)
        self.delta_ref = self.put_blob(wire.encode(delta(version - 1, old, version, lattice))) if old else None
        self.spec = self.plan.spec(self.header.scale)
        self.done_by: set[bytes] = set()

    @property
    def encoding(self) -> Encoding:
        return Encoding.of(self.plan, self.body, self.header)

    @property
    def lane(self) -> bytes:
        return lane_hash(
            fleet=self.fleet, task_id=TASK, plan=self.plan.signed_bytes(), version=self.version, model_hash=self.model_hash,
            chain_head=self.chain_head, spec=self.spec.encode(), policy=self.policy.encode(), header=self.header.encode(),
        )  # fmt: skip

    def _maybe_publish(self) -> None:
        mine = [w for w in self.windows.values() if w.version == self.version and w.collector.state is ServerState.DONE]
        running = [w for w in self.windows.values() if w.version == self.version and w.collector.state not in _ENDED]
        sums = [w.collector.result for w in mine if w.collector.result is not None]
        if running or sum(one.count for one in sums) < self.wanted:
            return
        totals = [Total(s.values, s.count, s.weight_sum, w.collector.params.lane) for w, s in zip(mine, sums, strict=True)]
        self.metrics = mean_metrics(self.encoding, totals)
        mean = mean_update(self.encoding, totals)
        cuts = np.cumsum([array.size for array in self.master])[:-1]
        self.master = [a + b.reshape(a.shape) for a, b in zip(self.master, np.split(mean, cuts), strict=True)]
        self.version += 1
        self.lattices[self.version] = self._lattice()
        applied = [(w.collector.tau1, one.sha256) for w, one in zip(mine, sums, strict=True)]
        model_hash = lattice_hash(self.lattices[self.version])
        self.chain_head = chain_next(self.chain_head, self.version, model_hash, applied)
        self.joins.clear()
        self._publish()

    # --- the calls --------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, message: Any, token: str) -> Any:
        """Answer one call of the device listener, as the wire would carry it; None when the server is down."""
        if self.deaf:
            return None
        self.tick()
        try:
            if token:
                self.calls.append((f"{method} {path.rsplit('/', 1)[-1]}", bytes.fromhex(token)))
            answer = self._route(method, path.strip("/").split("/")[1:], message, bytes.fromhex(token))
        except ProtocolError as error:
            answer = m.Failure(int(error.code), error.detail, error.come_back_s)
        self.tick()
        return wire.decode(wire.encode(answer), type(answer))

    def _route(self, method: str, parts: list[str], message: Any, device: bytes) -> Any:
        match parts:
            case ["enrol"]:
                return self._enrol(message)
            case ["renew"]:
                request = CertificateRequest.decode(message.request)
                self.certificates[request.device] = self.certify(request, epoch=self.policy.min_epoch)
                return m.Enrolled(self.certificates[request.device], self.policy.encode())
            case ["check-in"]:
                return self._check_in(message)
            case ["reports"]:
                self.reports.append(message)
                return m.Accepted()
            case ["joins"]:
                return self._join(message, device)
            case ["joins", ticket]:
                return self._ticket(bytes.fromhex(ticket))
            case ["windows", tau0, phase]:
                return self._window(method, bytes.fromhex(tau0), phase, message, device)
        raise RuleError(Code.NOT_FOUND)

    def _enrol(self, message: m.Enrol) -> m.Enrolled:
        request = CertificateRequest.decode(message.request)
        if message.token != TOKEN:
            raise RuleError(Code.ENROLMENT_TOKEN)
        if not request.proves_possession() or request.fleet != self.fleet:
            raise RuleError(Code.BAD_REQUEST_SIGNATURE)
        self.certificates.setdefault(request.device, self.certify(request))
        return m.Enrolled(self.certificates[request.device], self.policy.encode())

    def _check_in(self, message: m.CheckIn) -> m.CheckedIn:
        body, certificate = CheckInBody.decode(message.body), Certificate.decode(message.certificate)
        if not body.signed_by(certificate.public_key) or abs(body.now - self.clock()) > 600:
            raise RuleError(Code.CLOCK_SKEW)
        offer = None if body.device in self.done_by else self.assignment(message.held)
        return m.CheckedIn(body.device.hex(), 3600, 0 if offer else 2, int(self.clock()), self.policy.encode(), offer)

    def assignment(self, held: tuple[m.Held, ...] = ()) -> m.Assignment:
        near = self.delta_ref if m.Held(TASK, self.version - 1) in held else None
        refs = (self.plan_ref, self.header.encode(), self.chain_head, self.model_hash, self.snapshot_ref, near)
        return m.Assignment(self.version.to_bytes(16, "little"), TASK, self.version, *refs, self.version - 1, 900)

    def _join(self, message: m.Join, device: bytes) -> m.Joined:
        if message.assignment != self.assignment().id:
            raise RuleError(Code.STALE_VERSION)
        check_entry(message.entry, self.fleet, self.lane, self.policy, self.root.public, int(self.clock()))
        seq, known = JoinEntry.decode(message.entry).seq, self.counters.get(device, (-1, b""))
        if seq <= known[0] and (seq, message.entry) != known:
            raise RuleError(Code.STATE_ROLLED_BACK)
        self.counters[device] = seq, message.entry
        self.joins[device] = message.entry
        ticket = hashlib.sha256(message.entry).digest()[:16]
        self.tickets[ticket] = (message.entry, self.version)
        return m.Joined(ticket, 0)

    def withdraw(self) -> None:
        """Forget the entries that wait, as a server does whose lane changed with the policy."""
        self.joins.clear()
        self.tickets.clear()

    def _ticket(self, ticket: bytes) -> Any:
        if ticket not in self.tickets:
            raise RuleError(Code.UNKNOWN_TICKET)
        entry, version = self.tickets[ticket]
        for window in self.windows.values():
            if entry in window.collector.open.roster:
                return window.collector.open
        if version != self.version:
            raise RuleError(Code.STALE_VERSION)
        return m.Wait(1)

    def _window(self, method: str, tau0: bytes, phase: str, message: Any, device: bytes) -> Any:
        window = self.windows.get(tau0)
        if window is None:
            raise RuleError(Code.UNKNOWN_WINDOW)
        i, c = window.index(device), window.collector
        if method == "POST":
            if message.i != i:
                raise RuleError(Code.NOT_YOURS)
            take = {
                "shares": c.on_shares,
                "masked": c.on_head,
                "vote": c.on_vote,
                "unmask": c.on_unmask,
                "canaries": c.on_canaries,
            }
            take[phase](message)
            return m.Accepted()
        aborting = c.state in (ServerState.ABORTING, ServerState.ABORTED)
        if phase == "quorum":
            return c.quorum or c.abort_certificate or m.Wait(1)
        if phase == "survivors":
            return c.survivors if c.u3 or aborting else m.Wait(1)
        if phase == "u2" and c.tau1:
            return c.u2_for(i)
        if phase == "done" and c.result is not None:
            return m.Done(c.params.lane, c.result.sha256)
        if phase == "done" and c.blame is not None:
            self.asked[device] = self.asked.get(device, 0) + 1
            if i not in c.told or self.asked[device] <= self.asks:
                return c.blame
            raise RuleError(Code.SPOILED_SUM)
        return c.survivors if aborting else m.Wait(1)

    def put(self, path: str, data: bytes, token: str) -> Any:
        """Take a whole masked vector; None when the server is down."""
        if self.deaf:
            return None
        window = self.windows.get(bytes.fromhex(path.split("/")[3]))
        if window is None:
            return m.Failure(int(Code.UNKNOWN_WINDOW), "no such window")
        self.calls.append(("PUT masked", bytes.fromhex(token)))
        try:
            i = window.index(bytes.fromhex(token))
            if bytes.fromhex(token) in self.garbage:  # as a device would send it that lies about its hash as well
                data = bytes(8) + data[8:]
            window.collector.on_vector(i, canaries_of(data))
            window.uploads[i] = data
        except ProtocolError as error:
            return m.Failure(int(error.code), error.detail)
        self.tick()
        return m.Accepted()

    # --- time -------------------------------------------------------------------------------------------------------

    def tick(self) -> None:
        """Open and close what is due."""
        if self.deaf:
            return
        if len(self.joins) >= self.cohort:
            lane = self.lane
            collector = Collector.form(self.joins.values(), self.fleet, lane, self.spec, self.policy, len(self.windows) + 1)
            total = bytearray(8 * self.spec.words)
            self.windows[collector.tau0] = Window(collector, self.version, self.clock() + PHASE_S, total)
            self.joins.clear()
        for window in list(self.windows.values()):
            self._advance(window)

    def _advance(self, window: Window) -> None:
        c, late = window.collector, self.clock() >= window.deadline
        before = c.state
        if c.state is ServerState.SHARE and (late or len(c.events()) == c.n):
            _or_abort(c, c.close_shares)
        elif c.state is ServerState.MASK and (late or len(window.uploads) == len(c.u2)):
            if _or_abort(c, c.close_masked):
                for i in c.u3:
                    ring_add(window.total, window.uploads[i])
        elif c.state is ServerState.VOTE and late:
            c.ask_abort()
        elif c.ready_to_unmask and c.result is None and (late or len(c.responses) == len(c.u2)):
            try:
                c.finish(bytearray(window.total))
            except ProtocolError as error:
                assert error.code is Code.SPOILED_SUM, error
            self.done_by |= {c.devices[i] for i in c.u3}
            self._maybe_publish()
        if c.state is not before:
            window.deadline = self.clock() + PHASE_S

    def forget(self) -> None:
        """What a crash loses: tickets, waiting joins, and every window whose survivors were not fixed."""
        self.tickets.clear()
        self.joins.clear()
        for window in self.windows.values():
            if window.collector.state in (ServerState.SHARE, ServerState.MASK):
                window.collector.ask_abort()


_ENDED = (ServerState.DONE, ServerState.ABORTED, ServerState.FAILED)


def _or_abort(collector: Collector, close: Callable[[], Any]) -> bool:
    try:
        close()
    except Shortage:
        collector.ask_abort()
        return False
    return True
