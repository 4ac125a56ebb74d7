"""One tanh network that learns temporal order on short sequences and keeps it on long ones (Pascanu et al. 2013)."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.cells import Elman
from throughtime.engine import unroll
from throughtime.insight.figures import finish, legend, new_figure
from throughtime.learning.initialisation import spectral_radius_
from throughtime.learning.regularise import vanishing_gradient_penalty
from throughtime.studies.problems import PROBLEMS

_PROBLEM = PROBLEMS["temporal-order"]


@dataclass(frozen=True)
class Recipe:
    """How the network is trained: SGD, clipping by norm, and the regulariser, as in the paper.

    Args:
        shortest: training lengths are uniform between this one ...
        longest: ... and this one.
        hidden: units.
        batch: sequences a step.
        rate: learning rate.
        momentum: of SGD; the paper has none.
        clip: the norm that gradients are clipped to.
        weight: of the regulariser.
        radius: the spectral radius at first.
        seed: of weights and data.
    """

    shortest: int = 50
    longest: int = 100
    hidden: int = 50
    batch: int = 20
    rate: float = 0.01
    momentum: float = 0.9
    clip: float = 1.0
    weight: float = 1.0
    radius: float = 0.95
    seed: int = 1


class OrderNetwork(nn.Module):
    """Fifty tanh units and a linear answer to the last of them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.cell = Elman(_PROBLEM.inputs, recipe.hidden)
        spectral_radius_(self.cell, recipe.radius)
        self.answer = nn.Linear(recipe.hidden, _PROBLEM.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(unroll(self.cell, x)[0][:, -1])


@dataclass(frozen=True)
class OrderResult:
    """What came of it."""

    recipe: Recipe
    steps: int
    seconds: float
    errors: dict[int, float]  # share of wrong answers by length
    tested: dict[int, int]  # on how many sequences


def train_temporal_order(
    recipe: Recipe | None = None,
    *,
    minutes: float = 60.0,
    steps: int | None = None,
    check: int = 100,
    tell: Callable[[int, float], None] = lambda step, error: None,
) -> tuple[OrderNetwork, int]:
    """Trains until 10,000 sequences of the longest length have no error, or minutes or steps are over.

    Args:
        recipe: how.
        minutes: at most so many.
        steps: at most so many.
        check: steps between two measurements.
        tell: called with the step and the share of errors at each measurement.

    Returns:
        The network, and how many steps it took.
    """
    recipe = Recipe() if recipe is None else recipe
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        network = OrderNetwork(recipe)
    drawn = torch.Generator().manual_seed(recipe.seed)
    optimiser = torch.optim.SGD(network.parameters(), recipe.rate, momentum=recipe.momentum)
    began, step = time.monotonic(), 0
    while (steps is None or step < steps) and time.monotonic() - began < 60 * minutes:
        length = int(torch.randint(recipe.shortest, recipe.longest + 1, (), generator=drawn))
        batch = _PROBLEM.draw(recipe.batch, length, drawn)

        def loss(y: Tensor, target: Tensor = batch.target) -> Tensor:
            return nn.functional.cross_entropy(network.answer(y[:, -1]), target)

        total = loss(unroll(network.cell, batch.x)[0])
        if recipe.weight:
            total = total + recipe.weight * vanishing_gradient_penalty(network.cell, batch.x, loss) / length
        optimiser.zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip)
        optimiser.step()
        step += 1
        if step % check == 0:
            error = errors_at(network, recipe.longest, 1000, recipe.seed)
            tell(step, error)
            # only what passes a small test is put to the large one
            if error == 0 and errors_at(network, recipe.longest, 10_000, recipe.seed + 1) == 0:
                break
    return network, step


@torch.no_grad()
def errors_at(network: nn.Module, length: int, count: int, seed: int) -> float:
    """The share of wrong answers on so many sequences never trained on."""
    generator = torch.Generator().manual_seed(1_000_003 * length + seed)
    wrong, size = 0, max(1, min(count, 400_000 // length))
    for first in range(0, count, size):
        batch = _PROBLEM.draw(min(size, count - first), length, generator)
        wrong += int((network(batch.x).argmax(1) != batch.target).sum())
    return wrong / count


def study_temporal_order(
    recipe: Recipe | None = None,
    *,
    minutes: float = 60.0,
    lengths: Sequence[int] = (50, 100, 150, 200, 500, 1000, 2000, 5000),
    count: int = 10_000,
    tell: Callable[[int, float], None] = lambda step, error: None,
) -> OrderResult:
    """Trains, then tests at lengths that were never seen: on ``count`` sequences, on fewer beyond 200 steps.

    Args:
        recipe: how to train.
        minutes: for training.
        lengths: to test at.
        count: sequences tested; at lengths above 200 so many fewer that the work stays the same.
        tell: see `train_temporal_order`.
    """
    recipe = Recipe() if recipe is None else recipe
    began = time.monotonic()
    network, steps = train_temporal_order(recipe, minutes=minutes, tell=tell)
    took = time.monotonic() - began
    tested = {length: max(100, min(count, math.ceil(count * 200 / length))) for length in lengths}
    errors = {length: errors_at(network, length, tested[length], recipe.seed + 2) for length in lengths}
    return OrderResult(recipe, steps, round(took, 1), errors, tested)


def order_figure(results: Sequence[OrderResult]) -> Figure:
    """Errors against length, from the lengths trained on to fifty times as long."""
    figure, (axes,) = new_figure()
    for result in results:
        lengths = np.array(sorted(result.errors))
        axes.semilogx(
            lengths,
            [100 * result.errors[int(n)] for n in lengths],
            "o-",
            label=f"trained on {result.recipe.shortest} to {result.recipe.longest} steps, seed {result.recipe.seed}",
        )
    finish(axes, "Temporal order: one tanh network at lengths it never saw", "length, steps", "wrong, %")
    legend(axes)
    return figure


def as_json(result: OrderResult) -> str:
    """The result as one line."""
    return json.dumps(asdict(result))
