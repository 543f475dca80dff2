"""Token shards: what is packed, masked, shuffled and recorded; what is refused."""

from __future__ import annotations

import gzip
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import interpcore
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tinyworld.models import model_folder
from interpcore.data.tinyworld.tokenizer import train_tokenizer
from interpcore.data.tokens import TokenShardError, TokenShards, prepare_tokens, write_shards
from interpcore.errors import Refused


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return [text + "\n" for text in documents(0, 60)]


def json_lines(path: Path, texts: list[str]) -> Path:
    rows = [{"text": text, "meta": {"pile_set_name": "ab"[i % 2]}} for i, text in enumerate(texts)]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def parquet(path: Path, texts: list[str]) -> Path:
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame({"text": texts, "subset": ["ab"[i % 2] for i in range(len(texts))]})
    frame.to_parquet(path)
    return path


def saved_dataset(folder: Path, texts: list[str]) -> Path:
    """A folder as `datasets.Dataset.save_to_disk` lays it out."""
    arrow = pytest.importorskip("pyarrow")
    folder.mkdir()
    table = arrow.table({"text": texts, "subset": ["ab"[i % 2] for i in range(len(texts))]})
    for name, part in (("data-00000-of-00002", table[:25]), ("data-00001-of-00002", table[25:])):
        with (
            arrow.OSFile(str(folder / f"{name}.arrow"), "wb") as sink,
            arrow.ipc.new_stream(sink, table.schema) as out,
        ):
            out.write_table(part)
    (folder / "state.json").write_text("{}")
    (folder / "dataset_info.json").write_text("{}")
    return folder


