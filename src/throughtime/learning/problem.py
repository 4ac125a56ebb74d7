"""What a job hands to the training loop."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn


class Loss(NamedTuple):
    """The loss of one batch."""

    mean: Tensor  # scalar, in whatever the job counts (nats, squared error), the mean over `count` items
    count: int  # type: ignore[assignment]  # items (tokens, sequences) the mean is over; 0 where this process had none
    state: Any = None  # what is carried to the next step: tensors in nested tuples, or None


class Problem(Protocol):
    """A model and the data it learns from. Any object with these members will do.

    Attributes:
        model: what learns.
        steps_per_epoch: how many batches make one pass over the data.
    """

    model: nn.Module
    steps_per_epoch: int

    def batch(self, step: int, rank: int, world: int) -> Any:
        """The batch of a step (0, 1, ...): rows ``rank::world`` of the global batch; nested tensors.

        It must depend on nothing but its arguments: this is what makes a resumed run exact.
        """
        ...

    def loss(self, batch: Any, state: Any) -> Loss:
        """The loss of a batch, from the state that the step before left (None at first).

        The state comes back cut from the graph that made it, its tuples plain, so that a resumed run finds the same.

        Where a new stream begins (a new epoch, say) it is for the problem to leave the state out of account.
        """
        ...

    def validate(self) -> dict[str, float]:
        """Measures on held-out data; {} where there are none.

        The first is the one that early stopping and the keeping of the best weights go by: lower is better. The
        loop calls it in `eval` mode and without gradients, in the first process only.
        """
        ...
