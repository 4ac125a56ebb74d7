"""Batches for truncated backpropagation through time: parallel streams over one text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from throughtime.data.numbers import Numbers
from throughtime.data.vocabulary import DOCUMENT
from throughtime.errors import UserError

IGNORED = -100  # a target that is not counted, as torch's losses have it


class Window(NamedTuple):
    """The next T units of each stream."""

    inputs: Tensor  # (B, T)
    targets: Tensor  # (B, T), each the unit after its input
    resets: Tensor | None  # (B, T) bool: a document, or the text, begins here; None where none does
    first: bool  # no state is carried into it
    counted: int  # targets that are


class Streams:
    r"""B streams over a text, T units of each at a step; the state of one step is carried into the next.

    The text is taken as a ring. In epoch e, stream b begins at o_e + bN/B and reads on for ``steps`` windows: each of
    the N units is read in every epoch, fewer than B(T + 1) of them twice. o_e is drawn from the seed and e (0 without
    ``shift``), so that the borders of windows and streams differ from epoch to epoch. Where the ring closes, the
    state is reset and the false target is not counted.

    A window is a function of the step number alone: a run that is resumed reads what it would have read.

    Args:
        numbers: the text.
        batch_size: streams B.
        window: units T of a stream in one step.
        shift: whether epochs begin at different places.
        seed: of those places.

    Raises:
        UserError: the text is shorter than one window and the unit after it, or has fewer units than there are streams.
    """

    def __init__(self, numbers: Numbers, batch_size: int, window: int, *, shift: bool = True, seed: int = 0) -> None:
        if batch_size < 1 or window < 1:
            raise UserError(f"batch size and window must be at least 1, not {batch_size} and {window}")
        if len(numbers) < window + 1:
            raise UserError(
                f"the text has {_units(len(numbers))}, and one window takes {window + 1}: "
                "give a longer text or a smaller --window"
            )
        if batch_size > len(numbers):
            raise UserError(
                f"a batch of {batch_size} streams is more than the text has units, {len(numbers)}: "
                "give a longer text or a smaller --batch-size"
            )
        self.numbers = numbers
        self.batch_size = batch_size
        self.window = window
        self.shift = shift
        self.seed = seed
        self.steps = -(-len(numbers) // (batch_size * window))  # of one epoch

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> Window:
        """The window of a step; with several processes, streams ``rank::world`` of it."""
        epoch, k = divmod(step, self.steps)
        rows = range(rank, self.batch_size, world)
        if not rows:
            raise UserError(f"a batch of {self.batch_size} is too small for {world} processes; raise --batch-size")
        size = len(self.numbers)
        begin = self._offset(epoch) + k * self.window
        begins = [(begin + row * size // self.batch_size) % size for row in rows]
        ids = torch.from_numpy(np.stack([self._ring(start) for start in begins]))  # (B, T + 1)
        inputs, targets = ids[:, :-1], ids[:, 1:]
        starts = (torch.tensor(begins)[:, None] + torch.arange(self.window + 1)) % size == 0
        targets = targets.masked_fill(starts[:, 1:], IGNORED)
        resets = starts[:, :-1]
        if self.numbers.documents:
            resets = resets | (inputs == DOCUMENT)
        return _window(inputs, targets, resets, k == 0)

    def _ring(self, start: int) -> NDArray[np.int64]:
        """A window's units and the one after it; the text's beginning follows its end."""
        ids = self.numbers.read(start, min(start + self.window + 1, len(self.numbers)))
        rest = self.window + 1 - len(ids)
        return np.concatenate([ids, self.numbers.read(0, rest)]).astype(np.int64)

    def _offset(self, epoch: int) -> int:
        if not self.shift:
            return 0
        return int(np.random.default_rng([self.seed, epoch]).integers(len(self.numbers)))


def side_by_side(numbers: Numbers, streams: int, window: int, warm_up: int) -> Iterator[Window]:
    """A text read through once, for measuring: every unit but the first is a target once.

    With one stream the state is carried over the whole text. With several, each goes through its own part from
    ``warm_up`` units before it, uncounted, so that its state is nearly that of a reading from the beginning.

    Raises:
        UserError: the text has fewer than two units.
    """
    targets = len(numbers) - 1
    if targets < 1:
        raise UserError(f"the text has {_units(len(numbers))}; at least 2 are needed to predict one from another")
    streams = min(streams, targets)
    warm_up = 0 if streams == 1 else warm_up
    ends = np.arange(1, streams + 1) * targets // streams
    begins = np.arange(streams) * targets // streams
    steps = warm_up + int((ends - begins).max())
    for k in range(0, steps, window):
        at = (ends - steps)[:, None] + np.arange(k, min(k + window, steps))  # (B, T); below 0 there is no text yet
        ids = torch.from_numpy(np.stack([_padded(numbers, int(row[0]), int(row[-1]) + 2) for row in at]))  # (B, T + 1)
        inputs, following = ids[:, :-1], ids[:, 1:]
        counted = torch.from_numpy(at >= begins[:, None])
        resets = torch.from_numpy((at == 0) & (ends - steps < 0)[:, None])
        if numbers.documents:
            resets = resets | (inputs == DOCUMENT)
        yield _window(inputs, following.masked_fill(~counted, IGNORED), resets, k == 0)


def _padded(numbers: Numbers, start: int, stop: int) -> NDArray[np.int64]:
    """Units ``start ... stop - 1``; any unit stands where there is no text."""
    ids = numbers.read(max(start, 0), max(stop, 1))
    return np.pad(ids, (stop - start - len(ids), 0), mode="edge").astype(np.int64)


def _window(inputs: Tensor, targets: Tensor, resets: Tensor, first: bool) -> Window:
    return Window(inputs, targets, resets if bool(resets.any()) else None, first, int((targets != IGNORED).sum()))


def _units(count: int) -> str:
    return f"{count} unit{'s' * (count != 1)}"
