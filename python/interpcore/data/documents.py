"""Reading documents: text, JSON lines, Parquet, and folders that the `datasets` library saved."""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from interpcore.errors import Refused

TEXT_SUFFIXES = (".txt", ".text", ".md")
LINE_SUFFIXES = (".jsonl", ".ndjson", ".json")
PACKED_SUFFIXES = (".gz", ".zst")
TABLE_SUFFIXES = (".parquet", ".arrow")
SUFFIXES = (*TEXT_SUFFIXES, *LINE_SUFFIXES, *TABLE_SUFFIXES)
GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"  # how packed files begin
SAMPLES = ("document", "paragraph", "line")
_SUBSET_FIELDS = ("subset", "meta.pile_set_name")


@dataclass(frozen=True)
class Document:
    """One text and the name of the subset that it belongs to."""

    text: str
    subset: str


def suffix(path: Path) -> str:
    """What says how a file is read: its last suffix, in small letters; for packed files the one before."""
    ends = [each.lower() for each in path.suffixes]
    return "".join(ends[-2:-1] if ends and ends[-1] in PACKED_SUFFIXES else ends[-1:])


def document_files(source: Path) -> list[Path]:
    """The files of a source in order of their names.

    Args:
        source: a file (.txt, .md, .jsonl, .json, each also as .gz or .zst; .parquet, .arrow) or a folder of
            such files, also one saved by the `datasets` library. Hidden files and folders are left out.

    Raises:
        Refused: there is nothing to read.
    """
    described = f"{', '.join(SUFFIXES)}, or a text or JSON file packed as {' or '.join(PACKED_SUFFIXES)}"
    if source.is_file():
        if suffix(source) not in SUFFIXES:
            raise Refused(f"{source} is none of {described}; convert it to one of them.")
        return [source]
    if not source.is_dir():
        raise Refused(f"There is no file or folder {source} to read documents from.")
    # The datasets library keeps its own notes beside the data, and what it has computed in cache files.
    notes = ("dataset_info.json", "state.json", "dataset_dict.json")
    found = sorted(
        path
        for path in source.rglob("*")
        if suffix(path) in SUFFIXES
        and path.name not in notes
        and not path.name.startswith("cache-")
        and not any(part.startswith(".") for part in path.relative_to(source).parts)
        and not path.is_dir()
    )
    if not found:
        raise Refused(f"The folder {source} has no file of {described}.")
    return found


def source_hash(files: Sequence[Path], source: Path) -> str:
    """SHA-256 of the names, within their source, and the contents of its files, in hexadecimal.

    Args:
        files: `document_files(source)`.
        source: a file or folder.
    """
    whole = hashlib.sha256()
    for path in files:
        name = path.name if path == source else path.relative_to(source).as_posix()
        with path.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        whole.update(json.dumps([name, content]).encode())
    return whole.hexdigest()


def read_documents(
    path: Path,
    source: Path | None = None,
    *,
    text: str = "text",
    subset: str | None = None,
    sample_by: str = "document",
) -> Iterator[Document]:
    """Reads the documents of a file one after another.

    Args:
        path: one of `document_files(source)`.
        source: the folder that the file was found in; a text file in a subfolder of it has the subfolder's
            name as its subset.
        text: field or column that holds the text.
        subset: field or column that names the subset, with dots for nested fields; None tries `subset` and
            `meta.pile_set_name`, else all is one subset, "all".
        sample_by: what a document of a text file is: the whole file, a paragraph (blank lines between) or a
            line.

    Raises:
        Refused: the file is not what its name says, with its line or row.
    """
    if sample_by not in SAMPLES:
        raise Refused(f"sample_by={sample_by!r} is unknown; choose from {', '.join(SAMPLES)}.")
    if suffix(path) in TEXT_SUFFIXES:
        inside = source is not None and path.parent != source and path != source
        label = path.parent.name if inside else "all"
        yield from (Document(piece, label) for piece in _texts(path, sample_by))
        return
    for where, row in read_rows(path):
        yield _document(row, text, subset, where)


