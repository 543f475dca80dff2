"""Evaluation logs in the form of Inspect (inspect_ai, version 2): who was asked what, and what came of it.

A log is a `.json` file, or `.eval`: a zip of `header.json` (the log without its samples) and a file per
sample.
"""

from __future__ import annotations

import json
import lzma
import struct
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.runs.artifacts import atomic_path, read_json, write_json
from interpcore.runs.fields import Fields, is_text, parse_json

SUFFIXES = (".eval", ".json")
VERSION = 2
LARGEST = 1 << 28
"""Bytes of one unpacked file of a log at most."""
_ZSTD = 93  # how Inspect packs
_LOCAL = struct.Struct("<4s5H3L2H")  # what stands before a member: its last two are lengths of name and more
_DAMAGED = (
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError),
    *(ValueError, OverflowError, NotImplementedError, RuntimeError),
)
"""What zipfile raises where bytes are not as they were written."""
_BEGAN = (1980, 1, 1, 0, 0, 0)  # the earliest date of a zip: the same log is the same bytes


@dataclass(frozen=True, eq=False)
class EvalLog(ShortRepr):
    """One evaluation.

    Args:
        header: the log without `samples`: version, status, eval, plan, results, stats.
        samples: of each question its id, epoch, input, choices, target, messages, output, scores, metadata.
    """

    header: Mapping[str, Any]
    samples: Sequence[Mapping[str, Any]]

    @property
    def task(self) -> str:
        """What was asked."""
        return str(self.header["eval"]["task"])

    @property
    def model(self) -> str:
        """Who was asked."""
        return str(self.header["eval"]["model"])


def is_eval_log(content: Any) -> bool:
    """Whether JSON is a log."""
    return isinstance(content, Mapping) and {"version", "status", "eval"} <= set(content)


def read_eval_log(path: Path) -> EvalLog:
    """Read a log.

    Args:
        path: `.eval` or `.json`.
    Raises: Refused for a file that is none, or of an older form, with what is wrong.
    """
    if path.suffix == ".eval":
        header, samples = _unzipped(path)
    else:
        header = read_json(path)
        samples = header.get("samples") or [] if isinstance(header, Mapping) else []
    where = str(path)
    if not is_eval_log(header):
        raise Refused(f"{path} is no evaluation log: it has no version, status and eval.")
    fields = Fields.of(header, where, Refused)
    if fields.whole("version") != VERSION:
        raise Refused(f"{path} is of log version {header['version']}; version {VERSION} is read.")
    about = fields.object("eval")
    for name in ("task", "model"):
        about.text(name)
    rows = [Fields.of(row, f"{where}, sample {i}", Refused).content for i, row in enumerate(samples, 1)]
    return EvalLog({name: value for name, value in header.items() if name != "samples"}, rows)


