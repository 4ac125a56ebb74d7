"""One tanh network that learns temporal order on short sequences and keeps it on long ones (Pascanu et al. 2013)."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.cells import Elman
from throughtime.engine import unroll
from throughtime.errors import UserError
from throughtime.insight.figures import finish, legend, new_figure
from throughtime.learning.initialisation import spectral_radius_
from throughtime.learning.interruption import Interrupted, Requests, stop_requests
from throughtime.learning.run_folder import fill
from throughtime.learning.storage import full_disk_told, read_tensors, tensor_bytes, write_file
from throughtime.studies.kept_norm import RegularisedGradients
from throughtime.studies.lines import read_lines
from throughtime.studies.problems import PROBLEMS

_PROBLEM = PROBLEMS["temporal-order"]
_KIND = "temporal order"
PASSED = 50_000  # sequences of the longest length without an error, where training ends


@dataclass(frozen=True)
class Recipe:
    """How the network is trained: SGD, clipping by norm, and the regulariser, as in the paper.

    The rate stays until `cool` of the steps are left, and falls to 0 along a line from there, so that the last errors
    go. The regulariser is summed over the steps of a sequence in the paper, and averaged over them here.

    Args:
        shortest: training lengths are uniform between this one ...
        longest: ... and this one.
        hidden: units.
        batch: sequences a step.
        steps: training steps at most.
        rate: learning rate.
        cool: the share of the steps in which the rate falls.
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
    steps: int = 150_000
    rate: float = 0.001
    cool: float = 0.7
    momentum: float = 0.9
    clip: float = 1.0
    weight: float = 50.0
    radius: float = 0.95
    seed: int = 1

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.rate * min(1.0, (1 - step / self.steps) / self.cool) if self.cool else self.rate


