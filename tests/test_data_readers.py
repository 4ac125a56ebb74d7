"""Readers of labelled sequences: what they find, and the line they name where something is wrong."""

from __future__ import annotations

import gzip
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from throughtime.data.buckets import MOST, Buckets, in_order
from throughtime.data.idx import read_idx, read_images
from throughtime.data.index import WordIndex, split_validation
from throughtime.data.lines import numbered_lines
from throughtime.data.sentences import Columns, Sentence, format_of, read_sentences
from throughtime.data.series import read_ts, series_of_line
from throughtime.data.spans import Span, labels_of, may_follow, scheme_of, segments_of, spans_of, words_of
from throughtime.data.swap import SpanSwap
from throughtime.data.tables import read_table
from throughtime.data.trees import read_trees
from throughtime.data.vectors import read_vectors
from throughtime.errors import UserError


def put(folder: Path, text: str, name: str = "file") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return path


def test_lines_end_in_any_way(tmp_path: Path) -> None:
    path = put(tmp_path, "\ufeffa\r\nb\n\nc")
    assert list(numbered_lines(path)) == [(1, "a"), (2, "b"), (3, ""), (4, "c")]
    with pytest.raises(UserError, match="a folder, where a file is wanted"):
        list(numbered_lines(tmp_path))


def test_conll_columns(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O\n\n# a comment\nEU NNP B-ORG\nrejects VBZ O\n\n\n\nPeter NNP B-PER\n"
    first, second = read_sentences(put(tmp_path, text))
    assert (first.words, first.labels, first.line) == (("EU", "rejects"), ("B-ORG", "O"), 4)
    assert second.where == f"{tmp_path / 'file'}:9"
    pos = read_sentences(put(tmp_path, text), "conll", Columns(label=2))[0]
    assert pos.labels == ("NNP", "VBZ")
    assert read_sentences(put(tmp_path, text), "conll", Columns(word=-2, label=1))[1].words == ("NNP",)


def test_words_with_a_digit_to_strip(tmp_path: Path) -> None:
    path = put(tmp_path, "科0\tO\n技1\tB-ORG\n20\tO\n")
    assert read_sentences(path, columns=Columns(strip_digit=True))[0].words == ("科", "技", "2")
    with pytest.raises(UserError, match=r"file:2: '技' has no digit at its end, which --strip-digit is for"):
        read_sentences(put(tmp_path, "科0\tO\n技\tO\n"), columns=Columns(strip_digit=True))


def test_conllu(tmp_path: Path) -> None:
    row = "{}\t{}\t_\t{}\t_\t_\t_\t_\t_\t_\n"
    text = "# text = vámonos\n" + row.format("1-2", "vámonos", "_") + row.format(1, "vamos", "VERB")
    text += row.format(2, "nos", "PRON") + row.format("2.1", "x", "X") + "\n" + row.format(1, "春眠", "NOUN")
    path = put(tmp_path, text)
    assert format_of(path) == format_of(put(tmp_path, text, "file.conll")) == "conllu"
    assert format_of(put(tmp_path, "\n# a comment\n\n" + row.format("0.1", "y", "X") + text)) == "conllu"
    for other in ("", "# alone\n", "a\tX\nb\tY\n", "1\tX\n", row.format(1984, "NN", "O"), row.format(2, "NN", "O")):
        assert format_of(put(tmp_path, other, "file.conll")) == "conll"
    words = row.format(1, "CD", "O") + row.format("was", "VB", "O")  # a word that could be a number of the format
    assert format_of(put(tmp_path, words, "file.conll")) == "conll"
    path = put(tmp_path, text)
    first, second = read_sentences(path)
    assert (first.words, first.labels) == (("vamos", "nos"), ("VERB", "PRON"))
    assert read_sentences(path, columns=Columns(segment=True))[1].words == ("春", "眠")
    assert read_sentences(path, columns=Columns(segment=True))[1].labels == ("B", "E")
    last = put(tmp_path, "1 ab\n2 c\n")  # the labels' column is not read where words' borders are the labels
    assert read_sentences(last, columns=Columns(word=-1, segment=True))[0].labels == ("B", "E", "S")
    assert second.line == 7
    with pytest.raises(UserError, match="file:2: 3 columns; CoNLL-U has 10"):
        read_sentences(put(tmp_path, row.format(1, "a", "X") + "2\tb\tc\n"), "conllu")


def test_parallel_files(tmp_path: Path) -> None:
    put(tmp_path, "to boston\n\nshow me\n\n", "seq.in")
    put(tmp_path, "O B-city\n\nO O\n\n", "seq.out")
    put(tmp_path, "flight\nnone\nlist#all\n\n", "label")
    first, empty, second = read_sentences(tmp_path)
    assert (first.words, first.labels, first.intent) == (("to", "boston"), ("O", "B-city"), "flight")
    assert (empty.words, empty.labels, empty.intent) == ((), (), "none")
    assert (second.intent, second.line) == ("list#all", 3)
    unlabelled = read_sentences(tmp_path, columns=Columns(labelled=False))
    assert [len(sentence.words) for sentence in unlabelled] == [2, 0, 2, 0]
    put(tmp_path, "to boston\n\nshow me\n", "seq.in")
    put(tmp_path, "flight\nnone\nlist#all\n", "label")
    put(tmp_path, "O B-city\n\nO\n", "seq.out")
    with pytest.raises(UserError, match=r"seq.out:3: 1 labels for the 2 words of seq.in"):
        read_sentences(tmp_path)
    put(tmp_path, "O B-city\n", "seq.out")
    with pytest.raises(UserError, match=r"seq.out:2: 1 lines, where seq.in has 3"):
        read_sentences(tmp_path)
    (tmp_path / "seq.out").unlink()
    with pytest.raises(UserError, match=r"seq.out: cannot be read"):
        read_sentences(tmp_path)


def test_segmented_text(tmp_path: Path) -> None:
    path = put(tmp_path, "春眠 不 觉得晓\n\n处处\n", "train.seg")
    first, second = read_sentences(path)
    assert "".join(first.words) == "春眠不觉得晓"
    assert first.labels == ("B", "E", "S", "B", "M", "E")
    assert second.line == 3
    assert words_of(first.words, first.labels) == ["春眠", "不", "觉得晓"]
    assert [sentence.line for sentence in read_sentences(path, columns=Columns(labelled=False))] == [1, 2, 3]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a O\nb x O\n", r"file:2: 3 columns, where line 1 of the same sentence has 2"),
        ("a O\n\nb\n", r"file:3: 1 column, so there is no column -1"),
        ("a\tO\nb\t\n", r"file:2: column -1 is empty"),
        ("\n\n", "no sentence in it"),
    ],
)
def test_what_is_wrong_in_conll_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        read_sentences(put(tmp_path, text))


