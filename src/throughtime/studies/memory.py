"""The long-memory study: which cell holds which lag, and what it costs."""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from throughtime.cells import CATALOGUE, Cell, cell_named
from throughtime.errors import UserError
from throughtime.insight.figures import new_figure
from throughtime.layers import Recurrent
from throughtime.learning.initialisation import chrono_, identity_, orthogonal_
from throughtime.studies.lines import append_line, check_writable, read_lines
from throughtime.studies.problems import Batch, Problem, problem_named

TESTED = 1000  # sequences a score is measured on, and those that training is checked by
FURTHER = 10  # times the length: where it is tested whether what was learned holds on
FURTHER_STEPS = 400_000  # of all sequences of that test together, which is the dear one

# Cells of the catalogue with another beginning. A lag is the length of the task.
STARTS: dict[str, tuple[str, Callable[[nn.Module, int], None]]] = {
    "elman-orthogonal": ("elman", lambda network, lag: orthogonal_(network)),
    "elman-identity": ("elman", lambda network, lag: identity_(network)),
    "irnn-small-input": ("irnn", lambda network, lag: _small_input(network)),
    "lstm-chrono": ("lstm", lambda network, lag: chrono_(network, max(3, lag))),
    "gru-chrono": ("gru", lambda network, lag: chrono_(network, max(3, lag))),
}


def _small_input(network: nn.Module, deviation: float = 1e-3) -> None:
    """What Le, Jaitly & Hinton (2015) begin with beside the identity: input weights next to nothing."""
    for name, weight in network.named_parameters():
        if name.endswith("input.weight"):
            nn.init.normal_(weight, std=deviation)


DEFAULT_CELLS = ("elman", "irnn", "lstm", "lstm-chrono", "gru", "additive-residual", "mingru", "lru", "indrnn")
DEFAULT_TASKS = ("adding", "copying", "temporal-order", "parity", "delayed-recall", "multiplication")


@dataclass(frozen=True)
class Settings:
    """How each cell is trained: alike for all, Adam with clipping by norm.

    Args:
        hidden: hidden units.
        batch: sequences a step.
        rate: Adam's learning rate.
        clip: the norm that gradients are clipped to.
        steps: training steps at most; a run ends early where the task is solved: by sequences kept for that, and then
            by others, drawn anew at each such place, whose score is the one that is reported.
        check: steps between two measurements.
    """

    hidden: int = 64
    batch: int = 32
    rate: float = 2e-3
    clip: float = 1.0
    steps: int = 20_000
    check: int = 200


@dataclass(frozen=True)
class Case:
    """One run of the study."""

    cell: str
    task: str
    length: int
    seed: int


@dataclass(frozen=True)
class Outcome:
    """What came of a case, with all that is needed to tell whether it was this one."""

    cell: str
    task: str
    length: int
    seed: int
    settings: Settings
    parameters: int
    steps: int
    seconds: float  # by the clock
    processor: float  # seconds of computing, which other work on the machine does not lengthen
    score: float
    further: float | None  # the score at ten times the length; none where training diverged
    chance: float
    solved: bool
    stopped: str  # "solved", "steps", "time", or "diverged"

    @property
    def case(self) -> Case:
        return Case(self.cell, self.task, self.length, self.seed)


class Network(nn.Module):
    """A recurrent layer and a linear answer."""

    def __init__(self, cell: str, problem: Problem, hidden: int, lag: int) -> None:
        super().__init__()
        name, start = STARTS.get(cell, (cell, None))
        if name not in CATALOGUE:
            known = ", ".join([*CATALOGUE, *STARTS])
            raise UserError(f"cell {cell!r} is unknown; there are {known}")
        self.problem = problem
        if name == "lstm-residual":  # its output has the size of its input
            raise UserError("lstm-residual has outputs of its input's size, here too few to study; leave it out")
        self.recurrent = Recurrent(cast("Callable[..., Cell]", cell_named(name)), problem.inputs, hidden)
        if start is not None:
            start(self.recurrent, lag)
        self.answer = nn.Linear(self.recurrent.output_size, problem.outputs)

    def forward(self, batch: Batch) -> Tensor:
        y, _ = self.recurrent(batch.x, lengths=batch.lengths)  # (B, L, O)
        if not self.problem.every_step:
            last = y.shape[1] - 1 if batch.lengths is None else batch.lengths - 1
            y = y[torch.arange(len(y)), last]  # (B, O)
        return self.answer(y)


