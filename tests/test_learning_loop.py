"""The training loop against loops written by hand, and against itself when it is ended and resumed."""

import dataclasses
import io
import json
import math
import os
import signal
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from torch import nn
from torch.optim import lr_scheduler

from throughtime import UserError
from throughtime.learning import Interrupted, Loss, Training, fit, load_model, loop, read_metrics
from throughtime.learning.averaging import WeightAverage
from throughtime.learning.storage import read_tensors
from toy_problem import Toy

TESTS = Path(__file__).parent


def train(problem, out, training, **options):
    """`fit`, and what it said."""
    said = io.StringIO()
    result = fit(problem, out, training, console=Console(file=said, width=1000), **options)
    return result, said.getvalue()


def model_bytes(run):
    return (run / "model.safetensors").read_bytes()


def rates(run):
    return [record["learning_rate"] for record in read_metrics(run)]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    """What is written must last in earnest; here it is in the way."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


class Scripted(Toy):
    """Validations as scripted."""

    def __init__(self, values, **options):
        super().__init__(**options)
        self.values = list(values)
        self.weights = []

    def validate(self):
        self.weights.append({k: v.clone() for k, v in self.model.state_dict().items()})
        return {"nats": self.values[len(self.weights) - 1]}


class Ended(Exception):
    """Stands for whatever ends a process."""


class EndsAt(Toy):
    def __init__(self, step, **options):
        super().__init__(**options)
        self.step = step

    def batch(self, step, rank, world):
        if step == self.step:
            raise Ended
        return super().batch(step, rank, world)


# Against loops by hand

BY_HAND = {
    "rmsprop": (
        {"momentum": 0.3, "rmsprop_decay": 0.8, "learning_rate": 0.01},
        lambda g: torch.optim.RMSprop(g, lr=0.01, alpha=0.8, momentum=0.3),
    ),
    "sgd": ({"momentum": 0.7, "learning_rate": 0.3}, lambda g: torch.optim.SGD(g, lr=0.3, momentum=0.7)),
    "adam": (
        {"beta1": 0.8, "beta2": 0.95, "learning_rate": 0.01},
        lambda g: torch.optim.Adam(g, lr=0.01, betas=(0.8, 0.95)),
    ),
    "adamw": (
        {"beta1": 0.8, "beta2": 0.95, "learning_rate": 0.01},
        lambda g: torch.optim.AdamW(g, lr=0.01, betas=(0.8, 0.95)),
    ),
}


@pytest.mark.parametrize("name", BY_HAND)
@pytest.mark.parametrize(("clip_norm", "clip_value"), [(0.05, None), (0, None), (0.05, 0.02)])
def test_the_loop_is_the_one_by_hand(tmp_path, name, clip_norm, clip_value):
    steps = 23
    options, make = BY_HAND[name]
    hand = Toy(dropout=0.0, dtype=torch.float64)
    matrices = [p for p in hand.model.parameters() if p.dim() == 2]
    others = [p for p in hand.model.parameters() if p.dim() != 2]
    optimizer = make([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}])
    state, clipped = None, 0
    for step in range(steps):
        mean, _, state = hand.loss(hand.batch(step, 0, 1), state)
        state = tuple(tuple(field.detach() for field in layer) for layer in state)
        optimizer.zero_grad()
        mean.backward()
        if clip_value:
            nn.utils.clip_grad_value_(hand.model.parameters(), clip_value)
        if clip_norm:
            clipped += float(nn.utils.clip_grad_norm_(hand.model.parameters(), clip_norm)) > clip_norm
        optimizer.step()
    assert bool(clipped) == bool(clip_norm)

    toy = Toy(dropout=0.0, dtype=torch.float64)
    training = Training(
        steps=steps,
        optimizer=name,
        weight_decay=0.1,
        clip_norm=clip_norm,
        clip_value=clip_value,
        keep="last",
        **options,
    )
    train(toy, tmp_path, training)
    for one, other in zip(toy.model.parameters(), hand.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-8)  # clip_grad_norm_ divides by norm + 1e-6


SCHEDULES = {
    "cosine": (
        {"final_rate": 0.1},
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=40, eta_min=0.1 * 0.01),
    ),
    "linear": ({"final_rate": 0.1}, lambda o: lr_scheduler.LinearLR(o, 1.0, 0.1, total_iters=40)),
    "step": ({"decay_every": 7, "decay_factor": 0.3}, lambda o: lr_scheduler.StepLR(o, 7, gamma=0.3)),
    "constant": ({}, lambda o: lr_scheduler.ConstantLR(o, 1.0)),
}


@pytest.mark.parametrize("warmup", [0, 6])
@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_those_of_torch(tmp_path, name, warmup):
    options, make = SCHEDULES[name]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    rising = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    course = make(optimizer)
    rise = lr_scheduler.LinearLR(rising, 1 / max(warmup, 1), total_iters=warmup - 1)
    expected = []
    for _ in range(40):
        expected.append(course.get_last_lr()[0] * (rise.get_last_lr()[0] if warmup else 1.0))
        for one, other in ((optimizer, course), (rising, rise)):
            one.step()
            other.step()
    training = Training(steps=40, learning_rate=0.01, schedule=name, warmup=warmup, log_every=1, **options)
    train(Toy(), tmp_path, training)
    assert rates(tmp_path) == pytest.approx(expected, rel=1e-9)


def test_spans_below_one_are_shares_of_the_run(tmp_path):
    one = Training(steps=40, schedule="step", decay_every=0.25, warmup=0.1, log_every=1)
    train(Toy(), tmp_path, one)
    decays = [2.0 ** -(k // 10) for k in range(40)]
    rises = [min(1.0, k / 4) for k in range(40)]
    assert rates(tmp_path) == pytest.approx([0.002 * d * r for d, r in zip(decays, rises, strict=True)])


def test_plateau_is_that_of_torch(tmp_path):
    values = [3.0, 2.0, 2.0, 2.5, 2.1, 1.9, 1.95, 1.95, 1.95, 1.95, 1.95, 1.95, 1.0, 1.0, 1.1, 1.2]
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.01)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.3, patience=2, threshold=0.0)
    expected = []
    for value in values:
        expected.append(optimizer.param_groups[0]["lr"])
        plateau.step(value)
    training = Training(
        steps=len(values),
        learning_rate=0.01,
        schedule="plateau",
        decay_factor=0.3,
        plateau_patience=2,
        validate_every=1,
        log_every=1,
    )
    train(Scripted(values), tmp_path, training)
    assert len(set(expected)) > 2
    assert rates(tmp_path) == pytest.approx(expected)


def test_metrics_are_what_was_counted(tmp_path):
    hand, toy = Toy(dropout=0.0), Toy(dropout=0.0)
    training = Training(steps=9, learning_rate=1e-12, log_every=4, validate_every=9, clip_norm=0)
    train(toy, tmp_path, training, on_record=lambda record: {"twice": 2 * record["step"]})
    losses, norms, state = [], [], None
    for step in range(9):
        mean, _, state = hand.loss(hand.batch(step, 0, 1), state)
        state = tuple(tuple(field.detach() for field in layer) for layer in state)
        gradients = torch.autograd.grad(mean, list(hand.model.parameters()))
        losses.append(mean.item())
        norms.append(float(torch.cat([g.flatten() for g in gradients]).norm()))
    records = read_metrics(tmp_path)
    assert [record["step"] for record in records] == [4, 8, 9]
    assert [record["twice"] for record in records] == [8, 16, 18]
    assert [record["epoch"] for record in records] == pytest.approx([4 / 9, 8 / 9, 1], abs=1e-4)
    spans = [slice(0, 4), slice(4, 8), slice(8, 9)]
    for name, values in (("loss", losses), ("gradient_norm", norms)):
        means = [sum(values[span]) / len(values[span]) for span in spans]
        assert [record[name] for record in records] == pytest.approx(means, rel=1e-5)
    assert "validation_nats" in records[2]
    assert "validation_nats" not in records[0]
    assert all(one["seconds"] <= other["seconds"] for one, other in pairwise(records))


def test_the_state_is_carried_cut_and_plain(tmp_path):
    toy = Toy()
    train(toy, tmp_path, Training(steps=3, validate_every=100))
    assert toy.states[0] is None
    for state in toy.states[1:3]:
        fields = [field for layer in state for field in layer]
        assert len(fields) == 4
        assert type(state) is type(state[0]) is tuple
        assert all(not field.requires_grad and field.abs().sum() > 0 for field in fields)


# Bounds, stopping, keeping


def test_epochs_bound_a_run(tmp_path):
    assert train(Toy(), tmp_path, Training(epochs=1.5))[0].steps == math.ceil(1.5 * Toy.steps_per_epoch)


class Clock:
    """Time that passes only where the problem says so."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: self.now))


