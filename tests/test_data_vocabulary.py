"""Units and numbers, both ways."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from throughtime.data import (
    DOCUMENT,
    UNITS,
    UNKNOWN,
    TextSource,
    Vocabulary,
    encode_pieces,
    learn_vocabulary,
    vocabulary_from,
)
from throughtime.data.text import Piece
from throughtime.data.words import split_words
from throughtime.errors import UserError

TEXT = "春眠不覺曉,處處聞啼鳥。\nThe cat  sat on the mat;\n\tThe résumé — 𣯶!\r\n<unk> <doc> 'tis\n" * 3
texts = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60)


def learnt(unit: str, text: str, size: int | None = None) -> Vocabulary:
    pieces = [Piece(text[k : k + 7], k == 0) for k in range(0, len(text), 7)]
    return UNITS[unit].learn(pieces, size) if size else UNITS[unit].learn(pieces)


@pytest.mark.parametrize("unit", UNITS)
def test_what_is_known_comes_back_as_it_went_in(unit: str) -> None:
    vocabulary = learnt(unit, TEXT)
    numbers = vocabulary.encode(TEXT)
    assert numbers.dtype == vocabulary.dtype
    assert vocabulary.decode(numbers) == TEXT
    assert vocabulary.unknown(TEXT) == []
    assert not np.isin(numbers, [UNKNOWN, DOCUMENT]).any()
    write = vocabulary.writer()
    assert "".join(write(int(number)) for number in numbers) == TEXT


@pytest.mark.parametrize("unit", ["char", "word"])
@given(text=texts)
def test_any_text_comes_back(unit: str, text: str) -> None:
    vocabulary = learnt(unit, text)
    assert vocabulary.decode(vocabulary.encode(text)) == text


@settings(max_examples=50)
@given(text=texts)
def test_any_text_at_all_comes_back_from_subwords(text: str) -> None:
    assert SUBWORDS.decode(SUBWORDS.encode(text)) == text


@given(text=texts)
def test_words_joined_are_the_text(text: str) -> None:
    assert "".join(split_words(text)) == text


SUBWORDS = learnt("bpe", TEXT, 300)


def test_subwords_write_a_character_once_its_last_byte_is_there() -> None:
    numbers = SUBWORDS.encode("\U00020000")  # not in the text: four bytes, four units
    assert len(numbers) == 4
    write = SUBWORDS.writer()
    assert [write(int(number)) for number in numbers] == ["", "", "", "\U00020000"]
    assert SUBWORDS.decode(numbers[:2]) == "\ufffd"


@pytest.mark.parametrize("unit", UNITS)
def test_json_brings_the_vocabulary_back(unit: str) -> None:
    vocabulary = learnt(unit, TEXT)
    again = vocabulary_from(json.loads(json.dumps(vocabulary.to_json())))
    assert again.size == vocabulary.size
    assert again.encode(TEXT).tolist() == vocabulary.encode(TEXT).tolist()


def test_unknown_units_have_a_number_and_are_named() -> None:
    characters = learnt("char", "abc")
    assert characters.encode("a?b春𣯶?").tolist() == [2, 0, 3, 0, 0, 0]
    assert characters.unknown("a?b春𣯶?") == ["?", "春", "𣯶"]
    assert characters.decode([2, UNKNOWN, DOCUMENT, 3]) == "a\ufffdb"
    words = learnt("word", "to be or not")
    assert words.unknown("to see, to be") == [" see", ",", " to"]
    assert words.encode("to see be").tolist()[1] == UNKNOWN


def test_a_prompt_takes_words_with_a_space_or_without() -> None:
    words = learnt("word", "to be, or not")
    assert words.prompt("or to be") == (
        words.encode(" or").tolist() + words.encode("to be").tolist()[:1] + words.encode(" be").tolist(),
        [],
    )
    assert words.prompt("to see , to") == (words.encode("to, to").tolist()[:2] + words.encode("to").tolist(), [" see"])


def test_a_smaller_vocabulary_keeps_the_most_frequent() -> None:
    assert learnt("char", "aabbbcdd春春", 3).symbols == "abd"  # of four that come twice, the first by code point
    assert list(learnt("word", "b b b b a a c", 2).symbols) == [" b", " a"]
    assert learnt("bpe", TEXT, 270).size == 2 + 270


@pytest.mark.parametrize(("count", "dtype"), [(254, np.uint8), (255, np.uint16), (65_535, np.uint32)])
def test_numbers_are_as_small_as_can_be(count: int, dtype: type) -> None:
    letters = [chr(k) for k in range(0x100, 0x100 + count + 0x800) if not 0xD800 <= k < 0xE000][:count]
    vocabulary = learnt("char", "".join(letters))
    assert vocabulary.dtype == dtype
    assert vocabulary.decode(vocabulary.encode(letters[-1])) == letters[-1]


@pytest.mark.parametrize("unit", UNITS)
def test_borders_of_documents_stand_before_each_and_after_the_last(tmp_path: Path, unit: str) -> None:
    (tmp_path / "text").write_text("春眠 ab##不覺 c\nd##e", encoding="utf-8")
    source = TextSource(tmp_path / "text", separator="##")
    vocabulary = learn_vocabulary(source, unit)
    numbers = np.concatenate(list(encode_pieces(source, vocabulary)))
    documents = [vocabulary.decode(part) for part in np.split(numbers, np.flatnonzero(numbers == DOCUMENT))]
    assert documents == ["", "春眠 ab", "不覺 c\nd", "e", ""]


def test_an_unknown_unit_and_a_bad_size_are_told(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(UserError, match="choose one of char, word, bpe"):
        learn_vocabulary(TextSource(tmp_path / "text"), "letter")
    with pytest.raises(UserError, match="at least 1 unit"):
        learn_vocabulary(TextSource(tmp_path / "text"), "char", 0)


def test_a_missing_library_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tokenizers":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"pip install 'throughtime\[bpe\]'"):
        learnt("bpe", "text")
