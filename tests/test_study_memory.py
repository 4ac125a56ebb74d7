"""The long-memory problems are those of the papers, and the study goes on where it stopped."""

import dataclasses
import json
import math
import signal

import pytest
import torch
import typer.testing

from throughtime.cells import GRU, Elman
from throughtime.cli.app import root
from throughtime.cli.study import study
from throughtime.engine import unroll
from throughtime.errors import UserError
from throughtime.learning.regularise import vanishing_gradient_penalty
from throughtime.learning.storage import tensor_bytes
from throughtime.studies import memory as run
from throughtime.studies import temporal_order as order
from throughtime.studies.kept_norm import RegularisedGradients
from throughtime.studies.problems import PROBLEMS, problem_named

QUICK = run.Settings(hidden=4, batch=16, steps=40, check=20)


def drawn(name, size=2000, length=30, seed=0):
    return PROBLEMS[name].draw(size, length, torch.Generator().manual_seed(seed))


def test_adding_and_multiplication_are_of_the_marked_numbers():
    for name, combine in (("adding", torch.sum), ("multiplication", torch.prod)):
        batch = drawn(name)
        values, marks = batch.x.unbind(2)
        assert (marks[:, :15].sum(1) == 1).all()
        assert (marks[:, 15:].sum(1) == 1).all()
        marked = values[marks == 1].reshape(-1, 2)
        torch.testing.assert_close(batch.target[:, 0], combine(marked, 1))
        best = batch.target.mean() * torch.ones_like(batch.target)  # what a network without memory can say
        assert PROBLEMS[name].score(best, batch) == pytest.approx(PROBLEMS[name].chance(30), rel=0.1)


def test_copying_is_told_when_to_say_what():
    batch = drawn("copying", size=50, length=7)
    tokens = batch.x.argmax(2)
    assert tokens.shape == (50, 27)
    assert (tokens[:, :10] < 8).all()
    assert (tokens[:, 10:16] == 8).all()
    assert (tokens[:, 16] == 9).all()
    assert (tokens[:, 17:] == 8).all()
    assert torch.equal(batch.target[:, -10:], tokens[:, :10])
    assert (batch.target[:, :17] == 8).all()


def test_temporal_order_has_two_symbols_where_the_paper_has_them():
    batch = drawn("temporal-order", length=50)
    tokens = batch.x.argmax(2)
    places = (tokens < 2).nonzero()[:, 1].reshape(-1, 2)
    assert ((places[:, 0] >= 5) & (places[:, 0] <= 10)).all()
    assert ((places[:, 1] >= 20) & (places[:, 1] <= 25)).all()
    pair = tokens.gather(1, places)
    assert torch.equal(batch.target, 2 * pair[:, 0] + pair[:, 1])
    assert set(tokens[tokens >= 2].tolist()) == {2, 3, 4, 5}
    assert batch.target.bincount(minlength=4).min() > 400


def test_parity_counts_real_bits():
    batch = drawn("parity")
    for row, length, odd in zip(batch.x[:, :, 0], batch.lengths, batch.target, strict=True):
        assert row[:length].sum() % 2 == odd
        assert (row[length:] == 0).all()
    assert set(batch.lengths.tolist()) == set(range(1, 31))


def test_delayed_recall_asks_for_the_first():
    batch = drawn("delayed-recall")
    tokens = batch.x.argmax(2)
    assert torch.equal(tokens[:, 0], batch.target)
    assert ((tokens[:, 1:-1] >= 8) & (tokens[:, 1:-1] < 16)).all()
    assert (tokens[:, -1] == 16).all()


@pytest.mark.parametrize("name", PROBLEMS)
def test_right_answers_are_solutions_and_chance_is_not(name):
    problem, batch = PROBLEMS[name], drawn(name, size=300)
    if problem.measure == "squared error":
        right = batch.target
    else:
        right = torch.nn.functional.one_hot(batch.target, problem.outputs).float()
    assert problem.solved(problem.score(right, batch))
    assert not problem.solved(problem.chance(30))
    assert problem.loss(100 * right if problem.measure == "accuracy" else right, batch) < 1e-6


def test_short_lengths_and_unknown_names_are_told():
    with pytest.raises(UserError, match="at least 10"):
        drawn("temporal-order", length=5)
    with pytest.raises(UserError, match="'addition' is unknown; there are adding"):
        problem_named("addition")
    with pytest.raises(UserError, match="cell 'lstn' is unknown"):
        run.run_case(run.Case("lstn", "adding", 10, 1), QUICK)


