"""Numbers on disk, and batches of them."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import (
    DOCUMENT,
    IGNORED,
    Numbers,
    Streams,
    TextSource,
    Window,
    encode_to_disk,
    learn_vocabulary,
    side_by_side,
)
from throughtime.data.disk import OnDisk
from throughtime.errors import UserError

sizes = st.integers(1, 6)


def distinct(count: int) -> Numbers:
    """A text whose units are all different: each tells its place."""
    return Numbers(np.arange(2, count + 2, dtype=np.uint16), False)


def resets_of(window: Window) -> torch.Tensor:
    return torch.zeros_like(window.inputs, dtype=torch.bool) if window.resets is None else window.resets


@given(batch_size=sizes, window=sizes, more=st.integers(1, 60), epoch=st.integers(0, 3), shift=st.booleans())
def test_every_epoch_reads_the_whole_text_and_carries_on(
    batch_size: int, window: int, more: int, epoch: int, shift: bool
) -> None:
    count = max(window + more, batch_size)
    streams = Streams(distinct(count), batch_size, window, shift=shift, seed=7)
    windows = [streams(epoch * streams.steps + k) for k in range(streams.steps)]
    assert [w.first for w in windows] == [True] + [False] * (streams.steps - 1)
    inputs = torch.cat([w.inputs for w in windows], dim=1)  # (B, steps T)
    targets = torch.cat([w.targets for w in windows], dim=1)
    following = torch.where(inputs == count + 1, IGNORED, inputs + 1)  # no unit follows the last
    assert torch.equal(targets, following)
    assert torch.equal(inputs[:, 1:], torch.where(targets == IGNORED, 2, targets)[:, :-1])  # the streams run on
    assert set(inputs.flatten().tolist()) == set(range(2, count + 2))
    assert inputs.numel() - count < batch_size * window
    resets = torch.cat([resets_of(w) for w in windows], dim=1)
    assert torch.equal(resets, inputs == 2)


def test_epochs_begin_at_other_places_that_the_seed_decides() -> None:
    def begins(seed: int, shift: bool = True) -> list[int]:
        streams = Streams(distinct(500), 2, 5, seed=seed, shift=shift)
        return [int(streams(epoch * streams.steps).inputs[0, 0]) for epoch in range(4)]

    assert begins(1) == begins(1)
    assert len(set(begins(1))) > 1
    assert begins(1) != begins(2)
    assert begins(1, shift=False) == [2, 2, 2, 2]


@given(batch_size=st.integers(3, 7), world=st.integers(1, 3), step=st.integers(0, 40))
def test_processes_share_the_rows_of_a_batch(batch_size: int, world: int, step: int) -> None:
    streams = Streams(distinct(101), batch_size, 4, seed=3)
    whole = streams(step)
    for rank in range(world):
        part = streams(step, rank, world)
        assert torch.equal(part.inputs, whole.inputs[rank::world])
        assert torch.equal(part.targets, whole.targets[rank::world])
        assert part.first == whole.first


def test_documents_reset_the_state() -> None:
    ids = np.array([1, 5, 6, 1, 7, 1, 8, 9, 9, 1], dtype=np.uint8)
    window = Streams(Numbers(ids, True), 1, 9, shift=False)(0)
    assert window.resets is not None
    assert torch.equal(window.resets, window.inputs == DOCUMENT)
    assert torch.equal(window.inputs[0], torch.from_numpy(ids[:-1].astype(np.int64)))
    assert window.targets[0].tolist() == ids[1:].tolist()  # the end of a document is foretold too


def test_too_short_a_text_and_too_small_a_batch_are_told() -> None:
    Streams(distinct(6), 4, 5)
    with pytest.raises(UserError, match="has 5 units, and one window takes 6"):
        Streams(distinct(5), 4, 5)
    with pytest.raises(UserError, match="too small for 3 processes"):
        Streams(distinct(9), 2, 5)(0, 2, 3)
    with pytest.raises(UserError, match="at least 1"):
        Streams(distinct(9), 0, 5)


@given(count=st.integers(2, 70), streams=sizes, window=sizes, warm_up=st.integers(0, 9))
def test_measuring_counts_each_unit_but_the_first_once(count: int, streams: int, window: int, warm_up: int) -> None:
    windows = list(side_by_side(distinct(count), streams, window, warm_up))
    assert [w.first for w in windows] == [True] + [False] * (len(windows) - 1)
    inputs = torch.cat([w.inputs for w in windows], dim=1)
    targets = torch.cat([w.targets for w in windows], dim=1)
    counted = targets != IGNORED
    assert sorted(targets[counted].tolist()) == list(range(3, count + 2))
    assert torch.equal(targets[counted], inputs[counted] + 1)
    resets = torch.cat([resets_of(w) for w in windows], dim=1)
    for row in range(len(inputs)):
        first = int(counted[row].nonzero()[0])
        begin = first if streams == 1 else max(first - warm_up, first - int(inputs[row, first]) + 2)
        read = inputs[row, begin:]  # what the state of the first counted unit rests on
        assert torch.equal(read, torch.arange(int(read[0]), int(read[0]) + len(read)))
        assert begin == 0 or bool(resets[row, begin]) or first - begin >= warm_up


def test_one_unit_cannot_be_measured() -> None:
    with pytest.raises(UserError, match="at least 2"):
        list(side_by_side(distinct(1), 4, 4, 0))


def test_a_text_is_split_at_its_last_part() -> None:
    learnt, held_out = distinct(101).split(0.1)
    assert (len(learnt), len(held_out)) == (91, 10)
    assert learnt.ids.tolist() + held_out.ids.tolist() == distinct(101).ids.tolist()


@given(lengths=st.lists(st.integers(1, 9), min_size=2, max_size=8), last=st.floats(0.01, 0.99))
def test_documents_are_split_between_documents(lengths: list[int], last: float) -> None:
    ids = np.array([n for k, length in enumerate(lengths) for n in [DOCUMENT, *[k + 2] * length]] + [DOCUMENT])
    learnt, held_out = Numbers(ids, True).split(last)
    assert learnt.ids[0] == learnt.ids[-1] == held_out.ids[0] == held_out.ids[-1] == DOCUMENT
    assert learnt.ids.tolist() + held_out.ids[1:].tolist() == ids.tolist()
    assert not set(learnt.ids.tolist()) & set(held_out.ids.tolist()) - {DOCUMENT}
    assert len(learnt) > 2
    assert len(held_out) > 2


def test_one_document_cannot_be_split() -> None:
    with pytest.raises(UserError, match="--valid"):
        Numbers(np.array([1, 5, 6, 7, 1]), True).split(0.5)


def test_numbers_lie_on_disk_and_leave_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    (tmp_path / "text").write_text("春眠不覺曉" * 1000, encoding="utf-8")
    source = TextSource(tmp_path / "text")
    vocabulary = learn_vocabulary(source, "char")
    numbers = encode_to_disk(source, vocabulary)
    assert isinstance(numbers.ids, OnDisk)
    assert numbers.ids.dtype == np.uint8
    assert len(list((tmp_path / "scratch").iterdir())) == 0  # it has no name
    assert len(numbers) == 5000
    assert vocabulary.decode(numbers.read(0, 7)) == "春眠不覺曉春眠"
    again = encode_to_disk(source, vocabulary)
    assert again.digest == numbers.digest
    (tmp_path / "text").write_text("春眠不覺曉" * 999 + "春眠不覺春", encoding="utf-8")
    assert encode_to_disk(source, vocabulary).digest != numbers.digest
    del numbers, again
    assert list((tmp_path / "scratch").iterdir()) == []


@given(st.lists(st.lists(st.integers(0, 99), max_size=5), max_size=4), st.data())
def test_an_array_on_disk_is_an_array(parts: list[list[int]], data: st.DataObject) -> None:
    stored = OnDisk([np.array(part, dtype=np.int64) for part in parts], np.uint16)
    plain = np.array([number for part in parts for number in part], dtype=np.uint16)
    for _ in range(3):
        assert len(stored) == len(plain)
        assert np.asarray(stored).tolist() == plain.tolist()
        assert np.asarray(stored).dtype == np.uint16
        part = slice(*(data.draw(st.none() | st.integers(-9, 20)) for _ in range(2)))
        stored, plain = stored[part], plain[part]
    with pytest.raises(ValueError, match="forwards"):
        stored[::2]


def test_units_that_the_vocabulary_lacks_are_counted(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("abcd??e?")
    (tmp_path / "known").write_text("abcde")
    vocabulary = learn_vocabulary(TextSource(tmp_path / "known"), "char")
    assert encode_to_disk(TextSource(tmp_path / "text"), vocabulary).unknown == 3


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text").write_text("abc")
    source = TextSource(tmp_path / "text")
    vocabulary = learn_vocabulary(source, "char")

    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(UserError, match="No space left on device; set TMPDIR"):
        encode_to_disk(source, vocabulary)