class Timed(Toy):
    def __init__(self, clock, step, validation):
        super().__init__()
        self.clock, self.times = clock, (step, validation)

    def loss(self, batch, state):
        if self.model.training:
            self.clock.now += self.times[0]
        return super().loss(batch, state)

    def validate(self):
        self.clock.now += self.times[1]
        return super().validate()


@pytest.mark.parametrize("validation", [0.0, 1.0, 7.0])
def test_minutes_hold_with_validation_and_the_schedule_follows_the_time(tmp_path, monkeypatch, validation):
    problem = Timed(Clock(monkeypatch), 0.5, validation)
    training = Training(minutes=2, schedule="linear", log_every=1, learning_rate=0.01)
    result, _ = train(problem, tmp_path, training)
    assert result.stopped == "minutes"
    assert 120 - validation - 1.5 <= result.seconds <= 120
    records = read_metrics(tmp_path)
    began = [0.0] + [record["seconds"] for record in records[:-1]]
    assert rates(tmp_path) == pytest.approx([0.01 * (1 - seconds / 120) for seconds in began], rel=1e-3, abs=1e-6)
    validations = [record["step"] for record in records if "validation_nats" in record]
    assert validations[-1] == result.steps
    assert len(validations) <= 21
    assert len(validations) * validation <= 0.2 * 120 + validation


