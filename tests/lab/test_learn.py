"""Lessons: their data ask for what their models have, and a fleet of real devices learns one."""

from __future__ import annotations

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from whimbrel_lab.data import sentences
from whimbrel_lab.data.samples import dirichlet_split
from whimbrel_lab.runs import central, learn
from whimbrel_lab.runs.lessons import LESSONS


@pytest.mark.parametrize("kind", LESSONS)
def test_a_lesson_is_learned_by_its_own_settings_in_one_place(kind: str) -> None:
    lesson = LESSONS[kind]
    train, test = lesson.load(1)
    classes = int(train.label.max()) + 1
    few = train.take(np.arange(640))
    scores, parameters = central.after_passes(lesson.model(1), lesson.settings, few, test, [2.0, 2.0])
    assert scores[-1] > 1.5 / classes
    assert all(np.isfinite(array).all() for array in parameters)


def test_the_same_words_in_another_order_mean_something_else() -> None:
    """Who acts is the first of the plain domain's nouns where there is no "was", and of the other domain's seldom."""
    for domain, least, most in ((sentences.PLAIN, 1.0, 1.0), (sentences.FRONTED, 0.2, 0.5)):
        train, _ = sentences.load(2, 500, domain)
        words = train.inputs["words"]
        nouns = (words - sentences._NOUN) // sentences.NOUNS
        nouns = np.where((words >= sentences._NOUN) & (words < sentences._VERB), nouns, -1)
        first = np.array([row[row >= 0][0] for row in nouns])
        active = (words != sentences._word("was")).all(1)
        assert least <= np.mean(first[active] == train.label[active]) <= most
        assert np.mean(first[~active] == train.label[~active]) < 0.5


def test_every_example_goes_to_one_device_and_labels_are_spread_unevenly() -> None:
    train, _ = LESSONS["recurrent"].load(1)
    parts = dirichlet_split(train, 20, learn.SKEW, 1)
    assert sum(map(len, parts)) == len(train)
    shares = np.array([np.bincount(part.label, minlength=6) / len(part) for part in parts])
    assert shares.max() > 2 / 6


@pytest.mark.processes
def test_a_fleet_learns_a_lesson_with_exact_sums(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    lesson = LESSONS["recurrent"]
    monkeypatch.setitem(LESSONS, "recurrent", replace(lesson, settings=msgspec.structs.replace(lesson.settings, epochs=1)))
    result = learn.run(learn.Options("recurrent", devices=20, rounds=1, dropout=0.0))
    assert learn.is_exact(result)
    assert result["windows"] == 1
    assert result["parameters"] * 2 < result["bytes_up"]
    assert math.isfinite(result["gap_points"])
    assert "round  1/1" in capsys.readouterr().out