@contextmanager
def unpacked(path: Path) -> Iterator[io.BufferedReader]:
    """The bytes of a file, unpacked where it is packed, whatever its name says.

    Raises: Refused for a packed file that is damaged or cut short.
    """
    with path.open("rb") as stream:
        head = stream.read(4)
    try:
        if head.startswith(GZIP):
            with gzip.open(path) as packed:
                yield io.BufferedReader(packed)
        elif head == ZSTD:
            with _pyarrow(path)[1].input_stream(str(path), compression="zstd") as packed:
                yield io.BufferedReader(packed)
        else:
            with path.open("rb") as stream:
                yield stream
    except (EOFError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise Refused(f"{path} is damaged or cut short: {error}.") from error


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A file's text: UTF-8, or UTF-16 where a byte-order mark says so; unpacked where it is packed.

    Raises: Refused as `unpacked`, and for another encoding.
    """
    with unpacked(path) as raw:
        wide = raw.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
        try:
            yield io.TextIOWrapper(raw, encoding="utf-16" if wide else "utf-8-sig")
        except UnicodeDecodeError as error:
            raise Refused(
                f"{path} is not UTF-8 text (a byte {error.object[error.start]:#04x}); save it as UTF-8, such "
                "as with iconv -f WINDOWS-1252 -t UTF-8."
            ) from error


def _texts(path: Path, sample_by: str) -> Iterator[str]:
    with open_text(path) as stream:
        if sample_by == "document":
            yield stream.read()
            return
        if sample_by == "line":
            yield from (line.rstrip("\n") for line in stream)
            return
        lines: list[str] = []
        for line in stream:
            if line.strip():
                lines.append(line)
            elif lines:
                yield "".join(lines).rstrip("\n")
                lines = []
        if lines:
            yield "".join(lines).rstrip("\n")


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a file of JSON lines, of a JSON list, of Parquet or Arrow, with its place, for errors.

    Raises:
        Refused: as `read_documents`.
    """
    readers = {".parquet": _parquet_rows, ".arrow": _arrow_rows}
    yield from readers.get(suffix(path), _json_rows)(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    with open_text(path) as stream:
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                if line.lstrip().startswith("["):
                    yield from _listed(json.loads(line + stream.read()), path)
                    return
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise Refused(f"Line {number} of {path} is no JSON object.")
                yield f"line {number} of {path}", row
        except json.JSONDecodeError as error:
            raise Refused(
                f"Line {number} of {path} is not JSON ({error.msg}); every line must be one object, or the "
                "file a list of them."
            ) from error


def _listed(rows: list[Any], path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict):
            raise Refused(f"Entry {number} of {path} is no JSON object.")
        yield f"entry {number} of {path}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parquet, arrow = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(batch_size=1024), path)
    except arrow.lib.ArrowInvalid as error:
        raise Refused(f"{path} is cut short or not a Parquet file ({error}).") from error


def _arrow_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file in Arrow's stream format, as `datasets` saves it."""
    _, arrow = _pyarrow(path)
    try:
        with arrow.memory_map(str(path)) as memory, arrow.ipc.open_stream(memory) as stream:
            yield from _numbered(stream, path)
    except arrow.lib.ArrowInvalid as error:
        raise Refused(f"{path} is cut short or not an Arrow stream ({error}).") from error


def _numbered(batches: Iterator[Any], path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            yield f"row {number} of {path}", row
            number += 1


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise Refused(f"Reading {path} needs pyarrow; pip install pyarrow.") from error
    return pyarrow.parquet, pyarrow


def _document(row: Mapping[str, Any], text: str, subset: str | None, where: str) -> Document:
    value = row.get(text)
    if not isinstance(value, str):
        there = ", ".join(sorted(row)) or "none"
        raise Refused(f"The field {text!r} of {where} is no text; its fields are {there}.")
    if subset is not None:
        label = _field(row, subset)
        if not isinstance(label, str):
            raise Refused(f"The field {subset!r} of {where} names no subset.")
        return Document(value, label)
    labels = (_field(row, name) for name in _SUBSET_FIELDS)
    return Document(value, next((label for label in labels if isinstance(label, str)), "all"))


def _field(row: Any, name: str) -> Any:
    """A field of a row, by a dotted name; None where it has none."""
    for part in name.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row
