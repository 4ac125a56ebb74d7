"""One step of learning: loss, gradient, clipping, update, averaging; over one process or several."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from throughtime.learning.averaging import WeightAverage
from throughtime.learning.clipping import clip_by_norm, clip_by_value, global_norm
from throughtime.learning.optimizers import make_optimizer
from throughtime.learning.problem import Problem

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from throughtime.learning.training import Training


class Taken(NamedTuple):
    """What a step gives, the same in all processes. Scalars stay on the device, so that nothing waits for them."""

    loss: Tensor  # the sum over the items of all processes
    items: int
    norm: Tensor  # of the gradient before it is clipped
    elapsed: float  # the first process's clock
    signal: int  # a signal that reached any process, or 0


class Learner:
    """A problem's model and its optimiser.

    The model is not wrapped: the gradients of several processes are added up here, each weighted by the items it is
    a mean over, so that together they are the gradient of one process with the whole batch, however uneven the
    shares. What else the processes have to agree on (the time, a request to stop) travels in the same message.
    """

    def __init__(self, problem: Problem, training: Training, fabric: Fabric) -> None:
        self.problem = problem
        self.training = training
        self.fabric = fabric
        self.model = fabric.to_device(fabric.strategy.precision.convert_module(problem.model))
        self.optimizer = make_optimizer(self.model, training)
        self._stepper: Any = fabric.setup_optimizers(self.optimizer)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self.share_weights()
        decay = training.average_weights
        self.average = None if decay is None else WeightAverage(self.model, decay)

    def share_weights(self) -> None:
        """Gives all processes the weights of the first."""
        if self.fabric.world_size > 1:
            for value in self.model.state_dict().values():
                torch.distributed.broadcast(value, 0)

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """The model as it is to be used: with the mean of its weights, where one is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.in_place()

    def batch(self, step: int) -> Any:
        """This process's rows of a step's batch, on its device."""
        batch = self.problem.batch(step, self.fabric.global_rank, self.fabric.world_size)
        if self.training.precision == "64-true":
            batch = self.fabric.strategy.precision.convert_input(batch)
        return batch if self.fabric.device.type == "cpu" else self.fabric.to_device(batch)

    def step(self, step: int, state: Any, rate: float, elapsed: float, signal: int) -> tuple[Taken, Any]:
        """Takes a step, unless the loss or the gradient is not finite (on a GPU it is taken: see `Taken`).

        Returns:
            what the step gave, and the state to carry on, detached.
        """
        batch = self.batch(step)
        with self.fabric.autocast():
            loss = self.problem.loss(batch, state)
        count = loss.count
        if count:
            self.fabric.backward(loss.mean)
        total = loss.mean.detach() * count if count else torch.zeros((), device=self.fabric.device)
        state = detached(loss.state)
        del loss
        if self.fabric.world_size > 1:
            total, count, elapsed, signal = self._together(total, count, elapsed, signal)
        norm = self._update(rate) if count else total.new_zeros(())
        return Taken(total, count, norm, elapsed, signal), state

    def _update(self, rate: float) -> Tensor:
        self.fabric.strategy.precision.unscale_gradients(self.optimizer)
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if not gradients:
            raise ValueError("the loss depends on no parameter of problem.model, so there is nothing to learn")
        if self.training.clip_value is not None:
            clip_by_value(gradients, self.training.clip_value)
        norm = global_norm(gradients)
        if norm.device.type == "cpu" and not torch.isfinite(norm):
            return norm
        if self.training.clip_norm:
            clip_by_norm(gradients, norm, self.training.clip_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self._stepper.step()
        if self.average is not None:
            self.average.update()
        return norm

    def forget_gradients(self) -> None:
        """Makes room for the next step's gradients."""
        self.optimizer.zero_grad(set_to_none=True)

    def _together(self, total: Tensor, count: int, elapsed: float, signal: int) -> tuple[Tensor, int, float, int]:
        """Adds up the processes' gradients by their counts, and what else they have to agree on."""
        first = self.fabric.global_rank == 0
        said = [float(count), elapsed if first else 0.0, float(signal), *(p.grad is not None for p in self._parameters)]
        word = torch.tensor(said, dtype=torch.float64, device=self.fabric.device)
        word = torch.cat([total.double().reshape(1), word])
        torch.distributed.all_reduce(word)
        total = word[0]
        items, elapsed, signals, *present = word[1:].tolist()
        learning = [p for p, there in zip(self._parameters, present, strict=True) if there]
        if learning:
            own = (torch.zeros_like(p) if p.grad is None else p.grad for p in learning)
            flat = torch.cat([gradient.reshape(-1) for gradient in own])
            flat *= count / max(items, 1.0)
            torch.distributed.all_reduce(flat)
            for p, gradient in zip(learning, flat.split([p.numel() for p in learning]), strict=True):
                p.grad = gradient.view_as(p)
        return total, int(items), elapsed, signal or int(signals > 0) * _SIGTERM


_SIGTERM = 15


def detached(state: Any) -> Any:
    """A state cut from the graph that made it: plain tuples, and tensors with memory of their own."""
    if state is None:
        return None
    if isinstance(state, Tensor):
        return state.detach().clone(memory_format=torch.contiguous_format)
    return tuple(detached(part) for part in state)