def run_case(
    case: Case,
    settings: Settings,
    *,
    seconds: float = math.inf,
    tell: Callable[[int, float], None] = lambda step, score: None,
) -> Outcome:
    """Trains one cell on one problem until it is solved, or steps or time are over.

    Args:
        case: which.
        settings: how.
        seconds: at most so many.
        tell: called with the step and the score at each measurement.

    Raises:
        UserError: the cell or the problem is unknown, or the length too short for it.
    """
    problem = problem_named(case.task)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(_seed(case, "weights"))
        network = Network(case.cell, problem, settings.hidden, case.length)
        drawn = torch.Generator().manual_seed(_seed(case, "training"))
        optimiser = torch.optim.Adam(network.parameters(), settings.rate)
        began, computed = time.monotonic(), time.process_time()
        score, step, stopped = measure(network, problem, case, case.length, "check"), 0, "steps"
        while step < settings.steps:
            loss = problem.loss(network(batch := problem.draw(settings.batch, case.length, drawn)), batch)
            optimiser.zero_grad()
            loss.backward()
            norm = nn.utils.clip_grad_norm_(network.parameters(), settings.clip)
            if not bool(norm.isfinite()):
                stopped = "diverged"
                break
            optimiser.step()
            step += 1
            over = time.monotonic() - began > seconds
            if step % settings.check == 0 or step == settings.steps or over:
                now = measure(network, problem, case, case.length, "check")
                if not math.isfinite(now):
                    stopped = "diverged"
                    break
                score = now
                tell(step, score)
                last = over or step == settings.steps
                if last or problem.solved(score):  # what ends training by being good is not what it is judged by
                    score = measure(network, problem, case, case.length, f"test after {step}")
                    if problem.solved(score):
                        stopped = "solved"
                        break
                if over:
                    stopped = "time"
                    break
        took, computed = time.monotonic() - began, time.process_time() - computed
        further = None if stopped == "diverged" else measure(network, problem, case, FURTHER * case.length, "test")
    return Outcome(
        **asdict(case),
        settings=settings,
        parameters=sum(p.numel() for p in network.parameters()),
        steps=step,
        seconds=round(took, 2),
        processor=round(computed, 2),
        score=score,
        further=further,
        chance=problem.chance(case.length),
        solved=stopped == "solved",
        stopped=stopped,
    )


