"""The long-memory problems, each by its published definition, as generators of batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from throughtime.engine.sequence import within
from throughtime.errors import UserError


@dataclass(frozen=True)
class Batch:
    """Sequences and what is to be said of them."""

    x: Tensor  # (B, L, I)
    target: Tensor  # (B,) or (B, 1) of the last step; (B, L) of every step
    lengths: Tensor | None = None  # (B,) where sequences differ


class Problem:
    """A way to draw sequences whose answer lies ``length`` steps back, and to judge answers.

    >>> generator = torch.Generator().manual_seed(0)
    >>> PROBLEMS["adding"].draw(4, 100, generator).x.shape
    torch.Size([4, 100, 2])
    """

    name: ClassVar[str]
    source: ClassVar[str]
    inputs: ClassVar[int]  # I
    outputs: ClassVar[int]  # O, classes or numbers
    every_step: ClassVar[bool] = False  # whether each step is answered, or only the last
    measure: ClassVar[str] = "accuracy"  # or "squared error"
    bar: ClassVar[float] = 0.99  # where it counts as solved

    def draw(self, size: int, length: int, generator: torch.Generator) -> Batch:
        """``size`` sequences of a length."""
        raise NotImplementedError

    def chance(self, length: int) -> float:
        """The score of the best answer that needs no memory."""
        return 1 / self.outputs

    def loss(self, answer: Tensor, batch: Batch) -> Tensor:
        """What is to be made small: answers (B, O), or (B, L, O) of every step."""
        return nn.functional.cross_entropy(answer.flatten(0, -2), batch.target.flatten())

    def score(self, answer: Tensor, batch: Batch) -> float:
        """How good answers are, in the problem's measure."""
        return float((answer.argmax(-1) == batch.target).double().mean())

    def solved(self, score: float) -> bool:
        """Whether a score counts as a solution."""
        return score >= self.bar


class Adding(Problem):
    """Two of T numbers in [0, 1] are marked, one in each half; their sum is asked for at the end.

    Always saying 1 has a squared error of 1/6. Hochreiter & Schmidhuber (1997, experiment 4), in the form of Le et al.
    (2015) and Arjovsky et al. (2016).
    """

    name = "adding"
    source = "Hochreiter & Schmidhuber 1997; Arjovsky, Shah & Bengio 2016"
    inputs = 2
    outputs = 1
    measure = "squared error"
    bar = 1e-3

    def draw(self, size: int, length: int, generator: torch.Generator) -> Batch:
        _at_least(self, length, 2)
        values = torch.rand(size, length, generator=generator)
        half = length // 2
        first = torch.randint(0, half, (size,), generator=generator)
        second = torch.randint(half, length, (size,), generator=generator)
        rows = torch.arange(size)
        marks = torch.zeros(size, length)
        marks[rows, first] = marks[rows, second] = 1.0
        target = self.combine(values[rows, first], values[rows, second])
        return Batch(torch.stack([values, marks], dim=2), target[:, None])

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a + b

    def chance(self, length: int) -> float:
        return 1 / 6

    def loss(self, answer: Tensor, batch: Batch) -> Tensor:
        return nn.functional.mse_loss(answer, batch.target)

    def score(self, answer: Tensor, batch: Batch) -> float:
        return float((answer - batch.target).double().square().mean())

    def solved(self, score: float) -> bool:
        return score <= self.bar


