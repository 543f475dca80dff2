"""kill -9 before and after every commit of a session: it goes on as if nothing had been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from agent_server import Step, calls, results, serving

SCRIPT = Path(__file__).parent / "agent_killed.py"


def killed(folder: Path, policy: str, **environment: str) -> tuple[dict, dict[str, dict]]:
    """Tables of the session that nobody killed, and of those that went on."""
    command = [sys.executable, str(SCRIPT), str(folder), policy]
    said = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )
    assert said.returncode == 0, said.stderr
    whole = json.loads((folder / "whole.json").read_text())
    went_on = {file.stem: json.loads(file.read_text()) for file in folder.glob("*-*.json")}
    last = int(said.stdout)
    assert last > 8 and {int(name.partition("-")[0]) for name in went_on} >= set(range(1, last + 1))
    return whole, went_on


@pytest.mark.slow  # 1 minute
def test_an_offline_session_is_the_same_wherever_it_was_killed(tmp_path):
    whole, went_on = killed(tmp_path, "greedy-delete")
    assert any(json.loads(claim["confirmed"])["verdict"] == "confirmed" for claim in whole["claims"])
    for name, found in went_on.items():
        assert found == whole, name


def answer(request):
    """What the model says next, by what the tools have said so far."""
    said = results(request)
    if not said:
        return calls(("run", {"plan": "1", "task": "alpha"}), ("run", {"plan": "0", "task": "alpha"}))
    if len(said) == 2:
        ids = [each["ids"]["run"] for each in said]
        return calls(("claim", {"type": "matters", "task": "alpha", "blocks": [0], "runs": ids}))
    return calls(("finish", {"summary": "Block 0 matters.", "claims": ["c1"]}))


def test_a_session_of_a_language_model_repeats_no_paid_call(tmp_path):
    with serving(Step(answer)) as server:
        whole, went_on = killed(tmp_path, "llm", OPENAI_BASE_URL=server.base, OPENAI_API_KEY="")
        sent = len(server.requests)
    assert len(whole["llm_calls"]) == 3
    counted = 0
    for name, found in {**went_on, "whole": whole}.items():
        for table in ("messages", "llm_calls", "runs", "items", "claims", "notes"):
            assert found[table] == whole[table], (name, table)
        spent = Counter()
        for row in found["spend"]:
            spent.update({key: row[key] for key in ("calls", "tokens_in", "held_in", "forwards")})
        twice = spent["calls"] - 3  # only what was on the wire when it was killed, and that is held as paid
        assert twice in (0, 1) and (spent["held_in"] > 0) == twice and spent["tokens_in"] == 300
        counted += spent["calls"]
    assert counted >= sent >= 3 * len(went_on)