def test_mixed_encodings_are_told_with_their_line(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes("春 O\n".encode() + "夏 O\n".encode("gbk"))
    with pytest.raises(UserError, match=r"file:2: not UTF-8 at byte 6"):
        read_sentences(path)


SPANS = [Span("x", 0, 1), Span("x", 1, 4), Span("y", 5, 7)]


@pytest.mark.parametrize("scheme", ["bio", "bioes", "bmes"])
def test_spans_there_and_back(scheme: str) -> None:
    labels = labels_of(SPANS, 8, scheme)
    assert spans_of(labels) == SPANS
    assert scheme_of(labels) == scheme
    names = sorted(set(labels))
    allowed, begins, ends = may_follow(names, scheme)
    numbers = [names.index(label) for label in labels]
    assert all(bool(allowed[j, k]) for j, k in pairwise(numbers))
    assert bool(begins[numbers[0]])
    assert bool(ends[numbers[-1]])


def test_what_no_scheme_allows_is_ruled_out() -> None:
    names = ["O", "B-x", "I-x", "E-x", "S-x", "I-y"]
    allowed, begins, ends = may_follow(names, "bioes")
    after = {names[j]: {names[k] for k in range(6) if allowed[j, k]} for j in range(6)}
    assert after["O"] == after["E-x"] == after["S-x"] == {"O", "B-x", "S-x"}
    assert after["B-x"] == after["I-x"] == {"I-x", "E-x"}
    assert [names[k] for k in range(6) if begins[k]] == ["O", "B-x", "S-x"]
    assert [names[k] for k in range(6) if ends[k]] == ["O", "E-x", "S-x"]


def test_spans_are_read_as_the_conll_scorer_reads_them() -> None:
    assert spans_of(["I-x", "I-x", "B-x", "O", "I-y", "I-x"]) == [
        Span("x", 0, 2),
        Span("x", 2, 3),
        Span("y", 4, 5),
        Span("x", 5, 6),
    ]
    assert segments_of(["ab", "c"]) == ("B", "E", "S")


def test_tables(tmp_path: Path) -> None:
    path = put(tmp_path, 'label,text\n1,"good, ""really""\nyes"\n0,bad\n')
    rows = list(read_table(path, "csv", "text", "label"))
    assert [(row.text, row.label, row.line) for row in rows] == [('good, "really"\nyes', "1", 2), ("bad", "0", 4)]
    path = put(tmp_path, 'text\tlabel\na "b\tx\n')
    assert [row.text for row in read_table(path, "tsv", "text", "label")] == ['a "b']
    path = put(tmp_path, '{"text": "a", "label": 3}\n\n{"text": "", "label": true}\n')
    assert [(row.text, row.label) for row in read_table(path, "jsonl", "text", "label")] == [("a", "3"), ("", "True")]


@pytest.mark.parametrize(
    ("form", "text", "told"),
    [
        ("csv", "text,label\na,b,c\n", "file:2: 3 columns, where the first line names 2; put quotes"),
        ("csv", 'text,label\n"a,b\n', r"file:2: not CSV \("),
        ("csv", "words,label\na,b\n", r"file:1: no column 'text' here \(it has words, label\)"),
        ("jsonl", '{"text": "a", "label": 1}\n{"words": "a"}\n', r"file:2: no column 'text' here \(it has words\)"),
        ("tsv", "text\tlabel\na\t \n", "file:2: 'label' is empty, where a label is wanted"),
        ("jsonl", '{"text": 1, "label": 2}\n', "file:1: 'text' is a number, where a text is wanted"),
        ("jsonl", '{"text": "a", "label": ["b"]}\n', "file:1: 'label' is a list, where a label is wanted"),
        ("jsonl", "\n{oops}\n", "file:2: not a line of JSON"),
        ("jsonl", "[" * 100_000 + "\n", "file:1: not a line of JSON"),
        ("jsonl", "9" * 5000 + "\n", "file:1: not a line of JSON"),
        ("csv", "text,label,text\na,b,c\n", "file:1: 2 columns are named 'text'; rename all but one"),
        (
            "jsonl",
            '{"text": "a\\ud800", "label": 1}\n',
            r"file:1: 'text' has half a character, .ud800, which is not text",
        ),
        ("jsonl", '{"text": "a", "label": "\\udc00"}\n', "file:1: 'label' has half a character"),
        ("jsonl", '{"text": "a", "label": "b\\nc"}\n', "file:1: 'label' has several lines, where a label has one"),
        ("csv", '"one\nname",label\na,b\n', "file:1: no column 'text' here \\(it has one name, label\\)"),
        ("jsonl", "[]\n", "file:1: a list, where a JSON object is wanted"),
    ],
)
def test_what_is_wrong_in_a_table_is_told_with_its_line(tmp_path: Path, form: str, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(read_table(put(tmp_path, text), form, "text", "label"))


def test_trees(tmp_path: Path) -> None:
    path = put(tmp_path, "(3 (2 A) (4 (3 warm) (2 -LRB-)))\n\n(1 no)\n")
    first, second = read_trees(path)
    assert [(phrase.label, phrase.words) for phrase in first] == [
        ("2", ("A",)),
        ("3", ("warm",)),
        ("2", ("(",)),
        ("4", ("warm", "(")),
        ("3", ("A", "warm", "(")),
    ]
    assert [phrase.whole for phrase in first] == [False] * 4 + [True]
    assert second[0].where.endswith("file:3")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("(3 a)\n(3 (2 a)\n", "file:2: 1 brackets are not closed"),
        ("((2 a))\n", "file:1: a bracket opens without a label"),
        ("(3)\n", "file:1: the node '3' has no word"),
        ("(3 a) b\n", "file:1: 'b' stands outside"),
        ("(3 a) (2 b)\n", "file:1: more than one tree"),
    ],
)
def test_what_is_wrong_in_a_tree_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(read_trees(put(tmp_path, text)))


