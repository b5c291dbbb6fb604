"""Replays a whole window from each member's rho: every output is computed again by `Member` and `Collector`, and compared.

Here belongs what is computed from which item of a `window-*.json` file; reading and counting are `known_answers.py`'s.
Floors, dates and enrolment are not judged beyond what a member checks of any window.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from whimbrel_kernels import ring_add
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.errors import ProtocolError
from whimbrel_protocol.known_answers import Fields, MalformedError, Report
from whimbrel_protocol.masks import WORD_BYTES
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.messages import MaskedHead, Quorum, Shares
from whimbrel_protocol.objects import Certificate, Params, VectorSpec
from whimbrel_protocol.packing import pack
from whimbrel_protocol.primitives import HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES, SigningKey, sha256
from whimbrel_protocol.rules import bitmap
from whimbrel_protocol.signed import Policy

# The items of a file, in the order in which a window makes them.
INPUTS = ("name", "policy", "spec", "lane", "seq", "now", "expires", "members", "drops")
OUTPUTS = (
    "params", "roster_sha256", "tau0", "t", "P32", "shares", "U2", "tau1", "masked_sha256", "msigs", "U3", "votes",
    "quorum", "unmask_sha256", "sum", "weight_sum",
)  # fmt: skip
ITEMS = INPUTS + OUTPUTS

# The fields of `params`, each beside the input that it follows from (the window's id is free).
PARAMS = {
    "fleet": "params.fleet",
    "lane": "params.lane",
    "n": "params.n",
    "c": "params.c (policy.gamma_milli)",
    "t": "params.t",
    "s_min": "params.s_min (policy.n_min)",
    "p32": "params.p32 (policy.sigma)",
}
POLICY = ("fleet", "authority_pk", "n_min", "n_max", "gamma_milli", "sigma")
SPEC = ("bytes", "d", "b", "n_max", "scale", "wbits", "M", "words")
MEMBER = ("device", "rho", "sign_seed", "cert", "x", "w")
DROPS = ("before_shares", "before_masked", "before_vote", "before_unmask")

_U16, _I32 = 2**16 - 1, 2**31


@dataclass(frozen=True)
class Case:
    """The inputs of a window: what all members share, the members, and per phase the indices that vanish before it."""

    policy: Policy
    root: bytes
    spec: VectorSpec
    lane: bytes
    seq: int
    now: int
    expires: int
    identities: tuple[Identity, ...]
    rhos: tuple[bytes, ...]
    plains: tuple[bytes, ...]
    drops: dict[str, list[int]]


def replay(value: object, report: Report) -> None:
    """Replay a file's value into the report. Raises MalformedError or ProtocolError where it cannot go on."""
    file = Fields(value, "", ITEMS)
    file.text("name")
    case = read_case(file, report)
    members = join(case, report)
    window_id = file.blob("params", Params.decode).window_id
    entries = [member.entry for member in members]
    collector = Collector.form(entries, case.policy.fleet, case.lane, case.spec, case.policy, window_id)
    compare_open(file, entries, collector, report)
    Run(file, case, members, collector, report).play()


# --- inputs -----------------------------------------------------------------------------------------------------------


def read_case(file: Fields, report: Report) -> Case:
    """The inputs, each held against the others."""
    policy, root = _policy(Fields(file.raw("policy"), "policy", POLICY))
    spec = _spec(Fields(file.raw("spec"), "spec", SPEC), report)
    rows = [Fields(row, f"members[{i}]", MEMBER) for i, row in enumerate(file.array("members"))]
    if not rows:
        raise MalformedError("members", "names nobody")
    identities = tuple(_identity(row, root, report) for row in rows)
    report.holds("policy.fleet", all(_fleet(each) == policy.fleet for each in identities), "not the certificates' fleet")
    drops = Fields(file.raw("drops"), "drops", DROPS)
    return Case(
        policy=policy,
        root=root,
        spec=spec,
        lane=file.hex("lane", HASH_BYTES),
        seq=file.integer("seq"),
        now=file.integer("now"),
        expires=file.integer("expires"),
        identities=identities,
        rhos=tuple(row.hex("rho", KEY_BYTES) for row in rows),
        plains=tuple(_plain(row, spec) for row in rows),
        drops={phase: drops.integers(phase, 0, len(rows) - 1) for phase in DROPS},
    )


