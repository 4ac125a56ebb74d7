"""Text files, strictly: UTF-8 or a line that says where it is not."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

from throughtime.errors import UserError

CHUNK = 1 << 20  # bytes read at a time: what a file of any size costs in memory


def read_chunks(path: Path, chunk: int = CHUNK) -> Iterator[str]:
    """The text of a file, piece after piece; a byte-order mark at its head is dropped, nothing else is changed.

    Raises:
        UserError: the file cannot be read, is binary (holds a zero byte), or is not UTF-8.
    """
    waiting = b""  # the bytes of a character that the last chunk cut
    offset = 0  # of waiting[0] in the file
    line = 1
    try:
        with path.open("rb") as file:
            while True:
                data = file.read(chunk)
                if b"\0" in data:
                    at = line + (waiting + data[: data.index(b"\0")]).count(b"\n")
                    raise UserError(f"{path}:{at}: a zero byte: a binary file, or UTF-16; give text in UTF-8")
                buffer = waiting + data
                if offset == 0 and len(buffer) < 3 and data:
                    waiting = buffer  # too few bytes to know a byte-order mark by
                    continue
                if offset == 0 and buffer.startswith(codecs.BOM_UTF8):
                    buffer, offset = buffer[3:], 3
                try:
                    text, used = codecs.utf_8_decode(buffer, "strict", not data)
                except UnicodeDecodeError as error:
                    at = line + buffer[: error.start].count(b"\n")
                    raise UserError(
                        f"{path}:{at}: not UTF-8 at byte {offset + error.start} (0x{buffer[error.start]:02x}); "
                        "convert it first: iconv -f ENCODING -t UTF-8"
                    ) from error
                if text:
                    yield text
                line += buffer[:used].count(b"\n")
                waiting, offset = buffer[used:], offset + used
                if not data:
                    return
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