def questions_of(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a log as records of `data.question_sets`, each with its place.

    Raises: Refused for a sample that is no question of one text.
    """
    for number, sample in enumerate(read_eval_log(path).samples, 1):
        where = f"{path}, sample {number}"
        row = Fields.of(sample, where, Refused)
        target = sample.get("target")
        targets = [target] if is_text(target) else list(row.texts("target"))
        record: dict[str, Any] = {"question_id": sample.get("id"), "question": _asked(row)}
        if sample.get("choices"):
            record["options"] = list(row.texts("choices"))
        if not targets or ("options" in record and len(targets) > 1):
            raise Refused(f"{where} has {len(targets)} right answers; a question here has one.")
        record |= {"answer": targets[0], "accepted": targets}
        about = sample.get("metadata")
        known = ("category", "src", "memory_reason_score", "subject")
        more = {name: about[name] for name in known if name in about} if isinstance(about, Mapping) else {}
        yield where, record | more


def _asked(row: Fields) -> str:
    """A sample's question: its text, or that of its one message from the user."""
    given = row.content.get("input")
    if isinstance(given, list):
        asked = [
            each.get("content") for each in given if isinstance(each, Mapping) and each.get("role") == "user"
        ]
        given = asked[0] if len(asked) == 1 else None
    if not is_text(given):
        raise Refused(f"{row.where} asks in more than one text; a question here is one.")
    return str(given)


def write_eval_log(log: EvalLog, path: Path) -> None:
    """Write a log.

    Args:
        log: what to write.
        path: `.eval` or `.json`.
    Raises: Refused for another ending.
    """
    if path.suffix not in SUFFIXES:
        raise Refused(f"Evaluation logs are written as {' or '.join(SUFFIXES)}; got {path.name}.")
    if path.suffix == ".json":
        write_json(path, {**log.header, "samples": list(log.samples)})
        return
    header = log.header
    start = {name: header[name] for name in ("version", "eval", "plan")}
    summed = ("id", "epoch", "input", "target", "metadata", "scores")
    members: dict[str, Any] = {"_journal/start.json": start}
    for sample in log.samples:
        members[f"samples/{sample['id']}_epoch_{sample['epoch']}.json"] = sample
    members["summaries.json"] = [{name: sample[name] for name in summed} for sample in log.samples]
    members["header.json"] = header
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, content in members.items():
            packed.writestr(_member(name), json.dumps(content, ensure_ascii=False, indent=1))


def _member(name: str) -> zipfile.ZipInfo:
    found = zipfile.ZipInfo(name, _BEGAN)
    found.compress_type = zipfile.ZIP_DEFLATED
    return found


def _unzipped(path: Path) -> tuple[Any, list[Any]]:
    """The header and the samples of a `.eval` file."""
    try:
        with zipfile.ZipFile(path) as packed:
            names = packed.namelist()
            if "header.json" not in names:
                raise Refused(f"{path} has no header.json: its evaluation did not end, or it is no log.")
            samples = sorted(name for name in names if name.startswith("samples/") and name.endswith(".json"))
            return _content(packed, path, "header.json"), [_content(packed, path, n) for n in samples]
    except Refused:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        raise Refused(f"{path} is damaged ({_short(error)}).") from error
    except _DAMAGED as error:
        raise Refused(f"{path} is cut short or no .eval file ({_short(error)}).") from error


def _zstd(packed: zipfile.ZipFile, about: zipfile.ZipInfo, path: Path) -> bytes:
    """A member packed by Zstandard, which zipfile itself reads from Python 3.14 on.

    Raises: Refused without pyarrow; BadZipFile where the member is not what the zip says of it.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise Refused(f"Reading {path} needs pyarrow; pip install pyarrow.") from error
    stream = packed.fp
    assert stream is not None
    stream.seek(about.header_offset)
    local = stream.read(_LOCAL.size)
    if len(local) < _LOCAL.size:
        raise zipfile.BadZipFile("it ends early")
    *_, name, extra = _LOCAL.unpack(local)
    stream.seek(name + extra, 1)
    try:
        with pyarrow.CompressedInputStream(
            pyarrow.BufferReader(stream.read(about.compress_size)), "zstd"
        ) as out:
            data: bytes = out.read(about.file_size + 1)
    except OSError as error:
        raise zipfile.BadZipFile(str(error)) from error
    if len(data) != about.file_size or zlib.crc32(data) != about.CRC:
        raise zipfile.BadZipFile("its checksum is another")
    return data


def _short(error: Exception) -> str:
    """What an error says of a file, which may quote all of it."""
    return " ".join(str(error).split())[:100]


def _content(packed: zipfile.ZipFile, path: Path, name: str) -> Any:
    about = packed.getinfo(name)
    if about.file_size > LARGEST:
        raise Refused(f"{path}: {name} has {about.file_size:,} bytes; at most {LARGEST:,} are read.")
    try:
        data = _zstd(packed, about, path) if about.compress_type == _ZSTD else packed.read(about)
        return parse_json(data.decode())
    except (ValueError, zipfile.BadZipFile) as error:
        raise Refused(f"{path}: {name} cannot be read ({_short(error)}).") from error
