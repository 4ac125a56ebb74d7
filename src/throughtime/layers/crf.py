"""Linear-chain conditional random field."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from throughtime.engine.sequence import within


class CRF(nn.Module):
    r"""Linear-chain conditional random field over labels (Lafferty et al. 2001).

    .. math::

        s(y) = b_{y_1} + \sum_t x_{t, y_t} + \sum_t A_{y_{t-1}, y_t} + e_{y_T}, \qquad
        p(y) = \exp s(y) / \sum_{y'} \exp s(y')

    x are the scores that a network gives each label at each step ("emissions"); b, A and e are learned here. Labels
    that may not begin, follow one another or end can be ruled out: their paths have no probability, in training as in
    decoding.

    The sum over paths runs through time in float64, on probabilities that are scaled at each step: one matrix product
    a step in place of a logsumexp over pairs of labels. It is exact as long as the scores of a step lie within 700 of
    each other. The gradient is the marginal probabilities, by the backward recursion; nothing of the loops is recorded.

    >>> crf = CRF(3)
    >>> emissions = torch.tensor([[[2.0, 0, 0], [0, 2, 0], [0, 0, 0]]])
    >>> crf.decode(emissions, [2])
    [[0, 1]]

    Args:
        size: labels L.
        allowed: (L, L) bool, whether label k may follow label j at [j, k]; all may unless given.
        begins: (L,) bool, which may come first; all unless given.
        ends: (L,) bool, which may come last; all unless given.

    Raises:
        ValueError: a mask is of another shape.
    """

    allowed: Tensor
    begins: Tensor
    ends: Tensor

    def __init__(
        self, size: int, allowed: Tensor | None = None, begins: Tensor | None = None, ends: Tensor | None = None
    ) -> None:
        super().__init__()
        self.size = size
        self.transitions = nn.Parameter(torch.zeros(size, size))  # (L, L): from, to
        self.start = nn.Parameter(torch.zeros(size))
        self.end = nn.Parameter(torch.zeros(size))
        masks = {"allowed": (allowed, (size, size)), "begins": (begins, (size,)), "ends": (ends, (size,))}
        for name, (mask, shape) in masks.items():
            if mask is not None and tuple(mask.shape) != shape:
                raise ValueError(f"{name} must be of shape {shape}, not {tuple(mask.shape)}")
            self.register_buffer(name, torch.ones(shape, dtype=torch.bool) if mask is None else mask, persistent=False)

    def log_likelihood(self, emissions: Tensor, labels: Tensor, lengths: Any) -> Tensor:
        """ln p(labels), one a sequence: ``emissions (B, T, L), labels (B, T), lengths (B,) -> (B,)``.

        0 for an empty sequence; -inf for labels that are ruled out. What stands past a length is not read.
        """
        lengths = torch.as_tensor(lengths, device=emissions.device)
        return self._score(emissions, labels, lengths) - self.log_partition(emissions, lengths)

    def log_partition(self, emissions: Tensor, lengths: Any) -> Tensor:
        """The logarithm of the sum of exp s(y) over all label sequences: ``(B, T, L) -> (B,)``."""
        lengths = torch.as_tensor(lengths, device=emissions.device)
        return _LogPartition.apply(emissions, *self._weights(), lengths)

    def marginals(
        self, emissions: Tensor, lengths: Any, start: Tensor | None = None, *, goes_on: bool = False
    ) -> Tensor:
        """p(y_t = k) at each step: ``(B, T, L) -> (B, T, L)``, zeros past a length; options as in `decode`."""
        lengths = torch.as_tensor(lengths, device=emissions.device)
        with torch.no_grad():
            transitions, begin, end = self._bounded(start, goes_on)
            found = _forward(emissions.double(), transitions.double(), begin.double(), end.double(), lengths)
            return _backward(found, lengths)[0].to(emissions.dtype)

    @torch.no_grad()
    def decode(
        self, emissions: Tensor, lengths: Any, start: Tensor | None = None, *, goes_on: bool = False
    ) -> list[list[int]]:
        """The likeliest labels of each sequence (Viterbi 1967).

        Args:
            emissions: (B, T, L).
            lengths: (B,).
            start: (L,) scores of the first label in place of the learned ones: what goes on from a label before.
            goes_on: whether more is to come, so that what may end, and how likely, does not count.
        """
        transitions, begin, end = self._bounded(start, goes_on)
        lengths = torch.as_tensor(lengths, device=emissions.device)
        steps = int(lengths.max()) if lengths.numel() else 0
        if steps == 0:
            return [[] for _ in range(emissions.shape[0])]
        best = emissions[:, 0] + begin  # (B, L): the best score of a path to here
        into = transitions.t().contiguous()  # (L, L): to, from
        pointers = []
        for t in range(1, steps):
            score, before = (best[:, None, :] + into).max(-1)  # (B, L)
            pointers.append(before)
            best = torch.where((t < lengths)[:, None], score + emissions[:, t], best)
        last = (best + end).argmax(-1).tolist()
        back = torch.stack(pointers).cpu().numpy() if pointers else None  # (T - 1, B, L)
        paths = []
        for row, length in enumerate(lengths.tolist()):
            path = [last[row]] if length else []
            for t in range(length - 2, -1, -1):
                assert back is not None
                path.append(int(back[t, row, path[-1]]))
            paths.append(path[::-1])
        return paths

    def following(self, label: int) -> Tensor:
        """(L,) scores of the label after ``label``, for `decode` in parts."""
        return self._weights()[0][label]

    def _bounded(self, start: Tensor | None, goes_on: bool) -> tuple[Tensor, Tensor, Tensor]:
        transitions, begin, end = self._weights()
        return transitions, begin if start is None else start, torch.zeros_like(end) if goes_on else end

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """Transitions, start and end, -inf where ruled out."""
        return (
            self.transitions.masked_fill(~self.allowed, -torch.inf),
            self.start.masked_fill(~self.begins, -torch.inf),
            self.end.masked_fill(~self.ends, -torch.inf),
        )

    def _score(self, emissions: Tensor, labels: Tensor, lengths: Tensor) -> Tensor:
        transitions, start, end = self._weights()
        if emissions.shape[1] == 0:
            return emissions.sum((1, 2))
        inside = within(lengths, emissions.shape[1])  # (B, T)
        labels = labels.masked_fill(~inside, 0)
        zero = emissions.new_zeros(())
        own = emissions.gather(2, labels[..., None])[..., 0]  # (B, T)
        score = torch.where(inside, own, zero).sum(1)
        score = score + torch.where(inside[:, 1:], transitions[labels[:, :-1], labels[:, 1:]], zero).sum(1)
        last = labels.gather(1, (lengths - 1).clamp(min=0)[:, None])[:, 0]
        return score + torch.where(inside[:, 0], start[labels[:, 0]] + end[last], zero)

    def extra_repr(self) -> str:
        ruled_out = int((~self.allowed).sum())
        return f"{self.size}, ruled_out={ruled_out}"


# Below, everything is float64. A path's probability is taken apart as
#   a_t (B, L)  forward:  p(y_t = k | x_1..x_t), scaled to sum 1;  log c_t (B,) the scale that was taken out
#   b_t (B, L)  backward: proportional to p(x_{t+1}..x_T | y_t = k)
#   F_t = exp(x_t - max x_t), E = exp(A - max A)


class _Forward:
    """What the forward recursion leaves for the backward one."""

    def __init__(self, factors: Tensor, step: Tensor, end: Tensor, alphas: Tensor, scales: Tensor, log_z: Tensor):
        self.factors = factors  # (T, B, L): F
        self.step = step  # (L, L): E
        self.end = end  # (L,)
        self.alphas = alphas  # (T, B, L)
        self.scales = scales  # (T, B)
        self.log_z = log_z  # (B,)


def _finite_max(scores: Tensor, dim: int) -> Tensor:
    largest = scores.amax(dim, keepdim=True)
    return torch.where(largest.isfinite(), largest, torch.zeros_like(largest))


def _forward(x: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor) -> _Forward:
    batch, steps, size = x.shape
    inside = torch.arange(steps, device=x.device)[:, None] < lengths  # (T, B)
    x = torch.where(inside.t()[..., None], x, torch.zeros_like(x)).transpose(0, 1)  # (T, B, L)
    top = _finite_max(x, 2)  # (T, B, 1)
    factors = (x - top).exp()
    top_step, top_end, top_start = transitions.max(), end.max(), start.max()
    step, last = (transitions - top_step).exp(), (end - top_end).exp()
    alphas, scales = x.new_zeros(steps, batch, size), x.new_ones(steps, batch)
    alpha = (start - top_start).exp().expand(batch, size)
    for t in range(steps):
        unscaled = factors[t] * (alpha @ step if t else alpha)
        scale = unscaled.sum(1)
        if t:
            alpha = torch.where(inside[t][:, None], unscaled / scale[:, None], alpha)
        else:
            alpha = unscaled / scale[:, None]
        alphas[t], scales[t] = alpha, scale
    ending = (alpha * last).sum(1)  # (B,)
    log_c = torch.where(inside, scales.log() + top[..., 0], torch.zeros_like(scales)).sum(0)
    log_z = log_c + ending.log() + top_start + top_end + (lengths - 1).clamp(min=0) * top_step
    return _Forward(factors, step, last, alphas, scales, torch.where(lengths > 0, log_z, torch.zeros_like(log_z)))


def _backward(found: _Forward, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """p(y_t = k) (B, T, L), and what the log partition's gradient needs of pairs (B, L, L), starts and ends (B, L)."""
    steps, batch, size = found.alphas.shape
    marginals = torch.zeros_like(found.alphas)
    ahead = torch.zeros_like(found.alphas)  # (T, B, L): F_t b_t / c_t, what a pair's later label brings
    beta = found.end.expand(batch, size)
    into = found.step.t()
    for t in range(steps - 1, -1, -1):
        here = (t < lengths)[:, None]
        joint = found.alphas[t] * beta
        total = joint.sum(1, keepdim=True)
        marginals[t] = torch.where(here, joint / total, torch.zeros_like(joint))
        brought = found.factors[t] * beta / (total * found.scales[t][:, None])
        ahead[t] = torch.where(here, brought, torch.zeros_like(beta))
        # scaled so that beta never under- or overflows; the totals take the scale out again
        before = (found.factors[t] * beta) @ into
        beta = torch.where(here, before / before.amax(1, keepdim=True), beta)
    if steps == 0:
        return marginals.transpose(0, 1), ahead, beta * 0, beta * 0
    rows = torch.arange(batch, device=lengths.device)
    ends = marginals[(lengths - 1).clamp(min=0), rows]  # an empty sequence has zeros there
    return marginals.transpose(0, 1), ahead, marginals[0], ends


class _LogPartition(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, emissions: Tensor, transitions: Tensor, start: Tensor, end: Tensor, lengths: Tensor
    ) -> Tensor:
        found = _forward(emissions.double(), transitions.double(), start.double(), end.double(), lengths)
        ctx.save_for_backward(found.factors, found.step, found.end, found.alphas, found.scales, found.log_z, lengths)
        ctx.dtype = emissions.dtype
        return found.log_z.to(emissions.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        *parts, lengths = ctx.saved_tensors
        found = _Forward(*parts)
        marginals, ahead, starts, ends = _backward(found, lengths)
        weight = gradient.double()  # (B,)
        steps, _, size = found.alphas.shape
        pairs = found.step.new_zeros(size, size)
        if steps > 1:
            # p(y_{t-1} = j, y_t = k) = a_{t-1, j} E_{j, k} F_{t, k} b_{t, k} / (c_t sum_k a_{t, k} b_{t, k})
            before = (found.alphas[:-1] * weight[:, None]).reshape(-1, size)
            pairs = found.step * (before.t() @ ahead[1:].reshape(-1, size))
        result = (weight[:, None, None] * marginals, pairs, weight @ starts, weight @ ends)
        return (*(value.to(ctx.dtype) for value in result), None)
