"""Reading documents: text, JSON lines, Parquet, and folders that the `datasets` library saved."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpcore.data.tokens.manifest import TokenShardError

TEXT_SUFFIXES = (".txt", ".text", ".md")
LINE_SUFFIXES = (".jsonl", ".jsonl.gz", ".ndjson", ".json")
SAMPLES = ("document", "paragraph", "line")
_SUBSET_FIELDS = ("subset", "meta.pile_set_name")


@dataclass(frozen=True)
class Document:
    """One text and the name of the subset that it belongs to."""

    text: str
    subset: str


def document_files(source: Path) -> list[Path]:
    """The files of a source in order of their names.

    Args:
        source: a file (.txt, .jsonl, .jsonl.gz, .parquet, .arrow) or a folder of such files, also one saved
            by the `datasets` library.

    Raises:
        TokenShardError: there is nothing to read.
    """
    kinds = (*TEXT_SUFFIXES, *LINE_SUFFIXES, ".parquet", ".arrow")
    described = ", ".join(kinds)
    if source.is_file():
        if not source.name.endswith(kinds):
            raise TokenShardError(f"{source} is none of {described}; convert it to one of them.")
        return [source]
    if not source.is_dir():
        raise TokenShardError(f"There is no file or folder {source} to read documents from.")
    # The datasets library keeps its own notes beside the data, and what it has computed in cache files.
    notes = ("dataset_info.json", "state.json", "dataset_dict.json")
    found = sorted(
        path
        for path in source.rglob("*")
        if path.name.endswith(kinds) and path.name not in notes and not path.name.startswith((".", "cache-"))
    )
    if not found:
        raise TokenShardError(f"The folder {source} has no file of {described}.")
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
        TokenShardError: the file is not what its name says, with its line or row.
    """
    if sample_by not in SAMPLES:
        raise TokenShardError(f"sample_by={sample_by!r} is unknown; choose from {', '.join(SAMPLES)}.")
    if path.name.endswith(TEXT_SUFFIXES):
        inside = source is not None and path.parent != source and path != source
        label = path.parent.name if inside else "all"
        yield from (Document(piece, label) for piece in _texts(path, sample_by))
        return
    for where, row in read_rows(path):
        yield _document(row, text, subset, where)


def _texts(path: Path, sample_by: str) -> Iterator[str]:
    try:
        if sample_by == "document":
            yield path.read_text(encoding="utf-8-sig")
            return
        with path.open(encoding="utf-8-sig") as stream:
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
    except UnicodeDecodeError as error:
        raise TokenShardError(
            f"{path} is not UTF-8 text: byte {error.start} of a block read is not."
        ) from error


def read_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each row of a file of JSON lines, Parquet or Arrow, with its place, for errors.

    Raises:
        TokenShardError: as `read_documents`.
    """
    if path.suffix == ".parquet":
        yield from _parquet_rows(path)
    elif path.suffix == ".arrow":
        yield from _arrow_rows(path)
    else:
        yield from _json_rows(path)


def _json_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    compressed = path.suffix == ".gz"
    with (
        gzip.open(path, "rt", encoding="utf-8-sig")
        if compressed
        else path.open(encoding="utf-8-sig") as stream
    ):
        number = 0
        try:
            for number, line in enumerate(stream, 1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TokenShardError(f"Line {number} of {path} is no JSON object.")
                yield f"line {number} of {path}", row
        except json.JSONDecodeError as error:
            raise TokenShardError(
                f"Line {number} of {path} is not JSON ({error.msg}); every line must be one object."
            ) from error
        except (UnicodeDecodeError, EOFError, gzip.BadGzipFile) as error:
            raise TokenShardError(f"{path} is damaged or cut short after line {number}: {error}.") from error


def _parquet_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    parquet, arrow = _pyarrow(path)
    try:
        with parquet.ParquetFile(path) as file:
            yield from _numbered(file.iter_batches(batch_size=1024), path)
    except arrow.lib.ArrowInvalid as error:
        raise TokenShardError(f"{path} is cut short or not a Parquet file ({error}).") from error


def _arrow_rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a file in Arrow's stream format, as `datasets` saves it."""
    _, arrow = _pyarrow(path)
    try:
        with arrow.memory_map(str(path)) as memory, arrow.ipc.open_stream(memory) as stream:
            yield from _numbered(stream, path)
    except arrow.lib.ArrowInvalid as error:
        raise TokenShardError(f"{path} is cut short or not an Arrow stream ({error}).") from error


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
        raise TokenShardError(f"Reading {path} needs pyarrow; pip install pyarrow.") from error
    return pyarrow.parquet, pyarrow


def _document(row: Mapping[str, Any], text: str, subset: str | None, where: str) -> Document:
    value = row.get(text)
    if not isinstance(value, str):
        there = ", ".join(sorted(row)) or "none"
        raise TokenShardError(f"The field {text!r} of {where} is no text; its fields are {there}.")
    if subset is not None:
        label = _field(row, subset)
        if not isinstance(label, str):
            raise TokenShardError(f"The field {subset!r} of {where} names no subset.")
        return Document(value, label)
    labels = (_field(row, name) for name in _SUBSET_FIELDS)
    return Document(value, next((label for label in labels if isinstance(label, str)), "all"))


def _field(row: Any, name: str) -> Any:
    """A field of a row, by a dotted name; None where it has none."""
    for part in name.split("."):
        row = row.get(part) if isinstance(row, Mapping) else None
    return row
