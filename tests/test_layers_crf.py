"""The CRF against the enumeration of all label sequences."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from throughtime.layers import CRF

LENGTHS = [4, 1, 0, 3]


def random_crf(size: int, ruled_out: bool) -> CRF:
    allowed = begins = ends = None
    if ruled_out:
        allowed = torch.rand(size, size) < 0.7
        allowed |= torch.eye(size, dtype=torch.bool)  # something always goes on
        begins = torch.arange(size) != 1
        ends = torch.arange(size) != 2
    crf = CRF(size, allowed, begins, ends).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    return crf


def scored(crf: CRF, x: Tensor, path: tuple[int, ...]) -> Tensor:
    """s(y), straight from the equation."""
    if not path:
        return x.sum() * 0
    allowed = bool(crf.begins[path[0]]) and bool(crf.ends[path[-1]])
    allowed &= all(bool(crf.allowed[j, k]) for j, k in itertools.pairwise(path))
    if not allowed:
        return torch.tensor(-torch.inf, dtype=x.dtype)
    score = crf.start[path[0]] + crf.end[path[-1]]
    for t, k in enumerate(path):
        score = score + x[t, k] + (crf.transitions[path[t - 1], k] if t else 0)
    return score


def all_scores(crf: CRF, x: Tensor, length: int) -> dict[tuple[int, ...], Tensor]:
    return {path: scored(crf, x, path) for path in itertools.product(range(crf.size), repeat=length)}


@pytest.mark.parametrize("ruled_out", [False, True])
def test_likelihood_marginals_and_decoding_are_those_of_all_paths(ruled_out: bool) -> None:
    crf = random_crf(4, ruled_out)
    x = 3 * torch.randn(4, 4, 4, dtype=torch.float64)
    labels = torch.randint(0, 4, (4, 4))
    found = crf.log_likelihood(x, labels, LENGTHS)
    marginals = crf.marginals(x, LENGTHS)
    decoded = crf.decode(x, LENGTHS)
    for row, length in enumerate(LENGTHS):
        scores = all_scores(crf, x[row], length)
        log_z = torch.stack(list(scores.values())).logsumexp(0)
        path = tuple(labels[row, :length].tolist())
        torch.testing.assert_close(found[row], scores[path] - log_z)
        assert tuple(decoded[row]) == max(scores, key=lambda p: scores[p].item())
        for t, k in itertools.product(range(4), range(4)):
            chance = sum((s - log_z).exp().item() for p, s in scores.items() if t < length and p[t] == k)
            assert float(marginals[row, t, k]) == pytest.approx(chance, abs=1e-12)


@pytest.mark.parametrize("ruled_out", [False, True])
def test_gradients_are_those_of_all_paths(ruled_out: bool) -> None:
    crf = random_crf(3, ruled_out)
    x = torch.randn(4, 4, 3, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, dtype=torch.float64)
    wanted = sum(
        weight[row] * torch.stack(list(all_scores(crf, x[row], length).values())).logsumexp(0)
        for row, length in enumerate(LENGTHS)
    )
    assert isinstance(wanted, Tensor)
    inputs = [x, *crf.parameters()]
    expected = torch.autograd.grad(wanted, inputs)
    got = torch.autograd.grad((weight * crf.log_partition(x, LENGTHS)).sum(), inputs)
    torch.testing.assert_close(got, expected)


def test_gradients_by_finite_differences() -> None:
    crf = random_crf(3, False)
    x = torch.randn(3, 4, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(0, 3, (3, 4))
    names = [name for name, _ in crf.named_parameters()]

    def likelihood(x: Tensor, *values: Tensor) -> Tensor:
        call = dict(zip(names, values, strict=True))
        return torch.func.functional_call(_Likelihood(crf), {f"crf.{n}": v for n, v in call.items()}, (x, labels))

    assert torch.autograd.gradcheck(likelihood, (x, *crf.parameters()))


class _Likelihood(torch.nn.Module):
    def __init__(self, crf: CRF) -> None:
        super().__init__()
        self.crf = crf

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.crf.log_likelihood(x, labels, [4, 0, 2])


def test_what_stands_in_the_padding_is_not_read() -> None:
    crf = random_crf(4, False)
    x, labels = torch.randn(2, 6, 4, dtype=torch.float64), torch.randint(0, 4, (2, 6))
    whole = crf.log_likelihood(x[:1, :3], labels[:1, :3], [3])
    x[0, 3:], labels[0, 3:] = torch.nan, -100
    x.requires_grad_()
    found = crf.log_likelihood(x, labels, [3, 6])
    torch.testing.assert_close(found[:1], whole)
    found.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert (x.grad[0, 3:] == 0).all()
    assert crf.decode(x, [3, 6])[0] == crf.decode(x[:1, :3], [3])[0]


def test_long_sequences_and_large_scores_stay_finite() -> None:
    crf = random_crf(5, False).float()
    x = (100 * torch.randn(1, 3000, 5)).requires_grad_()
    loss = -crf.log_likelihood(x, torch.randint(0, 5, (1, 3000)), [3000])
    loss.backward()
    assert loss.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    torch.testing.assert_close(crf.marginals(x, [3000]).sum(-1), torch.ones(1, 3000))


def test_decoding_goes_on_from_a_label() -> None:
    crf = random_crf(4, True)
    x = torch.randn(1, 3, 4, dtype=torch.float64)
    first = int(crf.begins.nonzero()[0])
    best = crf.decode(x, [3], start=crf.following(first))[0]
    paths = [path for path in itertools.product(range(4), repeat=3) if bool(crf.allowed[first, path[0]])]

    def score(path: tuple[int, ...]) -> float:
        steps = sum(crf._weights()[0][j, k] for j, k in itertools.pairwise((first, *path)))
        return (steps + sum(x[0, t, k] for t, k in enumerate(path)) + crf._weights()[2][path[-1]]).item()

    assert tuple(best) == max(paths, key=score)
    chances = crf.marginals(x, [3], crf.following(first), goes_on=True)
    crf.end.data.fill_(9.0)  # what goes on is not judged by how it might end
    assert torch.equal(crf.marginals(x, [3], crf.following(first), goes_on=True), chances)
    torch.testing.assert_close(chances.sum(-1), torch.ones(1, 3, dtype=torch.float64))


def test_masks_of_another_shape_are_told() -> None:
    with pytest.raises(ValueError, match=r"allowed must be of shape \(3, 3\)"):
        CRF(3, torch.ones(2, 2, dtype=torch.bool))
