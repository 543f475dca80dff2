"""Kills a session at every commit, before and after it, and goes on: `agent_killed.py FOLDER POLICY`.

Writes FOLDER/<n>-<when>.json with the tables of each session that went on, and FOLDER/whole.json.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from agent_case import Made, only, session, tables

from interpcore.agent.ledger import SessionLedger

FOLDER, POLICY = Path(sys.argv[1]), sys.argv[2]
MORE = {"llm": "stub"} if POLICY == "llm" else {}


def go(name: str) -> None:
    with session(FOLDER / name, Made(only(0), blocks=2, noise=0.1), POLICY, **MORE) as opened:
        opened.run()
        (FOLDER / f"{name}.json").write_text(json.dumps(tables(opened.ledger)))


def killed_at(commit: int, when: str, name: str) -> None:
    real, done = SessionLedger.commit, [0]

    def commit_or_die(ledger: SessionLedger) -> None:
        done[0] += 1
        if done[0] == commit and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        real(ledger)
        if done[0] == commit:
            os.kill(os.getpid(), signal.SIGKILL)

    SessionLedger.commit = commit_or_die
    go(name)


def in_a_child(work: Callable[..., None], *arguments: object) -> int:
    child = os.fork()
    if child == 0:
        work(*arguments)
        os._exit(0)
    return os.waitpid(child, 0)[1]


go("whole")  # here, so that children find every library loaded
commit = 1
while True:
    status = [in_a_child(killed_at, commit, when, f"{commit}-{when}") for when in ("before", "after")]
    if status == [0, 0]:
        break
    assert status == [signal.SIGKILL, signal.SIGKILL], status
    for when in ("before", "after"):
        assert in_a_child(go, f"{commit}-{when}") == 0
    commit += 1
sys.stdout.write(f"{commit - 1}\n")
