"""The settings of the classification job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from throughtime.data.warp import Warp
from throughtime.errors import UserError
from throughtime.layers import POOLINGS, Pooling
from throughtime.tasks.classify_data import FORMATS, SERIES, Example, How, read_examples
from throughtime.tasks.reading import ReadingSettings, setting

UNITS = ("word", "char")
_FOR = {  # what is of use for some data alone
    "images": ("rows_as_time", "shift", "rotate", "zoom", "bend"),
    "series": ("jitter", "stretch"),
    "words": ("characters", "pairs", "lower", "digits", "vocabulary_size", "vectors", "freeze"),
    "tables": ("unit",),
    "trees": ("phrases", "binary"),
}


@dataclass(frozen=True)
class Settings(ReadingSettings):
    """What is read and what is built, on top of `ReadingSettings`.

    Raises:
        UserError: a setting is out of range, or a name unknown.
    """

    text_column: str = setting("text", "The column, or JSON field, of texts.")
    label_column: str = setting("label", "The column, or JSON field, of labels.")
    unit: str = setting("word", "What a text is read by: word (and sign) or char.")
    rows_as_time: bool = setting(True, "Read an image row by row; otherwise pixel by pixel.")
    phrases: bool = setting(False, "Train on every phrase of a tree, not on sentences alone.")
    binary: bool = setting(False, "Of sentiments 0 to 4, tell 0 and 1 from 3 and 4; 2 is left out.")
    pooling: str = setting("max", f"One vector for a sequence: {', '.join(POOLINGS)}.")
    shift: int = setting(0, "Shift images at random by up to so many pixels, in training.")
    rotate: float = setting(0.0, "Turn images at random by up to so many degrees, in training.")
    zoom: float = setting(0.0, "Resize images at random by up to this share, height and width apart, in training.")
    bend: float = setting(0.0, "Bend images at random by about so many pixels, smoothly, in training.")
    jitter: float = setting(0.0, "Add noise of this deviation to series (scaled to deviation 1), in training.")
    stretch: float = setting(0.0, "Scale series at random by up to this share, in training.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format not in ("auto", *FORMATS):
            raise UserError(f"format {self.format!r} is unknown; choose one of auto, {', '.join(FORMATS)}")
        if self.pooling not in POOLINGS:
            raise UserError(f"pooling must be one of {', '.join(POOLINGS)}, not {self.pooling!r}")
        if self.unit not in UNITS:
            raise UserError(f"unit must be one of {', '.join(UNITS)}, not {self.unit!r}")
        if self.text_column == self.label_column:
            raise UserError(
                f"column {self.text_column!r} cannot be both text and label; name another with --label-column"
            )
        for name in ("shift", "bend", "jitter"):
            if not 0 <= getattr(self, name) <= 1000:
                raise UserError(f"{name} must be from 0 to 1000, not {getattr(self, name)}")
        if not 0 <= self.rotate <= 180:
            raise UserError(f"rotate must be from 0 to 180 degrees, not {self.rotate:g}")
        for name in ("stretch", "zoom"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 0 and below 1, not {getattr(self, name):g}")

    def read(self, path: Path, part: str, *, labelled: bool = True) -> tuple[str, list[Example]]:
        """The format of a file, and its examples; ``part`` ("train", "valid", "test") says which files of a folder."""
        label = self.label_column if labelled else None
        how = How(self.text_column, label, self.unit, self.rows_as_time, self.phrases, self.binary)
        return read_examples(path, self.format, part, how)

    def check_form(self, form: str, data: str | Path) -> None:
        """
        Raises:
            UserError: something is set that has no meaning for data of that format.
        """
        kinds = {"series" if self.is_series(form) else "words"}
        kinds.add({"idx": "images", "trees": "trees", "ts": "series"}.get(form, "tables"))
        for kind, names in _FOR.items():
            for name in names:
                if kind not in kinds and getattr(self, name) != getattr(type(self), name):
                    raise UserError(f"{data}: {name.replace('_', ' ')} is for {kind}, not for {form}; leave it out")

    @property
    def warp(self) -> Warp:
        return Warp(self.shift, self.rotate, self.zoom, self.bend)

    def pool(self, size: int) -> Pooling:
        return Pooling(self.pooling, size, 2 if self.bidirectional else 1)

    @staticmethod
    def is_series(form: str) -> bool:
        return form in SERIES
