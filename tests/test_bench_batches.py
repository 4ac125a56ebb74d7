"""Batches of other kinds: what is timed is what torch.nn does, and it is found to be before it is timed."""

import pytest
import torch

from throughtime.bench import GRID, Point
from throughtime.bench.batches import _bidirectional, _compare, _ragged, batches


@pytest.mark.parametrize(("what", "make"), [("bidirectional", _bidirectional), ("ragged", _ragged)])
def test_what_is_timed_is_the_same(what, make):
    [result] = _compare(what, make, Point(3, 5, 4), 0.0)
    assert (result.what, result.peer, result.ours > 0, result.theirs > 0) == (what, "nn.LSTM", True, True)
    steps = (
        3 * 5
        if what == "bidirectional"
        else int(torch.randint(1, 6, (3,), generator=torch.Generator().manual_seed(1)).sum())
    )
    assert result.operations == 3 * 2 * steps * (16 if what == "bidirectional" else 8) * 4 * 4


def test_another_result_is_not_timed():
    def other(point):
        both, ours, theirs, work = _bidirectional(point)
        return both, ours, lambda layer, x: theirs(layer, x) + 1, work

    with pytest.raises(RuntimeError, match="not timed"):
        _compare("bidirectional", other, Point(2, 3, 4), 0.0)


def test_there_is_one_of_each_size():
    assert {item.kind for item in batches()} == {"bidirectional", "ragged"}
    assert [item.name for item in batches("ragged")] == [str(point) for point in GRID]
    assert batches("writing") == []
