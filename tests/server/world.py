"""A fleet in a test: keys, a policy, a server on a data directory, and devices that speak to it over real HTTP."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

import aiohttp
import numpy as np
from numpy.typing import NDArray

from whimbrel_lab.nets.models import mlp
from whimbrel_protocol import messages as m
from whimbrel_protocol import wire
from whimbrel_protocol.errors import Code
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.objects import Certificate, CheckInBody, VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.primitives import SigningKey, th
from whimbrel_protocol.signed import Plan, Policy, VersionHeader, lane_hash
from whimbrel_server import config
from whimbrel_server.app import Running, running
from whimbrel_server.datadir import DataDir
from whimbrel_server.setup import initialise

ROOT, PLAN_SIGNER = SigningKey(b"r" * 32), SigningKey(b"p" * 32)
FLEET = th("mw1/fleet", ROOT.public)[:16]
FEATURES, CLASSES = 4, 3
SETTINGS: dict[str, Any] = {
    "contributions": 10,
    "window": 10,
    "expected_dropout": 0.0,
    "expected_window_dropout": 0.0,
    "come_back_min_s": 0.1,
    "batch": 4,
    "patience_s": 5.0,
    "early_min_s": 0.2,
}


def policy(serial: int = 1, **changes: Any) -> bytes:
    values: dict[str, Any] = {
        "fleet": FLEET,
        "serial": serial,
        "not_after": int(time()) + 20 * 86_400,
        "gamma_milli": 200,
        "sigma": 40,
        "n_min": 8,
        "n_max": 64,
        "min_epoch": 0,
        "flags": 0,
        "issuers": (),
        "plan_signers": (PLAN_SIGNER.public,),
    }
    return Policy.sign(ROOT, **{**values, **changes}).encode()


def model() -> bytes:
    made: bytes = mlp(1, (FEATURES, 5, CLASSES)).SerializeToString()
    return made


class Refused(Exception):
    """A numbered no of either listener."""

    def __init__(self, status: int, number: int, detail: str) -> None:
        super().__init__(f"{status} {number}: {detail}")
        self.status, self.number = status, Code(number)


@dataclass
class Operator:
    """Whoever holds the admin token."""

    server: Running
    http: aiohttp.ClientSession

    async def call(self, method: str, path: str, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.server.admin_token}", **options.pop("headers", {})}
        async with self.http.request(method, self.server.admin_url + path, headers=headers, **options) as response:
            if response.status >= 400:
                assert response.content_type == "application/problem+json", await response.text()
                problem = await response.json(content_type=None)
                assert problem["status"] == response.status
                raise Refused(response.status, problem["code"], problem["detail"])
            return await (response.json() if response.content_type == "application/json" else response.read())

    async def start_task(self, name: str = "digits", **changes: Any) -> dict[str, Any]:
        blob = await self.call("POST", "/v1/blobs", data=model(), headers={"Content-Type": "application/octet-stream"})
        await self.call("POST", "/v1/tasks", json={"name": name, "model": blob["sha256"], **SETTINGS, **changes})
        return await self.sign(name)

    async def sign(self, name: str, signer: SigningKey = PLAN_SIGNER) -> dict[str, Any]:
        unsigned = await self.call("GET", f"/v1/tasks/{name}/plan")
        plan = Plan.decode(unsigned + bytes(64))
        signed = unsigned + signer.sign(Plan.KIND, plan.signature_input())
        octets = {"Content-Type": "application/octet-stream"}
        answer: dict[str, Any] = await self.call("PUT", f"/v1/tasks/{name}/plan", data=signed, headers=octets)
        return answer


@dataclass
class Device:
    """One device: identity, token, and the window that it stands in."""

    number: int
    server: Running
    http: aiohttp.ClientSession
    token: str = ""
    seq: int = 0
    checked: m.CheckedIn | None = None
    member: Member | None = None
    spec: VectorSpec | None = None
    values: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))

    @property
    def id(self) -> bytes:
        return self.number.to_bytes(16, "big")

    @property
    def key(self) -> SigningKey:
        return SigningKey(bytes([self.number]) * 32)

    def certificate(self, **changes: Any) -> bytes:
        now = int(time())
        values: dict[str, Any] = {"fleet": FLEET, "device": self.id, "public_key": self.key.public, "not_before": now - 3600}
        more = {"not_after": now + 86_400, "serial": 1, "attest_class": 0, "flags": 0, "epoch": 0}
        return Certificate.issue(ROOT, **{**values, **more, **changes}).encode()

    # --- calls ------------------------------------------------------------------------------------------------------

    async def call(self, method: str, path: str, message: m.Message | None = None, **options: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        if message is not None:
            options["data"] = wire.encode(message)
            headers["Content-Type"] = wire.CONTENT_TYPE
        headers |= options.pop("headers", {})
        async with self.http.request(method, self.server.device_url + path, headers=headers, **options) as response:
            body = await response.read()
            if method == "HEAD":
                return response
            answer = wire.decode(body, *wire.LIMITS)
            if isinstance(answer, m.Failure):
                assert Code(answer.number).http == response.status
                raise Refused(response.status, answer.number, answer.detail)
            return answer

    def check_in_message(self, **changes: Any) -> m.CheckIn:
        self.seq += 1
        nonce = hashlib.sha256(b"%d %d" % (self.number, self.seq)).digest()[:16]
        values: dict[str, Any] = {"fleet": FLEET, "device": self.id, "now": int(time()), "nonce": nonce, "policy_serial": 1}
        body = CheckInBody.sign(self.key, **{**values, **changes})
        return m.CheckIn(self.certificate(), body.encode(), "test 1", 1)

    async def check_in(self) -> m.CheckedIn:
        self.checked = await self.call("POST", "/v1/check-in", self.check_in_message())
        self.token = self.checked.token
        return self.checked

    async def poll(self, path: str) -> Any:
        """Poll until there is something; a server that is stopped meanwhile shows as an error of the connection."""
        while isinstance(answer := await self.call("GET", f"{path}?wait=5"), m.Wait):
            pass
        return answer

    # --- a window ---------------------------------------------------------------------------------------------------

    async def train(self) -> None:
        """Check in, read the plan, and make up an update that no other device has."""
        checked = await self.check_in()
        assert checked.assignment is not None
        plan = Plan.decode(await self.blob(checked.assignment.plan.sha256))
        self.spec = plan.spec(VersionHeader.decode(checked.assignment.header).scale)
        random = np.random.default_rng([self.number, checked.assignment.version])
        self.values = random.integers(-self.spec.limit, self.spec.limit + 1, self.spec.d)
        self.lane = lane_hash(
            fleet=FLEET,
            task_id=checked.assignment.task,
            plan=plan.signed_bytes(),
            version=checked.assignment.version,
            model_hash=checked.assignment.model_hash,
            chain_head=checked.assignment.chain_head,
            spec=self.spec.encode(),
            policy=checked.policy,
            header=checked.assignment.header,
        )

    async def blob(self, sha256: bytes) -> bytes:
        async with self.http.get(f"{self.server.device_url}/v1/blobs/{sha256.hex()}") as response:
            assert response.status == 200
            data = await response.read()
            assert hashlib.sha256(data).digest() == sha256
            return data

    def entry(self, lasts: int = 600) -> bytes:
        """Make fresh keys and a join entry for the lane that lasts so many seconds."""
        assert self.checked is not None and self.spec is not None
        self.seq += 1
        self.member = Member.join(
            Identity(self.id, self.key, self.certificate()),
            lane=self.lane,
            spec=self.spec,
            policy=Policy.decode(self.checked.policy),
            root=ROOT.public,
            rho=hashlib.sha256(b"rho %d %d" % (self.number, self.seq)).digest(),
            seq=self.seq,
            expires=int(time()) + lasts,
        )
        return self.member.entry

    async def join(self, lasts: int = 600) -> m.Joined:
        assert self.checked is not None and self.checked.assignment is not None
        joined: m.Joined = await self.call("POST", "/v1/joins", m.Join(self.entry(lasts), self.checked.assignment.id))
        return joined

    async def open(self, joined: m.Joined) -> m.Open:
        opened: m.Open = await self.poll(f"/v1/joins/{joined.ticket.hex()}")
        return opened

    @property
    def window(self) -> str:
        assert self.member is not None
        return f"/v1/windows/{self.member.record.cohort.tau0.hex()}"

    async def shares(self, opened: m.Open) -> m.Shares:
        assert self.member is not None and self.checked is not None
        shares = self.member.on_open(opened, int(time()), Policy.decode(self.checked.policy))
        await self.call("POST", f"{self.window}/shares", shares)
        return shares

    def masked(self, u2: m.U2) -> bytes:
        assert self.member is not None and self.spec is not None
        self.member.on_u2(u2)
        return self.member.mask(pack(self.spec, self.values, 1))

    async def upload(self, vector: bytes, offset: int = 0) -> None:
        assert self.member is not None
        await self.call("POST", f"{self.window}/masked", self.member.head(hashlib.sha256(vector).digest()))
        octets = {"Content-Type": "application/octet-stream"}
        await self.call("PUT", f"{self.window}/masked?offset={offset}", data=vector[8 * offset :], headers=octets)

    async def say(self, phase: str, message: m.Message) -> None:
        """Send a message that the window may no longer need."""
        try:
            await self.call("POST", f"{self.window}/{phase}", message)
        except Refused as refused:
            if refused.number not in (Code.TOO_LATE, Code.PHASE_OVER):
                raise

    async def vote(self) -> m.Vote:
        assert self.member is not None
        vote = self.member.on_survivors(await self.poll(f"{self.window}/survivors"))
        await self.say("vote", vote)
        return vote

    async def unmask(self) -> None:
        assert self.member is not None
        answer = self.member.on_quorum(await self.poll(f"{self.window}/quorum"))
        await self.say("unmask", answer)

    async def take_part(self, stop_at: str = "", lasts: int = 600) -> m.Done | None:
        """Go through a window up to the receipt, or vanish before the step `stop_at`."""
        opened = await self.open(await self.join(lasts))
        if stop_at == "shares":
            return None
        await self.shares(opened)
        if stop_at == "masked":
            return None
        await self.upload(self.masked(await self.poll(f"{self.window}/u2")))
        if stop_at == "vote":
            return None
        await self.vote()
        if stop_at == "unmask":
            return None
        await self.unmask()
        done: m.Done = await self.poll(f"{self.window}/done")
        assert self.member is not None
        self.member.on_done(done)
        return done


@dataclass
class World:
    """A data directory and who deals with it."""

    data: DataDir
    config: config.Config

    @classmethod
    async def make(cls, folder: Path, authority: str = "", **limits: Any) -> World:
        data = DataDir(folder / "data")
        await initialise(data, ROOT.public, policy(), authority)
        table = {
            "authority": {"root": ROOT.public.hex(), "url": authority},
            "listen": {"port": 0},
            "admin": {"port": 0},
            "limits": limits,
        }
        return cls(data, config.merged(table, {}))

    @asynccontextmanager
    async def serving(self, clock: Callable[[], float] = time) -> AsyncIterator[tuple[Running, Operator, list[Device]]]:
        """A server on the directory, its operator, and ten devices."""
        async with running(self.data, self.config, clock) as server, aiohttp.ClientSession() as http:
            yield server, Operator(server, http), [Device(number, server, http) for number in range(1, 11)]