def test_series(tmp_path: Path) -> None:
    head = "# about\n@problemName x\n@classLabel true a b\n@data\n"
    one, two = read_ts(put(tmp_path, head + "1,2,3:4,?,6:a\n7:?,?:b\n"))
    assert one.values.tolist() == [[1, 4], [2, 4], [3, 6]]
    assert (one.label, two.label, two.line) == ("a", "b", 6)
    assert two.values.tolist() == [[7, 0], [7, 0]]
    assert series_of_line("1,2:3,4", Path("x"), 1, labelled=False).values.tolist() == [[1, 3], [2, 4]]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("@data\n1,x:a\n", "file:2: 'x' is no number"),
        ("@data\n1,inf:a\n", "file:2: 'inf' is not a finite number"),
        ("@data\n1,2:a\n1:2:a\n", "file:3: 2 channels, where line 2 has 1"),
        ("@data\n1,2\n", "file:2: no label"),
        ("1,2:a\n", "file:1: a series before @data"),
        ("@problemName x\n", "file:1: no @data"),
        ("@timeStamps true\n@data\n", "file:1: series with time stamps"),
        ("@classLabel false\n@data\n", "file:1: its series have no labels"),
    ],
)
def test_what_is_wrong_in_a_series_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        list(read_ts(put(tmp_path, text)))