def test_minutes_that_are_used_up_are_not_used_again(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)

    class Ends(Timed):
        def batch(self, step, rank, world):
            if step == 61:
                raise Ended
            return super().batch(step, rank, world)

    training = Training(minutes=1, checkpoint_every=10)
    with pytest.raises(Ended):
        train(Ends(clock, 0.5, 0.0), tmp_path, training)
    result, _ = train(Timed(clock, 0.5, 0.0), tmp_path, training, resume=True)
    assert 110 <= result.steps <= 120
    again, _ = train(Timed(clock, 0.5, 0.0), tmp_path, training, resume=True)
    assert again.steps == result.steps


def test_patience_ends_a_run_and_the_best_weights_are_kept(tmp_path):
    problem = Scripted([3.0, 2.0, 2.0, 2.5, 1.9, 4.0, 3.0, 2.0, 1.0])
    result, said = train(problem, tmp_path, Training(steps=100, validate_every=2, patience=3))
    assert (result.steps, result.stopped, result.best_step) == (16, "patience", 10)
    assert result.validation == {"nats": 1.9}
    for name, value in read_tensors(tmp_path / "model.safetensors", "model").items():
        assert torch.equal(value, problem.weights[4][name])
        assert torch.equal(value, problem.model.state_dict()[name])
    assert any(not torch.equal(value, problem.weights[7][name]) for name, value in problem.weights[4].items())
    assert "kept the weights of step 10: validation nats 1.9000" in said


