"""Words, their letters and their pairs as numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

_DIGIT = re.compile(r"\d")
_LONGEST_WORD = 40  # letters that are read of a word
_END = "\n"  # what the last word is paired with; no word is this


class Numbered(NamedTuple):
    """Sentences as numbers, in the fields of `throughtime.layers.Tokens`."""

    words: Tensor  # (B, T)
    lengths: Tensor  # (B,)
    pairs: Tensor | None  # (B, T)
    letters: Tensor | None  # (W, C)
    letter_counts: Tensor | None  # (W,)
    spelled: Tensor | None  # (B, T)
    extras: Tensor | None  # (B, T, K)


class WordIndex:
    """Numbers for words; 0 is <unk>, a word, pair or letter that is not known.

    >>> index = WordIndex.learn([("to", "be", "or"), ("to", "Be")], lower=True)
    >>> index.words, index.encode([("be", "is")]).words.tolist()
    (['be', 'to', 'or'], [[1, 0]])

    Args:
        words: those known, in the order of their numbers from 1.
        pairs: pairs of a word and the next, joined by a space; None where they are not used.
        letters: the letters that spell words; None where spelling is not used.
        lower: whether words are known in lower case alone (letters keep theirs).
        digits: whether every digit counts as 0.
        rare: the words seen once in training.
        extras: the values of each further column, in the order of their numbers from 1.
    """

    def __init__(
        self,
        words: Sequence[str],
        pairs: Sequence[str] | None = None,
        letters: Sequence[str] | None = None,
        *,
        lower: bool = False,
        digits: bool = False,
        rare: Sequence[str] = (),
        extras: Sequence[Sequence[str]] = (),
    ) -> None:
        self.words, self.pairs, self.letters = list(words), pairs, letters
        self.lower, self.digits, self.rare = lower, digits, list(rare)
        self._words = {word: number for number, word in enumerate(self.words, 1)}
        self._pairs = {pair: number for number, pair in enumerate(pairs or (), 1)}
        self._letters = {letter: number for number, letter in enumerate(letters or (), 1)}
        self.extras = [list(values) for values in extras]
        self._extras = [{value: number for number, value in enumerate(values, 1)} for values in self.extras]
        self._is_rare = np.zeros(len(self.words) + 1, dtype=bool)
        self._is_rare[[self._words[word] for word in self.rare]] = True

    @classmethod
    def learn(
        cls,
        sentences: Iterable[Sequence[str]],
        *,
        size: int | None = None,
        min_count: int = 1,
        pairs: bool = False,
        letters: bool = False,
        lower: bool = False,
        digits: bool = False,
        known: Iterable[str] = (),
        extras: Sequence[Sequence[str]] = (),
    ) -> WordIndex:
        """Numbers for the words of sentences, and for ``known`` ones besides (those with pretrained vectors).

        Args:
            sentences: words.
            size: words kept, the most frequent; all unless given.
            min_count: how often a word, or a pair, must come to be kept (a pair at least twice).
            pairs: whether pairs of words are numbered.
            letters: whether letters are.
            lower: see the class.
            digits: see the class.
            known: further words.
            extras: all values of each further column.
        """
        index = cls([], lower=lower, digits=digits)
        counts: Counter[str] = Counter()
        paired: Counter[str] = Counter()
        spelled: Counter[str] = Counter()
        for sentence in sentences:
            seen = [index.normal(word) for word in sentence]
            counts.update(seen)
            if pairs:
                paired.update(_joined(seen))
            if letters:
                for word in sentence:
                    spelled.update(word[:_LONGEST_WORD])
        words = _ranked(counts, min_count)[:size]
        kept = set(words)
        words += [word for word in dict.fromkeys(map(index.normal, known)) if word not in kept]
        rare = [word for word in words if counts[word] == 1]
        return cls(
            words,
            _ranked(paired, max(2, min_count)) if pairs else None,
            _ranked(spelled, 1) if letters else None,
            lower=lower,
            digits=digits,
            rare=rare,
            extras=[_ranked(Counter(values), 1) for values in extras],
        )

    def normal(self, word: str) -> str:
        """A word as it is looked up."""
        word = word.lower() if self.lower else word
        return _DIGIT.sub("0", word) if self.digits else word

    def number(self, word: str) -> int:
        return self._words.get(self.normal(word), 0)

    def encode(
        self,
        sentences: Sequence[Sequence[str]],
        forget: float = 0.0,
        drawn: np.random.Generator | None = None,
        extras: Sequence[Sequence[Sequence[str]]] = (),
    ) -> Numbered:
        """Sentences as numbers, padded with 0.

        Args:
            sentences: words.
            forget: the chance of a rare word to be taken as <unk>, so that <unk> is learned too.
            drawn: what the chance is drawn by.
            extras: for each sentence, the values of its further columns, where the index knows some.
        """
        lengths = [len(sentence) for sentence in sentences]
        shape = (len(sentences), max(lengths, default=0))
        words = np.zeros(shape, dtype=np.int64)
        pairs = np.zeros(shape, dtype=np.int64) if self.pairs is not None else None
        spelled = np.zeros(shape, dtype=np.int64) if self.letters is not None else None
        distinct: dict[str, int] = {}
        for row, sentence in enumerate(sentences):
            seen = [self.normal(word) for word in sentence]
            words[row, : len(seen)] = [self._words.get(word, 0) for word in seen]
            if pairs is not None:
                pairs[row, : len(seen)] = [self._pairs.get(pair, 0) for pair in _joined(seen)]
            if spelled is not None:
                spelled[row, : len(seen)] = [distinct.setdefault(word, len(distinct)) for word in sentence]
        if forget and drawn is not None:
            words[self._is_rare[words] & (drawn.random(shape) < forget)] = 0
        beside = np.zeros((*shape, len(self._extras)), dtype=np.int64) if self._extras else None
        if beside is not None:
            for row, columns in enumerate(extras):
                for k, (values, numbers) in enumerate(zip(columns, self._extras, strict=True)):
                    beside[row, : len(values), k] = [numbers.get(value, 0) for value in values]
        letters, letter_counts = self._spell(list(distinct) or [""]) if spelled is not None else (None, None)
        return Numbered(
            torch.from_numpy(words),
            torch.tensor(lengths, dtype=torch.int64),
            None if pairs is None else torch.from_numpy(pairs),
            letters,
            letter_counts,
            None if spelled is None else torch.from_numpy(spelled),
            None if beside is None else torch.from_numpy(beside),
        )

    def _spell(self, words: list[str]) -> tuple[Tensor, Tensor]:
        cut = [word[:_LONGEST_WORD] for word in words]
        letters = np.zeros((len(cut), max(1, *map(len, cut))), dtype=np.int64)
        for row, word in enumerate(cut):
            letters[row, : len(word)] = [self._letters.get(letter, 0) for letter in word]
        return torch.from_numpy(letters), torch.tensor([len(word) for word in cut], dtype=torch.int64)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` takes."""
        names = ("words", "pairs", "letters", "lower", "digits", "rare", "extras")
        return {name: getattr(self, name) for name in names}

    @classmethod
    def from_json(cls, config: dict[str, Any]) -> WordIndex:
        return cls(**config)


def split_validation(labels: Sequence[str], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Numbers of the examples to train on and to validate on, drawn at random; no class is left without training.

    >>> split_validation(["a", "a", "b", "a"], 0.5, seed=0)[1]
    [0, 1]
    """
    left = Counter(labels)
    wanted = max(1, round(len(labels) * share))
    held_out: set[int] = set()
    for k in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if len(held_out) == wanted:
            break
        if left[labels[k]] > 1:
            left[labels[k]] -= 1
            held_out.add(k)
    return [k for k in range(len(labels)) if k not in held_out], sorted(held_out)


def _joined(words: Sequence[str]) -> list[str]:
    return [f"{one} {other}" for one, other in pairwise([*words, _END])]


def _ranked(counts: Counter[str], least: int) -> list[str]:
    kept = (item for item in counts if counts[item] >= least)
    return sorted(kept, key=lambda item: (-counts[item], item))
