"""Settings on a command line: what is written is what is read."""

from __future__ import annotations

import argparse
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whimbrel_protocol.errors import Code, ProtocolError
from whimbrel_server import setting_words
from whimbrel_server.settings import TaskSettings


def read(words: list[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    setting_words.add_options(parser)
    return setting_words.given(parser.parse_args(words))


NAMES = st.text("abcxyz0_./=-", min_size=1, max_size=8)


@given(
    dims=st.dictionaries(NAMES, st.lists(st.integers(1, 99), min_size=1).map(tuple), max_size=3),
    values=st.dictionaries(NAMES, st.floats(-1e6, 1e6), max_size=3),
    train=st.lists(NAMES, min_size=1, max_size=3).map(tuple),
    lr=st.floats(1e-6, 10),
    rotate=st.booleans(),
    optimizer=st.sampled_from(["sgd", "adamw"]),
)
def test_what_is_written_is_read_back(**changes: Any) -> None:
    settings = TaskSettings(**changes)
    given_ = read(setting_words.options(settings))
    assert TaskSettings.from_json(TaskSettings(**given_).to_json()) == settings


def test_what_is_not_given_is_not_there() -> None:
    assert read([]) == {}
    assert read(["--local", ""]) == {"local": ()}


@pytest.mark.parametrize(
    "words", [["--dims", "x"], ["--dims", "x=a,b"], ["--values", "=3"], ["--lr", "fast"], ["--head", "-1"]]
)
def test_nonsense_is_refused_with_its_option(words: list[str]) -> None:
    with pytest.raises(ProtocolError, match=words[0]) as refused:
        read(words)
    assert refused.value.code is Code.CONFIGURATION
