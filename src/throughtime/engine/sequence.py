"""What a backend is given: a checked batch of sequences, always to be run forwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from throughtime.cells.cell import first_parameter


@dataclass(frozen=True)
class Sequence:
    """The arguments of `unroll`, checked."""

    x: Tensor  # (B, T, I)
    state: Any  # fields (B, ...)
    initial: Any  # fields (B, ...); what a reset goes back to
    noise: Any  # tensors (B, T, ...), nested in tuples, or None
    lengths: Tensor | None  # (B,)
    resets: Tensor | None  # (B, T) bool; a border before the step, in either direction
    reverse: bool = False

    @property
    def real(self) -> Tensor | None:
        """Whether a step is real and not padding: (B, T) bool; None where all are."""
        return None if self.lengths is None else within(self.lengths, self.steps)

    @property
    def batch_size(self) -> int:
        return self.x.shape[0]

    @property
    def steps(self) -> int:
        return self.x.shape[1]


Result = tuple[Tensor, Any, Any]  # outputs (B, T, O), final state, all states (fields (B, T, ...)) or None


def map_state(function: Callable[..., Tensor], *states: Any) -> Any:
    """A state whose fields are the function of the states' fields."""
    return type(states[0])(*(function(*fields) for fields in zip(*states, strict=True)))


def check_input(x: Any, input_size: int) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"x must be a tensor (B, T, I), not {type(x).__name__}")
    if x.is_nested:
        raise ValueError("x is a nested tensor; pad it, x.to_padded_tensor(0.0), and give its lengths")
    if x.dim() != 3:
        raise ValueError(f"x must be (B, T, I), not of {x.dim()} dimensions; a single sequence is x[None]")
    if x.shape[2] != input_size:
        raise ValueError(f"x has {x.shape[2]} features where the cell takes {input_size}")


def check_lengths(lengths: Any, x: Tensor) -> Tensor | None:
    """Lengths as a tensor (B,) of whole numbers in 0..T, or None."""
    if lengths is None:
        return None
    given, lengths = lengths, torch.as_tensor(lengths, device=x.device)
    if torch._C._functorch.is_batchedtensor(lengths):
        raise ValueError(
            "lengths cannot be mapped over by vmap; give all sequences in one batch, (B,) lengths with them"
        )
    if lengths is given:
        lengths = lengths.clone()  # the way back reads them too; a caller may fill the same tensor again till then
    if lengths.numel() == 0:
        lengths = lengths.long()  # an empty list has no type of its own
    if lengths.is_floating_point() or lengths.is_complex() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths must be whole numbers, not {lengths.dtype}")
    if lengths.shape != x.shape[:1]:
        raise ValueError(f"lengths must be ({x.shape[0]},), one a sequence, not {tuple(lengths.shape)}")
    if (
        not torch.compiler.is_compiling()
        and lengths.numel()
        and not 0 <= int(lengths.min()) <= int(lengths.max()) <= x.shape[1]
    ):
        raise ValueError(f"lengths must lie in 0..{x.shape[1]}; they are {lengths.tolist()}")
    return lengths.long()


def check_resets(resets: Any, x: Tensor) -> Tensor | None:
    """Resets as a tensor (B, T) of bool, or None."""
    if resets is None:
        return None
    resets = torch.as_tensor(resets, device=x.device)
    if resets.dtype != torch.bool:
        raise ValueError(f"resets must be bool, not {resets.dtype}")
    if resets.shape != x.shape[:2]:
        raise ValueError(f"resets must be {tuple(x.shape[:2])}, one a step, not {tuple(resets.shape)}")
    return resets


def check_precision(x: Tensor, cell: nn.Module) -> None:
    """Says in our words what PyTorch would say in the middle of a step. Autocast sees to it by itself."""
    own = first_parameter(cell)
    if own is not None and own.dtype == x.dtype:
        return
    own = next((p for p in cell.parameters() if p.is_floating_point()), None)
    if own is None or own.dtype == x.dtype or torch.is_autocast_enabled(x.device.type):
        return
    ours, theirs = (str(tensor.dtype).removeprefix("torch.") for tensor in (own, x))
    raise ValueError(f"x is {theirs} where the cell's parameters are {ours}; x.to(torch.{ours}) makes them alike")


