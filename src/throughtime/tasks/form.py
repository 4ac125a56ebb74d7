"""A form that a text is held to: so many lines, so many characters in each, given first characters."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from throughtime.data import UNKNOWN, Vocabulary
from throughtime.errors import UserError

LONGEST = 80  # characters of a line whose length is free


@dataclass(frozen=True)
class Form:
    """The form of a poem. Lines are parted by line breaks; after the last, the poem is complete.

    Args:
        lines: how many.
        length: characters in each line: letters, which ideographs are. None: any length, any characters.
        heads: the first characters of the first lines, in order (an acrostic).
        punctuation: marks that end the lines, uncounted: the first mark the first line, and so on, in turn.
    """

    lines: int
    length: int | None = None
    heads: str = ""
    punctuation: str = ""

    def __post_init__(self) -> None:
        if self.lines < 1 or (self.length is not None and self.length < 1):
            raise UserError("a form has at least 1 line, and a line at least 1 character")
        if len(self.heads) > self.lines:
            raise UserError(f"{len(self.heads)} heads for {self.lines} lines; give at most one for each line")
        if self.punctuation and self.length is None:
            raise UserError("punctuation is set for lines of a set length; give --line-length too")

    def rule(self, vocabulary: Vocabulary) -> FormRule:
        """The form as a rule for a model of characters.

        Raises:
            UserError: the model's units are no characters, or it lacks one that the form needs.
        """
        if vocabulary.unit != "char":
            raise UserError(f"a form needs a model of characters; this one writes in units of {vocabulary.unit!r}")
        needed = self.heads + self.punctuation + ("\n" if self.lines > 1 else "")
        missing = vocabulary.unknown(needed)
        if missing:
            named = ", ".join(map(repr, missing))
            raise UserError(f"the form needs characters that the model's text did not have: {named}")
        if self.length is not None:
            bad = [head for head in self.heads if not head.isalpha()]
            if bad:
                raise UserError(f"{bad[0]!r} cannot head a line: a line is made of letters (ideographs are letters)")
        inside = torch.zeros(vocabulary.size, dtype=torch.bool)
        offset = vocabulary.size - len(vocabulary.symbols)
        for number, symbol in enumerate(vocabulary.symbols, start=offset):
            inside[number] = symbol.isalpha() if self.length is not None else symbol != "\n"
        if not inside.any():
            raise UserError("the model's text had no letters to make lines of")
        return FormRule(self, inside, {symbol: offset + k for k, symbol in enumerate(vocabulary.symbols)})


@dataclass(frozen=True)
class FormRule:
    """The form where so much is written: ``column`` characters of line ``line``."""

    form: Form
    inside: Tensor  # (V,) bool: what a line is made of
    numbers: dict[str, int]
    line: int = 0
    column: int = 0

    def allowed(self) -> Tensor:
        form = self.form
        if self.column == 0 and self.line < len(form.heads):
            return self._only(form.heads[self.line])
        if form.length is None:
            if self.column == LONGEST:
                return self._only("\n")
            if self.column == 0 or "\n" not in self.numbers:
                return self.inside
            return self.inside | self._only("\n")
        if self.column < form.length:
            return self.inside
        if self._marked() and self.column == form.length:
            return self._only(form.punctuation[self.line % len(form.punctuation)])
        return self._only("\n")

    def after(self, number: int) -> FormRule | None:
        last = self.line == self.form.lines - 1
        if number == self.numbers.get("\n"):
            return None if last else replace(self, line=self.line + 1, column=0)
        column = self.column + 1
        full = LONGEST if self.form.length is None else self.form.length + self._marked()
        return None if last and column == full else replace(self, column=column)

    def through(self, text: str, numbers: list[int]) -> FormRule:
        """The rule after a prompt.

        Raises:
            UserError: the prompt breaks the form, or leaves nothing to write.
        """
        rule = self
        for character, number in zip(text, numbers, strict=True):
            following = rule.after(number) if number != UNKNOWN and rule.allowed()[number] else None
            if following is None:
                raise UserError(f"the prompt does not fit the form at {character!r}, line {rule.line + 1}")
            rule = following
        return rule

    def _marked(self) -> bool:
        return bool(self.form.punctuation)

    def _only(self, symbol: str) -> Tensor:
        return torch.zeros_like(self.inside).index_fill(0, torch.tensor(self.numbers[symbol]), True)
