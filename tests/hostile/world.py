"""The server's side of the device listener, honest but for one attack, with a cohort of its own around one client.

Here belongs what the server does and remembers. What it is told to do otherwise belongs in the tables of attacks, HTTP in
`listener.py`, judgement in `verdict.py`.
"""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

from tests.client.fake_server import DAY, FakeServer, Window, _or_abort
from tests.client.tasks import compiled
from tests.hostile.attack import Attack
from tests.hostile.cohort import Companion
from whimbrel_kernels import ring_add
from whimbrel_protocol import messages as m
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import ProtocolError, RuleError
from whimbrel_protocol.forming import choose_roster, window_params
from whimbrel_protocol.objects import ISSUER_BYTES, Certificate, CheckInBody, JoinEntry
from whimbrel_protocol.window import ServerState

PHASE_S = 5.0
NAMES = {"joins": "joined", "check-in": "checked-in", "enrol": "enrolled", "renew": "enrolled", "reports": "accepted report"}
ENDED = (ServerState.DONE, ServerState.ABORTED, ServerState.FAILED)


@dataclass(frozen=True)
class Seen:
    """One message of the client: its kind, the window it is for, what it carried (for `put`: offset in words, bytes)."""

    kind: str
    tau0: bytes
    body: Any


class Plot(Protocol):
    """A window that is not honest at any phase after OPEN."""

    def post(self, phase: str, message: Any) -> Any:
        """Take the client's message."""

    def get(self, phase: str) -> Any:
        """Answer the client's question."""

    def vector(self, data: bytes) -> Any:
        """Take the client's whole masked vector."""