def test_a_short_lag_is_learned_in_seconds():
    settings = run.Settings(hidden=24, batch=32, rate=0.01, steps=400, check=50)
    outcome = run.run_case(run.Case("gru", "delayed-recall", 6, 1), settings)
    assert outcome.solved
    assert outcome.stopped == "solved"
    assert outcome.further is not None
    again = run.run_case(run.Case("gru", "delayed-recall", 6, 1), settings)
    assert (again.score, again.steps) == (outcome.score, outcome.steps)


def test_what_ends_training_is_not_what_it_is_judged_by(monkeypatch):
    """A check that is passed by luck ends nothing: other sequences, new each time, must say the same."""
    asked = []

    def measured(network, problem, case, length, purpose):
        asked.append((length, purpose))
        return {"test after 2": 0.5, "check": 1.0}.get(purpose, 0.995)

    monkeypatch.setattr(run, "measure", measured)
    settings = run.Settings(hidden=4, steps=9, check=2)
    outcome = run.run_case(run.Case("gru", "delayed-recall", 6, 1), settings)
    assert (outcome.stopped, outcome.steps, outcome.score, outcome.solved) == ("solved", 4, 0.995, True)
    checks = [(6, "check"), (6, "test after 2"), (6, "check"), (6, "test after 4")]
    assert asked == [(6, "check"), *checks, (60, "test")]
    outcome = run.run_case(run.Case("gru", "parity", 6, 1), settings)  # which wants no error at all
    assert (outcome.stopped, outcome.steps, outcome.score, outcome.solved) == ("steps", 9, 0.995, False)


def test_sequences_of_another_purpose_are_others():
    case, problem = run.Case("gru", "adding", 10, 1), PROBLEMS["adding"]
    network = run.Network("gru", problem, 4, 10)
    check, again, test = (run.measure(network, problem, case, 10, name) for name in ("check", "check", "test after 9"))
    assert check == again != test


def test_all_cells_see_the_same_data():
    one, other = (run.Case(cell, "adding", 10, 1) for cell in ("gru", "lstm"))
    assert run._seed(one, "training") == run._seed(other, "training") != run._seed(one, "weights")


def test_a_run_that_diverges_says_so():
    outcome = run.run_case(run.Case("additive", "adding", 10, 1), run.Settings(hidden=4, rate=1e30, steps=20, check=1))
    assert outcome.stopped == "diverged"
    assert not outcome.solved
    assert math.isfinite(outcome.score)


def test_study_goes_on_where_it_stopped(tmp_path):
    results = tmp_path / "deep" / "results.jsonl"
    options = {"tasks": ["adding", "multiplication"], "lengths": [10], "settings": QUICK}
    first = run.memory_study(results, cells=["gru"], seeds=[1], **options)
    assert [(o.cell, o.task) for o in first] == [("gru", "adding"), ("gru", "multiplication")]
    lines = results.read_bytes()
    results.write_bytes(lines + b'{"cell": "lru", "ta')  # as if killed while writing

    ran = []
    both = run.memory_study(
        results, cells=["gru", "gru-chrono"], seeds=[1], **options, watch=lambda p: ran.append((p.case.cell, p.done))
    )
    assert {cell for cell, _ in ran} == {"gru-chrono"}
    assert max(done for _, done in ran) == 3
    assert results.read_bytes().startswith(lines)
    assert [json.loads(line)["cell"] for line in results.read_text().splitlines()] == ["gru"] * 2 + ["gru-chrono"] * 2
    assert both[0] == first[0]
    assert all(not one.solved and one.further is not None and one.processor > 0 for one in both)
    assert run.memory_study(results, cells=["gru"], seeds=[1], **options) == first

    text = run.table(both)
    assert "| adding | gru-chrono | 10 | 0 of 1 |" in text
    run.figure(both).savefig(tmp_path / "figure.png")
    results.write_text("{}\n")
    with pytest.raises(UserError, match=r"results\.jsonl:1 is not a result of a memory study"):
        run.read_outcomes(results)


def test_the_figure_says_where_seeds_differ():
    outcomes = [
        run.Outcome("gru", "parity", 9, seed, QUICK, 5, 40, 1.0, 1.0, score, 0.5, 0.5, score == 1, "steps")
        for seed, score in ((1, 1.0), (2, 1.0), (3, 0.5))
    ]
    for seeds, said in ((3, "100% (2 of 3)"), (2, "100%")):
        axes = run.figure(outcomes[:seeds]).axes[0]
        assert [text.get_text() for text in axes.texts] == [said]


