"""The table of rules is current, and has no rule without an attack, no attack without a rule and no function that is gone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hostile.attacks import ATTACKS
from whimbrel_lab import rules_page
from whimbrel_protocol import checks

ROOT = Path(__file__).parents[2]
TABLES = [getattr(checks, name) for name in dir(checks) if name.endswith("_CHECKS")]


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/rules.md").read_text() == rules_page.page(ROOT), "run `python -m whimbrel_lab.rules_page`"


def test_every_rule_is_attacked_and_every_marker_names_a_rule() -> None:
    named = [rule.name for rule in rules_page.RULES]
    assert len(set(named)) == len(named)
    assert set(named) == set(rules_page.attacked(ROOT / "tests"))


def test_every_attack_stands_in_the_page() -> None:
    listed = {text.strip("`") for texts in rules_page.attacked(ROOT / "tests").values() for text in texts}
    assert set(ATTACKS) <= listed


@pytest.mark.parametrize("rule", rules_page.RULES, ids=lambda rule: rule.name)
def test_what_keeps_a_rule_is_there(rule: rules_page.Rule) -> None:
    for kept_by in rule.kept_by:
        found = rules_page.resolve(kept_by)
        if kept_by.endswith("_CHECKS"):
            assert rule.code in {code for code, _ in found}


def test_every_check_of_every_table_is_a_rule_of_the_page() -> None:
    codes = {code for table in TABLES for code, _ in table}
    assert codes - {rule.code for rule in rules_page.RULES} == set()
