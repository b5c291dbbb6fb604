"""Replays one window step by step and compares member 0's intermediate values: keys, pairs, edges, plain and masked vector.

Here belongs what is computed from which item of a `masking-window.json` file; reading and counting are
`known_answers.py`'s.

The file has no updates but member 0's, so `sum` and `wsum` cannot be computed. The other survivors are given whatever
updates make up the rest, and the window is played to its end: that holds both items against their ranges, and the masks
against their removal.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isinf

import numpy as np

from whimbrel_kernels import ring_add
from whimbrel_protocol.collector import Collector
from whimbrel_protocol.known_answers import Fields, MalformedError, Report, as_blob, as_bytes, as_integer
from whimbrel_protocol.masks import CIPHERTEXT_BYTES, SHARE_BYTES, WORD_BYTES, WindowKeys, pair_mask
from whimbrel_protocol.member import Identity, Member
from whimbrel_protocol.messages import Quorum, Shares
from whimbrel_protocol.objects import Certificate, JoinEntry, Params, VectorSpec
from whimbrel_protocol.packing import CANARY, pack
from whimbrel_protocol.primitives import HASH_BYTES, KEY_BYTES, SIGNATURE_BYTES, SigningKey, exchange, sha256
from whimbrel_protocol.rules import bitmap, log2_bound, members_of
from whimbrel_protocol.signed import Policy

INPUTS = ("n", "rho", "sign_seed", "dev", "fa_pk", "fleet", "lane", "spec", "params", "x0", "w0")
OUTPUTS = (
    "roster", "t", "P32", "tau0", "cts_from_0", "bcommit0", "bm2", "tau1", "cts_to_0", "b", "L", "wq", "wl", "can",
    "words", "plain0", "pairs0", "y0", "bm3", "vote0", "quorum", "unmask0", "sum", "wsum",
)  # fmt: skip
ITEMS = INPUTS + OUTPUTS

_I32 = 2**31


@dataclass(frozen=True)
class Case:
    """The inputs: `roster` holds the entries as the file gives them, `policy` one under which the parameters are right."""

    params: Params
    spec: VectorSpec
    policy: Policy
    root: bytes
    roster: tuple[bytes, ...]
    rhos: tuple[bytes, ...]
    seeds: tuple[bytes, ...]
    devices: tuple[bytes, ...]
    dealers: tuple[int, ...]
    survivors: tuple[int, ...]


def replay(value: object, report: Report) -> None:
    """Replay a file's value into the report. Raises MalformedError or ProtocolError where it cannot go on."""
    file = Fields(value, "", ITEMS)
    case = read_case(file, report)
    members = join(case, report)
    collector = Collector.restore(case.params.encode(), case.roster, case.spec, ())
    Run(file, case, members, collector, report).play()


def read_case(file: Fields, report: Report) -> Case:
    """The inputs, each held against the others."""
    n = file.integer("n", 1, 2**16 - 1)
    params = file.blob("params", Params.decode)
    report.same("n", params.n, n)
    report.same("fleet", params.fleet, file.hex("fleet", 16))
    report.same("lane", params.lane, file.hex("lane", HASH_BYTES))
    report.same("t", params.t, file.integer("t"))
    report.same("P32", params.p32, file.integer("P32"))
    spec = file.blob("spec", VectorSpec.decode)
    return Case(
        params=params,
        spec=spec,
        policy=_policy(params, spec),
        root=file.hex("fa_pk", KEY_BYTES),
        roster=tuple(_of_each(file, "roster", n, JoinEntry.SIZE)),
        rhos=tuple(_of_each(file, "rho", n, KEY_BYTES)),
        seeds=tuple(_of_each(file, "sign_seed", n, KEY_BYTES)),
        devices=tuple(_of_each(file, "dev", n, 16)),
        dealers=_members(file, "bm2", n),
        survivors=_members(file, "bm3", n),
    )


def _of_each(file: Fields, name: str, n: int, size: int) -> list[bytes]:
    values = file.hexes(name, size)
    if len(values) != n:
        raise MalformedError(name, f"has {len(values)} values for {n} members")
    return values


def _members(file: Fields, name: str, n: int) -> tuple[int, ...]:
    return file.blob(name, lambda bits: members_of(bits, n))