class OrderNetwork(nn.Module):
    """Fifty tanh units and a linear answer to the last of them."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.cell = Elman(_PROBLEM.inputs, recipe.hidden)
        spectral_radius_(self.cell, recipe.radius)
        self.answer = nn.Linear(recipe.hidden, _PROBLEM.outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.answer(unroll(self.cell, x)[0][:, -1])


class Training:
    """One network on its way, and all that is needed to go on with it.

    Args:
        recipe: how.
        kept: the file that it is kept in between measurements, and goes on from where it is there.
    """

    def __init__(self, recipe: Recipe, kept: Path | None = None) -> None:
        self.recipe, self.kept = recipe, kept
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            self.network = OrderNetwork(recipe)
        self.gradients = RegularisedGradients(self.network.cell, self.network.answer)
        self.drawn = torch.Generator().manual_seed(recipe.seed)
        self.moving = [torch.zeros_like(p) for p in self.network.parameters()]  # SGD's momentum
        self.steps = 0
        self.seconds = 0.0  # of computing
        self.solved = False
        if kept is not None and kept.exists():
            self._read(kept)

    def step(self) -> tuple[float, float]:
        """Takes a step; the loss and the penalty before it."""
        recipe = self.recipe
        length = int(torch.randint(recipe.shortest, recipe.longest + 1, (), generator=self.drawn))
        batch = _PROBLEM.draw(recipe.batch, length, self.drawn)
        found = self.gradients(batch.x, batch.target, recipe.weight)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), recipe.clip)
        if not bool(norm.isfinite()):
            raise UserError(f"the gradient is no longer finite after {self.steps:,} steps; give a smaller --rate")
        with torch.no_grad():
            for parameter, moving in zip(self.network.parameters(), self.moving, strict=True):
                moving.mul_(recipe.momentum).add_(cast("Tensor", parameter.grad))
                parameter.sub_(recipe.rate_at(self.steps) * moving)
        self.steps += 1
        return found

    def run(
        self,
        *,
        minutes: float = math.inf,
        check: int = 250,
        tell: Callable[[int, float, float], None] = lambda step, error, left: None,
    ) -> None:
        """Trains until `PASSED` sequences of the longest length have no error, or the steps or minutes are over.

        A first SIGINT or SIGTERM lets the step at hand end, and all is kept; a second stops at once.

        Args:
            minutes: at most so many, by the clock.
            check: steps between two measurements.
            tell: called at each measurement with the step, the share of errors, and the seconds that all steps that
                are left would take.

        Raises:
            Interrupted: (a `KeyboardInterrupt`) a signal came.
        """
        with stop_requests(impatient=True) as requests:
            self._run(minutes, check, tell, requests)

    def _run(self, minutes: float, check: int, tell: Callable[[int, float, float], None], requests: Requests) -> None:
        recipe = self.recipe
        began = time.monotonic()
        while not self.solved and self.steps < recipe.steps and time.monotonic() - began < 60 * minutes:
            computed, first = time.process_time(), self.steps
            while self.steps < min(recipe.steps, first - first % check + check):
                self.step()
                if requests.signal:
                    self.seconds += time.process_time() - computed
                    self._stop(requests)
                if time.monotonic() - began >= 60 * minutes:
                    break
            error = errors_at(self.network, recipe.longest, 1000, recipe.seed)
            # only what passes a small test is put to the large one
            self.solved = error == 0 and errors_at(self.network, recipe.longest, PASSED, recipe.seed + 1) == 0
            took = time.process_time() - computed
            self.seconds += took
            if self.kept is not None:
                self._write(self.kept)
            tell(self.steps, error, (recipe.steps - self.steps) * took / max(1, self.steps - first))
            if requests.signal and not self.solved:
                self._stop(requests)

    def _stop(self, requests: Requests) -> None:
        told = f"stopped at step {self.steps:,}"
        if self.kept is not None:
            self._write(self.kept)
            told += f"; the network is in {self.kept}: the same command goes on from there"
        raise Interrupted(told, requests.signal)

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"moving.{n}": moving for n, moving in enumerate(self.moving)}
        about = torch.tensor([self.steps, self.seconds, self.solved], dtype=torch.float64)
        return {**tensors, "drawn": self.drawn.get_state(), "about": about}

    def _write(self, path: Path) -> None:
        with full_disk_told(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, tensor_bytes(_KIND, self._tensors()))

    def _read(self, path: Path) -> None:
        tensors = read_tensors(path, _KIND)
        wanted = {name: tensor.shape for name, tensor in self._tensors().items()}
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if wanted != found:
            name = min(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
            raise UserError(f"{path} is not what this study keeps (see its {name}); move it away or name another --out")
        fill(self.network, {name[8:]: tensors[name] for name in tensors if name.startswith("network.")}, path)
        self.moving = [tensors[f"moving.{n}"] for n in range(len(self.moving))]
        self.drawn.set_state(tensors["drawn"])
        steps, self.seconds, solved = tensors["about"].tolist()
        self.steps, self.solved = int(steps), bool(solved)


@torch.no_grad()
def errors_at(network: nn.Module, length: int, count: int, seed: int) -> float:
    """The share of wrong answers on so many sequences never trained on."""
    generator = torch.Generator().manual_seed(1_000_003 * length + seed)
    wrong, size = 0, max(1, min(count, 400_000 // length))
    for first in range(0, count, size):
        batch = _PROBLEM.draw(min(size, count - first), length, generator)
        wrong += int((network(batch.x).argmax(1) != batch.target).sum())
    return wrong / count


@dataclass(frozen=True)
class OrderResult:
    """What came of it."""

    recipe: Recipe
    steps: int
    seconds: float  # of computing
    solved: bool  # whether training ended for want of errors
    errors: dict[int, float]  # share of wrong answers by length
    tested: int  # on how many sequences each


def study_temporal_order(
    recipe: Recipe | None = None,
    *,
    minutes: float = math.inf,
    lengths: Sequence[int] = (50, 100, 150, 200, 500, 1000, 2000, 5000),
    count: int = 10_000,
    check: int = 250,
    kept: Path | None = None,
    tell: Callable[[int, float, float], None] = lambda step, error, left: None,
) -> OrderResult:
    """Trains, then tests at lengths that were never seen, on sequences that had no part in when training ended.

    Args:
        recipe: how to train.
        minutes: for training, at most.
        lengths: to test at.
        count: sequences tested at each.
        check: steps between two measurements.
        kept: see `Training`.
        tell: see `Training.run`.
    """
    training = Training(Recipe() if recipe is None else recipe, kept)
    training.run(minutes=minutes, check=check, tell=tell)
    recipe = training.recipe
    errors = {length: errors_at(training.network, length, count, recipe.seed + 2) for length in lengths}
    return OrderResult(recipe, training.steps, round(training.seconds, 1), training.solved, errors, count)


def name_of(recipe: Recipe) -> str:
    """A name for files of a recipe, another one for each.

    >>> name_of(Recipe(seed=3)) != name_of(Recipe(seed=3, rate=0.1))
    True
    """
    digest = hashlib.sha256(json.dumps(asdict(recipe), sort_keys=True).encode()).hexdigest()
    return f"trained-{recipe.shortest}-{recipe.longest}-seed-{recipe.seed}-{digest[:8]}"


def read_results(path: Path) -> list[OrderResult]:
    """The results in a file, one a line; none where there is none.

    Raises:
        UserError: a line is not a result.
    """
    return read_lines(path, _result, "a study of temporal order")


def _result(values: dict[str, Any]) -> OrderResult:
    errors = {int(length): error for length, error in values["errors"].items()}
    return OrderResult(**{**values, "recipe": Recipe(**values["recipe"]), "errors": errors})


def order_figure(results: Sequence[OrderResult]) -> Figure:
    """Errors against length, from the lengths trained on to fifty times as long."""
    figure, (axes,) = new_figure()
    for result in results:
        recipe, lengths = result.recipe, sorted(result.errors)
        axes.semilogx(
            lengths,
            [100 * result.errors[n] for n in lengths],
            "o-",
            label=f"{recipe.shortest} to {recipe.longest} steps, seed {recipe.seed}, {result.steps:,} updates"
            + (", until no error" if result.solved else ""),
        )
    ticks = sorted({n for result in results for n in result.errors})
    axes.set_xticks(ticks, [f"{n:,}" for n in ticks], fontsize=8)
    axes.minorticks_off()
    axes.axhline(100 * (1 - _PROBLEM.chance(ticks[-1])), color="black", linestyle=":", linewidth=0.8, label="guessing")
    finish(
        axes, "Temporal order: one tanh network, by the lengths it was trained on", "length tested, steps", "wrong, %"
    )
    legend(axes)
    return figure
