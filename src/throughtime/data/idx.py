"""Images in the IDX format (MNIST and its kin)."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from throughtime.errors import UserError

_NAMES = {"train": ("train",), "valid": ("valid", "dev"), "test": ("t10k", "test")}
_BYTES = 0x08  # the type code of unsigned bytes


def read_idx(path: Path) -> NDArray[Any]:
    """The array of unsigned bytes in an IDX file, compressed by gzip or not.

    Raises:
        UserError: the file is missing, cut short, longer than it says, or no IDX file of bytes.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: damaged or cut short: {error}; fetch it again") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] != _BYTES:
        raise UserError(f"{path}: not an IDX file of bytes; its first bytes are {content[:4].hex()}")
    rank = content[3]
    shape = tuple(int.from_bytes(content[4 + 4 * k : 8 + 4 * k], "big") for k in range(rank))
    begin, size = 4 + 4 * rank, int(np.prod(shape))
    if len(content) - begin != size:
        raise UserError(f"{path}: {len(content) - begin} bytes of data, where its head says {size}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=begin).reshape(shape)


def read_images(path: Path, part: str, *, labelled: bool = True) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """The images (N, rows, columns) and labels (N,) of a folder with MNIST's four files, or of one images file.

    Args:
        path: a folder, or a file of images; its labels lie beside it (``images-idx3``, ``labels-idx1`` in the names).
        part: "train", "valid" or "test": which files of a folder.
        labelled: whether labels are wanted; None is given for them otherwise.

    Raises:
        UserError: a file is missing or damaged, or there is not one label for each image.
    """
    images_file = path if path.is_file() else _find(path, part, "images")
    if not labelled:
        return _real(images_file, read_idx(images_file)), None
    labels_file = images_file.with_name(images_file.name.replace("images-idx3", "labels-idx1"))
    if labels_file == images_file or not labels_file.exists():
        raise UserError(f"{labels_file}: missing; the labels of {images_file.name} belong there")
    images, labels = _real(images_file, read_idx(images_file)), read_idx(labels_file)
    if labels.ndim != 1 or len(images) != len(labels):
        raise UserError(f"{labels_file}: {len(labels)} labels for {len(images)} images")
    return images, labels


def _real(path: Path, images: NDArray[Any]) -> NDArray[Any]:
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise UserError(f"{path}: an array of {images.shape}, where images have three axes and some pixels")
    return images


def _find(folder: Path, part: str, kind: str) -> Path:
    for name in _NAMES[part]:
        for path in sorted(folder.glob(f"{name}*{kind}*")):
            return path
    raise UserError(f"{folder}: no file named {_NAMES[part][0]}*{kind}* in it; the IDX files of MNIST are wanted")