def test_a_validation_that_is_no_number_is_not_the_best(tmp_path):
    result, _ = train(Scripted([math.nan, 3.0, math.inf]), tmp_path / "once", Training(steps=6, validate_every=2))
    assert (result.best_step, result.validation) == (4, {"nats": 3.0})
    result, _ = train(Scripted([math.nan] * 3), tmp_path / "ever", Training(steps=6, validate_every=2))
    assert result.best_step == 6
    assert math.isnan(result.validation["nats"])


def test_the_last_weights_are_kept_where_asked_for_and_without_validation(tmp_path):
    problem = Scripted([1.0, 2.0, 3.0])
    result, _ = train(problem, tmp_path / "last", Training(steps=6, validate_every=2, keep="last"))
    assert (result.best_step, result.validation) == (6, {"nats": 3.0})
    weights = read_tensors(tmp_path / "last" / "model.safetensors", "model")
    assert all(torch.equal(value, problem.weights[2][name]) for name, value in weights.items())

    class Blind(Toy):
        validations = 0

        def validate(self):
            self.validations += 1
            return {}

    blind = Blind()
    result, _ = train(blind, tmp_path / "blind", Training(steps=6, validate_every=2))
    assert (result.best_step, result.validation, blind.validations) == (6, {}, 1)
    assert model_bytes(tmp_path / "blind") == model_bytes(tmp_path / "last")


def test_validating_does_not_change_the_training(tmp_path):
    for every in (1, 20):
        train(Toy(), tmp_path / str(every), Training(steps=20, validate_every=every, keep="last"))
    assert model_bytes(tmp_path / "1") == model_bytes(tmp_path / "20")


# The mean of the weights


class Seen(Toy):
    """Keeps the weights of each step, and those that are validated."""

    def __init__(self, **options):
        super().__init__(**options)
        self.own, self.validated = [], []

    def weights(self):
        return {name: value.clone() for name, value in self.model.state_dict().items()}

    def batch(self, step, rank, world):
        if self.model.training:
            self.own.append(self.weights())  # what the step before left
        return super().batch(step, rank, world)

    def validate(self):
        self.validated.append(self.weights())
        return super().validate()


def mean_by_hand(weights, decay):
    shares = [decay**k for k in reversed(range(len(weights)))]
    return {n: sum(s * w[n] for s, w in zip(shares, weights, strict=True)) / sum(shares) for n in weights[0]}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_the_mean_of_the_weights_is_validated_and_kept(tmp_path, keep):
    plain, averaged = Seen(dtype=torch.float64), Seen(dtype=torch.float64)
    options = {"steps": 7, "optimizer": "adam", "learning_rate": 0.05, "validate_every": 3, "keep": keep}
    train(plain, tmp_path / "plain", Training(**options))
    result, said = train(averaged, tmp_path / "averaged", Training(**options, average_weights=0.7))
    assert "weights averaged (0.7)" in said
    last = {"plain": None, "averaged": None}
    for name, problem in (("plain", plain), ("averaged", averaged)):
        snapshot = next((tmp_path / name / "checkpoint").iterdir())
        last[name] = read_tensors(snapshot / "weights.safetensors", "checkpoint")
        assert len(problem.own) == 7
    for one, other in zip([*plain.own, last["plain"]], [*averaged.own, last["averaged"]], strict=True):
        assert all(torch.equal(one[name], other[name]) for name in one)  # the descent goes on from its own weights
    course = [*averaged.own[1:], last["averaged"]]
    for step, found in zip((3, 6, 7), averaged.validated, strict=True):
        expected = mean_by_hand(course[:step], 0.7)
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-14)
            assert not torch.equal(value, course[step - 1][name])
    kept = averaged.validated[(3, 6, 7).index(result.best_step)]
    file = read_tensors(tmp_path / "averaged" / "model.safetensors", "model")
    for name, value in kept.items():
        assert torch.equal(averaged.model.state_dict()[name], value)
        assert torch.equal(file[name], value)


