"""What is measured in a process of its own: that it is the same work, and that sizes and times are of it."""

import pytest

from throughtime.bench import Point
from throughtime.bench import alone as alone_module
from throughtime.bench.alone import _alone, compilation, first_step, main, memory, missing, weigh

on_linux = pytest.mark.skipif(missing() is not None, reason="the system does not tell the peak")


@on_linux
def test_memory_is_what_a_step_adds():
    [result] = memory(Point(16, 100, 64))
    held = 4 * 16 * 100 * 64  # bytes of y, or of the gradient by x, alone
    assert (result.unit, result.peer) == ("bytes", "nn.LSTM")
    assert held < result.ours < 100 * held
    assert held < result.theirs < 100 * held


@on_linux
def test_both_sides_take_the_same_step():
    ours, theirs = (weigh(side, Point(3, 5, 8))["sums"] for side in ("ours", "theirs"))
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_another_step_is_not_weighed(monkeypatch):
    sums = {"ours": [1.0, 2.0], "theirs": [1.0, 2.1]}
    monkeypatch.setattr(alone_module, "_alone", lambda job, side, *rest: {"bytes": 1, "sums": sums[side]})
    with pytest.raises(RuntimeError, match="not weighed"):
        memory(Point(1, 1, 1))


def test_compiling_is_timed_with_an_empty_cache_and_a_full_one(monkeypatch):
    caches = []

    def seen(*arguments, THROUGHTIME_CACHE):
        caches.append(THROUGHTIME_CACHE)
        return {"seconds": len(caches)}

    monkeypatch.setattr(alone_module, "_alone", seen)
    results = compilation("LSTM", Point(2, 3, 4))
    assert caches[0] == caches[1]
    assert [(r.peer, r.ours, r.ratio) for r in results] == [("2 s, first", 1, 2.0), ("0.1 s, from disk", 2, 0.05)]


def test_the_first_step_is_the_one_that_compiles(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("THROUGHTIME_CACHE", str(tmp_path / "kernels"))
    main("compile", "own cell (MGU)", "3,2,7", "1")
    assert float(capsys.readouterr().out.split(":")[1].strip("} ")) > 0
    assert list((tmp_path / "kernels").iterdir())


def test_wrong_kernels_are_not_timed(monkeypatch):
    unroll = alone_module.unroll

    def wrong(cell, x, backend):
        y, state = unroll(cell, x, backend=backend)
        return (y * 1.1 if backend == "cpu" else y), state

    monkeypatch.setattr(alone_module, "unroll", wrong)
    with pytest.raises(RuntimeError, match="differs from the reference"):
        first_step("GRU", Point(2, 3, 4))


def test_a_process_that_fails_is_told(monkeypatch):
    monkeypatch.setattr("sys.executable", "false")
    with pytest.raises(RuntimeError, match="measuring compile LSTM in a process of its own failed"):
        _alone("compile", "LSTM")
