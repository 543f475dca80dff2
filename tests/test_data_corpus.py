"""A corpus by its name: files of every kind, standard input, data sets of the hub."""

from __future__ import annotations

import gzip
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.data.corpus import open_corpus
from interpcore.data.documents import document_files, read_documents
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused

TEXTS = ["One day.\n", "Zwei Tage: ä€😀.\n", "x" * 100_000]


def zstd(data: bytes, path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    with arrow.CompressedOutputStream(str(path), "zstd") as out:
        out.write(data)


def rows(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts bytes where standard input is."""

    def put(data: bytes, terminal: bool = False) -> None:
        stream = io.TextIOWrapper(io.BytesIO(data))
        monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
        monkeypatch.setattr(sys, "stdin", stream)

    return put


def test_text_documents(tmp_path: Path) -> None:
    (tmp_path / "corpus" / "poems").mkdir(parents=True)
    (tmp_path / "corpus" / "poems" / "one.txt").write_text("a\nb\n\n\nc\n")
    (tmp_path / "corpus" / "two.txt").write_text("d\n")
    source = tmp_path / "corpus"

    def read(sample_by: str) -> list[tuple[str, str]]:
        files = document_files(source)
        found = [document for f in files for document in read_documents(f, source, sample_by=sample_by)]
        return [(document.subset, document.text) for document in found]

    assert read("document") == [("poems", "a\nb\n\n\nc\n"), ("all", "d\n")]
    assert read("paragraph") == [("poems", "a\nb"), ("poems", "c"), ("all", "d")]
    assert [text for _, text in read("line")] == ["a", "b", "", "", "c", "d"]


def test_byte_order_marks_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\n", encoding="utf-8-sig")
    (tmp_path / "b.jsonl").write_text('{"text": "two"}\n', encoding="utf-8-sig")
    for name, sample_by, text in (
        ("a.txt", "document", "one\n"),
        ("a.txt", "line", "one"),
        ("b.jsonl", "line", "two"),
    ):
        assert [d.text for d in read_documents(tmp_path / name, sample_by=sample_by)] == [text]


def test_every_packing_is_the_same_text(tmp_path: Path, stdin: Any) -> None:
    for name, data in (("text.txt", TEXTS[1].encode()), ("lines.JSONL", rows(TEXTS)), ("list.json", None)):
        plain = data or json.dumps([{"text": text} for text in TEXTS]).encode()
        (tmp_path / name).write_bytes(plain)
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(plain))
        zstd(plain, tmp_path / f"{name}.ZST".lower())
        wanted = TEXTS[1:2] if name == "text.txt" else TEXTS
        for end in ("", ".gz", ".zst"):
            packed = tmp_path / (f"{name}{end}".lower() if end == ".zst" else f"{name}{end}")
            corpus = open_corpus(packed)
            assert list(corpus.texts()) == wanted
            if name != "list.json":
                stdin(packed.read_bytes())
                assert list(open_corpus("-").texts()) == wanted
    assert len(document_files(tmp_path)) == 9


def test_names_and_folders_of_all_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "mein Körper" / "tief er"
    (folder / ".git").mkdir(parents=True)
    (folder / "looks like.txt").mkdir()
    (folder / ".git" / "hidden.txt").write_text("no")
    (folder / "ä b.TXT").write_bytes("eins\r\nzwei\r\n".encode("utf-16"))
    (folder / "image.png").write_bytes(b"\x89PNG")
    corpus = open_corpus(tmp_path / "mein Körper")
    assert [(d.subset, d.text) for d in corpus.documents()] == [("tief er", "eins\nzwei\n")]
    first = corpus.hash
    (folder / "ä b.TXT").write_text("drei")
    assert open_corpus(tmp_path / "mein Körper").hash != first


def test_what_is_no_text_is_told_in_a_sentence(tmp_path: Path, stdin: Any) -> None:
    whole = gzip.compress(rows(TEXTS) * 50)
    zstd(rows(TEXTS) * 50, tmp_path / "whole.zst")
    files = {
        "cut.jsonl.gz": whole[: len(whole) // 2],
        "flipped.txt.gz": whole[:40] + bytes([whole[40] ^ 255]) + whole[41:],
        "cut.txt.zst": (tmp_path / "whole.zst").read_bytes()[:-9],
        "windows.txt": "für".encode("windows-1252"),
        "windows.jsonl": '{"text": "für"}'.encode("windows-1252"),
        "list.json": b'[{"text": "a"}, 3]',
        "cut.json": b'[{"text": "a"}, ',
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(Refused, match=name) as told:
            list(open_corpus(tmp_path / name).texts())
        assert "\n" not in str(told.value)
    for data, terminal, said in ((b" \n", False, "holds no text"), (b"", True, r"cat my\.txt \|")):
        stdin(data, terminal)
        with pytest.raises(Refused, match=said):
            open_corpus("-")
    (tmp_path / "corpus.pdf").write_bytes(b"%PDF")
    with pytest.raises(Refused, match=r"corpus\.pdf is none of \.txt"):
        open_corpus(tmp_path / "corpus.pdf")


def test_a_data_set_is_streamed(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    data = [{"text": text, "meta": {"pile_set_name": "ab"[i % 2]}, "n": i} for i, text in enumerate(TEXTS)]
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in data))
    corpus = open_corpus(f"hf:{tmp_path / 'set'},documents=2")
    assert [(d.text, d.subset) for d in corpus.documents()] == list(zip(TEXTS[:2], "ab", strict=True))
    assert corpus.hash != open_corpus(f"hf:{tmp_path / 'set'}").hash
    with pytest.raises(Refused, match=r"cannot be read: .*test"):
        open_corpus(f"hf:{tmp_path / 'set'},split=test")


def test_a_name_of_a_data_set_is_checked() -> None:
    for name, said in (
        ("hf:", "give hf:OWNER/NAME"),
        ("hf:a/b,documents=0", "documents=N"),
        ("hf:a/b,splt=test", r"Did you mean split\?"),
    ):
        with pytest.raises(Refused, match=said):
            open_corpus(name)


def test_what_a_stream_gave_ends_with_the_process(tmp_path: Path) -> None:
    code = "from interpcore.data.corpus import open_corpus; print(open_corpus('-').path)"
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], input=b"a b", capture_output=True, env=environment, check=True
    )
    assert done.stdout.startswith(bytes(tmp_path)) and not list(tmp_path.iterdir())


def test_commands_read_standard_input_and_go_on_with_the_same_text(tmp_path: Path) -> None:
    def run(command: str, text: bytes) -> Any:
        return CliRunner().invoke(
            app, [*command.split(), "--out", str(tmp_path / command.split()[0])], input=text
        )

    text = "".join(documents(1, 40)).encode()
    fit = "lens fit --text - --prompts 4 --length 24 --skip 2 --quiet"
    first = run(fit, text)
    assert first.exit_code == 0, first.output
    card = json.loads((tmp_path / "lens" / "card.json").read_text())
    kept = Path(card["sources"]["text"])
    assert kept.read_bytes() == text and kept.is_relative_to((tmp_path / "lens").resolve())
    assert card["arguments"]["hash of text"] == open_corpus(kept).hash
    assert run(fit, text).exit_code == 0
    other = run(fit, text[:-9])
    assert other.exit_code == 1 and "hash of text" in str(other.exception)
    tokens = run("neurons tokens - --context 24 --sample-by line --quiet", text)
    assert tokens.exit_code == 0, tokens.output
    assert TokenShards.open(tmp_path / "neurons").manifest["source"]["name"] == "-"
