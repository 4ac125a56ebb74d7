"""Writing, unit after unit: sampling and beam search, for any model that can take one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from throughtime.engine.cpu.writing import Cut, Writer
from throughtime.engine.sampling import draw, no_chances, probabilities, uniforms
from throughtime.learning.nested import map_tensors

MOST_AT_ONCE = 64  # units of one native call

Step = Callable[[Tensor, Any], tuple[Tensor, Any]]  # (numbers (B,), state) -> (logits (B, V), state)


class Rule(Protocol):
    """What may be written. A rule is never changed, so that the beams of a search can share one."""

    def allowed(self) -> Tensor:
        """(V,) bool: the numbers that may come next; at least one."""
        ...

    def after(self, number: int) -> Rule | None:
        """The rule once that number is written; None where the text is complete."""
        ...


class Free(NamedTuple):
    """Any of the numbers of a mask, ``left`` of them, or fewer where ``end`` comes."""

    mask: Tensor  # (V,) bool
    left: int
    end: int | None = None

    def allowed(self) -> Tensor:
        return self.mask

    def after(self, number: int) -> Free | None:
        return None if self.left <= 1 or number == self.end else self._replace(left=self.left - 1)


def sample(step: Step, context: Sequence[int], rule: Rule, generator: torch.Generator, **cut: Any) -> Iterator[int]:
    """Draws numbers that follow a context, one at a time, each by one random number; ``cut`` is for `probabilities`."""
    logits, state = read(step, context)
    going: Rule | None = rule
    while going is not None:
        chances = probabilities(logits[0], going.allowed(), **cut)
        number = draw(chances, float(uniforms(generator, 1)))
        yield number
        going = going.after(number)
        if going is not None:
            logits, state = step(torch.tensor([number]), state)


def sample_natively(writer: Writer, rule: Rule, generator: torch.Generator, **cut: Any) -> Iterator[int]:
    """What `sample` draws, by native calls of several units each: the first of one, so that text shows at once.

    Raises:
        UserError: as `probabilities`.
    """
    going: Rule | None = rule
    chunk, how = 1, Cut(**cut)
    while going is not None:
        count = min(chunk, going.left) if isinstance(going, Free) else 1  # another rule may change with each unit
        end = going.end if isinstance(going, Free) else None
        for number in writer.write(uniforms(generator, count), going.allowed(), how, end):
            if number < 0:
                raise no_chances()
            assert going is not None
            yield number
            going = going.after(number)
        chunk = min(8 * chunk, MOST_AT_ONCE)


class _Beam(NamedTuple):
    score: float  # ln p of its numbers
    numbers: tuple[int, ...]
    rule: Rule | None


def beam_search(step: Step, context: Sequence[int], rule: Rule, width: int) -> list[int]:
    """The continuation of a context with the highest probability, among those that ``width`` beams come by.

    With a width of all continuations there are, none is missed.
    """
    logits, state = read(step, context)
    ended: list[_Beam] = []
    live = [_Beam(0.0, (), rule)]
    while live:
        scores = logits.double().log_softmax(-1) + torch.tensor([[beam.score] for beam in live], dtype=torch.float64)
        allowed = torch.stack([beam.rule.allowed() for beam in live if beam.rule is not None])
        scores = scores.masked_fill(~allowed, -torch.inf)  # (W, V)
        best, at = scores.flatten().topk(min(width, int(allowed.sum())))
        parents = at // scores.shape[1]
        grown = []
        for score, parent, number in zip(best.tolist(), parents.tolist(), (at % scores.shape[1]).tolist(), strict=True):
            before = live[parent]
            assert before.rule is not None
            grown.append((parent, _Beam(score, (*before.numbers, number), before.rule.after(number))))
        kept = sorted([*((-1, beam) for beam in ended), *grown], key=lambda item: -item[1].score)[:width]
        ended = [beam for _, beam in kept if beam.rule is None]
        going = [(parent, beam) for parent, beam in kept if beam.rule is not None]
        live = [beam for _, beam in going]
        if ended and live and ended[0].score >= live[0].score:
            break  # what goes on can only lose
        if live:
            state = _rows(state, torch.tensor([parent for parent, _ in going]))
            logits, state = step(torch.tensor([beam.numbers[-1] for beam in live]), state)
    return list(ended[0].numbers)


def read(step: Step, context: Sequence[int]) -> tuple[Tensor, Any]:
    """What a model says and holds after a context of at least one number: ``(logits (1, V), state)``."""
    if not context:
        raise ValueError("a context has at least one number")
    logits, state = step(torch.tensor([context[0]]), None)
    for number in context[1:]:
        logits, state = step(torch.tensor([number]), state)
    return logits, state


def _rows(state: Any, rows: Tensor) -> Any:
    return map_tensors(lambda tensor: tensor.index_select(0, rows.to(tensor.device)), state)
