"""The settings of the language job."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from throughtime.cells.catalogue import CATALOGUE
from throughtime.data import TextSource
from throughtime.errors import UserError
from throughtime.tasks.network import NextUnit


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Settings:
    """What is read and what is built. The text of each setting is in its field's metadata.

    Raises:
        UserError: a setting is out of range, or a name unknown.
    """

    unit: str = _setting("char", "What the model reads and writes: char, word or bpe.")
    vocabulary_size: int | None = _setting(
        None, "Units kept, the most frequent; by default all characters, 10000 words, 4096 sub-words."
    )
    glob: str = _setting("**/*", "Which files of a folder are read.")
    exclude: str = _setting(
        "", "Names of files and folders within it to leave out, comma-separated; * stands for anything."
    )
    document_separator: str | None = _setting(None, "What stands between documents; \\n and \\t are understood.")
    field: str | None = _setting(None, "The text is JSON lines; the documents stand under this name.")
    valid: str | None = _setting(None, "A file or folder to validate on; by default the last part of the text.")
    valid_fraction: float = _setting(0.1, "How much of the text that part is.")
    valid_units: int = _setting(200_000, "Units that one validation during training reads at most.")

    cell: str = _setting("lstm", "The cell; `throughtime cells` lists them.")
    hidden: int = _setting(256, "Hidden units of each layer.")
    layers: int = _setting(1, "Layers.")
    embedding: int = _setting(64, "Features of an embedded unit.")
    dropout: float = _setting(0.1, "Dropout of the layers' outputs.")
    embedding_dropout: float = _setting(0.0, "Dropout of the embedding.")
    tied: bool = _setting(False, "Share the weights of embedding and output layer.")

    batch_size: int = _setting(32, "Streams that are read side by side.")
    window: int = _setting(64, "Units of a stream that one step learns from; the state is carried on.")
    shift: bool = _setting(True, "Begin each epoch at another place of the text.")

    def __post_init__(self) -> None:
        if self.cell not in CATALOGUE:
            raise UserError(f"cell {self.cell!r} is unknown; `throughtime cells` lists those there are")
        for name in ("hidden", "layers", "embedding", "batch_size", "window", "valid_units"):
            if getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', ' ')} must be at least 1, not {getattr(self, name)}")
        for name in ("dropout", "embedding_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"{name.replace('_', ' ')} must be at least 0 and below 1, not {getattr(self, name):g}")
        if not 0 < self.valid_fraction < 1:
            raise UserError(f"valid fraction must be above 0 and below 1, not {self.valid_fraction:g}")

    def source(self, path: Path, **changes: Any) -> TextSource:
        """A text read as these settings say."""
        return TextSource(
            path,
            glob=self.glob,
            exclude=self.exclude,
            separator=self.document_separator,
            field=self.field,
            **changes,
        )

    def network(self, size: int) -> NextUnit:
        """A network for a vocabulary of that size."""
        names = ("cell", "hidden", "layers", "embedding", "dropout", "embedding_dropout", "tied")
        return NextUnit(size, **{name: getattr(self, name) for name in names})
