"""Files that are whole or not there, and what is said of those that are damaged."""

import errno
import json
import os
import re
import shutil

import pytest
import torch

from throughtime import UserError
from throughtime.learning import Training, begin_run, fit, load_config, load_model, read_metrics, save_model, storage
from throughtime.learning.checkpoint import (
    Snapshot,
    flatten_state,
    has_checkpoint,
    read_checkpoint,
    shape_of_state,
    unflatten_state,
    write_checkpoint,
)
from throughtime.learning.randomness import random_state, restore_random_state
from throughtime.learning.run_folder import refuse_overwriting
from throughtime.learning.storage import json_bytes, read_json, read_tensors, tensor_bytes
from toy_problem import Toy

NAN = float("nan")


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def tensors():
    torch.manual_seed(0)
    return {
        "weight": torch.randn(3, 4),
        "double": torch.randn(2, dtype=torch.float64),
        "whole": torch.tensor([-7, 2**40]),
        "half": torch.randn(3).bfloat16(),
        "nothing": torch.zeros(0, 5),
        "scalar": torch.tensor(3.5),
        "flags": torch.tensor([True, False]),
        "awkward": torch.randn(4, 6).t()[1:],
        "strange": torch.tensor([NAN, float("inf"), -0.0]),
    }


CONTENT = {"job": "language", "settings": {"字": [1.5, None, True], "rate": 1e-7, "vocabulary": ["春", "\n", "\\"]}}