def _policy(fields: Fields) -> tuple[Policy, bytes]:
    policy = Policy(
        fleet=fields.hex("fleet", 16),
        serial=0,
        not_after=0,
        gamma_milli=fields.integer("gamma_milli", 0, 1000),
        sigma=fields.integer("sigma", 0, _U16),
        n_min=fields.integer("n_min", 0, _U16),
        n_max=fields.integer("n_max", 0, _U16),
        min_epoch=0,
        flags=0,
        issuers=(),
        plan_signers=(),
    )
    return policy, fields.hex("authority_pk", KEY_BYTES)


def _spec(fields: Fields, report: Report) -> VectorSpec:
    spec = fields.blob("bytes", VectorSpec.decode)
    report.same("spec.scale", spec.scale, fields.number("scale"))
    names = {"d": spec.d, "b": spec.bits, "n_max": spec.n_max, "wbits": spec.weight_bits, "M": spec.limit, "words": spec.words}
    for name, computed in names.items():
        report.same(f"spec.{name}", computed, fields.integer(name))
    return spec


def _identity(row: Fields, root: bytes, report: Report) -> Identity:
    key = SigningKey(row.hex("sign_seed", KEY_BYTES))
    identity = Identity(row.hex("device", 16), key, row.hex("cert", Certificate.size()))
    certificate = row.blob("cert", Certificate.decode)
    report.holds(row.path("cert"), certificate.signed_by(root), "is not signed by policy.authority_pk")
    report.same(row.path("device"), certificate.device, identity.device)
    report.same(row.path("sign_seed"), certificate.public_key, key.public)
    return identity


def _fleet(identity: Identity) -> bytes:
    return Certificate.decode(identity.certificate).fleet


def _plain(row: Fields, spec: VectorSpec) -> bytes:
    update = np.array(row.integers("x", -_I32, _I32 - 1), np.int64)
    try:
        return pack(spec, update, row.integer("w"))
    except ProtocolError as reason:
        raise MalformedError(row.path("x"), reason.detail) from None


# --- JOIN and OPEN ----------------------------------------------------------------------------------------------------


def join(case: Case, report: Report) -> list[Member]:
    """All members with their entries made."""
    members = [
        Member.join(
            identity,
            lane=case.lane,
            spec=case.spec,
            policy=case.policy,
            root=case.root,
            rho=rho,
            seq=case.seq,
            expires=case.expires,
        )
        for identity, rho in zip(case.identities, case.rhos, strict=True)
    ]
    devices = [identity.device for identity in case.identities]
    report.holds("members", devices == sorted(set(devices)), "are not in the order of their device ids")
    return members


def compare_open(file: Fields, entries: Sequence[bytes], collector: Collector, report: Report) -> None:
    """What OPEN carries."""
    params = collector.params
    stated = file.blob("params", Params.decode)
    for name, item in PARAMS.items():
        report.same(item, getattr(params, name), getattr(stated, name))
    report.same("tau0", collector.tau0, file.hex("tau0", HASH_BYTES))
    report.same("t", collector.t, file.integer("t"))
    report.same("P32", params.p32, file.integer("P32"))
    hashes = dict(enumerate(file.hexes("roster_sha256", HASH_BYTES)))
    report.same_each("roster_sha256", {i: sha256(entry) for i, entry in enumerate(entries)}, hashes)
    for i in range(len(entries)):
        wrong = report.failed(f"roster_sha256[{i}]") and report.failed("tau0")
        report.holds(f"members[{i}]", not wrong, "does not make the join entry of roster_sha256 and tau0")


# --- SHARES to the sum ------------------------------------------------------------------------------------------------


