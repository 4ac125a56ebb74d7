"""Drawing the next number: what its chances are, and which one a random number draws.

This is the definition; `throughtime.engine.cpu.choosing` is the same in machine code.
"""

from __future__ import annotations

import torch
from torch import Tensor

from throughtime.errors import UserError


def probabilities(
    logits: Tensor,
    allowed: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    r"""What is drawn from: softmax(logits / temperature) over the allowed numbers, then cut; in float64.

    ``top_k`` leaves the k most probable; ``top_p`` (Holtzman 2020) the fewest most probable whose sum reaches p; what
    is left is scaled to sum 1. Temperature 0 leaves the most probable one. Of equals the first counts as likelier.

    >>> import torch
    >>> chances = probabilities(torch.tensor([0.0, 1.0, 2.0]).log(), torch.tensor([True, True, True]))
    >>> [round(chance, 6) for chance in chances.tolist()]
    [0.0, 0.333333, 0.666667]

    Raises:
        UserError: no chances come of the logits: one is not a number, or none is allowed.
    """
    logits = logits.double().masked_fill(~allowed, -torch.inf)  # (V,)
    above = logits - logits.max()
    if above.isnan().any():
        raise no_chances()
    if temperature == 0:
        first = int((above == 0).nonzero()[0])
        return torch.zeros_like(logits).index_fill(0, torch.tensor(first), 1.0)
    ranked, order = (above / temperature).softmax(-1).sort(descending=True, stable=True)
    if top_k is not None:
        ranked[top_k:] = 0
    if top_p is not None and top_p < 1:
        ranked = ranked / ranked.sum()
        ranked[ranked.cumsum(-1) - ranked >= top_p] = 0
    return torch.zeros_like(ranked).scatter(0, order, ranked / ranked.sum())


def draw(chances: Tensor, uniform: float) -> int:
    """The number that ``uniform``, from [0, 1), draws: the first at which the sum of chances so far exceeds it.

    >>> import torch
    >>> chances = torch.tensor([0.25, 0.0, 0.5, 0.25])
    >>> [draw(chances, uniform) for uniform in (0.0, 0.25, 0.7, 0.75, 0.99)]
    [0, 2, 2, 3, 3]
    """
    reached = chances.cumsum(-1)
    above = (reached > uniform * reached[-1]) & (chances > 0)
    found = above.nonzero() if above.any() else chances.nonzero()[-1:]  # the last, where rounding leaves none above
    return int(found[0])


def uniforms(generator: torch.Generator, count: int) -> Tensor:
    """So many random numbers from [0, 1), one for each number to be drawn; the same in one call or in many."""
    return torch.rand(count, dtype=torch.float64, generator=generator)


def no_chances() -> UserError:
    return UserError("the model gives no chances to draw from: a logit is not a number; were its weights damaged?")