def test_the_mean_is_kept_where_nothing_is_validated(tmp_path):
    class Blind(Seen):
        def validate(self):
            return {}

    blind = Blind()
    training = Training(steps=4, optimizer="sgd", learning_rate=0.5, average_weights=0.5)
    train(blind, tmp_path, training)
    snapshot = next((tmp_path / "checkpoint").iterdir())
    course = [*blind.own[1:], read_tensors(snapshot / "weights.safetensors", "checkpoint")]
    for name, value in mean_by_hand(course, 0.5).items():
        torch.testing.assert_close(blind.model.state_dict()[name], value)
        assert not torch.equal(blind.model.state_dict()[name], course[-1][name])


def test_what_does_not_learn_is_not_averaged_and_a_mean_of_another_model_is_told():
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    average = WeightAverage(model, 0.5)
    assert set(average.tensors()) == {"mean.1.weight", "mean.1.bias", "steps"}
    with pytest.raises(UserError, match="of another model"):
        average.restore(WeightAverage(nn.Linear(2, 3), 0.5).tensors())


# Ended and resumed


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": "rmsprop", "momentum": 0.5, "schedule": "plateau", "plateau_patience": 0},
        {"optimizer": "sgd", "momentum": 0.5, "schedule": "cosine", "warmup": 0.2},
        {"optimizer": "adam", "schedule": "linear", "keep": "last"},
        {"optimizer": "adamw", "schedule": "step", "weight_decay": 0.1, "patience": 3},
        {"optimizer": "adam", "precision": "64-true"},
        {"optimizer": "adam", "average_weights": 0.8},
        {"optimizer": "sgd", "average_weights": 0.9, "keep": "last"},
    ],
)
def test_a_resumed_run_ends_in_the_same_bits(tmp_path, options):
    training = Training(steps=40, validate_every=3, log_every=4, checkpoint_every=5, **options)
    whole, _ = train(Toy(), tmp_path / "whole", training)
    for step in (3, 17, 18, 39):
        with pytest.raises(Ended):
            train(EndsAt(step), tmp_path / "ended", training, resume=True)
        if whole.steps <= step:
            pytest.fail("the run was over before it could be ended")
    resumed, said = train(Toy(), tmp_path / "ended", training, resume=True)
    assert "going on from step 35" in said
    assert model_bytes(tmp_path / "ended") == model_bytes(tmp_path / "whole")
    varying = ("seconds", "items_per_second")
    one, other = (
        [{name: value for name, value in record.items() if name not in varying} for record in read_metrics(run)]
        for run in (tmp_path / "whole", tmp_path / "ended")
    )
    assert one == other
    assert (resumed.steps, resumed.best_step, resumed.validation) == (whole.steps, whole.best_step, whole.validation)


def test_killed_at_random_moments_and_resumed_ends_in_the_same_bits(tmp_path):
    command = [sys.executable, TESTS / "killing.py", tmp_path, "6", str(int.from_bytes(os.urandom(2), "big"))]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert ran.returncode == 0, f"{command}\n{ran.stderr}"
    killed = sorted(tmp_path.glob("killed-*"))
    assert killed
    for run in killed:
        assert model_bytes(run) == model_bytes(tmp_path / "whole"), command
        steps = [record["step"] for record in read_metrics(run)]
        assert steps == [record["step"] for record in read_metrics(tmp_path / "whole")]
        assert steps == sorted(set(steps))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_writes_a_checkpoint(tmp_path, number):
    class Signalled(Toy):
        def batch(self, step, rank, world):
            if step == 7:
                os.kill(os.getpid(), number)
            return super().batch(step, rank, world)

    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    training = Training(steps=20)
    with pytest.raises(Interrupted, match=r"stopped at step 8.*--resume") as raised:
        train(Signalled(), tmp_path / "stopped", training)
    assert raised.value.signal == number
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    _, said = train(Toy(), tmp_path / "stopped", training, resume=True)
    assert "going on from step 8" in said
    train(Toy(), tmp_path / "whole", training)
    assert model_bytes(tmp_path / "stopped") == model_bytes(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tmp_path):
    class Impatient(Toy):
        def batch(self, step, rank, world):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            raise AssertionError("stopped before this")

    with pytest.raises(KeyboardInterrupt) as raised:
        train(Impatient(), tmp_path, Training(steps=5))
    assert not isinstance(raised.value, Interrupted)


