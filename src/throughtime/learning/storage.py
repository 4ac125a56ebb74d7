"""Files that are whole or not there: JSON and tensors with a version and a checksum, written in one move.

Both kinds say what they are, which version of the format they have, and the SHA-256 of their content, so that a file
that is cut short, altered, newer or something else altogether is told from a good one before anything is used.
Weights are safetensors; nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from throughtime.errors import UserError

VERSION = 1
_HEADER = "throughtime"  # one key alone: safetensors keeps its metadata in no fixed order


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextlib.contextmanager
def full_disk_told(path: Path, then: str = "try again") -> Iterator[None]:
    """Turns the system's refusal to write into a line for the user: make room, or whatever helps, ``then`` this."""
    try:
        yield
    except OSError as error:
        remedy = "make room" if error.errno in _FULL else "check the folder and your rights in it,"
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy} and {then}") from error


def write_file(path: Path, content: bytes) -> None:
    """Writes a file in one move: at any moment there is the old one or the new one, whole.

    Raises:
        OSError: the system refuses; the old file stands and nothing else is left behind.
    """
    beside = path.with_name(f".{path.name}.writing")
    try:
        write_through(beside, content)
        os.replace(beside, path)
        sync_folder(path.parent)
    finally:
        beside.unlink(missing_ok=True)


def write_through(path: Path, content: bytes) -> None:
    """Writes a file down to the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes the names in a folder last."""
    if os.name != "posix":
        return  # elsewhere a folder cannot be opened, and names last by themselves
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def json_bytes(kind: str, content: Any) -> bytes:
    """A JSON file of some kind ("run", "checkpoint")."""
    text = _canonical(json.loads(json.dumps(content)))
    about = {"throughtime": kind, "version": VERSION, "sha256": _digest(text.encode())}
    return (json.dumps(about)[:-1] + f', "content": {text}' + "}\n").encode()


def read_json(path: Path, kind: str) -> Any:
    """The content of such a file.

    Raises:
        UserError: it is missing, cut short, altered, newer, or of another kind.
    """
    text = _read(path, kind)
    try:
        parsed = json.loads(text.decode())
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is damaged or cut short: it is no longer JSON ({error}); {_ELSEWHERE}") from error
    if not isinstance(parsed, dict):
        raise UserError(f"{path} is damaged: it does not say what it is; {_ELSEWHERE}")
    _check(path, kind, parsed)
    content = _canonical(parsed.get("content"))
    if set(parsed) != {"throughtime", "version", "sha256", "content"} or parsed["sha256"] != _digest(content.encode()):
        raise UserError(f"{path} is damaged: its checksum does not match; {_ELSEWHERE}")
    return parsed["content"]


def tensor_bytes(kind: str, tensors: Mapping[str, Tensor]) -> bytes:
    """A safetensors file of some kind ("model", "checkpoint"). The same tensors give the same bytes."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    seen: set[int] = set()
    for name, tensor in plain.items():  # tied weights are written twice; loading gives both the same values
        if tensor.numel() and tensor.untyped_storage().data_ptr() in seen:
            plain[name] = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
    about = {"throughtime": kind, "version": VERSION, "sha256": _digest_of(plain)}
    return safetensors.torch.save(plain, metadata={_HEADER: json.dumps(about)})


def read_tensors(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of such a file, in memory of their own.

    Raises:
        UserError: it is missing, cut short, altered, newer, or of another kind.
    """
    content = _read(path, kind)
    try:
        size = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + size].decode())
        about = json.loads(header["__metadata__"][_HEADER])
        tensors = safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged or cut short, or is no file of ours; {_ELSEWHERE}") from error
    if not isinstance(about, dict):
        raise UserError(f"{path} is damaged: it does not say what it is; {_ELSEWHERE}")
    _check(path, kind, about)
    if about.get("sha256") != _digest_of(tensors):
        raise UserError(f"{path} is damaged: its checksum does not match; {_ELSEWHERE}")
    return {name: tensor.clone() for name, tensor in tensors.items()}  # aligned as torch aligns its own


_ELSEWHERE = "restore it from a copy, or train anew in another folder"


def _read(path: Path, kind: str) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing, so there is no {kind} to read; check the folder's name") from error
    except NotADirectoryError as error:
        raise UserError(f"{path.parent} is not a folder; check its name") from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _check(path: Path, kind: str, about: Mapping[str, Any]) -> None:
    version = about.get("version")
    if about.get("throughtime") != kind or not isinstance(version, int):
        raise UserError(f"{path} is damaged, or is not the {kind} of a run: it does not say so; {_ELSEWHERE}")
    if version > VERSION:
        raise UserError(
            f"{path} is of format version {version} and this throughtime reads up to {VERSION}; update throughtime"
        )


def _canonical(content: Any) -> str:
    """The one way to write a content down, so that its checksum can be taken again after reading."""
    return json.dumps(content, ensure_ascii=False, sort_keys=True, indent=1)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _digest_of(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
