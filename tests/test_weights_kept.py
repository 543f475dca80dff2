"""The hash of a model's weights, kept between processes: hashed once per file, and a changed file is seen."""

import os
import shutil
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path

import pytest
import torch

import interpcore
from interpcore._kept import keep, read_kept
from interpcore.data.tinyworld.models import model_folder
from interpcore.model import Model
from interpcore.model.weights import weights_hash


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model's folder, and an empty cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Path(shutil.copytree(model_folder("tiny"), tmp_path / "model"))


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each time that tensors are hashed."""
    module, seen = import_module("interpcore.model.weights"), []
    plain = module.tensors_hash
    monkeypatch.setattr(module, "tensors_hash", lambda tensors: seen.append(1) or plain(tensors))
    return seen


def load(folder: Path) -> Model:
    model = interpcore.load(folder, check=False)
    assert isinstance(model, Model)
    return model


def files_of(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "interpcore").glob("weights-*.json"))


def test_a_second_process_does_not_hash(folder: Path, hashed: list[int]) -> None:
    first = weights_hash(load(folder))
    assert weights_hash(load(folder)) == first
    assert len(hashed) == 1
    os.utime(folder / "model.safetensors")  # touched: nobody knows what else was done
    assert weights_hash(load(folder)) == first
    assert len(hashed) == 2


def test_another_file_of_the_same_size_and_time_is_seen(folder: Path, hashed: list[int]) -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "model.safetensors"
    first, before = weights_hash(load(folder)), path.stat()
    tensors = load_file(path)
    name = sorted(tensors)[0]
    tensors[name] = tensors[name] + 1
    save_file(tensors, folder / "new", metadata={"format": "pt"})
    path.write_bytes((folder / "new").read_bytes())
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert weights_hash(load(folder)) != first
    assert len(hashed) == 2


def test_what_is_written_into_a_loaded_model_is_seen(folder: Path, hashed: list[int]) -> None:
    first = weights_hash(load(folder))
    changed = load(folder)
    changed.embedding.data[0, 0] += 1
    assert weights_hash(changed) != first
    assert weights_hash(load(folder)) == first
    assert len(hashed) == 2


def test_dtypes_have_hashes_of_their_own(folder: Path, hashed: list[int]) -> None:
    wide = interpcore.load(folder, check=False, dtype=torch.float64)
    assert weights_hash(wide) != weights_hash(load(folder))
    assert weights_hash(interpcore.load(folder, check=False, dtype=torch.float64)) == weights_hash(wide)
    assert len(hashed) == 2


@pytest.mark.parametrize(
    "content", [b"", b"{", b'{"value": "abc"}', b'{"value": "abc", "sum": "1"}', b"\xff"]
)
def test_a_damaged_file_is_not_believed(
    folder: Path, hashed: list[int], tmp_path: Path, content: bytes
) -> None:
    first = weights_hash(load(folder))
    (kept,) = files_of(tmp_path)
    kept.write_bytes(content)
    assert weights_hash(load(folder)) == first
    assert read_kept(kept) == first
    assert len(hashed) == 2


def test_without_a_cache_folder_each_process_hashes(
    folder: Path, hashed: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "below"))
    assert weights_hash(load(folder)) == weights_hash(load(folder))
    assert len(hashed) == 2


def test_a_model_of_no_file_is_kept_nowhere(folder: Path, hashed: list[int], tmp_path: Path) -> None:
    model = load(folder)
    weights_hash(model.to(dtype=torch.float64))
    assert files_of(tmp_path) == []


def keep_often(path: Path, value: str) -> None:
    for _ in range(200):
        keep(path, value)


def test_several_writers_leave_a_whole_file(tmp_path: Path) -> None:
    path, values = tmp_path / "kept.json", {"a" * 50, "b" * 3000}
    keep(path, "a" * 50)
    writers = [get_context("fork").Process(target=keep_often, args=(path, v)) for v in sorted(values)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        seen.add(read_kept(path))
    for writer in writers:
        writer.join()
    assert seen <= values
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]
