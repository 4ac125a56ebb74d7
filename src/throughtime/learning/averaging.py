"""The mean of the weights over the last steps, which often fares better than the weights themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from throughtime.errors import UserError


class WeightAverage:
    r"""A running mean of a model's weights (Polyak & Juditsky 1992), in which the last steps count most:

    .. math:: \bar w_t = \frac{\sum_{k \le t} d^{t-k} w_k}{\sum_{k \le t} d^{t-k}}

    so that the first steps need no special care: the mean of one step is that step's weights. torch's own way of
    averaging starts from the first weights and divides by nothing.

    >>> model = nn.Linear(1, 1, bias=False)
    >>> average = WeightAverage(model, 0.5)
    >>> for value in (4.0, 1.0):
    ...     _ = model.weight.data.fill_(value)
    ...     average.update()
    >>> with average.in_place():
    ...     print(round(model.weight.item(), 4))  # (0.5 * 4 + 1) / 1.5
    2.0
    >>> model.weight.item()
    1.0

    Args:
        model: whose parameters that learn are averaged; what else it keeps (buffers) stays as it is.
        decay: d, above 0 and below 1; 1 / (1 - d) steps count, about.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._means = {name: p.detach().clone() for name, p in self._learning.items()}
        self.steps = 0

    def update(self) -> None:
        """Takes in the weights as they are now."""
        self.steps += 1
        share = (1 - self.decay) / (1 - self.decay**self.steps)  # of these weights in the mean
        get_ema_multi_avg_fn(1 - share)(list(self._means.values()), list(self._learning.values()), self.steps)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the mean for its weights; afterwards it has its own again, to the bit."""
        own = {name: p.detach().clone() for name, p in self._learning.items()}
        self._put(self._means)
        try:
            yield
        finally:
            self._put(own)

    def tensors(self) -> dict[str, Tensor]:
        """What `restore` takes."""
        return {**{f"mean.{name}": mean for name, mean in self._means.items()}, "steps": torch.tensor(self.steps)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Goes on where another mean of the same model stood.

        Raises:
            UserError: it is of another model.
        """
        if tensors.keys() != self.tensors().keys():
            raise UserError("the mean of the weights is of another model; name another folder")
        self.steps = int(tensors["steps"])
        for name, mean in self._means.items():
            mean.copy_(tensors[f"mean.{name}"])

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, p in self._learning.items():
            p.copy_(values[name])