class Run:
    """A window that is being replayed, phase by phase."""

    def __init__(self, file: Fields, case: Case, members: Sequence[Member], collector: Collector, report: Report) -> None:
        self._file = file
        self._case = case
        self._members = members
        self._collector = collector
        self._report = report
        self._alive = set(range(len(members)))
        self._total = bytearray(WORD_BYTES * case.spec.words)

    def play(self) -> None:
        """All phases after OPEN is made."""
        self._shares()
        self._masked()
        self._vote()
        self._unmask()

    def _still_there(self, phase: str) -> list[int]:
        self._alive -= set(self._case.drops[phase])
        return sorted(self._alive)

    def _hashes(self, name: str) -> dict[int, bytes]:
        return self._file.hex_by_member(name, len(self._members), HASH_BYTES)

    def _signatures(self, name: str) -> dict[int, bytes]:
        return self._file.hex_by_member(name, len(self._members), SIGNATURE_BYTES)

    def _shares(self) -> None:
        case, collector, n = self._case, self._collector, len(self._members)
        made = {i: self._members[i].on_open(collector.open, case.now, case.policy) for i in self._still_there("before_shares")}
        self._compare_shares(made)
        for message in made.values():
            collector.on_shares(message)
        tau1 = collector.close_shares()
        self._report.same("U2", bitmap(collector.u2, n), self._file.hex("U2"))
        self._report.same("tau1", tau1, self._file.hex("tau1", HASH_BYTES))

    def _compare_shares(self, made: Mapping[int, Shares]) -> None:
        rows = self._file.by_member("shares", len(self._members)).items()
        stated = {i: Fields(row, f"shares[{i}]", ("ciphertexts_sha256", "bcommit")) for i, row in rows}
        for part, computed in (
            ("ciphertexts_sha256", {i: sha256(message.cts) for i, message in made.items()}),
            ("bcommit", {i: message.bcommit for i, message in made.items()}),
        ):
            hashes = {i: row.hex(part, HASH_BYTES) for i, row in stated.items()}
            self._report.same_each("shares", computed, hashes, f".{part}")

    def _masked(self) -> None:
        heads: dict[int, MaskedHead] = {}
        for i in self._still_there("before_masked"):
            self._members[i].on_u2(self._collector.u2_for(i))
            vector = self._members[i].mask(self._case.plains[i])
            heads[i] = self._members[i].head(sha256(vector))
            self._collector.on_head(heads[i])
            self._collector.on_vector(i)
            ring_add(self._total, vector)
        self._report.same_each("masked_sha256", {i: h.sha256 for i, h in heads.items()}, self._hashes("masked_sha256"))
        self._report.same_each("msigs", {i: h.msig for i, h in heads.items()}, self._signatures("msigs"))
        survivors = self._collector.close_masked()
        self._report.same("U3", bitmap(survivors, len(self._members)), self._file.hex("U3"))

    def _vote(self) -> None:
        survivors = self._collector.survivors
        votes = {i: self._members[i].on_survivors(survivors) for i in self._still_there("before_vote")}
        self._report.same_each("votes", {i: vote.sig for i, vote in votes.items()}, self._signatures("votes"))
        for i in sorted(votes)[: self._collector.t]:
            self._collector.on_vote(votes[i])
        self._report.same("quorum", list(self._quorum().idx), self._file.integers("quorum", 0, 2**16 - 1))

    def _quorum(self) -> Quorum:
        quorum = self._collector.quorum
        if quorum is None:
            raise MalformedError("drops", f"leave fewer than {self._collector.t} votes")
        return quorum

    def _unmask(self) -> None:
        quorum = self._quorum()
        answers = {i: self._members[i].on_quorum(quorum) for i in self._still_there("before_unmask")}
        hashes = {i: sha256(answer.shares) for i, answer in answers.items()}
        self._report.same_each("unmask_sha256", hashes, self._hashes("unmask_sha256"))
        for answer in answers.values():
            self._collector.on_unmask(answer)
        result = self._collector.finish(self._total)
        self._report.same("sum", result.values.tolist(), self._file.integers("sum", -_I32, _I32))
        self._report.same("weight_sum", result.weight_sum, self._file.integer("weight_sum"))
        summed = not (self._report.failed("sum") or self._report.failed("weight_sum"))
        for i in self._collector.u3:
            wrong = self._report.failed(f"masked_sha256[{i}]") and not summed
            self._report.holds(f"members[{i}]", not wrong, "does not make the vector of masked_sha256 and the sums")
