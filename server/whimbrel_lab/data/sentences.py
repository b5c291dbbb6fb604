"""Sentences of a small grammar, made up: who does something to whom, among people, animals, machines?

What belongs here: the grammar and its two domains. What does not: how sentences are spread over devices (`samples.py`).
A bag of words does not tell who does it: both are in it. The order and the little words do, in each domain in another way.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from whimbrel_lab.data.samples import Examples, shuffled

TOKENS = 16
KINDS, NOUNS = 3, 12  # people, animals, machines; so many nouns of each
VERBS, ADJECTIVES, ADVERBS = 80, 60, 40
PLAIN, FRONTED = "plain", "fronted"
PASSIVES = 0.4

_LITTLE = ("", "the", "a", "was", "by", "near", "often", "and", "who", ".")  # "" is padding, number 0
_NOUN = len(_LITTLE)
_VERB = _NOUN + KINDS * NOUNS
_ADJECTIVE = _VERB + VERBS
_ADVERB = _ADJECTIVE + ADJECTIVES
VOCABULARY = _ADVERB + ADVERBS

Choose = Callable[[int], int]


def load(seed: int, count: int = 3000, domain: str = PLAIN) -> tuple[Examples, Examples]:
    """Return (training, test) examples: "words" int64 [N, 16], 0 after a sentence's end; the label is the kind of who does it.

    In the domain "plain" a third party stands behind a noun ("the man near a cat chased a dog", "a dog was chased by the
    man"), in "fronted" two stand before everything ("near a cat and a robot the man chased a dog").
    """
    rng = np.random.default_rng([seed, len(domain)])
    label = rng.integers(0, KINDS, count)
    other = (label + rng.integers(1, KINDS, count)) % KINDS
    words = np.zeros((count, TOKENS), np.int64)
    for row, pair in zip(words, np.stack([label, other], 1), strict=True):
        sentence = _sentence((int(pair[0]), int(pair[1])), domain == FRONTED, rng)
        row[: len(sentence)] = sentence
    return shuffled(Examples({"words": words}, label), seed)


def _sentence(pair: tuple[int, int], fronted: bool, rng: np.random.Generator) -> list[int]:
    def choose(count: int) -> int:
        return int(rng.integers(count))

    actor, patient = (_noun_phrase(kind, choose, fronted) for kind in pair)
    verb = [_VERB + choose(VERBS)]
    if choose(2):
        verb.insert(0, _ADVERB + choose(ADVERBS))
    passive = rng.random() < PASSIVES
    said = [*patient, _word("was"), *verb, _word("by"), *actor] if passive else [*actor, *verb, *patient]
    return [*(_third_parties(choose) if fronted else []), *said, _word(".")]


def _noun_phrase(kind: int, choose: Choose, fronted: bool) -> list[int]:
    phrase = [_word("a" if choose(2) else "the"), _NOUN + kind * NOUNS + choose(NOUNS)]
    if choose(2):
        phrase.insert(1, _ADJECTIVE + choose(ADJECTIVES))
    if not fronted and not choose(4):  # a third party, of any kind, that has no part in it
        phrase += [_word("near"), _any_noun(choose)]
    return phrase


def _third_parties(choose: Choose) -> list[int]:
    return [_word("near"), _any_noun(choose), _word("and"), _any_noun(choose)]


def _any_noun(choose: Choose) -> int:
    return _NOUN + choose(KINDS * NOUNS)


def _word(little: str) -> int:
    return _LITTLE.index(little)