def test_a_finished_run_resumed_stays_as_it_is_and_can_be_prolonged(tmp_path):
    first, _ = train(Toy(), tmp_path / "run", Training(steps=10))
    (tmp_path / "run" / "model.safetensors").unlink()
    again, _ = train(EndsAt(10), tmp_path / "run", Training(steps=10), resume=True)
    assert dataclasses.replace(again, seconds=first.seconds) == first
    assert [record["step"] for record in read_metrics(tmp_path / "run")][-1] == 10
    fresh = Toy(seed=9)
    load_model(tmp_path / "run", fresh.model)
    longer, said = train(Toy(), tmp_path / "run", Training(steps=30, validate_every=1), resume=True)
    assert longer.steps == 30
    assert "with steps 30 where it was 10" in said


def test_nothing_is_overwritten_unasked(tmp_path):
    train(Toy(), tmp_path, Training(steps=2))
    before = model_bytes(tmp_path)
    with pytest.raises(UserError, match=r"holds a run already; .*--resume"):
        train(Toy(), tmp_path, Training(steps=3))
    assert model_bytes(tmp_path) == before
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        train(Toy(), tmp_path / "file", Training(steps=3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "adam"}, "begun with optimizer rmsprop, not adam"),
        ({"seed": 2}, "begun with seed 1, not 2"),
        ({"keep": "last"}, "begun with keep best, not last"),
        ({"average_weights": 0.9}, "begun with average weights None, not 0.9"),
    ],
)
def test_what_would_be_another_run_is_not_resumed(tmp_path, options, message):
    train(Toy(), tmp_path, Training(steps=2))
    with pytest.raises(UserError, match=message):
        train(Toy(), tmp_path, Training(steps=4, **options), resume=True)


def test_another_model_is_not_resumed(tmp_path):
    train(Toy(), tmp_path, Training(steps=2))
    other = Toy()
    other.model["output"] = nn.Linear(5, 7)
    with pytest.raises(UserError, match=r"output.bias is \(6,\) there and \(7,\) here"):
        train(other, tmp_path, Training(steps=4), resume=True)


def test_one_process_at_a_time_trains_in_a_folder(tmp_path):
    def again(record):
        with pytest.raises(UserError, match="another process is training"):
            train(Toy(), tmp_path, Training(steps=2), resume=True)

    train(Toy(), tmp_path, Training(steps=2, log_every=1), on_record=again)
    assert len(read_metrics(tmp_path)) == 2


# What goes wrong


class Spoilt(Toy):
    """The loss, or only its gradient, is not finite at a step."""

    def __init__(self, at, how):
        super().__init__()
        self.at, self.how = at, how

    def batch(self, step, rank, world):
        self.now = step == self.at
        return super().batch(step, rank, world)

    def loss(self, batch, state):
        mean, count, state = super().loss(batch, state)
        if self.model.training and self.now:
            weight = self.model["output"].weight
            if self.how == "gradient":
                mean = mean + (weight - weight.detach()).abs().sqrt().sum()  # zero, with an infinite slope
            else:
                mean = mean * float(self.how)
        return Loss(mean, count, state)


