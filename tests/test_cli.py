"""The frame of the command line: options, errors, exit statuses."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import throughtime
import toy_command  # brings its job before the commands are put together
from throughtime.cells import CATALOGUE
from throughtime.cli import main as cli
from throughtime.cli.options import with_training
from throughtime.learning import Training, read_metrics

SCRIPT = Path(toy_command.__file__)
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def run(*arguments):
    return CliRunner().invoke(cli.root, [str(argument) for argument in arguments])


def start(*arguments, **options):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen(command, text=True, env=ENVIRONMENT, **pipes)


# Cells


def test_cells_as_json_are_the_catalogue():
    listed = json.loads(run("cells", "--input-size", 3, "--hidden-size", 5, "--json").stdout)
    assert (listed["input_size"], listed["hidden_size"]) == (3, 5)
    assert [row["name"] for row in listed["cells"]] == list(CATALOGUE)
    for row in listed["cells"]:
        made = CATALOGUE[row["name"]].make(3, 5)
        assert row["parameters"] == sum(p.numel() for p in made.parameters())
        assert row["equation"]
        assert row["source"]
    lstm = next(row for row in listed["cells"] if row["name"] == "lstm")
    assert lstm["parameters"] == 4 * 5 * (3 + 5 + 1)


def test_cells_as_a_table_has_a_row_for_each():
    out = run("cells").stdout
    assert all(f" {name} " in out for name in CATALOGUE)
    assert "input size 128 and hidden size 128" in out
    assert run("cells", "--hidden-size", 0).exit_code == 2


# The list of commands


def test_the_list_of_commands_waits_for_nothing_and_is_right():
    code = "import sys; from throughtime.cli import main; assert not {'torch', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT)
    listed = run("--help").stdout
    assert all(f" {name} " in listed for name in cli.LISTED)
    cli.load()
    brought = typer.main.get_group(cli.root).commands
    ours = {name: command.help for name, command in brought.items() if name != "fail"}  # that is the toy's own
    assert ours == cli.LISTED


def test_a_command_that_is_not_there_is_told():
    result = run("nonsense")
    assert result.exit_code == 2
    assert "No such command 'nonsense'" in result.output


def test_help_without_a_run_shows_the_options_of_each_job():
    shown = run("evaluate", "--help").stdout
    assert "--factor" in shown  # of the toy
    assert "--streams" in shown  # of the language job


# Options of training


def test_every_setting_of_training_is_an_option_with_the_jobs_default():
    seen = []
    app = typer.Typer()

    @app.command()
    @with_training(Training(minutes=3, optimizer="sgd", clip_norm=None))
    def job(text: str, *, training: Training, resume: bool) -> None:
        seen.append((text, training, resume))

    def called(*arguments):
        result = CliRunner().invoke(app, ["t", *arguments], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return seen[-1]

    assert called() == ("t", Training(minutes=3, optimizer="sgd", clip_norm=None), False)
    assert called("--steps", "5", "--resume") == ("t", Training(steps=5, optimizer="sgd", clip_norm=None), True)
    other = Training(
        epochs=1.5,
        optimizer="adamw",
        learning_rate=0.5,
        weight_decay=0.1,
        momentum=0.2,
        rmsprop_decay=0.3,
        beta1=0.4,
        beta2=0.5,
        average_weights=0.6,
        schedule="step",
        warmup=3.0,
        final_rate=0.6,
        decay_factor=0.7,
        decay_every=8.0,
        plateau_patience=9,
        clip_norm=10.0,
        clip_value=11.0,
        validate_every=12,
        patience=13,
        keep="last",
        checkpoint_every=14,
        log_every=15,
        device="cpu",
        precision="64-true",
        seed=16,
        deterministic=True,
    )
    arguments = []
    for field in dataclasses.fields(Training):
        value = getattr(other, field.name)
        name = "--" + field.name.replace("_", "-")
        if field.name not in ("steps", "minutes"):
            assert value != field.default, field.name  # or its option might lead nowhere
            arguments += [name] if value is True else [name, str(value)]
    assert called(*arguments) == ("t", other, False)


def test_a_job_cannot_take_a_name_of_training():
    def job(seed: int, *, training: Training, resume: bool) -> None: ...

    with pytest.raises(TypeError, match="both have 'seed'"):
        with_training(Training(steps=1))(job)


def test_a_job_trains_and_its_run_knows_it(tmp_path):
    out = tmp_path / "run"
    trained = run("train", "toy", "--out", out, "--log-every", 1)
    assert (trained.exit_code, trained.stdout) == (0, "7 steps\n")
    assert read_metrics(out)[-1]["learning_rate"] == 0.05
    for arguments in ((out, "--factor", "3"), ("--factor", "3", out)):
        evaluated = run("evaluate", *arguments)
        assert (evaluated.exit_code, evaluated.stdout) == (0, "run by 3.0\n")
    assert "--factor" in run("evaluate", out, "--help").stdout
    assert run("evaluate", out, "--nothing").exit_code == 2


# Errors


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["train", "toy", "--out", "{out}"], "holds a run already; go on with it by --resume, or name another folder"),
        (["train", "toy", "--out", "{out}/new", "--steps", "1", "--epochs", "2"], "steps and epochs given"),
        (["train", "toy", "--out", "{out}/new", "--optimizer", "x"], "optimizer must be one of rmsprop, sgd"),
        (["train", "toy", "--out", "/proc/none"], "cannot write /proc/none"),
        (["evaluate", "{out}/nowhere"], "does not exist; name the folder of a run"),
        (["evaluate", "--text", "x"], "no folder of a run among the arguments; give it first"),
        (["evaluate", "{out}/checkpoint"], "is not the folder of a run"),
        (["generate", "{out}"], "is a run of 'toy', which knows no `generate`"),
        (["fail", "system"], "No such file or directory (/nowhere/at/all)"),
        (["fail", "full"], "No space left on device; make room and try again"),
        (["fail", "memory"], "the memory does not suffice; ask for less"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_status_2(tmp_path, arguments, line):
    run("train", "toy", "--out", tmp_path / "run", "--steps", 1)
    arguments = [argument.format(out=tmp_path / "run") for argument in arguments]
    failed = run(*arguments)
    assert failed.exit_code == 2
    assert failed.stdout == ""
    assert failed.stderr.startswith("throughtime: ")
    assert failed.stderr.count("\n") == 1
    assert line in failed.stderr
    shown = run("--debug", *arguments)
    assert shown.exit_code == 2
    assert "Traceback (most recent call last)" in shown.stderr
    assert shown.stderr.endswith(failed.stderr)


@pytest.mark.parametrize("arguments", [["nonsense"], ["cells", "--nonsense"], ["train", "toy"]])
def test_misuse_is_status_2_too(arguments):
    assert run(*arguments).exit_code == 2


def test_help_and_version():
    assert run("--version").stdout == f"throughtime {throughtime.__version__}\n"
    shown = run("train", "toy", "--help").stdout
    assert all(f"--{word}" in shown for word in ("learning-rate", "checkpoint-every", "resume"))
    assert "cells" in run("--help").stdout


def test_a_defect_shows_itself():
    assert isinstance(run("fail", "defect").exception, RuntimeError)


def test_debug_counts_wherever_it_stands(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["throughtime", "evaluate", "nowhere", "--debug"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_goes_away_is_no_error_to_speak_of():
    writing = start("fail", "writing")
    assert writing.stdout.readline() == "line 0\n"
    writing.stdout.close()
    assert writing.wait(60) == 141
    assert writing.stderr.read() == ""
    writing.stderr.close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_in_a_checkpoint_and_its_status(tmp_path, number, status):
    out = tmp_path / "run"
    training = start("train", "toy", "--out", out, "--steps", 1_000_000, "--log-every", 1)
    deadline = time.monotonic() + 60
    while not ((out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_size):
        assert time.monotonic() < deadline
        assert training.poll() is None, training.stderr.read()
        time.sleep(0.05)
    training.send_signal(number)
    _, said = training.communicate(timeout=60)
    assert training.returncode == status
    last = said.splitlines()[-1]
    assert last.startswith("throughtime: stopped at step")
    assert "--resume" in last
    assert "Traceback" not in said
    assert len(list((out / "checkpoint").iterdir())) == 1


def test_the_module_runs():
    ran = subprocess.run(
        [sys.executable, "-m", "throughtime", "--version"], capture_output=True, text=True, env=ENVIRONMENT
    )
    assert ran.stdout == f"throughtime {throughtime.__version__}\n"
