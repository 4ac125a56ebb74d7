"""Truncated backpropagation through time, exact for any k1 and k2."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from throughtime.learning.nested import Runner, detached, draws_noise


@dataclass(frozen=True)
class Window:
    """One stop of truncated backpropagation: the outputs since the stop before, with their past k2 steps attached."""

    start: int  # the first step whose output is here
    stop: int  # one past the last
    y: Any  # (B, stop - start, O), attached to the parameters through steps max(0, stop - k2) ... stop - 1
    state: Any  # after step stop - 1, cut from its past


def truncated(
    network: Any,
    x: Tensor,
    k1: int,
    k2: int | None = None,
    *,
    state: Any = None,
    lengths: Any = None,
    resets: Any = None,
) -> Iterator[Window]:
    r"""BPTT(k2; k1) of Williams & Peng (1990): every k1 steps, the gradient of what came since, back k2 steps.

    .. math::
        \sum_{n} \sum_{t = (n-1) k_1}^{n k_1 - 1}
        \left. \frac{dL_t}{d\theta} \right|_{s_{n k_1 - k_2 - 1} \text{ constant}}

    k1 = k2 is the usual chunked form; k1 = 1 gives each loss exactly k2 steps of past.

    >>> import torch, throughtime as tt
    >>> cell, x = tt.cells.GRU(3, 5), torch.zeros(2, 7, 3)
    >>> for window in truncated(cell, x, k1=2, k2=4):
    ...     window.y.square().mean().backward()  # then a step of the optimiser, if wanted
    ...     print(window.start, window.stop)
    0 2
    2 4
    4 6
    6 7

    A window runs its k2 steps again, with the parameters as they are by then, from a state that the window before
    computed. So the parameters may be changed between windows, ``loss.backward()`` is all there is to call, and
    no more than k2 steps are kept. The work is k2 / k1 times that of the chunked form.

    Args:
        network: a `Cell`, a `Recurrent`, or anything called as ``network(x, state) -> (y, state)``.
        x: the whole input, time on axis 1. It should need no gradient (let an embedding be in the network).
        k1: steps from stop to stop.
        k2: steps back from each stop, at least k1; k1 unless given.
        state: the state before the first step; taken as constant.
        lengths: (B,) as in `throughtime.unroll`.
        resets: (B, T) as in `throughtime.unroll`.

    Raises:
        ValueError: k1 below 1, k2 below k1; k2 above k1 with a network other than a Cell that draws at random, as
            its dropout would be drawn anew for the steps that windows share.
    """
    k2 = k1 if k2 is None else k2
    if not 1 <= k1 <= k2:
        raise ValueError(f"truncated BPTT needs 1 <= k1 <= k2, not k1={k1}, k2={k2}")
    run = Runner(network, x, lengths, resets)
    if k2 > k1 and not run.is_cell and draws_noise(network):
        raise ValueError(
            "the network draws dropout or other noise, which would differ where windows overlap; "
            "use k1 = k2, switch the noise off, or give a Cell"
        )
    return _windows(run, x, k1, k2, detached(state))


def _windows(run: Runner, x: Tensor, k1: int, k2: int, state: Any) -> Iterator[Window]:
    steps = x.shape[1]
    behind, start = 0, 0  # the state at hand is that before step `behind`
    while start < steps:
        stop = min(start + k1, steps)
        next_behind = max(0, min(stop + k1, steps) - k2)
        # two pieces, to take the state from between them with which the next window begins
        pieces, next_state, now = [], state, state
        for first, last in ((behind, next_behind), (next_behind, stop)):
            if first < last:
                y, now = run(x[:, first:last], now, first, last)
                pieces.append((first, last, y))
            if last == next_behind:
                next_state = detached(now)
        yield Window(start, stop, _from(pieces, start), detached(now))
        behind, start, state = next_behind, stop, next_state


def _from(pieces: list[tuple[int, int, Tensor]], start: int) -> Tensor:
    """Outputs of the pieces from step ``start`` on."""
    outputs = [y[:, max(0, start - first) :] for first, last, y in pieces if last > start]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=1)
