"""A step of `throughtime train language` with the settings it has by itself, against a plain script's.

Both do all that such a step is made of: they take the next window of each stream, embed, run the layer, drop, project,
take the cross-entropy, go back, clip by the norm and update the weights; the state is carried on.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from throughtime.bench.comparison import Comparison, Point
from throughtime.bench.measure import interleaved
from throughtime.data import Numbers
from throughtime.learning.learner import Learner
from throughtime.learning.processes import make_fabric
from throughtime.tasks.language import TRAINING, LanguageProblem
from throughtime.tasks.language_settings import Settings

VOCABULARY = 65
UNITS = 1_000_000  # of a text drawn at random: the same work as any other
_LEAST = 15  # turns: steps are short


class PlainScript(nn.Module):
    """What one writes with torch.nn for the same model; it has the weights of ours."""

    def __init__(self, problem: LanguageProblem, settings: Settings, ids: Tensor) -> None:
        super().__init__()
        network: Any = problem.model
        cell = network.recurrent.forward_cells[0]
        self.embedding = nn.Embedding(*network.embedding.weight.shape)
        self.recurrent = nn.LSTM(cell.input_size, cell.hidden_size, batch_first=True)
        self.dropout = nn.Dropout(settings.dropout)
        self.output = nn.Linear(*reversed(network.output.weight.shape))
        self.embedding.load_state_dict(network.embedding.state_dict())
        self.output.load_state_dict(network.output.state_dict())
        weights = [cell.input.weight, cell.recurrent.weight, cell.input.bias, torch.zeros_like(cell.input.bias)]
        with torch.no_grad():
            for parameter, weight in zip(self.recurrent.parameters(), weights, strict=True):
                parameter.copy_(weight)
        length = len(ids) // settings.batch_size
        self.streams = ids[: settings.batch_size * length].view(settings.batch_size, length)
        self.window = settings.window
        self.optimizer = torch.optim.RMSprop(self.parameters(), lr=TRAINING.rate, alpha=TRAINING.rmsprop_decay)
        self.state: Any = None
        self.place = 0

    def loss(self, inputs: Tensor, targets: Tensor) -> Tensor:
        y, self.state = self.recurrent(self.embedding(inputs), self.state)
        return nn.functional.cross_entropy(self.output(self.dropout(y)).flatten(0, 1), targets.flatten())

    def step(self) -> float:
        window = self.streams[:, self.place : self.place + self.window + 1]
        self.place = (self.place + self.window) % (self.streams.shape[1] - self.window)
        loss = self.loss(window[:, :-1], window[:, 1:])
        self.optimizer.zero_grad()
        loss.backward()
        assert TRAINING.clip_norm is not None
        nn.utils.clip_grad_norm_(self.parameters(), TRAINING.clip_norm)
        self.optimizer.step()
        self.state = tuple(part.detach() for part in self.state)
        return loss.item()


class Ours:
    """The training loop's step, without what the loop does now and then."""

    def __init__(self, problem: LanguageProblem) -> None:
        self._learner = Learner(problem, TRAINING, make_fabric(TRAINING))
        self._state: Any = None
        self._steps = 0

    def step(self) -> float:
        self._learner.forget_gradients()
        taken, self._state = self._learner.step(self._steps, self._state, TRAINING.rate, 0.0, 0)
        self._steps += 1
        return float(taken.loss)


def language(settings: Settings, units: int, seconds: float) -> list[Comparison]:
    """Times a step of either, once the loss and its gradient are found equal with nothing dropped.

    Raises:
        RuntimeError: they differ; nothing is timed then.
    """
    torch.manual_seed(0)
    ids = np.random.default_rng(0).integers(VOCABULARY, size=units)
    problem = LanguageProblem(settings.network(VOCABULARY), Numbers(ids, False), Numbers(ids, False), settings, 1)
    plain = PlainScript(problem, settings, torch.from_numpy(ids))
    _check(problem, plain)
    ours = Ours(problem)
    taken = interleaved([ours.step, plain.step], seconds, least=_LEAST)
    point = Point(settings.batch_size, settings.window, settings.hidden)
    products = 4 * settings.hidden * (settings.embedding + settings.hidden) + settings.hidden * VOCABULARY
    work = 3 * 2.0 * point.batch * point.steps * products
    return [Comparison("language", "LSTM", "plain script, nn.LSTM", point, taken[0], taken[1], work)]


def _check(problem: LanguageProblem, plain: PlainScript) -> None:
    window = problem.batch(0, 0, 1)
    network: Any = problem.model
    cell = network.recurrent.forward_cells[0]
    pairs: list[tuple[Any, Any]] = [
        (network.embedding.weight, plain.embedding.weight),
        (cell.input.weight, plain.recurrent.weight_ih_l0),
        (cell.recurrent.weight, plain.recurrent.weight_hh_l0),
        (cell.input.bias, plain.recurrent.bias_ih_l0),
        (network.output.weight, plain.output.weight),
        (network.output.bias, plain.output.bias),
    ]
    for side in (problem.model, plain):
        side.eval()  # outputs laid out in another order are dropped by other random numbers
    one = problem.loss(window, None).mean
    other = plain.loss(window.inputs, window.targets)
    for side in (problem.model, plain):
        side.train()
    plain.state = None
    mine = [one.detach(), *torch.autograd.grad(one, [pair[0] for pair in pairs])]
    theirs = [other.detach(), *torch.autograd.grad(other, [pair[1] for pair in pairs])]
    for a, b in zip(mine, theirs, strict=True):
        if not torch.allclose(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max())):
            raise RuntimeError("a step of the language job differs from the plain script's; not timed")
