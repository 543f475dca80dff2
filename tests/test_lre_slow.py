"""Every command of the family once on `tiny`, all relations, one folder: each gives a table and a figure
(6 minutes of one core at most)."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.lre.experiments import EXPERIMENTS

pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

MOST = 360  # CPU seconds of all commands: 6 minutes even on one core
FEW = ("--model", "tiny", "--trials", "1", "--max-test", "40", "--quiet")


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception}"
    return result.output


def written(out: Path, ending: str) -> set[tuple[Path, int]]:
    """Artifacts and when they were written: a study that writes one anew counts, too."""
    return {(file, file.stat().st_mtime_ns) for file in out.rglob(f"*{ending}")}


@pytest.mark.slow  # 6 minutes
def test_everything_runs_on_tiny_in_six_minutes(tmp_path, capsys):
    out, taken = tmp_path / "run", {}
    for experiment in EXPERIMENTS:
        began, before = time.process_time(), {end: written(out, end) for end in (".png", ".parquet")}
        said = invoke(*experiment.name.split(), *FEW, "--out", str(out))
        for end, had in before.items():
            assert written(out, end) - had, f"{experiment.name} wrote no {end}"
        assert "Try next" in said and "Written" in said, experiment.name
        taken[experiment.name.split()[1]] = time.process_time() - began
    began = time.process_time()
    assert "correlation" in invoke("lre", "compare", str(out), str(out))
    assert "faithfulness of country capital city" in invoke("compare", str(out), "published")
    taken["compare"] = time.process_time() - began
    total = sum(taken.values())
    with capsys.disabled():
        parts = ", ".join(f"{name} {seconds:.0f}" for name, seconds in taken.items())
        sys.stdout.write(f"\n{len(EXPERIMENTS)} studies on tiny: {total:.0f} CPU seconds ({parts})\n")
    assert total < MOST
