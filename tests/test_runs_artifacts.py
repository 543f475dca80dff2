"""Atomic artifacts: whole or absent, and sentences for what cannot be read."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from interpcore.runs import (
    RunError,
    atomic_path,
    read_bytes,
    read_json,
    read_metadata,
    read_tensors,
    write_bytes,
    write_json,
    write_tensors,
)
from interpcore.runs.artifacts import remove_partials


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


def test_round_trips(tmp_path):
    value = {"a": [1, 2.5, None, "é"], "b": {"c": True}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    write_bytes(tmp_path / "x.bin", b"\x00\xff")
    assert read_bytes(tmp_path / "x.bin") == b"\x00\xff"
    tensors = {
        "w": torch.randn(3, 4).T,
        "h": torch.ones((), dtype=torch.bfloat16),
        "i": torch.zeros(0, dtype=torch.long),
    }
    write_tensors(tmp_path / "x.safetensors", tensors, {"sign": "clean minus corrupted"})
    back, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"sign": "clean minus corrupted"}
    assert set(back) == set(tensors)
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype
        assert torch.equal(back[name], tensor)
    assert names(tmp_path) == ["x.bin", "x.json", "x.safetensors"]


def write_half(path):
    with atomic_path(path) as partial:
        partial.write_text("half")
        raise ZeroDivisionError


def test_a_failing_writer_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "x.json"
    write_json(path, 1)
    with pytest.raises(ZeroDivisionError):
        write_half(path)
    assert read_json(path) == 1
    with pytest.raises(TypeError, match="which JSON cannot hold"):
        write_json(path, {"x": torch.zeros(2)})
    with pytest.raises(RunError, match="nothing was written"), atomic_path(path):
        pass
    assert read_json(path) == 1
    assert names(tmp_path) == ["x.json"]


def test_the_temporary_name_keeps_the_suffix_that_writers_look_at(tmp_path):
    with atomic_path(tmp_path / "x.npz") as partial:
        np.savez(partial, a=np.arange(3))
    with np.load(tmp_path / "x.npz") as file:
        assert file["a"].tolist() == [0, 1, 2]


def test_a_writer_killed_at_any_time_leaves_whole_files(tmp_path):
    code = (
        "import sys, itertools\nfrom interpcore.runs import write_json\n"
        "for i in itertools.count():\n    write_json(sys.argv[1], [i] * 20000)\n    print(i, flush=True)\n"
    )
    path = tmp_path / "x.json"
    for delay in (0.0, 0.013, 0.05):
        process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
        with process:
            process.stdout.readline()
            time.sleep(delay)
            os.kill(process.pid, signal.SIGKILL)
        value = read_json(path)
        assert len(value) == 20000
        assert len(set(value)) == 1


def test_readers_say_what_is_wrong(tmp_path):
    path = tmp_path / "x.json"
    with pytest.raises(RunError, match="there is no file"):
        read_json(path)
    whole = json.dumps({"a": [1.5, -2e-30, "t\u00e9xt"], "b": {"c": None, "d": [True, False, -3]}})
    for end in range(1, len(whole)):
        path.write_text(whole[:end])
        with pytest.raises(RunError, match="cut short"):
            read_json(path)
    for content, said in [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"a: 1", "is not JSON"),
        (b"\xff\xfe", "not UTF-8"),
    ]:
        path.write_bytes(content)
        with pytest.raises(RunError, match=said):
            read_json(path)
    tensors = tmp_path / "x.safetensors"
    with pytest.raises(RunError, match="there is no file"):
        read_tensors(tensors)
    write_tensors(tensors, {"w": torch.ones(100)})
    data = tensors.read_bytes()
    for end in (0, 4, 30, len(data) - 1):
        tensors.write_bytes(data[:end])
        with pytest.raises(RunError, match=rf"\({end} bytes\) is cut short or not a safetensors file"):
            read_tensors(tensors)
    with pytest.raises(RunError, match="does not exist; make it first"):
        write_json(tmp_path / "absent" / "x.json", 1)


def test_one_flipped_bit_of_tensors_is_told(tmp_path):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": torch.ones(2), "b": torch.arange(3)}, {"seen": "[[0, 4]]"})
    whole = path.read_bytes()
    for at in range(len(whole)):
        for bit in (at % 8, 5):
            path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :])
            with pytest.raises(RunError, match=r"x\.safetensors .*(damaged|not a safetensors file)"):
                read_tensors(path)
    path.write_bytes(whole)
    assert read_tensors(path, "b")[0].keys() == {"b"}
    # A part is read when it is whole itself.
    at = whole.index(torch.ones(2).numpy().tobytes())
    path.write_bytes(whole[:at] + b"\x01" + whole[at + 1 :])
    assert read_metadata(path) == {"seen": "[[0, 4]]"}
    assert read_tensors(path, "b")[0]["b"].tolist() == [0, 1, 2]
    with pytest.raises(RunError, match="changed or damaged"):
        read_tensors(path, "a")


def test_tensors_without_checksums_are_read(tmp_path):
    save_file({"w": torch.ones(2)}, tmp_path / "x.safetensors", {"about": "old"})
    back, metadata = read_tensors(tmp_path / "x.safetensors")
    assert metadata == {"about": "old"} and back["w"].tolist() == [1, 1]


def test_what_a_library_leaves_beside_its_file_goes_too(tmp_path):
    with atomic_path(tmp_path / "x.bin") as partial:
        partial.with_name(".tmp1").touch()
        partial.write_bytes(b"whole")
    assert names(tmp_path) == ["x.bin"]
    left = tmp_path / "below" / ".x.bin.0123.partial"
    left.mkdir(parents=True)
    (left / ".tmp2").touch()
    remove_partials(tmp_path)
    assert left.exists(), "its writer may be about to begin"
    os.utime(left, (0, 0))
    remove_partials(tmp_path)
    assert names(tmp_path) == ["below", "x.bin"] and names(tmp_path / "below") == []