def test_sequences_are_the_text(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    source = json_lines(tmp_path / "corpus.jsonl", texts)
    shards = prepare_tokens(source, tmp_path / "tokens", tokenizer, context=32, seed=None, pad_last=True)
    assert shards.subset_names == ("a", "b")
    bos = tokenizer.bos_token_id
    for number, label in enumerate("ab"):
        rows = shards.sequences(0, shards.n_sequences)[torch.from_numpy(shards.subset == number)]
        assert (rows[:, 0] == bos).all()
        expected = "".join(t + tokenizer.eos_token for t in texts["ab".index(label) :: 2])
        got = tokenizer.decode(rows[:, 1:].flatten())
        assert got.startswith(expected)
        assert set(got[len(expected) :].replace(tokenizer.pad_token, "")) == set()


def test_every_format_gives_the_same_shards(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    sources = [
        json_lines(tmp_path / "corpus.jsonl", texts),
        json_lines(tmp_path / "corpus.jsonl.gz", texts),
        parquet(tmp_path / "corpus.parquet", texts),
        saved_dataset(tmp_path / "dataset", texts),
    ]
    made = [
        prepare_tokens(source, tmp_path / f"tokens{i}", tokenizer, context=24)
        for i, source in enumerate(sources)
    ]
    assert len({shards.identity for shards in made}) == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_shuffle_is_seeded_and_keeps_subsets(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    source = json_lines(tmp_path / "corpus.jsonl", texts)

    def make(name: str, seed: int | None, max_tokens: int | None = None) -> TokenShards:
        return prepare_tokens(
            source, tmp_path / name, tokenizer, context=16, seed=seed, max_tokens=max_tokens
        )

    plain, one, same, two = make("n", None), make("x", 1), make("y", 1), make("z", 2)
    assert one.identity == same.identity and len({plain.identity, one.identity, two.identity}) == 3

    def labelled(shards: TokenShards) -> list[tuple[int, ...]]:
        rows = shards.sequences(0, shards.n_sequences).tolist()
        return [(int(k), *row) for k, row in zip(shards.subset, rows, strict=True)]

    assert sorted(labelled(plain)) == sorted(labelled(one))
    few = make("few", 1, max_tokens=33)
    assert labelled(few) == labelled(one)[:3]


def test_masks(tokenizer: Any, texts: list[str], tmp_path: Path) -> None:
    source = json_lines(tmp_path / "corpus.jsonl", texts)
    shards = prepare_tokens(source, tmp_path / "tokens", tokenizer, context=32, pad_last=True)
    assert shards.manifest["masks"]["bos"] == [tokenizer.bos_token_id]
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"]
    assert set(newline) <= set(shards.manifest["masks"]["newline"])
    rows = shards.sequences(0, shards.n_sequences)
    kept = shards.mask(rows)
    assert kept.shape == rows.shape and not kept[:, 0].any()
    texts_kept = [tokenizer.decode([int(i)]) for i in rows[kept].unique()]
    assert not [piece for piece in texts_kept if set(piece) == {"\n"}]
    only_newlines = shards.with_mask(["newline"]).mask(rows)
    assert only_newlines[:, 0].all() and not only_newlines[rows == newline[0]].any()
    assert shards.with_mask([]).mask(rows).all()
    with pytest.raises(TokenShardError, match="'pad' is no mask"):
        shards.with_mask(["pad"])


def test_ranges_cross_files(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 70_000, (23, 5))
    shards = write_shards(tmp_path / "t", tokens, 70_000, seed=None, shard_tokens=20)
    assert [shard["sequences"] for shard in shards.manifest["shards"]] == [4, 4, 4, 4, 4, 3]
    for start, stop in ((0, 23), (3, 9), (4, 8), (22, 23), (7, 7)):
        assert np.array_equal(shards.sequences(start, stop), tokens[start:stop])
    with pytest.raises(TokenShardError, match="Sequences 3 to 24"):
        shards.sequences(3, 24)
    memory = TokenShards.of_arrays(tokens, 70_000)
    assert torch.equal(memory.sequences(2, 20), shards.sequences(2, 20))


def test_damage_is_found(tmp_path: Path) -> None:
    tokens = np.random.default_rng(0).integers(0, 61, (40, 8))
    write_shards(tmp_path / "good", tokens, 61, shard_tokens=100)

    def damaged(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(tmp_path / "good", folder)
        return folder

    flipped = damaged("flipped") / "shard-00001.npy"
    data = bytearray(flipped.read_bytes())
    data[-1] ^= 1
    flipped.write_bytes(data)
    shards = TokenShards.open(flipped.parent)
    shards.sequences(0, 12)
    with pytest.raises(TokenShardError, match=r"shard-00001\.npy is not what was written"):
        shards.sequences(0, 13)

    short = damaged("short") / "shard-00002.npy"
    short.write_bytes(short.read_bytes()[:-3])
    with pytest.raises(TokenShardError, match=r"shard-00002\.npy .* is cut short or damaged"):
        TokenShards.open(short.parent)
    missing = damaged("missing") / "shard-00000.npy"
    missing.unlink()
    with pytest.raises(TokenShardError, match=r"shard-00000\.npy is missing"):
        TokenShards.open(missing.parent)
    manifest = damaged("manifest") / "manifest.json"
    manifest.write_text(manifest.read_text()[:40])
    with pytest.raises(TokenShardError, match="cut short"):
        TokenShards.open(manifest.parent)
    with pytest.raises(TokenShardError, match="holds no token shards"):
        TokenShards.open(tmp_path)


def sealed(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    tokens = np.random.default_rng(0).integers(0, 61, (40, 8))
    subset = np.arange(40) % 3
    masks = {"bos": [0], "newline": [5, 7]}
    write_shards(tmp_path / "t", tokens, 61, subset=subset, subsets="abc", masks=masks, shard_tokens=100)
    return tmp_path / "t", json.loads((tmp_path / "t" / "manifest.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"masks": {"padding": [], "bos": [0], "newline": [5]}},
        {"masked": ["bos"]},
        {"largest_id": 59},
        {"subsets": [{"name": n, "sequences": 14 - (n == "a") - (n == "b")} for n in "xbc"]},
        {"seed": 1},
        {"tokenizer": {"hash": "0", "name": "other"}},
    ],
)
def test_a_changed_manifest_is_told(change: dict[str, Any], tmp_path: Path) -> None:
    folder, manifest = sealed(tmp_path)
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(TokenShardError, match=r"manifest\.json"):
        TokenShards.open(folder)


def test_changed_labels_are_told_and_manifests_without_hashes_are_read(tmp_path: Path) -> None:
    folder, manifest = sealed(tmp_path)
    labels = np.load(folder / "subsets.npy")
    del manifest["sha256"], manifest["labels"]
    (tmp_path / "old").mkdir()
    for file in folder.iterdir():
        shutil.copy(file, tmp_path / "old")
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    assert np.array_equal(TokenShards.open(tmp_path / "old").subset, labels)
    np.save(folder / "subsets.npy", np.roll(labels, 1))
    with pytest.raises(TokenShardError, match=r"subsets\.npy is not what was written"):
        TokenShards.open(folder)
    for wrong, said in (
        (labels + np.uint16(3), "Sequence .* has the subset"),
        (labels.astype(float), "no whole"),
    ):
        np.save(tmp_path / "old" / "subsets.npy", wrong)
        with pytest.raises(TokenShardError, match=said):
            TokenShards.open(tmp_path / "old")


@pytest.mark.parametrize(
    "change, said",
    [
        ({"context": 8.0}, "context is 8.0, not a whole number"),
        ({"context": True}, "context is True"),
        ({"n_sequences": 41}, "are not of n_sequences together"),
        ({"n_sequences": 10**30}, "n_sequences is 1"),
        ({"vocab_size": 40}, "largest_id is 60, not a whole number from 0 to 39"),
        ({"masks": {"padding": [], "bos": [], "newline": [61]}}, "newline is [61], not a list of whole"),
        ({"masks": {"bos": [0]}}, "missing key 'newline'"),
        ({"masked": ["eos"]}, "'eos' is no mask"),
        ({"shards": []}, "its shards are not of n_sequences"),
        ({"version": True}, "not a token manifest of version 1"),
        ({"tokenizer": "gpt2"}, "tokenizer is 'gpt2', not an object"),
    ],
)
def test_entries_of_an_older_manifest_are_checked(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder, manifest = sealed(tmp_path)
    del manifest["sha256"], manifest["labels"]
    (folder / "manifest.json").write_text(json.dumps(manifest | change))
    with pytest.raises(TokenShardError, match=re.escape(said)):
        TokenShards.open(folder)


def test_shards_lie_in_the_folder_and_their_ids_below_the_largest(tmp_path: Path) -> None:
    folder, manifest = sealed(tmp_path)
    del manifest["sha256"]
    manifest["largest_id"] = 3
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TokenShardError, match="above the manifest's largest, 3"):
        TokenShards.open(folder).sequences(0, 1)
    manifest["shards"][0]["file"] = "../x.npy"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(TokenShardError, match=r"file is '\.\./x\.npy', not a name"):
        TokenShards.open(folder)


@pytest.mark.parametrize("subset", [[0, 3], [0, -1], [0.0, 1.0], [True, False], [0]])
def test_labels_beyond_the_list_are_refused(subset: list[Any], tmp_path: Path) -> None:
    tokens = np.zeros((2, 3), int)
    with pytest.raises(TokenShardError, match=r"has the subset 3|subset must be \[2\] whole numbers"):
        write_shards(tmp_path / "t", tokens, 61, subset=np.array(subset), subsets=("a", "b", "c"))
    with pytest.raises(TokenShardError, match=r"has the subset 3|subset must be \[2\] whole numbers"):
        TokenShards.of_arrays(tokens, 61, subset=subset, subsets=("a", "b", "c"))


def test_masks_and_tokens_of_another_kind_are_refused(tmp_path: Path) -> None:
    tokens = np.zeros((2, 3), int)
    for masks, said in (({"pad": [0]}, "'pad' is no mask"), ({"bos": [61]}, "bos holds the id 61 beyond")):
        with pytest.raises(TokenShardError, match=said):
            write_shards(tmp_path / "t", tokens, 61, masks=masks)
        with pytest.raises(TokenShardError, match=said):
            TokenShards.of_arrays(tokens, 61, masks=masks)
    with pytest.raises(TokenShardError, match="must be integers"):
        write_shards(tmp_path / "t", tokens.astype(float), 61)
    assert not (tmp_path / "t").exists()


def test_refusals(tokenizer: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TokenShardError, match=r"The id 61 in the tokens is not in the vocabulary of 61"):
        write_shards(tmp_path / "ids", np.full((2, 3), 61), 61)
    with pytest.raises(TokenShardError, match=r"The id -1 in the tokens"):
        TokenShards.of_arrays(np.full((2, 3), -1), 61)
    source = json_lines(tmp_path / "corpus.jsonl", texts)
    with pytest.raises(TokenShardError, match="less than one sequence of 100000"):
        prepare_tokens(source, tmp_path / "long", tokenizer, context=100_000)
    with pytest.raises(Refused, match=r"field 'body' of line 1 of .* its fields are meta, text"):
        prepare_tokens(source, tmp_path / "field", tokenizer, text="body")
    source.write_text(source.read_text() + '{"text": "cut')
    with pytest.raises(Refused, match=r"Line 61 of .* is not JSON"):
        prepare_tokens(source, tmp_path / "cut", tokenizer, context=16)
    with pytest.raises(Refused, match="There is no file or folder"):
        prepare_tokens(tmp_path / "nothing", tmp_path / "none", tokenizer)
    with pytest.raises(Refused, match="Did you mean tiny"):
        prepare_tokens(source, tmp_path / "none", "tiney")
    with pytest.raises(TokenShardError, match="is not empty"):
        write_shards(tmp_path, np.zeros((2, 3), int), 61)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(TokenShardError, match=r"needs .* GB and the disk has 0\.00 GB free"):
        write_shards(tmp_path / "full", np.zeros((2, 3), int), 61)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["corpus.jsonl"]


def test_the_same_call_again_finds_its_shards(
    tokenizer: Any, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "corpus"
    (folder / "poems").mkdir(parents=True)
    source, poem, out = json_lines(folder / "a.jsonl", texts), folder / "poems" / "one.txt", tmp_path / "t"
    poem.write_text(texts[0] * 9)

    def make(**options: Any) -> TokenShards:
        return prepare_tokens(folder, out, tokenizer, **{"context": 16, "seed": 1} | options)

    class Killed(BaseException):
        pass

    def killed(path: Path, array: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:  # nothing clears up after a kill
        patch.setattr(np, "save", killed)
        patch.setattr(shutil, "rmtree", lambda path, **how: None)
        with pytest.raises(Killed):
            make(context=24)
    assert not out.exists() and {p.name for p in tmp_path.glob(".t.*")} == {".t.staging", ".t.partial"}
    first = make()
    assert not list(tmp_path.glob(".t.*"))
    written = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    monkeypatch.setattr("interpcore.data.tokens.prepare.write_shards", None)
    again = make(masked=("newline", "bos", "padding"), progress=True)
    assert again.identity == first.identity and again.manifest == first.manifest
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == written
    for options, said in (
        ({"context": 32}, "context was 16 and is 32;"),
        ({"seed": None, "max_tokens": 64}, "max_tokens was None and is 64, seed was 1 and is None"),
        ({"text": "body"}, "text was 'text' and is 'body'"),
        ({"subset": "meta"}, "subset was None and is 'meta'"),
        ({"sample_by": "line"}, "sample_by was 'document' and is 'line'"),
        ({"bos": False}, "bos was"),
        ({"pad_last": True}, "pad_last was False and is True"),
        ({"newline_ids": [5]}, r"newline_ids was \[.*\] and is \[5\]"),
        ({"masked": ["bos"]}, r"masked was .* and is \['bos'\]"),
        ({"min_characters": 2}, "min_characters was 1 and is 2"),
    ):
        with pytest.raises(TokenShardError, match=f"holds token shards made otherwise: {said}"):
            make(**options)
    with pytest.raises(TokenShardError, match="made otherwise: the tokenizer is another"):
        prepare_tokens(folder, out, train_tokenizer(texts, 300), context=16, seed=1)
    poem.rename(folder / "one.txt")  # another subset
    with pytest.raises(TokenShardError, match="the source has other files or contents; choose"):
        make()
    (folder / "one.txt").rename(poem)
    make()
    source.write_text(source.read_text().replace("the", "The", 1))
    with pytest.raises(TokenShardError, match="the source has other files or contents; choose"):
        make()


def test_shards_that_do_not_say_what_they_are_of_are_not_taken_for_others(
    tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    source = json_lines(tmp_path / "corpus.jsonl", texts)
    write_shards(tmp_path / "t", np.zeros((2, 16), int), 61)
    with pytest.raises(TokenShardError, match=r"is not empty: .* do not say what they were made of; choose"):
        prepare_tokens(source, tmp_path / "t", tokenizer, context=16)


def test_a_model_that_cannot_read_the_tokens_is_refused(
    tokenizer: Any, texts: list[str], tmp_path: Path
) -> None:
    model = interpcore.load("tiny")
    source = json_lines(tmp_path / "corpus.jsonl", texts)
    shards = prepare_tokens(source, tmp_path / "short", tokenizer, context=64)
    shards.check_model(model)
    other = train_tokenizer(texts, 300)
    with pytest.raises(TokenShardError, match="which is not that of tiny"):
        prepare_tokens(source, tmp_path / "other", other, context=64).check_model(model)
    with pytest.raises(TokenShardError, match="300 tokens do not fit tiny, which reads 256"):
        prepare_tokens(source, tmp_path / "long", tokenizer, context=300).check_model(model)
    with pytest.raises(TokenShardError, match="the id 2304 and tiny has 2304 embeddings"):
        TokenShards.of_arrays(np.full((1, 4), 2304), 2305).check_model(model)
