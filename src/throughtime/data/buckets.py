"""Batches of sequences of like length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import UserError

POOL = 50  # batches whose examples are sorted by length together
MOST = 1 << 16  # steps of a batch, padding and all, at most (a longer example stands alone)


class Buckets:
    """Which examples each step's batch has: a function of the step number alone, so that a resumed run is exact.

    Each epoch is shuffled anew; within `POOL` batches, examples of like length come together, so that little is
    padding. Every example is seen once an epoch. Examples so long that a batch of them would be larger than `MOST`
    steps come in smaller batches of their own.

    >>> buckets = Buckets([3, 9, 4, 8, 3], 2, seed=1)
    >>> buckets.steps, sorted(k for step in range(3) for k in buckets(step))
    (3, [0, 1, 2, 3, 4])

    Args:
        lengths: of the examples.
        batch_size: examples in a batch.
        seed: of the shuffling.

    Raises:
        UserError: there is no example.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int = 0) -> None:
        if len(lengths) == 0:
            raise UserError("there is no example to train on")
        self.lengths = np.asarray(lengths, dtype=np.int64)
        self.batch_size = batch_size
        self.seed = seed
        is_long = self.lengths * batch_size > MOST
        self._usual = np.flatnonzero(~is_long)
        self._long = _cut_long(np.flatnonzero(is_long), self.lengths)
        self.steps = -(-len(self._usual) // batch_size) + len(self._long)  # of one epoch
        self._epoch: tuple[int, list[NDArray[np.int64]]] = (-1, [])

    def __call__(self, step: int, rank: int = 0, world: int = 1) -> list[int]:
        """The examples of a step; with several processes, ``rank::world`` of them."""
        epoch, k = divmod(step, self.steps)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._batches(epoch))
        return self._epoch[1][k].tolist()[rank::world]

    def _batches(self, epoch: int) -> list[NDArray[np.int64]]:
        drawn = np.random.default_rng([self.seed, epoch])
        order = drawn.permutation(self._usual)
        size = self.batch_size
        batches: list[NDArray[np.int64]] = list(self._long)
        for start in range(0, len(order), POOL * size):
            pool = order[start : start + POOL * size]
            pool = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += [pool[k : k + size] for k in range(0, len(pool), size)]
        return [batches[k] for k in drawn.permutation(len(batches))]


def in_order(lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """All examples in batches of like length, for measuring; none is larger than `MOST` steps."""
    order = np.argsort(np.asarray(lengths, dtype=np.int64), kind="stable")
    batches: list[list[int]] = []
    for k in order.tolist():
        if batches and len(batches[-1]) < batch_size and (len(batches[-1]) + 1) * lengths[k] <= MOST:
            batches[-1].append(k)
        else:
            batches.append([k])
    return batches


def _cut_long(examples: NDArray[np.int64], lengths: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    batches: list[list[int]] = []
    for k in examples[np.argsort(lengths[examples], kind="stable")].tolist():
        if batches and (len(batches[-1]) + 1) * lengths[k] <= MOST:
            batches[-1].append(k)
        else:
            batches.append([k])
    return [np.array(batch) for batch in batches]