@pytest.mark.parametrize(("how", "what"), [("nan", "loss is nan"), ("inf", "loss is inf"), ("gradient", "gradient is")])
@pytest.mark.parametrize("clip", [1.0, 0])
def test_divergence_is_told_and_nothing_is_lost(tmp_path, how, what, clip):
    training = Training(steps=20, checkpoint_every=4, clip_norm=clip)
    advice = "--clip-norm 0.25" if clip else r"clipping \(--clip-norm 1\)"
    expected = (
        rf"the {what}.*at step 8: .*--learning-rate 0.0005.*{advice}; the checkpoint of step 4 stands, and --resume"
    )
    with pytest.raises(UserError, match=expected):
        train(Spoilt(7, how), tmp_path / "spoilt", training)
    weights = read_tensors(next((tmp_path / "spoilt" / "checkpoint").iterdir()) / "weights.safetensors", "checkpoint")
    assert all(value.isfinite().all() for value in weights.values())
    train(Toy(), tmp_path / "spoilt", training, resume=True)
    train(Toy(), tmp_path / "whole", training)
    assert model_bytes(tmp_path / "spoilt") == model_bytes(tmp_path / "whole")


def test_a_lower_learning_rate_can_be_gone_on_with(tmp_path):
    with pytest.raises(UserError):
        train(Spoilt(7, "nan"), tmp_path, Training(steps=20, checkpoint_every=4))
    _, said = train(Toy(), tmp_path, Training(steps=20, learning_rate=1e-4, log_every=1), resume=True)
    assert "with learning rate 0.0001 where it was None" in said
    assert rates(tmp_path)[-1] == 1e-4


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({}, "exactly one of steps, epochs and minutes bounds a run; none given"),
        ({"steps": 1, "minutes": 1}, "steps and minutes given"),
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"minutes": 0}, "minutes must be above 0, not 0"),
        ({"steps": 1, "optimizer": "adan"}, "optimizer must be one of rmsprop, sgd, adam, adamw, not 'adan'"),
        ({"steps": 1, "average_weights": 1.0}, "average weights must be above 0 and below 1, not 1"),
        ({"steps": 1, "momentum": 1.0}, "momentum must be at least 0 and below 1, not 1"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning rate must be above 0, not nan"),
        ({"steps": 1, "precision": "8-bit"}, "precision must be one of"),
    ],
)
def test_settings_out_of_range_are_told(training, message):
    with pytest.raises(UserError, match=message):
        Training(**training)


def test_settings_go_to_json_and_back():
    training = Training(epochs=2.5, optimizer="adamw", clip_norm=None, decay_every=0.3, deterministic=True)
    assert Training.from_json(json.loads(json.dumps(training.to_json()))) == training
    with pytest.raises(UserError, match="'speed' is not a setting"):
        Training.from_json({"steps": 1, "speed": 2})


