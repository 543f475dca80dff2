"""What was run and what came of it, told by its content: ledgers, cards, claims, evaluation logs."""

from __future__ import annotations

from pathlib import Path

from interpcore.cli.tensor_kinds import Found
from interpcore.runs.artifacts import read_json


def database(path: Path, model: str | None) -> Found:
    """A run's ledger, or an agent's session."""
    from contextlib import closing

    from interpcore.agent.ledger import SessionLedger
    from interpcore.runs.ledger import Ledger

    if path.name == "session.sqlite":
        with closing(SessionLedger(path, read_only=True)) as session:
            return "an agent's session", str(session.value("SELECT status FROM sessions"))
    with Ledger(path, read_only=True) as ledger:
        rows = list(ledger)
    return "ledger", f"{sum(row.status == 'done' for row in rows)} of {len(rows)} cells done"


def claims(path: Path, model: str | None) -> Found:
    """Claims for `verify`."""
    from interpcore.runs.claims import read_claims

    return "claims", f"{len(read_claims(path))} claims"


def card(path: Path, model: str | None) -> Found:
    """A run card."""
    from interpcore.runs.card import RunCard

    found = RunCard.from_json(read_json(path), str(path))
    return "run card", f"{found.model or 'no model'}, begun {found.created}"


def eval_log(path: Path, model: str | None) -> Found:
    """An evaluation log in Inspect's form."""
    from interpcore.data.eval_logs import read_eval_log

    log = read_eval_log(path)
    return "evaluation log", f"{log.task} of {log.model}: {len(log.samples)} samples, {log.header['status']}"


def eval_logs(folder: Path) -> tuple[str, str]:
    """A folder of evaluation logs, each read whole."""
    found = [eval_log(file, None) for file in sorted(folder.glob("*.eval"))]
    return "evaluation logs", f"{len(found)} files, first {found[0][1]}"