def idx(array: np.ndarray) -> bytes:
    head = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


def test_images(tmp_path: Path) -> None:
    images, labels = np.random.randint(0, 256, (5, 3, 4)), np.arange(5)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    found = read_images(tmp_path, "train")
    assert (found[0] == images).all()
    assert found[1].tolist() == labels.tolist()
    with pytest.raises(UserError, match=r"no file named t10k\*images\*"):
        read_images(tmp_path, "test")
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(idx(labels[:4]))
    with pytest.raises(UserError, match="4 labels for 5 images"):
        read_images(tmp_path, "train")
    for shape in ((0, 4), (3, 0), (3,)):
        (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((5, *shape)))))
        for labelled in (True, False):
            with pytest.raises(UserError, match="where images have three axes and some pixels"):
                read_images(tmp_path, "train", labelled=labelled)
    whole = gzip.compress(idx(images))
    for bad, told in (
        (whole[:-9], "damaged or cut short"),
        (idx(images)[:-1], "59 bytes of data, where its head says 60"),
        (b"PNG.", "not an IDX file of bytes"),
    ):
        (tmp_path / "bad").write_bytes(bad)
        with pytest.raises(UserError, match=told):
            read_idx(tmp_path / "bad")


def test_vectors(tmp_path: Path) -> None:
    path = put(tmp_path, "3 2\nto 1 2.5\nnew york 3 4\nbe -1 0\nto 9 9\n")
    words, vectors = read_vectors(path, {"to", "new york", "is"})
    assert (words, vectors.tolist()) == (["to", "new york"], [[1, 2.5], [3, 4]])
    glove = put(tmp_path, "to 1 2\nbe 3 4\n")
    assert read_vectors(glove, {"be"})[1].tolist() == [[3, 4]]
    for text, told in (
        ("to 1 2\nbe 3\n", "file:2: 1 numbers, where 2"),
        ("to 1 x\n", "file:1: not a word and 2 numbers"),
    ):
        with pytest.raises(UserError, match=told):
            read_vectors(put(tmp_path, text), {"to", "be"})


def test_batches_are_a_function_of_the_step() -> None:
    lengths = np.random.default_rng(3).integers(0, 40, 301).tolist()
    buckets = Buckets(lengths, 8, seed=5)
    assert buckets.steps == 38
    again = Buckets(lengths, 8, seed=5)
    order = [60, 3, 38, 37, 0]
    by_step = {step: again(step) for step in range(76)}
    assert all(buckets(step) == by_step[step] for step in order)
    for epoch in (range(38), range(38, 76)):
        assert sorted(k for step in epoch for k in by_step[step]) == list(range(301))
    assert by_step[0] != by_step[38]
    spread = [max(lengths[k] for k in by_step[s]) - min(lengths[k] for k in by_step[s]) for s in range(38)]
    assert np.median(spread) <= 2  # of like length
    rows = [k for rank in range(3) for k in buckets(4, rank, 3)]
    assert sorted(rows) == sorted(buckets(4))


