"""The settings of the labelling job."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from throughtime.data.index import WordIndex
from throughtime.data.sentences import FORMATS, Columns, Sentence, format_of, read_sentences, width_of_conll
from throughtime.data.spans import SCHEMES
from throughtime.errors import UserError
from throughtime.layers import Foretelling, Recurrent
from throughtime.tasks.label_network import INTENT_POOLINGS, Tagger
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
    extra_columns: str = setting("", "Further columns, embedded beside the word by 20 numbers each, by comma: 2,3.")
    keep_digit: bool = setting(False, "Embed the digit that --strip-digit takes off, as a further column.")
    segment: bool = setting(False, "Learn where words begin and end: label the characters of the file's words B M E S.")
    scheme: str = setting("auto", f"How spans are spelled for the model: auto (as in the file), {', '.join(SCHEMES)}.")
    crf: bool = setting(False, "Judge labels as a whole sequence, by a linear-chain CRF; spans are then well formed.")
    swap_spans: float = setting(
        0.0, "The chance of a span to give way to another of its kind, in training (Dai & Adel 2020)."
    )
    language_model_weight: float = setting(
        0.0, "What it counts, beside the labels, to foretell the words to come and gone, in training (Rei 2017)."
    )
    self_attention: int = setting(
        0, "Features that each word draws from all by self-attention, beside those of the cell's layers; 0 for none."
    )
    intent: bool = setting(False, "Learn the label of the whole sentence too (parallel files).")
    intent_pooling: str = setting("max", f"What becomes of the words, for the intent: {', '.join(INTENT_POOLINGS)}.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("auto", *FORMATS):
            raise UserError(f"format {self.format!r} is unknown; choose one of auto, {', '.join(FORMATS)}")
        if self.scheme not in ("auto", *SCHEMES):
            raise UserError(f"scheme {self.scheme!r} is unknown; choose one of auto, {', '.join(SCHEMES)}")
        if self.intent_pooling not in INTENT_POOLINGS:
            raise UserError(f"intent pooling must be one of {', '.join(INTENT_POOLINGS)}, not {self.intent_pooling!r}")
        if self.self_attention < 0:
            raise UserError(f"self attention must be at least 0, not {self.self_attention}")
        if self.self_attention and self.intent_pooling == "last":
            raise UserError("what self-attention draws has no last step; choose another --intent-pooling")
        if not 0 <= self.swap_spans <= 1:
            raise UserError(f"swap spans must be at least 0 and at most 1, not {self.swap_spans:g}")
        if not 0 <= self.language_model_weight < float("inf"):
            raise UserError(f"language model weight must be at least 0, not {self.language_model_weight:g}")
        if self.language_model_weight and self.bidirectional and self.layers > 1:
            raise UserError(
                "in layers over the first, both directions have read the whole sentence, and there is nothing to "
                "foretell; leave out --language-model-weight or --layers, or read forwards alone (--no-bidirectional)"
            )
        if self.keep_digit and not self.strip_digit:
            raise UserError("there is no digit to keep; give --strip-digit too")
        if self.segment and (self.keep_digit or self._extra()):
            raise UserError("further columns belong to words; --segment labels characters")

    @property
    def has_extras(self) -> bool:
        """Whether more than the words is read."""
        return self.keep_digit or bool(self._extra())

    def read(self, path: Path, *, labelled: bool = True, form: str | None = None, width: int = 0) -> list[Sentence]:
        """The sentences of a file, read as these settings say; their labels only where wanted.

        Args:
            path: the file.
            labelled: whether labels are read.
            form: a format in place of the settings' own.
            width: see `throughtime.data.sentences.Columns`.
        """
        return read_sentences(path, form or self.format, replace(self._columns, labelled=labelled, width=width))

    def width(self, path: Path) -> int:
        """How many columns training data have, where that is needed to read others without labels; else 0."""
        form = format_of(path) if self.format == "auto" else self.format
        return width_of_conll(path) if form == "conll" and self._columns.from_end else 0

    @property
    def _columns(self) -> Columns:
        return Columns(
            self.word_column, self.label_column, self.strip_digit, self.segment, self._extra(), self.keep_digit
        )

    def _extra(self) -> tuple[int, ...]:
        names = [name.strip() for name in self.extra_columns.split(",") if name.strip()]
        try:
            columns = tuple(map(int, names))
        except ValueError as error:
            raise UserError(f"extra columns must be numbers by comma, like 2,3; not {self.extra_columns!r}") from error
        if 0 in columns:
            raise UserError("columns are counted from 1 (from the end: -1); there is no column 0")
        return columns

    def network(self, index: WordIndex, labels: Sequence[str], scheme: str, intents: int) -> Tagger:
        """A network for those words and labels."""
        features = self.token_features(index)
        recurrent = self.recurrent(features.output_size)
        return Tagger(
            features,
            recurrent,
            labels,
            scheme,
            crf=self.crf,
            intents=intents,
            intent_pooling=self.intent_pooling,
            self_attention=self.self_attention,
            directions=2 if self.bidirectional else 1,
            dropout=self.dropout,
            locked=self.locked_dropout,
            foretelling=self._foretelling(index, recurrent) if self.language_model_weight else None,
            foretelling_weight=self.language_model_weight,
        )

    def _foretelling(self, index: WordIndex, recurrent: Recurrent) -> Foretelling:
        beside = self.window // 2  # words to each side that a step sees
        return Foretelling(
            len(index.words) + 1,
            recurrent.output_size // (2 if self.bidirectional else 1),
            bidirectional=self.bidirectional,
            ahead=beside + (2 if self.pairs else 1),
            behind=beside + 1,
        )