def test_tensors_and_json_come_back_as_they_were(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(tensor_bytes("model", tensors()))
    back = read_tensors(path, "model")
    assert back.keys() == tensors().keys()
    for name, value in tensors().items():
        assert back[name].dtype == value.dtype
        assert back[name].data_ptr() % 16 == 0
        torch.testing.assert_close(back[name], value, rtol=0, atol=0, equal_nan=True)
    path.write_bytes(json_bytes("run", CONTENT))
    assert read_json(path, "run") == CONTENT
    assert "春" in path.read_text(encoding="utf-8")


def test_the_same_tensors_give_the_same_bytes():
    assert len({tensor_bytes("model", tensors()) for _ in range(20)}) == 1


def test_tied_weights_are_kept(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    save_model(tmp_path, model)
    torch.manual_seed(9)
    other = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    other[1].weight = other[0].weight
    load_model(tmp_path, other)
    assert torch.equal(other[1].weight, model[0].weight)


@pytest.mark.parametrize("kind", ["json", "tensors"])
def test_every_flipped_bit_and_every_cut_is_told(tmp_path, kind):
    path = tmp_path / "file"
    if kind == "json":
        content, read = json_bytes("model", CONTENT), read_json
    else:
        content, read = tensor_bytes("model", {"weight": torch.arange(6.0).view(2, 3)}), read_tensors
    for k in range(len(content)):
        altered = bytearray(content)
        altered[k] ^= 1 << k % 8
        path.write_bytes(altered)
        with pytest.raises(UserError, match=re.escape(str(path))):
            read(path, "model")
    for length in range(0, len(content) - 1, 3):
        path.write_bytes(content[:length])
        with pytest.raises(UserError, match="damaged or cut short"):
            read(path, "model")


def test_what_else_is_wrong_with_a_file_is_told(tmp_path, monkeypatch):
    path = tmp_path / "file"
    for read in (read_json, read_tensors):
        with pytest.raises(UserError, match="is missing"):
            read(path, "model")
    for write, read, content in ((json_bytes, read_json, CONTENT), (tensor_bytes, read_tensors, tensors())):
        path.write_bytes(write("checkpoint", content))
        with pytest.raises(UserError, match="is not the model of a run"):
            read(path, "model")
        with monkeypatch.context() as later:
            later.setattr(storage, "VERSION", 2)
            path.write_bytes(write("model", content))
        with pytest.raises(UserError, match=r"format version 2 and this throughtime reads up to 1; update"):
            read(path, "model")
    path.write_text("[1]")
    for read in (read_json, read_tensors):
        with pytest.raises(UserError, match="damaged"):
            read(path, "model")
    with pytest.raises(UserError, match=r"cannot read .*directory"):
        read_json(tmp_path, "model")


def test_weights_of_another_model_are_told(tmp_path):
    save_model(tmp_path, torch.nn.Linear(3, 4))
    with pytest.raises(UserError, match=r"another model: weight is \(4, 3\) there and \(4, 2\) here"):
        load_model(tmp_path, torch.nn.Linear(2, 4))
    with pytest.raises(UserError, match=r"another model: bias is \(4,\) there and absent here"):
        load_model(tmp_path, torch.nn.Linear(3, 4, bias=False))


# The run folder


def test_a_run_says_what_it_is_and_is_the_same_when_resumed(tmp_path):
    run = tmp_path / "deep" / "run"
    settings = {"hidden": 5, "sizes": (1, 2)}
    begin_run(run, "language", settings)
    assert load_config(run) == ("language", {"hidden": 5, "sizes": [1, 2]})
    begin_run(run, "language", settings, resume=True)
    begin_run(run, "language", settings)  # nothing was saved: begun anew
    with pytest.raises(UserError, match="begun with hidden 5, not 6; go on with the same"):
        begin_run(run, "language", {**settings, "hidden": 6}, resume=True)
    with pytest.raises(UserError, match="a run of 'language', not of 'label'"):
        begin_run(run, "label", settings, resume=True)
    with pytest.raises(UserError, match=r"other settings \(more\)"):
        begin_run(run, "language", {**settings, "more": 1}, resume=True)
    begin_run(run, "language", {**settings, "more": 1}, resume=True, usual={"more": 1, "sizes": 3})
    with pytest.raises(UserError, match="begun with more 1, not 2; go on with the same"):
        begin_run(run, "language", {**settings, "more": 2}, resume=True, usual={"more": 1})
    with pytest.raises(UserError, match="saved nothing so far"):
        load_model(run, torch.nn.Linear(1, 1))
    save_model(run, torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="holds a run already"):
        begin_run(run, "language", settings)


def test_a_folder_that_is_no_run_is_told(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        load_config(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"is not the folder of a run: it has no config.json"):
        load_config(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is not a folder"):
        load_config(tmp_path / "file")


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    begin_run(tmp_path / "run", "language", {})
    assert not (tmp_path / "run").exists()


# Checkpoints


def snapshot(value):
    return Snapshot({"value": value}, {"weights": {"w": torch.tensor([value])}, "process-0": {}})


def test_the_last_checkpoint_counts_and_the_one_before_goes(tmp_path):
    assert not has_checkpoint(tmp_path)
    for step, value in ((9, 1.0), (10, 2.0), (10, 3.0)):
        write_checkpoint(tmp_path, step, snapshot(value))
        back = read_checkpoint(tmp_path)
        assert back.about["value"] == value
        assert back.tensors["weights"]["w"].tolist() == [value]
        assert len(list((tmp_path / "checkpoint").iterdir())) == 1


def test_what_a_killed_writer_left_is_not_taken_for_a_checkpoint(tmp_path):
    write_checkpoint(tmp_path, 5, snapshot(5.0))
    folder = tmp_path / "checkpoint"
    shutil.copytree(folder / "step-000000005", folder / ".writing")
    (folder / ".writing" / "checkpoint.json").unlink()
    shutil.copytree(folder / "step-000000005", folder / ".removing-step-000000004")
    shutil.copytree(folder / "step-000000005", folder / "step-000000004")  # killed before the old one went
    assert read_checkpoint(tmp_path).about["value"] == 5.0
    write_checkpoint(tmp_path, 6, snapshot(6.0))
    assert [path.name for path in folder.iterdir()] == ["step-000000006"]


@pytest.mark.parametrize("call", range(1, 5))
def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch, call):
    write_checkpoint(tmp_path, 5, snapshot(5.0))
    left = [call]
    real = storage.write_through

    def full(path, content):
        left[0] -= 1
        if left[0] <= 0:
            real(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, content)

    monkeypatch.setattr("throughtime.learning.checkpoint.write_through", full)
    if call == 4:  # there are three files
        write_checkpoint(tmp_path, 6, snapshot(6.0))
        return
    with pytest.raises(UserError, match=r"No space left on device; make room and go on with --resume from step 5"):
        write_checkpoint(tmp_path, 6, snapshot(6.0))
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-000000005"]
    assert read_checkpoint(tmp_path).about["value"] == 5.0


def test_a_training_that_meets_a_full_disk_goes_on_later(tmp_path, monkeypatch):
    training = Training(steps=12, checkpoint_every=3, log_every=1)
    fit(Toy(), tmp_path / "whole", training)
    real_write = os.write
    written = []

    def full(handle, content):
        written.append(content)
        if len(written) == 8:
            real_write(handle, content[:10])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real_write(handle, content)

    with monkeypatch.context() as disk:
        disk.setattr("throughtime.learning.metrics.os.write", full)
        with pytest.raises(UserError, match=r"metrics.jsonl: No space left on device; .* --resume"):
            fit(Toy(), tmp_path / "full", training)
    assert [record["step"] for record in read_metrics(tmp_path / "full")] == list(range(1, 8))
    fit(Toy(), tmp_path / "full", training, resume=True)
    assert [record["step"] for record in read_metrics(tmp_path / "full")] == list(range(1, 13))
    names = [tmp_path / name / "model.safetensors" for name in ("full", "whole")]
    assert names[0].read_bytes() == names[1].read_bytes()


def test_a_full_disk_leaves_the_old_model(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 2)
    save_model(tmp_path, model)
    before = (tmp_path / "model.safetensors").read_bytes()

    def full(path, content):
        path.write_bytes(content[:5])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage, "write_through", full)
    with pytest.raises(UserError, match="No space left"):
        save_model(tmp_path, torch.nn.Linear(2, 2))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"model.safetensors": before}


def test_every_file_of_a_checkpoint_is_checked_on_resuming(tmp_path):
    run = tmp_path / "run"
    fit(Toy(), run, Training(steps=4))
    folder = next((run / "checkpoint").iterdir())
    files = sorted(folder.iterdir())
    assert [file.name for file in files] == [
        "best.safetensors",
        "checkpoint.json",
        "optimizer.safetensors",
        "process-0.safetensors",
        "weights.safetensors",
    ]
    for file in files:
        good = file.read_bytes()
        flipped = bytearray(good)
        flipped[len(good) * 3 // 4] ^= 4
        for bad, message in ((bytes(flipped), "damaged"), (good[:-9], "cut short"), (None, "is missing")):
            if bad is None:
                file.unlink()
            else:
                file.write_bytes(bad)
            with pytest.raises(UserError, match=f"{file.name}.*{message}"):
                fit(Toy(), run, Training(steps=6), resume=True)
        file.write_bytes(good)
    assert fit(Toy(), run, Training(steps=6), resume=True).steps == 6


def test_lost_lines_of_metrics_are_told_and_no_line_stands_twice(tmp_path, capsys):
    training = Training(steps=6, log_every=1, checkpoint_every=2)
    fit(Toy(), tmp_path, training)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(UserError, match=r"metrics.jsonl:6 is damaged"):
        read_metrics(tmp_path)
    fit(Toy(), tmp_path, training.bounded(steps=8), resume=True)
    assert "lines of it are lost" in capsys.readouterr().err
    assert [record["step"] for record in read_metrics(tmp_path)] == [1, 2, 3, 4, 5, 7, 8]
    with pytest.raises(UserError, match="is missing"):
        read_metrics(tmp_path / "nowhere")


def test_states_and_generators_come_back(tmp_path):
    import random

    import numpy as np

    state = (torch.ones(2), ((torch.zeros(1), None), ()))
    shape = json.loads(json.dumps(shape_of_state(state)))
    back = unflatten_state(flatten_state(state), shape)
    assert torch.equal(back[0], state[0])
    assert torch.equal(back[1][0][0], state[1][0][0])
    assert back[1][0][1] is None
    assert back[1][1] == ()
    assert unflatten_state({}, None) is None

    np.random.normal()  # leaves the second of a pair for the next call
    random.gauss(0, 1)
    before = {name: value.clone() for name, value in random_state().items()}
    drawn = [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1), random.random()]
    restore_random_state(before)
    assert [torch.rand(3).tolist(), np.random.normal(size=3).tolist(), random.gauss(0, 1), random.random()] == drawn


def test_a_folder_that_may_not_be_written_is_told_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="may not be written to"):
        refuse_overwriting(tmp_path / "deep" / "run", resume=False)