def test_long_examples_come_in_small_batches() -> None:
    lengths = [5] * 10 + [100_000, MOST // 3, MOST // 3]
    for batches in ([Buckets(lengths, 4)(step) for step in range(Buckets(lengths, 4).steps)], in_order(lengths, 4)):
        assert sorted(k for batch in batches for k in batch) == list(range(13))
        assert [10] in batches
        for batch in batches:
            assert len(batch) == 1 or len(batch) * max(lengths[k] for k in batch) <= MOST


def test_words_as_numbers() -> None:
    sentences = [("The", "cat"), ("the", "Dog", "1999"), ("cat", "2001")]
    index = WordIndex.learn(sentences, lower=True, digits=True, pairs=True, letters=True)
    assert index.words == ["0000", "cat", "the", "dog"]
    assert index.rare == ["dog"]
    found = index.encode([("THE", "cow"), (), ("the", "1234", "dog")])
    assert found.words.tolist() == [[3, 0, 0], [0, 0, 0], [3, 1, 4]]
    assert found.lengths.tolist() == [2, 0, 3]
    assert found.letters is not None
    assert found.letters.shape == (5, 4)  # the distinct words as written: THE and the are two
    again = WordIndex.from_json(index.to_json()).encode([("THE", "cow"), (), ("the", "1234", "dog")])
    assert all((a == b).all() for a, b in zip(found, again, strict=True) if a is not None)
    forgotten = index.encode([("the", "dog")] * 50, 0.5, np.random.default_rng(0)).words
    assert set(forgotten[:, 0].tolist()) == {3}
    assert set(forgotten[:, 1].tolist()) == {0, 4}
    beside = WordIndex.learn(sentences, extras=["aba", "xxyyy"])
    assert beside.extras == [["a", "b"], ["y", "x"]]
    found = beside.encode([("the", "cat"), ("cow",)], extras=[("ba", "xz"), ("c", "y")])
    assert found.extras is not None
    assert found.extras.tolist() == [[[2, 2], [1, 0]], [[0, 1], [0, 0]]]
    again = WordIndex.from_json(beside.to_json()).encode([("the", "cat"), ("cow",)], extras=[("ba", "xz"), ("c", "y")])
    assert again.extras is not None
    assert torch.equal(found.extras, again.extras)
    assert WordIndex.learn(sentences, size=2).words == ["cat", "1999"]
    assert WordIndex.learn(sentences, min_count=2).words == ["cat"]


def test_no_class_is_left_without_training() -> None:
    labels = ["a"] * 20 + ["b"]
    train, valid = split_validation(labels, 0.3, seed=1)
    assert sorted(train + valid) == list(range(21))
    assert len(valid) == 6
    assert 20 in train
    assert split_validation(["a", "b"], 0.5, seed=1) == ([0, 1], [])


def test_spans_give_way_to_others_of_their_kind() -> None:
    def sentence(text: str, labels: str) -> Sentence:
        words = tuple(text.split())
        return Sentence(words, tuple(labels.split()), "", Path("x"), 1, (tuple(word.upper() for word in words),))

    first = sentence("from new york to rome at nine", "O B-city I-city O B-city O B-time")
    second = sentence("at half past two in bonn", "O B-time I-time I-time O B-city")
    swap = SpanSwap([first, second], "bioes")
    drawn = np.random.default_rng(1)
    seen = set()
    for _ in range(60):
        found = swap(first, 0.7, drawn)
        assert found.extras == (tuple(word.upper() for word in found.words),)
        spans = spans_of(found.labels)
        assert labels_of(spans, len(found.words), "bioes") == list(found.labels)
        assert [span.kind for span in spans] == ["city", "city", "time"]
        outside = [word for word, label in zip(found.words, found.labels, strict=True) if label == "O"]
        assert outside == ["from", "to", "at"]
        seen |= {(span.kind, " ".join(found.words[span.start : span.stop])) for span in spans}
    cities, times = ("new york", "rome", "bonn"), ("nine", "half past two")
    assert seen == {*(("city", city) for city in cities), *(("time", time) for time in times)}
    assert swap(second, 0.0, drawn).words == second.words
    assert SpanSwap([first], "bio")(second, 1.0, drawn).words[:3] == ("at", "nine", "in")
