"""Files that are either whole or absent: atomic writers, and readers that say what is wrong with a file."""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.errors import RunError
from interpcore.runs.canonical import plain
from interpcore.runs.fields import parse_json
from interpcore.runs.hashes import tensor_hashes
from interpcore.runs.locks import Alive

if TYPE_CHECKING:
    import torch

_PARTIAL = ".partial"
_WRITER = ".writer"
_CHECKSUM = "checksum"
_MARK = "sha256:"  # stands before the checksums, so that they are not overlooked where their name is damaged
_CHANGED = "{} was changed or damaged after it was written; restore a copy, or run again what writes it"


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary name to write to; on success the file takes its real name in one step.

    The temporary file has the same name (NumPy and Matplotlib read the format from it) in a hidden folder
    beside it (a rename across file systems is a copy), which also takes what a library puts beside the file
    that it writes. Leaving the block by an exception removes the folder, `remove_partials` what a killed
    process left: a lock in the folder says whether its writer lives.

    Args:
        path: the file's real name; an existing file is replaced.

    Yields:
        The temporary path.

    Raises:
        RunError: the folder does not exist, or the block wrote nothing.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise RunError(f"cannot write {path}: the folder {path.parent} does not exist; make it first")
    folder = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{_PARTIAL}")
    folder.mkdir()
    partial = folder / path.name
    try:
        with Alive(folder / _WRITER):
            yield partial
            if not partial.is_file():
                raise RunError(
                    f"cannot write {path}: nothing was written to the temporary path that atomic_path gave"
                )
            _sync(partial)
            partial.replace(path)
            _sync(path.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_partials(folder: Path) -> None:
    """Removes what killed writers left in a folder and those below it; what living ones write stays."""
    for left in list(folder.rglob(f".*{_PARTIAL}")):
        if left.is_dir() and not Alive.there(left / _WRITER):
            shutil.rmtree(left, ignore_errors=True)


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes bytes atomically.

    Args:
        path: the file.
        data: its content.

    Raises:
        RunError: the folder does not exist.
    """
    with atomic_path(path) as partial:
        partial.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes a value as indented UTF-8 JSON, atomically.

    Args:
        path: the file.
        value: anything that `canonical.plain` takes; NaN and infinities are written as Python's JSON does.

    Raises:
        TypeError: JSON cannot hold the value.
        RunError: the folder does not exist.
    """
    text = json.dumps(plain(value, f"the content of {path}"), indent=1, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode())


def write_tensors(
    path: str | os.PathLike[str],
    tensors: "Mapping[str, torch.Tensor]",
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Writes named tensors as safetensors, atomically, with checksums that `read_tensors` compares.

    Args:
        path: the file.
        tensors: name -> tensor [any shape], on any device.
        metadata: strings kept in the header; the name "checksum" is taken.

    Raises:
        RunError: the folder does not exist.
        RuntimeError: two tensors share memory (clone one of them).
    """
    from safetensors.torch import save_file

    dense = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header, sums = dict(metadata or {}), _sums(dense)
    written = {"": _sum_of(sums, header)} | sums
    with atomic_path(path) as partial:
        save_file(dense, partial, metadata=header | {_CHECKSUM: _MARK + json.dumps(written)})


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Reads a whole file.

    Args:
        path: the file.

    Returns:
        Its content.

    Raises:
        RunError: there is no such file.
    """
    if not Path(path).is_file():
        raise RunError(f"there is no file {path}; check the name, or run again what writes it")
    return Path(path).read_bytes()


def read_json(path: str | os.PathLike[str]) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.

    Returns:
        The value.

    Raises:
        RunError: the file is missing, empty, cut short, or not JSON; the message says which.
    """
    data = read_bytes(path)
    if not data.strip():
        raise RunError(f"{path} is empty; delete it and run again what writes it")
    try:
        text = data.decode()
        return parse_json(text)
    except UnicodeDecodeError as error:
        raise RunError(
            f"{path} is not JSON: byte {error.start} is not UTF-8; check that it is the right file"
        ) from error
    except json.JSONDecodeError as error:
        if _ends_early(text, error):
            raise RunError(
                f"{path} is cut short after {len(data)} bytes; delete it and run again what writes it"
            ) from error
        raise RunError(
            f"{path} is not JSON: {error.msg} in line {error.lineno}, column {error.colno}; "
            "check that it is the right file"
        ) from error
    except ValueError as error:
        raise RunError(f"{path} cannot be read as JSON: {error}; check that it is the right file") from error


def read_tensors(
    path: str | os.PathLike[str], prefix: str = ""
) -> "tuple[dict[str, torch.Tensor], dict[str, str]]":
    """Reads a safetensors file onto the CPU.

    Args:
        path: the file.
        prefix: read only the tensors whose names begin so.

    Returns:
        The tensors by name [shapes as written], and the header's metadata.

    Raises:
        RunError: the file is missing, cut short, not safetensors, or not as `write_tensors` left it (files
            without checksums are taken as they are).
    """
    with _safetensors(path) as file:
        names, metadata, sums = _header(path, file)
        found = {name: file.get_tensor(name) for name in names if name.startswith(prefix)}
    if sums is not None and any(sums[name] != own for name, own in _sums(found).items()):
        raise RunError(_CHANGED.format(path))
    return found, metadata


def read_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """Reads the metadata of a safetensors file, and leaves its tensors on the disk.

    Args:
        path: the file.

    Raises:
        RunError: as `read_tensors`.
    """
    with _safetensors(path) as file:
        return _header(path, file)[1]


@contextmanager
def _safetensors(path: str | os.PathLike[str]) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise RunError(f"there is no file {path}; check the name, or run again what writes it")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise RunError(
            f"{path} ({Path(path).stat().st_size} bytes) is cut short or not a safetensors file ({error}); "
            "check that it is the right file, or run again what writes it"
        ) from error


def _header(
    path: str | os.PathLike[str], file: Any
) -> tuple[list[str], dict[str, str], dict[str, str] | None]:
    """Names, metadata, and the tensors' checksums (None: the file has none), which fit names and metadata."""
    names, metadata = list(file.keys()), dict(file.metadata() or {})
    marked = [name for name, value in metadata.items() if name == _CHECKSUM or value.startswith(_MARK)]
    if not marked:
        return names, metadata, None
    try:
        written = metadata.pop(_CHECKSUM)
        sums = dict(json.loads(written.removeprefix(_MARK)))
        whole = sums.pop("")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(_CHANGED.format(path)) from error
    fits = marked == [_CHECKSUM] and written.startswith(_MARK) and whole == _sum_of(sums, metadata)
    if not fits or sums.keys() != set(names):
        raise RunError(_CHANGED.format(path))
    return names, metadata, sums


def _sums(tensors: "Mapping[str, torch.Tensor]") -> dict[str, str]:
    return {name: digest[:16] for name, digest in tensor_hashes(tensors).items()}


def _sum_of(sums: Mapping[str, str], metadata: Mapping[str, str]) -> str:
    text = json.dumps([sorted(sums.items()), sorted(metadata.items())])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _ends_early(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the text stopped before the value did: what is left is the start of a token."""
    rest = text[error.pos :].rstrip()
    tokens = ("null", "true", "false", "NaN", "Infinity", "-Infinity", ".", "e-", "e+")
    inside_string = error.msg.startswith(("Unterminated string", "Invalid \\uXXXX escape"))
    return inside_string or any(token.startswith(rest) for token in tokens)


def _sync(path: Path) -> None:
    """Makes a file's content, or a folder's list of names, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
