"""Sentences of a small grammar, made up: who does something to whom, among people, animals, machines?

What belongs here: the grammar and its two domains. What does not: how sentences are spread over devices (`samples.py`).
A bag of words does not tell who does it: both are in it. The order and the little words do, in each domain in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from whimbrel_lab.samples import Examples, shuffled

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

    In the domain "plain" who acts comes first ("the man chased a dog", or "a dog was chased by the man"), in "fronted" last
    ("a dog the man chased", "by the man a dog was chased").
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

    actor, patient = (_noun_phrase(kind, choose) for kind in pair)
    verb = [_VERB + choose(VERBS)]
    if choose(2):
        verb.insert(0, _ADVERB + choose(ADVERBS))
    passive = rng.random() < PASSIVES
    if passive:
        verb, actor = [_word("was"), *verb], [_word("by"), *actor]
    return [*_ordered(actor, verb, patient, passive, fronted), _word(".")]


def _ordered(actor: Sequence[int], verb: Sequence[int], patient: Sequence[int], passive: bool, fronted: bool) -> list[int]:
    if fronted:
        return [*actor, *patient, *verb] if passive else [*patient, *actor, *verb]
    return [*patient, *verb, *actor] if passive else [*actor, *verb, *patient]


def _noun_phrase(kind: int, choose: Choose) -> list[int]:
    phrase = [_word("a" if choose(2) else "the"), _NOUN + kind * NOUNS + choose(NOUNS)]
    if choose(2):
        phrase.insert(1, _ADJECTIVE + choose(ADJECTIVES))
    if not choose(4):  # a third party, of any kind, that has no part in it
        phrase += [_word("near"), _NOUN + choose(KINDS * NOUNS)]
    return phrase


def _word(little: str) -> int:
    return _LITTLE.index(little)