class HostileServer(FakeServer):
    """Everything that one client meets. `windows_left` windows are opened for it; then it waits for ever."""

    def __init__(self, attack: Attack, clock: Callable[[], float] = time.time, phase_s: float = PHASE_S) -> None:
        body, base = compiled()
        scene = dict(attack.scene)
        body = replace(body, **scene.pop("body", {}))
        super().__init__(body, base, clock, cohort=attack.n, wanted=10**9, **scene)
        self.attack, self.phase_s = attack, phase_s
        self.windows_left = 1
        self.companions = [Companion(self, number) for number in range(attack.n - 1)]
        self.victim = b""
        self.seen: list[Seen] = []
        self.told: Counter[str] = Counter()
        self.struck: int | None = None
        self.plot: Plot | None = None
        self.strokes = 0
        attack.set_up(self)

    # --- what attacks look at -------------------------------------------------------------------------------------------

    def certificate(self, device: bytes, public_key: bytes, **changes: Any) -> bytes:
        """A certificate from the issuer, who here certifies any key at all."""
        now = int(self.clock())
        values: dict[str, Any] = {"fleet": self.fleet, "device": device, "public_key": public_key, "serial": 1, "epoch": 0}
        values |= {"not_before": now - 3600, "not_after": now + 90 * DAY, "attest_class": 0, "flags": 0, **changes}
        return Certificate.sign(self.issuer, issuer=self.issuer.public[:ISSUER_BYTES], **values).encode()

    @property
    def window(self) -> Window:
        """The window that was opened last."""
        return list(self.windows.values())[-1]

    @property
    def known(self) -> bool:
        """Whether the client has checked in."""
        return any(one.kind == "check-in" for one in self.seen)

    @property
    def finished(self) -> bool:
        """Whether a window of the client came to its end."""
        return any(window.collector.state in ENDED for window in self.windows.values())

    @property
    def i(self) -> int:
        """The client's index in it."""
        return self.window.index(self.victim)

    def companion_at(self, i: int) -> Companion:
        """The companion with this index in the last window."""
        device = self.window.collector.devices[i]
        return next(one for one in self.companions if one.device == device)

    @property
    def others(self) -> list[int]:
        """The indices of all but the client."""
        return [i for i in range(self.window.collector.n) if i != self.i]

    # --- calls ----------------------------------------------------------------------------------------------------------

    def call(self, method: str, path: str, message: Any, token: str) -> Any:
        """Answer one call: honestly, unless the attack has something else to say."""
        parts = path.strip("/").split("/")[1:]
        self._note(method, parts, message)
        return self._replied(self._name(method, parts), self._honest(method, parts, message, token))

    def _honest(self, method: str, parts: list[str], message: Any, token: str) -> Any:
        self.tick()
        try:
            answer = self._route(method, parts, message, bytes.fromhex(token))
        except ProtocolError as error:
            answer = m.Failure(int(error.code), error.detail)
        self.tick()
        return answer

    @staticmethod
    def _name(method: str, parts: list[str]) -> str:
        if parts[0] == "windows":
            return parts[2] if method == "GET" else f"accepted {parts[2]}"
        return "open" if method == "GET" else NAMES.get(parts[0], parts[0])

    def _replied(self, name: str, honest: Any) -> Any:
        """The answer to send. A stroke is an answer that the attack changed."""
        reply = self.attack.replies.get(name)
        if reply is None or isinstance(honest, m.Wait):
            return honest
        self.told[name] += 1
        answer = reply(self, honest)
        if answer is not honest:
            self.strike()
        return answer

    def strike(self) -> None:
        """From now on the client is judged."""
        self.strokes += 1
        self.struck = len(self.seen) if self.struck is None else self.struck

    def _note(self, method: str, parts: list[str], message: Any) -> None:
        if method != "POST":
            return
        tau0 = bytes.fromhex(parts[1]) if parts[0] == "windows" else b""
        self.seen.append(Seen(parts[2] if tau0 else parts[0], tau0, message))

    def received(self, tau0: bytes, token: str, offset: int, data: bytes, whole: bytes | None) -> Any:
        """A piece of the client's vector; `whole` once it is complete. The answer."""
        self.seen.append(Seen("put", tau0, (offset, data)))
        if whole is None:
            return m.Accepted()
        answer = self.put(f"/v1/windows/{tau0.hex()}/masked", whole, token)
        return self._replied("accepted put", answer)

    def put(self, path: str, data: bytes, token: str) -> Any:
        """Take a whole masked vector."""
        if self.plot is not None:
            return self.plot.vector(data)
        return super().put(path, data, token)

    def _window(self, method: str, tau0: bytes, phase: str, message: Any, device: bytes) -> Any:
        if self.plot is not None and method == "POST":
            return self.plot.post(phase, message)
        if self.plot is not None:
            return self.plot.get(phase)
        if phase == "canaries":
            return m.Accepted()
        return super()._window(method, tau0, phase, message, device)

    # --- the window -----------------------------------------------------------------------------------------------------

    def _join(self, message: m.Join, device: bytes) -> m.Joined:
        self.victim = device
        ticket = hashlib.sha256(message.entry).digest()[:16]
        self.joins[device], self.tickets[ticket] = message.entry, (message.entry, self.version)
        if self.windows_left:
            self.windows_left -= 1
            for one in self.companions:
                self.joins[one.device] = one.join() if one.member is None or self.plot is None else one.there.entry
        return m.Joined(ticket, 0)

    def _check_in(self, message: m.CheckIn) -> m.CheckedIn:
        device = CheckInBody.decode(message.body).device
        offer = None if device in self.done_by else self.assignment(message.held)
        return m.CheckedIn(device.hex(), 3600, 0, int(self.clock()), self.policy.encode(), offer)

    def _ticket(self, ticket: bytes) -> Any:
        entry, _ = self.tickets.get(ticket, (b"", 0))
        for window in self.windows.values():
            if entry in window.collector.open.roster:
                return window.collector.open
        return m.Wait(0)

    def tick(self) -> None:
        """Open the window that is due, and let the companions act where the client acted or is late."""
        if len(self.joins) >= self.cohort:
            self._open(list(self.joins.values()))
            self.joins.clear()
        for window in [] if self.plot is not None else list(self.windows.values()):
            for _ in ServerState:
                if not self._moved(window):
                    break

    def _open(self, entries: list[bytes]) -> None:
        roster = choose_roster(entries)
        params = window_params(len(roster), self.lane, self.policy, len(self.windows) + 1)
        collector = Collector(params, roster, self.spec)
        total = bytearray(8 * self.spec.words)
        self.windows[collector.tau0] = Window(collector, self.version, self.clock() + self.phase_s, total)

    def _moved(self, window: Window) -> bool:
        """Whether the window came into another state."""
        c, before, late = window.collector, window.collector.state, self.clock() >= window.deadline
        if before in ENDED or not (late or self._client_acted(window)):
            return False
        for one in self.companions:
            self._act(one, window)
        self._advance(window)
        if c.state is not before:
            window.deadline = self.clock() + self.phase_s
        return c.state is not before

    def _act(self, one: Companion, window: Window) -> None:
        with suppress(RuleError):  # it has acted in this state
            one.act(window.collector)
        vector = one.vectors.get(window.collector.tau0)
        if vector is not None and one.device in window.collector.devices:
            window.uploads.setdefault(window.index(one.device), vector)

    def _client_acted(self, window: Window) -> bool:
        c, i = window.collector, window.index(self.victim)
        inputs = {kind for kind, at in c._inputs if at == i}
        due = {ServerState.SHARE: "shares", ServerState.MASK: "vector", ServerState.VOTE: "vote", ServerState.ABORTING: "vote"}
        return due.get(c.state, "unmask") in inputs

    def _advance(self, window: Window) -> None:
        c = window.collector
        if c.state is ServerState.SHARE:
            _or_abort(c, c.close_shares)
        elif c.state is ServerState.MASK:
            if _or_abort(c, c.close_masked):
                for i in c.u3:
                    ring_add(window.total, window.uploads[i])
        elif c.state is ServerState.VOTE:
            c.ask_abort()
        elif c.ready_to_unmask and c.result is None:
            c.finish(bytearray(window.total))
            self.done_by |= {c.devices[i] for i in c.u3}


def joined_entries(server: HostileServer) -> list[JoinEntry]:
    """The client's join entries, in order."""
    return [JoinEntry.decode(one.body.entry) for one in server.seen if one.kind == "joins"]