def test_a_budget_is_shared_among_the_cases_left(tmp_path):
    settings = run.Settings(hidden=4, steps=10**9, check=10**9)
    shares = []
    outcomes = run.memory_study(
        tmp_path / "r.jsonl",
        cells=["gru", "elman"],
        tasks=["adding"],
        lengths=[5],
        seeds=[1],
        settings=settings,
        minutes=1 / 60,
        watch=lambda progress: shares.append(progress.share),
    )
    assert [o.stopped for o in outcomes] == ["time", "time"]
    assert max(shares[:-1]) <= 0.5
    assert shares[-1] <= 0.5 + 1e-3
    assert all(o.steps >= 1 for o in outcomes)
    assert not math.isnan(outcomes[0].score)


def test_command_line(tmp_path):
    runner = typer.testing.CliRunner()
    arguments = ["memory", "--out", str(tmp_path / "m"), "--cells", "gru,elman", "--tasks", "adding", "--lengths", "8"]
    arguments += ["--seeds", "1", "--steps", "4", "--check", "2", "--hidden", "4"]
    result = runner.invoke(study, arguments)
    assert result.exit_code == 0, result.output
    assert "| adding | elman | 8 | 0 of 1 |" in result.output
    assert "1 of 2: gru on adding 8, seed 1" in result.output
    assert {p.name for p in (tmp_path / "m").iterdir()} == {"results.jsonl", "table.md", "figure.png"}
    again = runner.invoke(study, arguments)
    assert again.exit_code == 0
    assert "1 of 2" not in again.output
    wrong = runner.invoke(study, ["memory", "--out", str(tmp_path), "--lengths", "ten"])
    assert isinstance(wrong.exception, UserError)
    assert any(group.name == "study" for group in root.registered_groups)


SHORT = order.Recipe(shortest=10, longest=12, steps=300, weight=0.1, rate=0.05, momentum=0.5, cool=0.2)


def test_temporal_order_is_learned_and_tested_far_beyond(monkeypatch):
    monkeypatch.setattr(order, "PASSED", 1000)
    training = order.Training(SHORT)
    before = order.errors_at(training.network, 12, 500, 3)
    told = []
    training.run(check=100, tell=lambda step, error, left: told.append(step))
    assert training.solved
    assert told == list(range(100, training.steps + 1, 100))
    assert order.errors_at(training.network, 12, 500, 3) < 0.02 < 0.6 < before
    result = order.study_temporal_order(SHORT, minutes=0, lengths=(12, 2000), count=200)
    assert set(result.errors) == {12, 2000}
    assert (result.tested, result.steps, result.solved) == (200, 0, False)
    assert order.order_figure([result]).axes


def test_a_network_is_kept_where_a_signal_found_it(tmp_path):
    before = signal.getsignal(signal.SIGINT)  # ignored where the tests run in a shell's background
    whole = order.Training(recipe := dataclasses.replace(SHORT, rate=0.001, steps=60))
    whole.run(check=50)
    kept = tmp_path / "kept.safetensors"

    class Called(order.Training):
        def step(self):
            if self.steps == 7:
                signal.raise_signal(signal.SIGINT)
            return super().step()

    with pytest.raises(KeyboardInterrupt, match=r"stopped at step 8; the network is in .*kept.safetensors: the same"):
        Called(recipe, kept).run(check=50)
    again, told = order.Training(recipe, kept), []
    assert again.steps == 8
    assert again.seconds > 0
    again.run(check=50, tell=lambda step, error, left: told.append(step))
    assert told == [50, 60]
    for one, other in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(one, other)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_kept_file_that_lacks_something_is_told(tmp_path):
    training = order.Training(SHORT)
    for lacking in ("moving.2", "about", "network.answer.bias", "drawn"):
        tensors = {name: tensor for name, tensor in training._tensors().items() if name != lacking}
        (tmp_path / "kept").write_bytes(tensor_bytes(order._KIND, tensors))
        with pytest.raises(UserError, match=rf"kept is not what this study keeps \(see its {lacking}\); move it"):
            order.Training(SHORT, tmp_path / "kept")


@pytest.mark.parametrize("cell", [Elman(6, 9, activation="relu"), GRU(6, 9)])
def test_the_closed_form_is_of_tanh_alone(cell):
    with pytest.raises(UserError, match="is that of an Elman cell with tanh; for others there is throughtime"):
        RegularisedGradients(cell, torch.nn.Linear(9, 4))


