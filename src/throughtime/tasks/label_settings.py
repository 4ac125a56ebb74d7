"""The settings of the labelling job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from throughtime.data.index import WordIndex
from throughtime.data.sentences import FORMATS, Columns, Sentence, read_sentences
from throughtime.data.spans import SCHEMES
from throughtime.errors import UserError
from throughtime.tasks.label_network import Tagger
from throughtime.tasks.reading import ReadingSettings, setting


@dataclass(frozen=True)
class Settings(ReadingSettings):
    """What is read and what is built, on top of `ReadingSettings`.

    Raises:
        UserError: a setting is out of range, or a name unknown.
    """

    word_column: int = setting(0, "The column of words, counted from 1 (from the end: -1); by default the format's.")
    label_column: int = setting(0, "The column of labels; by default the format's.")
    strip_digit: bool = setting(False, "Each word ends in a digit that is not its own (WeiboNER).")
    segment: bool = setting(False, "Learn where words begin and end: label the characters of the file's words B M E S.")
    scheme: str = setting("auto", f"How spans are spelled for the model: auto (as in the file), {', '.join(SCHEMES)}.")
    crf: bool = setting(False, "Judge labels as a whole sequence, by a linear-chain CRF; spans are then well formed.")
    intent: bool = setting(False, "Learn the label of the whole sentence too (parallel files).")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("auto", *FORMATS):
            raise UserError(f"format {self.format!r} is unknown; choose one of auto, {', '.join(FORMATS)}")
        if self.scheme not in ("auto", *SCHEMES):
            raise UserError(f"scheme {self.scheme!r} is unknown; choose one of auto, {', '.join(SCHEMES)}")

    def read(self, path: Path) -> list[Sentence]:
        """The sentences of a file, read as these settings say."""
        columns = Columns(self.word_column, self.label_column, self.strip_digit, self.segment)
        return read_sentences(path, self.format, columns)

    def network(self, index: WordIndex, labels: Sequence[str], scheme: str, intents: int) -> Tagger:
        """A network for those words and labels."""
        features = self.token_features(index)
        recurrent = self.recurrent(features.output_size)
        return Tagger(features, recurrent, labels, scheme, crf=self.crf, intents=intents, dropout=self.dropout)