def check_state(state: Any, initial: Any) -> Any:
    """A state of the same fields and shapes as the cell's initial one; plain tuples are taken too."""
    if isinstance(state, Tensor) and len(initial) == 1:
        state = (state,)
    if not isinstance(state, tuple) or len(state) != len(initial):
        raise ValueError(f"state must have the fields {', '.join(initial._fields)}")
    state = type(initial)(*state)
    for name, given, wanted in zip(initial._fields, state, initial, strict=True):
        if not isinstance(given, Tensor):
            raise TypeError(f"state.{name} must be a tensor, not {type(given).__name__}")
        if given.shape != wanted.shape:
            raise ValueError(f"state.{name} must be {tuple(wanted.shape)}, not {tuple(given.shape)}")
    return state


def within(lengths: Tensor, steps: int) -> Tensor:
    """Whether a step is real and not padding: (B, T) bool."""
    return torch.arange(steps, device=lengths.device) < lengths[:, None]


def past_zeroed(x: Tensor, real: Tensor) -> Tensor:
    """``x`` (B, T, ...) with zeros where ``real`` (B, T) is false."""
    return torch.where(
        real.reshape(*real.shape, *[1] * (x.dim() - 2)), x, torch.zeros((), dtype=x.dtype, device=x.device)
    )


class Reversal:
    """Turns the real part of each sequence round, and back."""

    def __init__(self, x: Tensor, lengths: Tensor | None) -> None:
        self.index: Tensor | None = None  # (B, T): which step stands at a place once turned
        if lengths is not None:
            t = torch.arange(x.shape[1], device=x.device)
            turned = lengths[:, None] - 1 - t
            self.index = torch.where(turned >= 0, turned, t)

    def __call__(self, x: Tensor) -> Tensor:
        """``x`` (B, T, ...) turned; turning twice gives it back."""
        if self.index is None:
            return x.flip(1)
        index = self.index.reshape(*self.index.shape, *[1] * (x.dim() - 2))
        return x.gather(1, index.expand(-1, -1, *x.shape[2:]))

    def resets(self, resets: Tensor) -> Tensor:
        """A reset is a border before a step; seen from behind, it stands before the step on its other side."""
        turned = self(resets)
        return torch.cat([torch.zeros_like(turned[:, :1]), turned[:, :-1]], dim=1)


def turn_noise(noise: Any, turn: Reversal) -> Any:
    """Nested noise turned: what was drawn for a step stays with it."""
    if noise is None:
        return None
    if isinstance(noise, Tensor):
        return turn(noise)
    return tuple(turn_noise(part, turn) for part in noise)


def run_forwards(loop: Callable[[Sequence], Result], sequence: Sequence) -> Result:
    """Runs a sequence through a loop that knows neither reversal nor padding.

    The loop is given zeros for padding, so that nothing that stands there can spoil a gradient; of what it gives for
    padding, zeros are made.
    """
    real, x, resets, noise = sequence.real, sequence.x, sequence.resets, sequence.noise
    if real is not None:
        x = past_zeroed(x, real)
    turn = Reversal(x, sequence.lengths) if sequence.reverse else None
    if turn is not None:
        x, noise = turn(x), turn_noise(noise, turn)
        resets = None if resets is None else turn.resets(resets)
    if real is not None and resets is not None:
        resets = resets & real  # the final state is that of the last real step, whatever the padding holds
    y, final, states = loop(replace(sequence, x=x, noise=noise, resets=resets, reverse=False))

    def back(field: Tensor) -> Tensor:
        if real is not None:
            field = past_zeroed(field, real)
        return field if turn is None else turn(field)

    return back(y), final, None if states is None else map_state(back, states)
