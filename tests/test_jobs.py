"""Jobs of a person with own data, from the first command to what is shared, in the steps that one expects.

An own circuit task is in `test_own_data.py`, notebooks are in `test_notebooks.py`.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from browser import browse
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tinyworld.world import study_relations
from interpcore.model.load.location import ASSETS
from interpcore.runs import RunFolder


def typed(*words: object) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, f"{words}: {done.output} {done.exception}"
    return done.stdout


def written(said: str) -> list[Path]:
    """The paths that a command printed last."""
    return [Path(line.strip()) for line in said.split("Written:\n")[1].splitlines()]


def test_own_relation_on_an_own_model_folder(tmp_path):
    model = shutil.copytree(ASSETS / "tiny", tmp_path / "my model")
    facts = next(each for each in study_relations() if each.name == "adjective comparative").samples
    mine = {
        "name": "more of it",
        "prompt_templates": ["The comparative of {} is"],
        "prompt_templates_zs": ["The comparative of {} is"],
        "properties": {
            "relation_type": "linguistic",
            "domain_name": "adjective",
            "range_name": "adjective",
            "symmetric": False,
        },
        "samples": [{"subject": fact.subject, "object": fact.object} for fact in facts],
    }
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    looked = typed("validate", tmp_path / "mine.json", model)
    assert f"more of it: {len(facts)} facts" in looked and "gpt2" in looked

    out = tmp_path / "run"
    asked = ("--trials", 1, "--examples", 5, "--betas", "0,1,2", "--ranks", 3, "--quiet", "--out", out)
    said = typed("lre", "run", "--model", model, "--relations", tmp_path / "mine.json", *asked)
    files = written(said)
    assert "more of it" in said and all(file.is_file() for file in files)
    assert {".png", ".csv"} <= {file.suffix for file in files}
    hint = next(line for line in said.splitlines() if line.startswith("  interpcore lre specificity"))
    assert "'" in hint and "my model" in hint  # may be typed as it stands

    shown = typed("show", out)
    assert "1 of 1 cells finished" in shown and "tables/relations" in shown
    table = pd.read_csv(io.StringIO(typed("show", out, "--table", "relations", "--format", "csv")))
    assert list(table.relation) == ["more of it"] and table.n_known[0] + 5 <= len(facts)
    assert 0 <= table.faithfulness[0] <= 1 and table.faithfulness_low[0] <= table.faithfulness_high[0]


def own_text(path: Path, size: int) -> Path:
    """A text of so many bytes at least, of sentences that the shipped models know."""
    texts = documents("a text of one's own", size // 40)
    path.write_text("\n\n".join(texts)[: size + 1000])
    assert path.stat().st_size >= size
    return path


def neurons_of(text: Path, context: int, *more: object) -> tuple[Path, str]:
    """The folder of a study of a text, and what its last command said."""
    tokens, out = text.with_name("tokens"), text.with_name("run")
    said = typed("neurons", "tokens", text, "--context", context, "--quiet", "--out", tokens)
    then = next(line for line in said.splitlines() if "interpcore neurons report" in line)
    assert f"--tokens {tokens}" in then
    return out, typed("neurons", "report", "--tokens", tokens, "--quiet", "--out", out, *more)


def look_at_a_page(out: Path, text: Path) -> None:
    """One neuron's page holds the text as it was written; the site of all leads to it."""
    tokens = text.with_name("tokens")
    listed = json.loads(typed("show", out, "--table", "neuron_df", "--json"))["table"]
    layer, neuron = listed[0]["layer"], listed[0]["neuron"]
    (page,) = written(typed("neurons", "view", layer, neuron, "--tokens", tokens, "--quiet", "--out", out))
    plain = re.sub(r"<[^>]+>", "", page.read_text())
    told = text.read_text()
    contexts = re.findall(r"[A-Za-z]+(?: [A-Za-z]+){3}", plain)
    assert sum(words in told for words in contexts) >= 3  # spaces between words are kept
    (index,) = written(typed("neurons", "site", out))[:1]
    assert f"{layer}.{neuron}" in browse(index)


@pytest.mark.slow  # 5 minutes on busy cores
def test_neurons_of_an_own_text(tmp_path):
    text = own_text(tmp_path / "mine.txt", 300_000)
    out, said = neurons_of(text, 64, "--unigram-least", 200, "--sequences", 32)
    page = next(file for file in written(said) if file.suffix == ".html")
    assert "to look at" in page.read_text() and page.stat().st_size < 20 << 20
    look_at_a_page(out, text)


SWEEP = """
import sys, time
from interpcore.runs import RunFolder, sweep

def mine(word: str, times: int) -> dict[str, int]:
    time.sleep(0.05)
    with open(sys.argv[2], "a") as calls:
        calls.write(f"{word} {times}\\n")
    return {"letters": len(word) * times}

if __name__ == "__main__":
    grid = {"word": ["a", "bcd", "efghi"], "times": list(range(8))}
    rows = sweep(mine, grid, out=sys.argv[1], workers=2)
    frame = rows.to_pandas()
    frame[["word", "times", "letters", "status"]].to_csv(sys.stdout, index=False)
"""


def test_a_sweep_of_an_own_function_goes_on_after_a_kill_and_is_a_data_frame(tmp_path):
    script, out, calls = tmp_path / "mine.py", tmp_path / "run", tmp_path / "calls"
    script.write_text(SWEEP)
    calls.touch()
    command = [sys.executable, str(script), str(out), str(calls)]
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    began = time.monotonic()
    while len(calls.read_text().splitlines()) < 10 and time.monotonic() - began < 60:
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    told = json.loads(typed("ls", "runs", tmp_path, "--json"))["table"]
    assert told[0]["of cells"] == 24 and told[0]["done"] < 24

    second = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    frame = pd.read_csv(io.StringIO(second.stdout))
    assert len(frame) == 24 and set(frame.status) == {"done"}
    assert (frame.letters == frame.word.str.len() * frame.times).all()
    assert len(calls.read_text().splitlines()) <= 24 + 6  # what was in flight was done again, no more
    with RunFolder.open(out) as run:
        assert sorted(run.to_pandas().letters) == sorted(frame.letters)
    assert "24 of 24 cells finished" in typed("show", out)