def test_a_stopped_network_goes_on_as_if_it_had_not_stopped(tmp_path):
    recipe = dataclasses.replace(SHORT, rate=0.001)
    whole = order.Training(recipe)
    whole.run(check=20)
    kept = tmp_path / "deep" / "kept.safetensors"

    def stop(step, error, left):
        if step == 140:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        order.Training(recipe, kept).run(check=20, tell=stop)
    again = order.Training(recipe, kept)
    assert again.steps == 140
    again.run(check=20)
    assert again.steps == whole.steps == 300
    for one, other in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rate_falls_to_zero_at_the_end():
    recipe = order.Recipe(steps=100, rate=0.2, cool=0.5)
    assert [round(recipe.rate_at(k), 6) for k in (0, 50, 75, 100)] == [0.2, 0.2, 0.1, 0.0]
    assert order.Recipe(steps=100, rate=0.2, cool=0).rate_at(99) == 0.2


@pytest.mark.parametrize("weight", [0.0, 3.0])
def test_closed_form_is_the_general_regulariser(weight):
    torch.manual_seed(0)
    cell, answer = Elman(6, 9).double(), torch.nn.Linear(9, 4).double()
    x, target = torch.randn(5, 23, 6, dtype=torch.float64), torch.randint(0, 4, (5,))

    def loss(y):
        return torch.nn.functional.cross_entropy(answer(y[:, -1]), target)

    penalty = vanishing_gradient_penalty(cell, x, loss) / 23
    whole = loss(unroll(cell, x)[0])
    (whole + weight * penalty).backward()
    parameters = [*cell.parameters(), *answer.parameters()]
    expected = [p.grad.clone() for p in parameters]
    found = RegularisedGradients(cell, answer)(x, target, weight)
    assert found == pytest.approx((whole.item(), penalty.item() if weight else 0.0), rel=1e-10)
    for parameter, grad in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-9, atol=1e-12)


def test_command_line_of_temporal_order(tmp_path):
    arguments = ["temporal-order", "--out", str(tmp_path), "--shortest", "10", "--longest", "12", "--steps", "20"]
    arguments += ["--check", "10", "--count", "100"]
    result = typer.testing.CliRunner().invoke(study, arguments)
    assert result.exit_code == 0, result.output
    assert "step 20: " in result.output
    assert "length 5000: " in result.output
    assert sorted(p.suffix for p in tmp_path.iterdir()) == [".jsonl", ".png", ".safetensors"]
    again = typer.testing.CliRunner().invoke(study, arguments)
    assert again.exit_code == 0, again.output
    assert "step 20: " not in again.output
    first, second = order.read_results(tmp_path / "results.jsonl")
    assert first == second
    assert first.steps == 20


@pytest.mark.parametrize("command", ["memory", "temporal-order"])
def test_a_folder_that_cannot_be_written_is_told_before_the_work(tmp_path, command):
    (tmp_path / "file").write_text("")
    wrong = typer.testing.CliRunner().invoke(study, [command, "--out", str(tmp_path / "file")])
    assert isinstance(wrong.exception, UserError)
    assert "is a file" in str(wrong.exception)


def test_a_name_given_twice_is_no_second_run(tmp_path):
    results = tmp_path / "results.jsonl"
    found = run.memory_study(
        results, cells=["elman", "elman"], tasks=["adding"], lengths=[5, 5], seeds=[1], settings=run.Settings(steps=2)
    )
    assert len(found) == 1


def test_what_ran_out_of_time_is_run_anew(tmp_path):
    results, settings = tmp_path / "results.jsonl", run.Settings(steps=3)
    options = {"cells": ["elman"], "tasks": ["adding"], "lengths": [5], "seeds": [1]}
    (first,) = run.memory_study(results, settings=settings, minutes=0, **options)
    assert (first.stopped, first.steps) == ("time", 1)
    assert "0 of 1 (1 out of time)" in run.table([first])
    (again,) = run.memory_study(results, settings=settings, **options)
    assert (again.stopped, again.steps) == ("steps", 3)


def test_a_file_that_is_no_text_is_told(tmp_path):
    (tmp_path / "results.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(UserError, match="cannot be read as results"):
        run.memory_study(tmp_path / "results.jsonl", cells=["elman"], tasks=["adding"], lengths=[5], seeds=[1])


def test_a_gradient_that_is_no_longer_finite_is_told():
    training = order.Training(order.Recipe(shortest=10, longest=10, steps=9))
    with torch.no_grad():
        training.network.cell.recurrent.weight.fill_(torch.inf)
    with pytest.raises(UserError, match="no longer finite after 0 steps"):
        training.step()