@torch.no_grad()
def measure(network: Network, problem: Problem, case: Case, length: int, purpose: str) -> float:
    """The score on sequences never trained on, the same at each call with the same purpose, and others with another.

    Those of a problem with many lengths are of the whole length here.
    """
    generator = torch.Generator().manual_seed(_seed(case, f"{purpose} {length}"))
    network.eval()
    scores = []
    size = max(1, min(TESTED, 200_000 // length))
    tested = max(1, TESTED if length == case.length else min(TESTED, FURTHER_STEPS // length))
    for first in range(0, tested, size):
        batch = problem.draw(min(size, tested - first), length, generator)
        if batch.lengths is not None:
            batch = _whole(problem, len(batch.x), length, generator)
        scores.append((problem.score(network(batch), batch), len(batch.x)))
    network.train()
    return sum(score * count for score, count in scores) / tested


def _whole(problem: Problem, size: int, length: int, generator: torch.Generator) -> Batch:
    """Sequences of parity, all of the whole length."""
    bits = torch.randint(0, 2, (size, length), generator=generator)
    return Batch(bits[:, :, None].float(), bits.sum(1) % 2)


def memory_study(
    results: Path,
    *,
    cells: Sequence[str] = DEFAULT_CELLS,
    tasks: Sequence[str] = DEFAULT_TASKS,
    lengths: Sequence[int] = (50, 100, 200),
    seeds: Sequence[int] = (1, 2, 3),
    settings: Settings | None = None,
    minutes: float | None = None,
    watch: Callable[[Progress], None] = lambda progress: None,
) -> list[Outcome]:
    """Runs every cell on every task at every length, once a seed. What the file has is not run again.

    Each outcome is appended to the file as it comes, one JSON object a line, so that a study that was stopped goes on
    where it was. With a budget each case may take its share of what is left; a case that ran out of time says so, and
    is run anew when the study goes on.

    Args:
        results: the file of outcomes, JSON lines; made where it is not there.
        cells: names of the catalogue, or of `STARTS`.
        tasks: names of `throughtime.studies.problems.PROBLEMS`.
        lengths: the T of each task's definition.
        seeds: of weights and data.
        settings: how each is trained.
        minutes: for all that is still to run.
        watch: called before each case, and at each measurement.

    Returns:
        The outcomes of all cases asked for, in their order.

    Raises:
        UserError: a cell or task is unknown, a length too short, or the file is not such a file.
    """
    settings = Settings() if settings is None else settings
    asked = [Case(c, task, n, seed) for seed in seeds for task in tasks for n in lengths for c in cells]
    cases = list(dict.fromkeys(asked))  # a name given twice is no second run
    for case in dict.fromkeys(Case(case.cell, case.task, case.length, 0) for case in cases):
        problem = problem_named(case.task)
        problem.draw(1, case.length, torch.Generator())
        Network(case.cell, problem, settings.hidden, case.length)
    check_writable(results)
    known = [outcome for outcome in read_outcomes(results) if outcome.settings == settings]
    outcomes = {outcome.case: outcome for outcome in known if outcome.stopped != "time"}
    left = [case for case in cases if case not in outcomes]
    began = time.monotonic()
    for k, case in enumerate(left):
        spent = time.monotonic() - began
        share = math.inf if minutes is None else max(0.0, minutes * 60 - spent) / (len(left) - k)
        progress = Progress(case, len(cases) - len(left) + k, len(cases), share, spent, k)
        watch(progress)

        def tell(step: int, score: float, progress: Progress = progress) -> None:
            watch(Progress(**{**progress.__dict__, "step": step, "score": score}))

        outcome = run_case(case, settings, seconds=share, tell=tell)
        outcomes[case] = outcome
        append_line(results, outcome)
    return [outcomes[case] for case in cases]


@dataclass(frozen=True)
class Progress:
    """Where a study stands."""

    case: Case
    done: int  # cases, those found in the file included
    total: int
    share: float  # seconds that this case may take
    spent: float  # seconds
    ran: int  # cases run since the start
    step: int = 0
    score: float = math.nan

    @property
    def estimate(self) -> float:
        """Seconds that are left, from the cases so far; nan where there is none to judge by."""
        return self.spent / self.ran * (self.total - self.done) if self.ran else math.nan


def read_outcomes(path: Path) -> list[Outcome]:
    """The outcomes in a file; none where there is none. A last line that was cut short is passed over.

    Raises:
        UserError: a line is not an outcome.
    """
    return read_lines(path, _outcome, "a memory study")


def _outcome(values: dict[str, Any]) -> Outcome:
    return Outcome(**{**values, "settings": Settings(**values["settings"])})


class Spread(NamedTuple):
    """What several runs came to."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(float(np.median(values)), min(values), max(values))

    def __str__(self) -> str:
        if self.least == self.most:
            return f"{self.median:.3g}"
        return f"{self.median:.3g} ({self.least:.3g} to {self.most:.3g})"


@dataclass(frozen=True)
class Row:
    """A cell on a task at a length, over its seeds."""

    cell: str
    task: str
    length: int
    solved: int
    ended: str  # how those ended that did not come to their end
    runs: int
    score: Spread
    further: Spread | None  # of the runs that have one
    chance: float
    steps: float  # mean
    processor: float  # mean


def summary(outcomes: Sequence[Outcome]) -> list[Row]:
    """Outcomes by cell, task and length."""
    groups: dict[tuple[str, str, int], list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.task, outcome.cell, outcome.length), []).append(outcome)
    return [
        Row(
            cell,
            task,
            length,
            sum(o.solved for o in group),
            _ended(group),
            len(group),
            Spread.of([o.score for o in group]),
            Spread.of(far) if (far := [o.further for o in group if o.further is not None]) else None,
            group[0].chance,
            float(np.mean([o.steps for o in group])),
            float(np.mean([o.processor for o in group])),
        )
        for (task, cell, length), group in groups.items()
    ]


def _ended(group: Sequence[Outcome]) -> str:
    """ "1 diverged, 2 out of time", or nothing."""
    names = {"diverged": "diverged", "time": "out of time"}
    counts = [(sum(o.stopped == stopped for o in group), name) for stopped, name in names.items()]
    return ", ".join(f"{count} {name}" for count, name in counts if count)


def table(outcomes: Sequence[Outcome]) -> str:
    """The study as a table in Markdown."""
    lines = [
        "| task | cell | length | solved | score: median (range) | at ten times the length | chance | steps "
        "| seconds of computing |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in summary(outcomes):
        further = "" if row.further is None else row.further
        solved = f"{row.solved} of {row.runs}" + (f" ({row.ended})" if row.ended else "")
        lines.append(
            f"| {row.task} | {row.cell} | {row.length} | {solved} | {row.score} | {further} | "
            f"{row.chance:.3g} | {row.steps:,.0f} | {row.processor:,.0f} |"
        )
    return "\n".join(lines) + "\n"


def figure(outcomes: Sequence[Outcome]) -> Figure:
    """For each task cells against lengths: how far from chance to solved, the median over seeds.

    Where some seeds solved it and others did not, how many did stands beside it.
    """
    rows = summary(outcomes)
    tasks = list(dict.fromkeys(row.task for row in rows))
    cells = list(dict.fromkeys(row.cell for row in rows))
    drawn, axes = new_figure(
        math.ceil(len(tasks) / 3), min(3, max(1, len(tasks))), width=10, height=0.8 + 0.28 * len(cells)
    )
    for task, place in zip(tasks, axes, strict=False):
        lengths = sorted({row.length for row in rows if row.task == task})
        grid = np.full((len(cells), len(lengths)), np.nan)
        parted = {}  # places where seeds differ
        for row in rows:
            if row.task == task:
                at = (cells.index(row.cell), lengths.index(row.length))
                grid[at] = _way(row)
                parted[at] = f" ({row.solved} of {row.runs})" if 0 < row.solved < row.runs else ""
        place.imshow(grid, cmap="viridis", vmin=0, vmax=1, aspect="auto")
        for (y, x), value in np.ndenumerate(grid):
            if np.isfinite(value):
                said = f"{value:.0%}{parted[y, x]}"
                place.text(x, y, said, ha="center", va="center", fontsize=7, color="k" if value > 0.6 else "w")
        place.set_yticks(range(len(cells)), cells, fontsize=7)
        place.set_xticks(range(len(lengths)), [str(n) for n in lengths], fontsize=7)
        place.set_title(task, fontsize=9, loc="left")
        place.set_xlabel("length, steps", fontsize=8)
    for place in axes[len(tasks) :]:
        place.set_axis_off()
    drawn.suptitle("How much of the way from chance to solved each cell goes", fontsize=10)
    return drawn


def _way(row: Row) -> float:
    """0 at chance, 1 where the task is solved; for errors on a logarithmic scale."""
    problem = problem_named(row.task)
    if problem.measure == "squared error":
        way = math.log(row.chance / max(row.score.median, 1e-12)) / math.log(row.chance / problem.bar)
    else:
        way = (row.score.median - row.chance) / (problem.bar - row.chance)
    return min(1.0, max(0.0, way)) if math.isfinite(way) else 0.0


def _seed(case: Case, purpose: str) -> int:
    """A seed of its own for each case and purpose, the same everywhere; the cell has no part in it, so that all cells
    see the same data."""
    text = f"{case.task} {case.length} {case.seed} {purpose}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
