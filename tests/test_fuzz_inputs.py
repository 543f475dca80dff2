"""Damaged inputs of every kind: each is refused in one sentence, or read as something whole; nothing else."""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import circuit_kinds
import input_kinds
import pytest

from interpcore.errors import InterpcoreError

SECONDS = 5.0
"""What reading a damaged small file may take at most; a hang or gigabytes take longer."""


KINDS = input_kinds.KINDS | circuit_kinds.KINDS


@pytest.mark.parametrize("name", KINDS)
def test_damage_is_refused_in_a_sentence_or_leaves_something_whole(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    good = tmp_path / "good"
    good.mkdir()
    file = kind.write(good)
    data = file.read_bytes()
    kind.read(file)
    refused = 0
    for number in range(kind.count):
        rng = random.Random(f"{name} {number}")
        damaged = rng.choice(kind.damage)(rng, data)
        folder = tmp_path / "bad"
        shutil.copytree(good, folder)
        path = folder / file.relative_to(good)
        path.write_bytes(damaged)
        began = time.process_time()
        try:
            kind.read(path)
        except (InterpcoreError, OSError) as error:
            said = str(error)
            assert said and "\n" not in said and len(said) < 1500, (number, said)
            refused += 1
        except BaseException as error:
            error.add_note(f"{name}, damage number {number}: {damaged[:300]!r}")
            raise
        assert time.process_time() - began < SECONDS, (number, damaged[:300])
        shutil.rmtree(folder)
    assert refused > kind.count / 10
