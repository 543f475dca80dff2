"""A corpus by its name: a file or folder, standard input (`-`), or a data set of the hub (`hf:NAME`).

What comes as a stream is read once into a file, and is from then on like any file: it has a hash, is read as
often as wanted, and a run keeps it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from interpcore.data.documents import Document, document_files, read_documents, source_hash, unpacked
from interpcore.errors import Refused, did_you_mean
from interpcore.model.load.location import PATIENCE, ask, first_line
from interpcore.runs.artifacts import atomic_path

if TYPE_CHECKING:
    from interpcore.runs.folder import Artifacts

STDIN, HUB = "-", "hf:"
READ = "a file (.txt, .jsonl, .parquet; .gz, .zst), a folder of them, - (standard input) or hf:NAME"
"""What a corpus may be, for help."""
ROWS = 10_000
"""Rows of a data set of the hub that are read, unless its name says documents=N."""
_KEYS = ("config", "split", "revision", "documents")


@dataclass(frozen=True)
class Corpus:
    """Documents that can be read again.

    Args:
        source: what names them.
        path: the file or folder where they are.
        streamed: whether the file holds what a stream gave, and is gone when the process ends.
    """

    source: str
    path: Path
    streamed: bool = False

    @property
    def name(self) -> str:
        """What it is called in notes: the stream as typed, else the file's or folder's own name."""
        return self.source if self.streamed else self.path.name

    @cached_property
    def files(self) -> list[Path]:
        """The files, in order of their names."""
        return document_files(self.path)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the files' names and contents, in hexadecimal; of a stream's, what was read of it."""
        return source_hash(self.files, self.path)

    def documents(self, **fields: Any) -> Iterator[Document]:
        """The documents in order.

        Args:
            fields: text, subset, sample_by, see `read_documents`.
        """
        for file in self.files:
            yield from read_documents(file, self.path, **fields)

    def texts(self) -> Iterator[str]:
        """The texts of the documents, in order."""
        return (document.text for document in self.documents())

    def kept(self, artifacts: Artifacts) -> Path:
        """Where the documents are as long as a run is: what a stream gave becomes an artifact of it."""
        if not self.streamed:
            return self.path.resolve()
        file = artifacts.artifact(self._artifact)
        if not file.is_file():
            with atomic_path(file) as partial:
                shutil.copyfile(self.path, partial)
        return file.resolve()

    def source_in(self, out: str | os.PathLike[str]) -> str:
        """What a card says of where the documents are: `kept` of a run in this folder."""
        kept = Path(out) / "artifacts" / self._artifact if self.streamed else self.path
        return str(kept.resolve())

    @property
    def _artifact(self) -> str:
        return f"corpus/{self.hash[:16]}/{self.path.name}"


def open_corpus(source: str | os.PathLike[str]) -> Corpus:
    """The corpus of a name; a stream is read to its end, once for a process.

    Args:
        source: `READ`; a data set of the hub may say more behind commas, such as
            hf:allenai/c4,config=en,split=validation,revision=main,documents=500.

    Raises:
        Refused: there is no such corpus, or it holds nothing.
    """
    name = str(source)
    if name == STDIN:
        return _standard_input(sys.stdin)
    if name.startswith(HUB):
        return _hub(name)
    found = Corpus(name, Path(source))
    assert found.files
    return found


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for streams, removed when the process ends."""
    return tempfile.TemporaryDirectory(prefix="interpcore-corpus-")


def _new_folder() -> Path:
    return Path(tempfile.mkdtemp(dir=_scratch().name))


@cache
def _standard_input(stream: Any) -> Corpus:
    """Text or JSON lines, packed or not, by what they begin with."""
    if stream.isatty():
        raise Refused("- is standard input, and nothing is piped into it; write cat my.txt | interpcore ...")
    folder = _new_folder()
    raw = folder / "standard input"
    with raw.open("wb") as out:
        shutil.copyfileobj(stream.buffer, out)
    plain = folder / "stream"
    with unpacked(raw) as read, plain.open("wb") as out:
        shutil.copyfileobj(read, out)
    raw.unlink()
    with plain.open("rb") as read:
        head = next((line for line in read if line.strip()), b"")
    if not head:
        raise Refused("Standard input holds no text.")
    return Corpus(STDIN, plain.rename(folder / f"stream{_kind(head)}"), streamed=True)


def _kind(head: bytes) -> Literal[".txt", ".jsonl"]:
    """How a stream is read, by its first line that is not blank."""
    try:
        return ".jsonl" if isinstance(json.loads(head), Mapping) else ".txt"
    except ValueError:
        return ".txt"


@cache
def _hub(name: str) -> Corpus:
    """The first rows of a data set, streamed by `datasets`."""
    path, said = _read_name(name)
    count = int(said.pop("documents", ROWS))
    file = _new_folder() / "stream.jsonl"
    with file.open("w", encoding="utf-8") as out:
        written = 0
        for row in itertools.islice(_rows(name, path, said), count):
            texts = {key: value for key, value in row.items() if isinstance(value, str | Mapping)}
            out.write(json.dumps(texts, default=str) + "\n")
            written += 1
    if not written:
        raise Refused(f"{name} has no rows.")
    return Corpus(name, file, streamed=True)


def _read_name(name: str) -> tuple[str, dict[str, str]]:
    """A data set's path, and what is said of it behind commas."""
    path, *more = name.removeprefix(HUB).split(",")
    said: dict[str, str] = {}
    for text in more:
        key, _, value = text.partition("=")
        if key not in _KEYS or not value:
            near = did_you_mean(key, _KEYS)
            raise Refused(f"{name}: {text!r} is none of {'=, '.join(_KEYS)}=.{near}")
        if said.get(key, value) != value:
            raise Refused(f"{name}: {key} is given twice, as {said[key]!r} and {value!r}; give it once.")
        said[key] = value
    count = said.get("documents", "1")
    if not path or not count.isdecimal() or int(count) < 1:
        raise Refused(f"{name}: give hf:OWNER/NAME, and documents=N as a whole number from 1 on.")
    return path, said


def _rows(name: str, path: str, said: Mapping[str, str]) -> Iterable[Mapping[str, Any]]:
    """The rows of a data set, in its order."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise Refused(f"{name} needs the library datasets; pip install datasets.") from error
    how = {"split": said.get("split", "train"), "revision": said.get("revision"), "streaming": True}
    if not Path(path).exists():
        from huggingface_hub import HfApi

        answer = ask(lambda: HfApi().dataset_info(path, revision=said.get("revision"), timeout=PATIENCE))
        if isinstance(answer, Exception):
            raise Refused(f"{name} cannot be read from the hub: {first_line(answer)}") from answer
        how["revision"] = answer.sha  # of all rows, whoever writes to it meanwhile
    try:
        yield from load_dataset(path, said.get("config"), **how)
    except Exception as error:  # every way in which a network or somebody's data set can fail
        raise Refused(f"{name} cannot be read: {first_line(error)}") from error