class Multiplication(Adding):
    """As `Adding`, with the product (Hochreiter & Schmidhuber 1997, experiment 5). Always saying 1/4 has 7/144."""

    name = "multiplication"
    source = "Hochreiter & Schmidhuber 1997"

    def combine(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b

    def chance(self, length: int) -> float:
        return 1 / 9 - 1 / 16


class Copying(Problem):
    """Ten symbols out of eight, T blanks, of which the last is a call to answer, and the symbols are to be said.

    As Arjovsky et al. (2016): T + 20 steps, ten categories (8 is blank, 9 calls), an answer at every step, blank until
    the last ten. The score is the accuracy on those ten.
    """

    name = "copying"
    source = "Hochreiter & Schmidhuber 1997; Arjovsky, Shah & Bengio 2016"
    inputs = 10
    outputs = 10
    every_step = True

    def draw(self, size: int, length: int, generator: torch.Generator) -> Batch:
        _at_least(self, length, 1)
        symbols = torch.randint(0, 8, (size, 10), generator=generator)
        tokens = torch.full((size, length + 20), 8)
        tokens[:, :10] = symbols
        tokens[:, length + 9] = 9
        target = torch.full((size, length + 20), 8)
        target[:, -10:] = symbols
        return Batch(nn.functional.one_hot(tokens, 10).float(), target)

    def chance(self, length: int) -> float:
        return 1 / 8

    def score(self, answer: Tensor, batch: Batch) -> float:
        return float((answer[:, -10:].argmax(-1) == batch.target[:, -10:]).double().mean())


class TemporalOrder(Problem):
    """Among T symbols two are A or B, the rest c, d, e or f; the class is which two, in which order (four of them).

    The first stands in [T/10, 2T/10], the second in [4T/10, 5T/10]: Hochreiter & Schmidhuber (1997, experiment 6a), in
    the form of Martens & Sutskever (2011) and Pascanu et al. (2013), who call below 1 % of errors solved.
    """

    name = "temporal-order"
    source = "Hochreiter & Schmidhuber 1997; Pascanu, Mikolov & Bengio 2013"
    inputs = 6
    outputs = 4

    def draw(self, size: int, length: int, generator: torch.Generator) -> Batch:
        _at_least(self, length, 10)
        tokens = torch.randint(2, 6, (size, length), generator=generator)
        rows = torch.arange(size)
        pair = torch.randint(0, 2, (size, 2), generator=generator)
        for k, (low, high) in enumerate(((1, 2), (4, 5))):
            at = torch.randint(low * length // 10, high * length // 10 + 1, (size,), generator=generator)
            tokens[rows, at] = pair[:, k]
        return Batch(nn.functional.one_hot(tokens, 6).float(), 2 * pair[:, 0] + pair[:, 1])


class Parity(Problem):
    """Whether the number of ones among up to T bits is odd, asked for at the end.

    Lengths are uniform in 1 ... T, as in Delétang et al. (2023), which gives learning short cases to begin with. A
    linear recurrence with positive coefficients cannot express it at all lengths; a network of one tanh layer can.
    Solved is a test without an error: who miscounts one sequence in a hundred miscounts more of longer ones.
    """

    name = "parity"
    source = "Minsky & Papert 1969; Delétang et al. 2023"
    inputs = 1
    outputs = 2
    bar = 1.0

    def draw(self, size: int, length: int, generator: torch.Generator) -> Batch:
        lengths = torch.randint(1, length + 1, (size,), generator=generator)
        bits = torch.randint(0, 2, (size, length), generator=generator)
        bits = torch.where(within(lengths, length), bits, 0)
        return Batch(bits[:, :, None].float(), bits.sum(1) % 2, lengths)


class DelayedRecall(Problem):
    """One of eight symbols, T - 2 distractors out of eight others, a call to answer: which symbol was it?

    The latch problem (Bengio et al. 1994) with more than two values; Hochreiter & Schmidhuber (1997, experiment 2) have
    its like. The distractors, drawn at random, are what makes holding on hard.
    """

    name = "delayed-recall"
    source = "Bengio, Simard & Frasconi 1994; Hochreiter & Schmidhuber 1997"
    inputs = 17
    outputs = 8

    def draw(self, size: int, length: int, generator: torch.Generator) -> Batch:
        _at_least(self, length, 2)
        symbols = torch.randint(0, 8, (size,), generator=generator)
        tokens = torch.randint(8, 16, (size, length), generator=generator)
        tokens[:, 0] = symbols
        tokens[:, -1] = 16
        return Batch(nn.functional.one_hot(tokens, 17).float(), symbols)


PROBLEMS: dict[str, Problem] = {
    problem.name: problem
    for problem in (Adding(), Copying(), TemporalOrder(), Parity(), DelayedRecall(), Multiplication())
}


def problem_named(name: str) -> Problem:
    """The problem of that name.

    Raises:
        UserError: there is none.
    """
    if name not in PROBLEMS:
        raise UserError(f"task {name!r} is unknown; there are {', '.join(PROBLEMS)}")
    return PROBLEMS[name]


def _at_least(problem: Problem, length: int, least: int) -> None:
    if length < least:
        raise UserError(f"{problem.name} needs a length of at least {least}, not {length}")