def _policy(params: Params, spec: VectorSpec) -> Policy:
    """The file states no policy: the strictest one under which its parameters are right."""
    bound = log2_bound(params.p32, params.s_min - params.c)
    return Policy(
        fleet=params.fleet,
        serial=0,
        not_after=0,
        gamma_milli=-(-1000 * params.c // params.n),
        sigma=2**16 - 1 if isinf(bound) else max(0, int(-bound)),
        n_min=params.s_min,
        n_max=spec.n_max,
        min_epoch=0,
        flags=0,
        issuers=(),
        plan_signers=(),
    )


def join(case: Case, report: Report) -> list[Member]:
    """All members; their entries must be the file's."""
    members = []
    for i, stated in enumerate(case.roster):
        entry = as_blob(stated, f"roster[{i}]", JoinEntry.decode)
        _compare_secrets(case, i, entry, report)
        identity = Identity(case.devices[i], SigningKey(case.seeds[i]), stated[: Certificate.size()])
        member = Member.join(
            identity,
            lane=case.params.lane,
            spec=case.spec,
            policy=case.policy,
            root=case.root,
            rho=case.rhos[i],
            seq=entry.seq,
            expires=entry.expires,
        )
        report.same(f"roster[{i}]", member.entry, stated)
        members.append(member)
    return members


def _compare_secrets(case: Case, i: int, entry: JoinEntry, report: Report) -> None:
    certificate, keys = entry.certificate, WindowKeys.derive(case.rhos[i], case.devices[i])
    report.holds("fa_pk", certificate.signed_by(case.root), f"did not sign the certificate in roster[{i}]")
    report.same(f"dev[{i}]", case.devices[i], certificate.device)
    report.same(f"sign_seed[{i}]", SigningKey(case.seeds[i]).public, certificate.public_key)
    made = (keys.mask_key, keys.channel_key, keys.nonce)
    report.holds(f"rho[{i}]", made == (entry.mask_key, entry.channel_key, entry.nonce), f"does not make roster[{i}]")


class Run:
    """The window that is being replayed, phase by phase."""

    def __init__(self, file: Fields, case: Case, members: list[Member], collector: Collector, report: Report) -> None:
        self._file = file
        self._case = case
        self._members = members
        self._collector = collector
        self._report = report
        self._total = bytearray(WORD_BYTES * case.spec.words)

    def play(self) -> None:
        """All phases from OPEN on."""
        self._shares()
        self._spec()
        self._masked()
        self._pairs()
        self._vote()
        self._unmask()

    def _shares(self) -> None:
        file, report, collector = self._file, self._report, self._collector
        report.same("tau0", collector.tau0, file.hex("tau0", HASH_BYTES))
        now = max(JoinEntry.decode(entry).certificate.not_before for entry in self._case.roster)
        made = [self._members[i].on_open(collector.open, now, self._case.policy) for i in self._case.dealers]
        for message in made:
            collector.on_shares(message)
        self._compare_dealt(made)
        tau1 = collector.close_shares()
        report.same("tau1", tau1, file.hex("tau1", HASH_BYTES))
        named = {0, *file.by_member("cts_to_0", collector.n)}
        report.same("bm2", bitmap(named, collector.n), file.hex("bm2"))
        received = collector.u2_for(0).cts
        senders = [j for j in collector.u2 if j != 0]
        self._compare_ciphertexts("cts_to_0", dict(zip(senders, _cut(received, CIPHERTEXT_BYTES), strict=True)))

    def _compare_dealt(self, made: list[Shares]) -> None:
        n = self._collector.n
        own = next((message for message in made if message.i == 0), None)
        if own is None:
            raise MalformedError("bm2", "member 0 is not in it")
        self._report.same("bcommit0", own.bcommit, self._file.hex("bcommit0", HASH_BYTES))
        dealt = {0: b"", **dict(zip(range(1, n), _cut(own.cts, CIPHERTEXT_BYTES), strict=True))}
        stated = {i: as_bytes(each, f"cts_from_0[{i}]") for i, each in enumerate(self._file.array("cts_from_0"))}
        self._report.same_each("cts_from_0", dealt, stated)

    def _compare_ciphertexts(self, name: str, computed: dict[int, bytes]) -> None:
        self._report.same_each(name, computed, self._file.hex_by_member(name, self._collector.n, CIPHERTEXT_BYTES))

    def _spec(self) -> None:
        spec = self._case.spec
        numbers = {
            "b": spec.bits,
            "L": spec.lanes,
            "wq": spec.limb_bits,
            "wl": spec.weight_limbs,
            "can": CANARY,
            "words": spec.words,
        }
        for name, computed in numbers.items():
            self._report.same(name, computed, self._file.integer(name))

    def _masked(self) -> None:
        file, spec = self._file, self._case.spec
        own = np.array(file.integers("x0", -_I32, _I32 - 1), np.int64)
        weight = file.integer("w0")
        plain = pack(spec, own, weight)
        self._report.same("plain0", plain, file.hex("plain0"))
        self._send(0, plain, "y0")
        rest = np.array(file.integers("sum", -_I32, _I32 - 1), np.int64)
        if rest.shape != own.shape:
            raise MalformedError("sum", f"has {rest.size} values, x0 has {own.size}")
        others = [i for i in self._case.survivors if i != 0]
        for at, i in enumerate(others):
            update = _part(rest - own, len(others), at)
            share = int(_part(np.array([file.integer("wsum") - weight]), len(others), at)[0])
            self._send(i, pack(spec, update, share))

    def _send(self, i: int, plain: bytes, item: str = "") -> None:
        member = self._members[i]
        member.on_u2(self._collector.u2_for(i))
        vector = member.mask(plain)
        if item:
            self._report.same(item, vector, self._file.hex(item))
        if i in self._case.survivors:
            self._collector.on_head(member.head(sha256(vector)))
            self._collector.on_vector(i)
            ring_add(self._total, vector)

    def _pairs(self) -> None:
        keys = WindowKeys.derive(self._case.rhos[0], self._case.devices[0])
        computed: dict[int, object] = {}
        for j in (j for j in self._collector.u2 if j != 0):
            public = JoinEntry.decode(self._case.roster[j]).mask_key
            pair = pair_mask(exchange(keys.mask_secret, public), self._collector.tau1, 0, j)
            computed[j] = [pair.seed.hex(), pair.coin, pair.is_edge(self._case.params.p32)]
        self._report.same_each("pairs0", computed, self._file.by_member("pairs0", self._collector.n))

    def _vote(self) -> None:
        file, report, collector = self._file, self._report, self._collector
        survivors = collector.close_masked()
        votes = {i: self._members[i].on_survivors(collector.survivors) for i in survivors}
        if 0 not in votes:
            raise MalformedError("bm3", "member 0 is not in it")
        report.same("vote0", votes[0].sig, file.hex("vote0", SIGNATURE_BYTES))
        for i in sorted(votes)[: collector.t]:
            collector.on_vote(votes[i])
        quorum = collector.quorum
        if quorum is None:
            raise MalformedError("bm3", f"leaves fewer than {collector.t} votes")
        self._compare_quorum(quorum)
        self._quorum = quorum

    def _compare_quorum(self, quorum: Quorum) -> None:
        signatures = [signature.hex() for signature in _cut(quorum.sigs, SIGNATURE_BYTES)]
        computed = [list(pair) for pair in zip(quorum.idx, signatures, strict=True)]
        stated = self._file.array("quorum")
        self._report.same("quorum", computed, stated)
        voted = any(pair in computed for pair in stated)
        self._report.holds("bm3", voted, "is not what the members in quorum voted for")

    def _unmask(self) -> None:
        file, report, collector = self._file, self._report, self._collector
        answers = {i: self._members[i].on_quorum(self._quorum) for i in collector.u3}
        revealed = dict(zip(collector.u2, _cut(answers[0].shares, SHARE_BYTES), strict=True))
        report.same_each("unmask0", revealed, file.hex_by_member("unmask0", collector.n, SHARE_BYTES))
        for answer in answers.values():
            collector.on_unmask(answer)
        result = collector.finish(self._total)
        report.same("sum", result.values.tolist(), file.array("sum"))
        report.same("wsum", result.weight_sum, as_integer(file.raw("wsum"), "wsum", 0, 2**63))


def _cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def _part(whole: np.ndarray, parts: int, at: int) -> np.ndarray:
    """The `at`-th of nearly equal integer parts that add up to `whole`."""
    return whole // parts + (whole % parts > at)
