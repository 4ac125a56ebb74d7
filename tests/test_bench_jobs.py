"""Longer work that is measured: long sequences, a step of the language job, and cells in JAX."""

import pytest
import torch

from throughtime.bench import Point, jax_layers, plan
from throughtime.bench import growth as growth_module
from throughtime.bench import language as language_module
from throughtime.bench.growth import growth
from throughtime.bench.language import language
from throughtime.bench.speed import SUBJECTS
from throughtime.tasks.language_settings import Settings

SMALL = Settings(hidden=7, embedding=5, batch_size=3, window=6, valid_units=10)


@pytest.mark.parametrize("what", ["training", "forward"])
def test_growth_is_measured_from_the_shortest(what):
    results = growth(what, 5, (4, 8, 12), 8, 0.0)
    assert [(r.point, r.peer) for r in results] == [(Point(1, 8, 5), "T = 4"), (Point(1, 12, 5), "T = 4")]
    assert results[0].theirs * 12 / 8 == pytest.approx(results[1].theirs)
    assert results[0].operations == 8 * 2 * 8 * 5 * 5 * (3 if what == "training" else 1)


def test_a_long_sequence_that_begins_otherwise_is_not_timed(monkeypatch):
    unroll = growth_module.unroll

    def wrong(cell, x, backend):
        y, state = unroll(cell, x, backend=backend)
        return y + (x.shape[1] > 4), state

    monkeypatch.setattr(growth_module, "unroll", wrong)
    with pytest.raises(RuntimeError, match="begins otherwise"):
        growth("forward", 5, (4, 8), 8, 0.0)


def test_a_step_of_the_language_job_is_the_plain_scripts(monkeypatch):
    monkeypatch.setattr(language_module, "_LEAST", 2)
    [result] = language(SMALL, 500, 0.0)
    assert (result.what, result.point) == ("language", Point(3, 6, 7))
    assert result.operations == 6 * 3 * 6 * (4 * 7 * (5 + 7) + 7 * 65)


def test_another_loss_is_not_timed(monkeypatch):
    def wrong(self, inputs, targets):
        return 1.1 * loss(self, inputs, targets)

    loss = language_module.PlainScript.loss
    monkeypatch.setattr(language_module.PlainScript, "loss", wrong)
    with pytest.raises(RuntimeError, match="not timed"):
        language(SMALL, 500, 0.0)


def test_the_plain_script_learns_what_ours_does(monkeypatch):
    """Over some steps on the same windows, both lower the loss alike."""
    sides = []
    monkeypatch.setattr(
        language_module, "interleaved", lambda functions, *rest, **options: sides.extend(functions) or [1.0, 1.0]
    )
    monkeypatch.setattr(language_module, "VOCABULARY", 2)  # so that there is something to learn: how often each comes
    language(SMALL, 500, 0.0)
    ours, plain = ([float(side()) for _ in range(40)] for side in sides)
    units = SMALL.batch_size * SMALL.window
    assert sum(ours[20:]) / 20 / units == pytest.approx(sum(plain[20:]) / 20, rel=0.1)


@pytest.mark.parametrize("what", ["training", "forward"])
@pytest.mark.parametrize("name", jax_layers.CELLS)
def test_cells_in_jax_are_the_same(name, what):
    pytest.importorskip("jax")
    subject = next(subject for subject in SUBJECTS if subject.name == name)
    [result] = jax_layers.compare_with_jax(subject, Point(3, 5, 8), what, 0.0)
    assert (result.what, result.cell, result.peer) == (what, name, "JAX")


def test_a_cell_that_differs_from_jax_is_not_timed():
    pytest.importorskip("jax")
    subject = next(subject for subject in SUBJECTS if subject.name == "LSTM")
    other = type(subject)("LSTM", lambda i, h: Wrong(subject.make(i, h)), "nn.LSTM", subject.other, 4)
    with pytest.raises(RuntimeError, match="differs from JAX"):
        jax_layers.compare_with_jax(other, Point(3, 5, 8), "forward", 0.0)


def Wrong(cell):
    """The cell with a step that gives the negative of its output."""
    kind = type(cell)

    class Negative(kind):
        def step(self, x, state, noise=None):
            y, state = kind.step(self, x, state)
            return -y, state

    cell.__class__ = Negative
    return cell


def test_a_missing_jax_is_told(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert plan(["jax"]) == ([], ["JAX is not measured: jax not installed"])


def test_jax_is_not_timed_with_more_threads_than_pytorch(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    monkeypatch.setattr(jax_layers, "_cores", lambda: torch.get_num_threads() + 1)
    assert "takes a thread for each of" in jax_layers.missing()
