"""Reading text: whole, strictly, in bounded pieces."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from throughtime.data import text as text_module
from throughtime.data.text import Piece, TextSource, by_line
from throughtime.data.utf8 import read_chunks
from throughtime.errors import UserError

TEXT = "春眠不覺曉\nRésumé 𣯶 end\r\n\tlast"


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 5, 7, 1 << 20])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_characters_cut_by_a_chunk_are_whole(tmp_path: Path, chunk: int, mark: bytes) -> None:
    path = tmp_path / "text"
    path.write_bytes(mark + TEXT.encode())
    assert "".join(read_chunks(path, chunk)) == TEXT


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 1 << 20])
def test_wrong_encoding_is_told_with_its_place(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "text"
    head = "first 春\nsecond\nthird ".encode()
    path.write_bytes(head + "é and more".encode("latin-1"))
    with pytest.raises(UserError, match=rf"text:3: not UTF-8 at byte {len(head)} \(0xe9\)"):
        list(read_chunks(path, chunk))


def test_a_mark_at_the_head_counts_in_the_byte_that_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"\xef\xbb\xbfab\xff")
    with pytest.raises(UserError, match="byte 5 "):
        list(read_chunks(path))


def test_a_character_cut_at_the_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("好".encode()[:2])
    with pytest.raises(UserError, match="text:1: not UTF-8 at byte 0"):
        list(read_chunks(path))


def test_a_binary_file_in_a_folder_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.bin").write_bytes(b"\0\1")
    with pytest.raises(UserError, match=r"b.bin.*zero byte.*or leave that file out with --glob or --exclude"):
        list(TextSource(tmp_path).pieces())
    assert [piece.text for piece in TextSource(tmp_path, exclude="*.bin").pieces()] == ["text"]


@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_a_binary_file_is_told_with_its_line(tmp_path: Path, chunk: int) -> None:
    path = tmp_path / "text"
    path.write_bytes(b"one\ntwo\nthr\0ee")
    with pytest.raises(UserError, match="text:3: a zero byte: a binary file"):
        list(read_chunks(path, chunk))


def test_utf16_is_told(tmp_path: Path) -> None:
    path = tmp_path / "text"
    path.write_bytes("plain".encode("utf-16"))
    with pytest.raises(UserError, match="UTF-16"):
        list(read_chunks(path))


def test_a_missing_file_and_an_empty_one_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(TextSource(tmp_path / "none").pieces())
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(UserError, match="empty; give"):
        list(TextSource(tmp_path / "empty").pieces())


def documents(source: TextSource) -> list[str]:
    """The documents of a source, each put together from its pieces."""
    found: list[str] = []
    for piece in source.pieces():
        assert piece.text
        if piece.begins:
            found.append("")
        found[-1] += piece.text
    return found


def test_a_file_is_one_running_text(tmp_path: Path) -> None:
    (tmp_path / "text").write_text(TEXT, encoding="utf-8", newline="")
    source = TextSource(tmp_path / "text")
    assert list(source.pieces()) == [Piece(TEXT, False)]
    assert not source.apart


def test_files_of_a_folder_are_documents_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "deep/c.py", "d.txt", ".hidden.py", ".git/e.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "empty.py").touch()
    source = TextSource(tmp_path, glob="**/*.py")
    assert source.apart
    assert documents(source) == ["a.py", "b.py", "deep/c.py"]
    assert documents(TextSource(tmp_path, exclude="deep,*.txt")) == ["a.py", "b.py"]
    with pytest.raises(UserError, match=r"no file fits the glob '\*\.md'"):
        list(TextSource(tmp_path, glob="*.md").pieces())


@given(
    st.lists(st.text(alphabet="ab#\n春", max_size=9), min_size=1, max_size=5),
    st.sampled_from(["##", "#\n#", "春"]),
    st.data(),
)
def test_a_separator_is_found_wherever_a_chunk_cuts_it(parts: list[str], separator: str, data: st.DataObject) -> None:
    text = separator.join(parts)
    wanted = [part for part in text.split(separator) if part]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    found: list[str] = []
    for piece in text_module._separated(chunks, separator):
        if piece.begins:
            found.append("")
        found[-1] += piece.text
    assert found == wanted


def test_json_lines_give_strings_and_lists_of_lines(tmp_path: Path) -> None:
    path = tmp_path / "poems.jsonl"
    records = [{"text": "one\ntwo"}, {"text": ["春眠", "不覺"], "title": "x"}, {"text": ""}]
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\n\n", encoding="utf-8")
    assert documents(TextSource(path, field="text")) == ["one\ntwo", "春眠\n不覺"]


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{'text': 1}", r"poems:2: not a line of JSON"),
        ('{"lines": "x"}', r"poems:2: no field 'text' here \(it has lines\)"),
        ("[1]", r"poems:2: no field 'text' here \(it has a list\)"),
        ('{"text": [1]}', r"poems:2: field 'text' is neither"),
    ],
)
def test_a_bad_line_of_json_is_told_with_its_number(tmp_path: Path, line: str, told: str) -> None:
    (tmp_path / "poems").write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(UserError, match=told):
        list(TextSource(tmp_path / "poems", field="text").pieces())


def test_ways_to_tell_documents_apart_exclude_each_other() -> None:
    with pytest.raises(UserError, match="not both"):
        TextSource(Path("x"), separator="#", field="text")
    with pytest.raises(UserError, match="separator is empty"):
        TextSource(Path("x"), separator="")


@given(st.lists(st.tuples(st.text(alphabet="ab \n", min_size=1, max_size=12), st.booleans()), max_size=6), st.data())
def test_lines_do_not_depend_on_the_pieces(parts: list[tuple[str, bool]], data: st.DataObject) -> None:
    longest = text_module.LONGEST_LINE
    pieces = [Piece(text, begins) for text, begins in parts]
    lines = list(by_line(pieces))
    for line in lines:
        assert 0 < len(line.text) <= longest
        assert "\n" not in line.text[:-1]
    finer = []
    for text, begins in parts:
        cut = data.draw(st.integers(0, len(text)))
        finer += [Piece(text[:cut], begins), Piece(text[cut:], False)] if cut else [Piece(text, begins)]
    assert list(by_line(finer)) == lines
    assert "".join(line.text for line in lines) == "".join(text for text, _ in parts)


def test_a_line_without_end_is_cut() -> None:
    longest = text_module.LONGEST_LINE
    lines = list(by_line([Piece("x" * (longest + 5), True), Piece("y" * longest, False)]))
    assert [len(line.text) for line in lines] == [longest, longest, 5]
    assert [line.begins for line in lines] == [True, False, False]