def test_precision_the_device_does_not_have_is_told(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="16-mixed needs a GPU"):
        fit(Toy(), tmp_path, Training(steps=1, precision="16-mixed", device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="no CUDA device"):
        fit(Toy(), tmp_path, Training(steps=1, device="cuda"))
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(UserError, match="does not compute in bfloat16"):
        fit(Toy(), tmp_path, Training(steps=1, precision="bf16-mixed", device="cpu"))


@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU has no bfloat16")
@pytest.mark.filterwarnings("ignore::throughtime.SlowPathWarning")  # no kernels under autocast
def test_mixed_precision_computes_in_bfloat16_and_keeps_float32_weights(tmp_path):
    class Seen(Toy):
        def loss(self, batch, state):
            x = torch.ones(2, 5)
            self.dtype = self.model["output"](x).dtype
            return super().loss(batch, state)

    toy = Seen()
    train(toy, tmp_path, Training(steps=2, precision="bf16-mixed", device="cpu"))
    assert toy.dtype == torch.bfloat16
    assert all(p.dtype == torch.float32 for p in toy.model.parameters())


def test_determinism_is_asked_for_and_given_back(tmp_path):
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(False)

    class Asked(Toy):
        def validate(self):
            return {"asked": float(torch.are_deterministic_algorithms_enabled())}

    try:
        for wanted in (True, False):
            result, _ = train(Asked(), tmp_path / str(wanted), Training(steps=1, deterministic=wanted))
            assert result.validation["asked"] == wanted
            assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(before)


def test_too_few_data_and_nothing_to_learn_are_told(tmp_path):
    short = Toy()
    short.steps_per_epoch = 0
    with pytest.raises(UserError, match="shorter than one batch"):
        train(short, tmp_path / "short", Training(steps=1))

    class Apart(Toy):
        def loss(self, batch, state):
            return Loss(torch.zeros((), requires_grad=True), 1, None)

    with pytest.raises(ValueError, match="depends on no parameter"):
        train(Apart(), tmp_path / "apart", Training(steps=1))


# Telling


def test_a_pipe_gets_plain_lines_and_not_too_many(tmp_path):
    _, said = train(Toy(), tmp_path, Training(steps=150, validate_every=1, clip_norm=0.5), items="symbols")
    lines = said.splitlines()
    assert "clipped to norm 0.5" in lines[0]
    assert "rmsprop, learning rate 0.002 (constant)" in lines[0]
    assert "for 150 steps" in lines[0]
    assert "150 steps in" in lines[-1]
    assert 2 < len(lines) < 20
    assert "\x1b" not in said
    assert all("symbols/s" in line and "left" in line and "validation nats" in line for line in lines[1:-1])


def test_a_terminal_gets_a_live_bar(tmp_path):
    said = io.StringIO()
    console = Console(file=said, force_terminal=True, width=150, color_system=None)
    fit(Toy(), tmp_path, Training(steps=30, validate_every=15), console=console)
    assert "\x1b" in said.getvalue()  # the bar is drawn over itself
    assert "━" in said.getvalue()
    assert said.getvalue().count("validation nats") >= 2


# Several processes

TOGETHER = """
import os, sys, torch
from pathlib import Path
from throughtime.learning import Training, fit
from toy_problem import Toy

out = Path(sys.argv[1])
for steps in (6, 12):
    toy = Toy(dropout=0.0, dtype=torch.float64)
    training = Training(steps=steps, log_every=1, validate_every=4, precision="64-true", average_weights=0.8)
    fit(toy, out, training, resume=True)
total = sum(p.sum().item() for p in toy.model.parameters())
(out / f"sum-{os.environ['RANK']}").write_text(repr(total))
"""


def test_two_processes_are_one_with_the_same_batch(tmp_path):
    """Five rows, so the shares are uneven; ended and resumed half way."""
    script = tmp_path / "together.py"
    script.write_text(TOGETHER)
    launcher = [sys.executable, "-W", "error", "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command = [*launcher, "--standalone", script, tmp_path / "two"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(TESTS)}
    ran = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert ran.returncode == 0, ran.stderr
    for steps in (6, 12):
        one = Toy(dropout=0.0, dtype=torch.float64)
        training = Training(steps=steps, log_every=1, validate_every=4, precision="64-true", average_weights=0.8)
        train(one, tmp_path / "one", training, resume=True)
    varying = ("seconds", "items_per_second")
    records = [read_metrics(tmp_path / name) for name in ("two", "one")]
    assert [record["step"] for record in records[0]] == list(range(1, 13))
    for two, single in zip(*records, strict=True):
        assert two.keys() == single.keys()
        for name in two.keys() - set(varying):
            assert two[name] == pytest.approx(single[name], rel=1e-9), name
    mine = read_tensors(tmp_path / "one" / "model.safetensors", "model")
    for name, value in read_tensors(tmp_path / "two" / "model.safetensors", "model").items():
        torch.testing.assert_close(value, mine[name], rtol=1e-9, atol=1e-12)
    sums = [(tmp_path / "two" / f"sum-{rank}").read_text() for rank in (0, 1)]
    assert sums[0] == sums[1]
    assert "process-1.safetensors" in {path.name for path in (tmp_path / "two" / "checkpoint").glob("*/*")}
    assert ran.stderr.count("going on from step 6") == 1  # one of them speaks
    with pytest.raises(UserError, match="begun with 2 processes, not 1"):
        train(Toy(dtype=torch.float64), tmp_path / "two", training, resume=True)
