"""Writes `docs/rules.md`: each rule of the masking protocol, the function that keeps it, and the tests that attack it.

Run `python -m whimbrel_lab.rules_page` in a checkout after a change of a rule or of the tests' markers. Here belong the rules,
in the order of the specification. Which test attacks which is read from the tests: from `@pytest.mark.rule(...)`, and from the
rows of attacks, whose first two words are a name and a rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from whimbrel_protocol.errors import Code

ROWS = ("Attack", "opened", "struck", "aborted")
INTRODUCTION = """# The rules of a masking window, and what holds them

Each line is a rule of the protocol: of the objects that the authority signs (1.4), of the messages of a window in the order
of their phases (1.5), of what is computed (1.6 to 1.8), of order and blame (1.9), of what is done once or not at all (2 to 4),
and of all of it together (8). What keeps it is the one place that enforces it. What stands in `this type` is an attack of the
hostile server: run it against a client in any language with `python -m tests.hostile --attack NAME --port PORT`; `make test`
runs all of them against the Python client. What stands in *this type* is a test by itself.

This page is made from the tests' markers by `python -m whimbrel_lab.rules_page`; a test fails where it is not current, where a
rule has no attack, or where a function has gone.
"""


@dataclass(frozen=True)
class Rule:
    """A rule, the objects that enforce it as `module:name`, and the error number that its breach gives, if it gives one."""

    name: str
    kept_by: tuple[str, ...]
    code: Code | None = None


def _rule(name: str, kept_by: str, code: Code | None = None) -> Rule:
    return Rule(name, tuple(kept_by.split()), code)


_CHECKS, _TRUST = "whimbrel_protocol.checks", "whimbrel_protocol.trust"
_PARAMS, _ENTRY, _ROSTER = (f"{_CHECKS}:{name}" for name in ("PARAMS_CHECKS", "ENTRY_CHECKS", "ROSTER_CHECKS"))
_U2, _HELD, _SURVIVORS, _CERTIFICATE, _BLAME = (
    f"{_CHECKS}:{name}" for name in ("U2_CHECKS", "SHARES_CHECKS", "SURVIVORS_CHECKS", "CERTIFICATE_CHECKS", "BLAME_CHECKS")
)
_MEMBER, _SPENT = "whimbrel_protocol.member:Member", "whimbrel_protocol.spent:SpentRecord"
_POLICY, _PLAN = f"{_TRUST}:accept_policy", f"{_TRUST}:accept_plan"

RULES: tuple[Rule, ...] = (
    _rule("1.4 policy: signed by the root", _POLICY, Code.BAD_POLICY),
    _rule("1.4 policy: the fleet's", _POLICY, Code.OTHER_FLEET),
    _rule("1.4 policy: never rolled back", _POLICY, Code.POLICY_ROLLED_BACK),
    _rule("1.4 policy: within its dates", f"{_POLICY} whimbrel.device:Device.policy_in_force", Code.POLICY_EXPIRED),
    _rule("1.4 policy: strong enough", _POLICY, Code.POLICY_TOO_WEAK),
    _rule("1.4 plan: signed by a plan signer", _PLAN, Code.BAD_PLAN),
    _rule("1.4 plan: fleet and task", _PLAN, Code.PLAN_OTHER_TASK),
    _rule("1.4 plan: never rolled back", _PLAN, Code.PLAN_ROLLED_BACK),
    _rule("1.4 plan: within its date", _PLAN, Code.PLAN_EXPIRED),
    _rule("1.4 plan: masked", _PLAN, Code.PLAN_UNMASKED),
    _rule("1.4 plan: the bytes that were named", "whimbrel.transport:Transport.fetch", Code.BAD_BLOB),
    _rule("1.4 spec: consistent", "whimbrel_protocol.objects:VectorSpec whimbrel_protocol.signed:Plan.spec", Code.BAD_SPEC),
    _rule("1.4 lane: the base model's bytes", "whimbrel.preparing:prepare", Code.BAD_DELTA),
    _rule("1.4 lane: the version's header", "whimbrel.preparing:prepare", Code.BAD_FIELD),
    _rule(
        "1.4 keys: prime-order subgroup",
        "whimbrel_protocol.objects:Certificate.issue whimbrel_protocol.forming:check_entry",
        Code.WEAK_KEY,
    ),
    _rule("1.4 times: the own clock", "whimbrel.device:Device.check_in", Code.CLOCK_WRONG),
    _rule("1.4 times: the latest known", "whimbrel.device:Device.time"),
    _rule("1.5 JOIN: fresh keys, short life", f"{_MEMBER}.join whimbrel.windowing:one_window"),
    _rule("1.5 OPEN: the first only", _MEMBER + ".on_open"),
    _rule("1.5 OPEN: well-formed", f"{_CHECKS}:read_open", Code.OPEN_MALFORMED),
    _rule("1.5 OPEN: own fleet", _PARAMS, Code.OPEN_FLEET),
    _rule("1.5 OPEN: own lane", _PARAMS, Code.OPEN_LANE),
    _rule("1.5 OPEN: no newer policy", _PARAMS, Code.OPEN_POLICY_NEWER),
    _rule("1.5 OPEN: n entries", _PARAMS, Code.OPEN_COUNT),
    _rule("1.5 OPEN: n_min <= n", _PARAMS, Code.OPEN_TOO_SMALL),
    _rule("1.5 OPEN: n <= n_max", _PARAMS, Code.OPEN_TOO_LARGE),
    _rule("1.5 OPEN: c from the policy", _PARAMS, Code.OPEN_CORRUPT_COUNT),
    _rule("1.5 OPEN: t high enough", _PARAMS, Code.OPEN_THRESHOLD_LOW),
    _rule("1.5 OPEN: t <= n", _PARAMS, Code.OPEN_THRESHOLD_HIGH),
    _rule("1.5 OPEN: s_min high enough", _PARAMS, Code.OPEN_FLOOR_LOW),
    _rule("1.5 OPEN: s_min <= n", _PARAMS, Code.OPEN_FLOOR_HIGH),
    _rule("1.5 OPEN: the graph holds", _PARAMS, Code.OPEN_GRAPH_SPARSE),
    _rule("1.5 OPEN: entries of this fleet", _ENTRY, Code.ENTRY_FLEET),
    _rule("1.5 OPEN: one device an entry", _ENTRY, Code.ENTRY_DEVICE),
    _rule("1.5 OPEN: entries of the own lane", _ENTRY, Code.ENTRY_LANE),
    _rule("1.5 OPEN: certificate dates", _ENTRY, Code.ENTRY_CERTIFICATE_DATES),
    _rule("1.5 OPEN: entries not expired", _ENTRY, Code.ENTRY_EXPIRED),
    _rule("1.5 OPEN: certificate epoch", _ENTRY, Code.ENTRY_EPOCH),
    _rule("1.5 OPEN: certificate signature", _ENTRY, Code.ENTRY_CERTIFICATE),
    _rule("1.5 OPEN: entry signature", _ENTRY, Code.ENTRY_SIGNATURE),
    _rule("1.5 OPEN: ids ascend strictly", _ROSTER, Code.ROSTER_ORDER),
    _rule("1.5 OPEN: 2n distinct keys", _ROSTER, Code.ROSTER_KEYS),
    _rule("1.5 OPEN: own entry unchanged", _ROSTER, Code.ROSTER_OWN_ENTRY),
    _rule("1.5 OPEN: no zero key agreement", "whimbrel_protocol.primitives:exchange", Code.LOW_ORDER_KEY),
    _rule("1.5 U2: the first only", _MEMBER + ".on_u2"),
    _rule("1.5 U2: well-formed", f"{_CHECKS}:check_u2", Code.U2_MALFORMED),
    _rule("1.5 U2: self in it", _U2, Code.U2_WITHOUT_SELF),
    _rule("1.5 U2: s_min members", _U2, Code.U2_TOO_SMALL),
    _rule("1.5 U2: s_min shares at hand", _HELD, Code.U2_SHARES_MISSING),
    _rule("1.5 U2: an unreadable share is none", f"{_MEMBER}.on_u2"),
    _rule("1.5 MASKED: spent before byte 0", "whimbrel.windowing:Seat.mark whimbrel.journal:Journal.commit"),
    _rule("1.5 MASKED: the vector is frozen", f"{_MEMBER}.mask_chunk", Code.UPDATE_CHANGED),
    _rule("1.5 SURVIVORS: well-formed", f"{_CHECKS}:check_survivors", Code.SURVIVORS_MALFORMED),
    _rule("1.5 SURVIVORS: within U2", _SURVIVORS, Code.SURVIVORS_NOT_IN_U2),
    _rule("1.5 SURVIVORS: s_min members", _SURVIVORS, Code.SURVIVORS_TOO_FEW),
    _rule("1.5 SURVIVORS: every msig", _SURVIVORS, Code.SURVIVORS_SIGNATURE),
    _rule("1.5 VOTE: one in a window", f"{_SPENT}.commit {_SPENT}.abort", Code.VOTED_BEFORE),
    _rule("1.5 VOTE: persisted before it leaves", "whimbrel.windowing:Seat.mark whimbrel.journal:Journal.commit"),
    _rule("1.5 QUORUM: well-formed", f"{_CHECKS}:check_certificate", Code.QUORUM_MALFORMED),
    _rule("1.5 QUORUM: t votes", _CERTIFICATE, Code.QUORUM_TOO_FEW),
    _rule("1.5 QUORUM: indices ascend", _CERTIFICATE, Code.QUORUM_INDICES),
    _rule("1.5 QUORUM: every vote", _CERTIFICATE, Code.QUORUM_SIGNATURE),
    _rule("1.5 QUORUM: the body voted for", f"{_MEMBER}.on_quorum", Code.QUORUM_OTHER_BODY),
    _rule("1.5 UNMASK: never both, only once", f"{_MEMBER}.on_quorum"),
    _rule("1.5 DONE: own lane", f"{_MEMBER}.on_done", Code.DONE_LANE),
    _rule("1.5 repeats: the stored answer again", _MEMBER),
    _rule("1.5 repeats: one message a phase", "whimbrel_protocol.wire:decode", Code.MALFORMED),
    _rule("1.5 repeats: no entry twice", "whimbrel_server.rounds.engine:Engine.join"),
    _rule("1.5 abort certificate: t votes", "whimbrel_protocol.spent:verify_certificate"),
    _rule("1.6 dealer: t holders or abort", "whimbrel_protocol.collector:Collector.close_masked", Code.SHORTAGE),
    _rule("1.6 blame: no honest dealer", "whimbrel_protocol.unmask:Unmasking.faults", Code.BAD_SHARES),
    _rule("1.6 sum: exact", "whimbrel_protocol.collector:Collector.finish"),
    _rule("1.7 sum: canaries, count and ranges", "whimbrel_protocol.packing:decode_sum", Code.SPOILED_SUM),
    _rule("1.7 update: within its limit", "whimbrel_protocol.packing:pack", Code.UPDATE_OUT_OF_RANGE),
    _rule("1.8 numbers: two quorums share an honest member", "whimbrel_protocol.rules:threshold"),
    _rule("1.8 numbers: the graph bound", "whimbrel_protocol.rules:graph_holds whimbrel_protocol.rules:smallest_p32"),
    _rule("1.9 order: the table's", "whimbrel_protocol.window:MEMBER", Code.OUT_OF_TURN),
    _rule("1.9 silence after a failed check", f"{_MEMBER}.wipe", Code.WINDOW_ENDED),
    _rule("1.9 abort: the last word", "whimbrel_protocol.window:MEMBER", Code.TOO_LATE),
    _rule("1.9 blame: own window", _BLAME, Code.BLAME_OTHER_WINDOW),
    _rule("1.9 blame: survivors alone", _BLAME, Code.BLAME_NOT_SURVIVED),
    _rule("1.9 blame: only once", f"{_MEMBER}.on_blame"),
    _rule("2 at most once for each base", "whimbrel.records:TaskMemory.contributed_to", Code.CONTRIBUTED_BEFORE),
    _rule("2 at most q in a period", "whimbrel.preparing:prepare", Code.CONTRIBUTION_CAP),
    _rule("3 freed by a certificate alone", "whimbrel.windowing:settle"),
    _rule("4 weights: no light member", "whimbrel_protocol.encoding:Encoding.weight_of", Code.TOO_FEW_EXAMPLES),
    _rule("8 invariants: I1 to I6", "whimbrel_protocol.window:MEMBER whimbrel_protocol.checks:check_all"),
)


def resolve(kept_by: str) -> Any:
    """Return the object that `module:name` names. Raises ImportError or AttributeError where it is gone."""
    module, _, name = kept_by.partition(":")
    found = import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found


# --- what the tests say ---------------------------------------------------------------------------------------------


@cache
def attacked(tests: Path) -> Mapping[str, list[str]]:
    """Return, by rule, what attacks it: names of attacks in back quotes, then tests as `file: name`."""
    found: dict[str, list[str]] = {}
    for file in sorted(tests.rglob("*.py")):
        tree = ast.parse(file.read_text())
        for node in ast.walk(tree):
            for rule, text in (*_rows(node), *_marks(node, file.relative_to(tests))):
                found.setdefault(rule, []).append(text)
    return {rule: sorted(dict.fromkeys(texts), key=lambda text: (text[0] != "`", text)) for rule, texts in found.items()}


def _rows(node: ast.AST) -> Iterator[tuple[str, str]]:
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ROWS:
        words = [word.value for word in node.args[:2] if isinstance(word, ast.Constant) and isinstance(word.value, str)]
        if len(words) == 2:
            yield words[1], f"`{words[0]}`"


def _marks(node: ast.AST, file: Path) -> Iterator[tuple[str, str]]:
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return
    for mark in node.decorator_list:
        if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.rule":
            yield ast.literal_eval(mark.args[0]), f"*{file.as_posix()}: {node.name.removeprefix('test_').replace('_', ' ')}*"


# --- the page -------------------------------------------------------------------------------------------------------


def page(root: Path) -> str:
    """Return `docs/rules.md` of the checkout at `root`."""
    tests = attacked(root / "tests")
    lines = [INTRODUCTION, "| rule | kept by | error | attacked by |", "|---|---|---|---|"]
    return "\n".join([*lines, *(_line(rule, tests.get(rule.name, [])) for rule in RULES)]) + "\n"


def _line(rule: Rule, tests: list[str]) -> str:
    kept = ", ".join(f"`{name.replace(':', '.')}`" for name in rule.kept_by)
    number = "" if rule.code is None else f"[{rule.code:d}](errors.md#{rule.code:d})"
    return f"| {rule.name} | {kept} | {number} | {', '.join(tests)} |"


def write(root: Path) -> None:
    """Bring the page of the checkout at `root` up to date."""
    (root / "docs" / "rules.md").write_text(page(root))


if __name__ == "__main__":
    write(Path(__file__).parents[2])
