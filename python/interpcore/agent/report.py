"""What a session says at its end, from its ledger alone, with the runs behind every number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from interpcore.agent.digest import INVALID, MOST_INVALID, SILENT, said
from interpcore.agent.instrument import CONTROL, LOSS
from interpcore.agent.ledger import SessionLedger
from interpcore.runs import Artifacts, write_bytes
from interpcore.runs.experiment import Report

NOTES = (
    "estimate: of several parts of a claim the weakest; the change of the metric against the intact plan on "
    "the same items, with its 95% interval (over items, Student's t corrected for skewness).",
    "found: on items that the policy chose from, in sample, and not counted; confirmed: on items that no "
    "policy saw, drawn with another seed.",
    "adjusted: Holm over all claims of the session, one-sided; confirmed at most at the session's level.",
)


@dataclass(frozen=True)
class Counts:
    """What a session did, in numbers.

    Attributes:
        claims, supported, confirmed: claims stated, those that the explored items support, and those that
            hold on others.
        refused: claims that the harness did not take.
        invalid: calls that were none, refused claims among them.
    """

    claims: int
    supported: int
    confirmed: int
    refused: int
    invalid: int


def count(ledger: SessionLedger) -> Counts:
    """Count a session's claims and calls."""
    rows = ledger.rows("SELECT verdict, confirmed FROM claims")
    held = [json.loads(row["confirmed"])["verdict"] == "confirmed" for row in rows if row["confirmed"]]
    names: dict[str, str] = {}
    invalid = refused = 0
    for message in ledger.messages():
        names |= {call["id"]: call["function"]["name"] for call in message.get("tool_calls", ())}
        if message["role"] == "tool":
            error = json.loads(message["content"]).get("error")
            invalid += error is not None and error["type"] != "budget"
            refused += error is not None and names[message["tool_call_id"]] == "claim"
    supported = sum(row["verdict"] == "supported" for row in rows)
    return Counts(len(rows), supported, sum(held), refused, invalid)


def claim_rows(ledger: SessionLedger) -> list[dict[str, Any]]:
    """One row per claim, in order."""
    rows = []
    for row in ledger.rows("SELECT * FROM claims ORDER BY rowid"):
        found, about = json.loads(row["found"]), json.loads(row["arguments"])
        confirmed = json.loads(row["confirmed"]) if row["confirmed"] else {}
        verdict = confirmed.get("verdict") or f"{row['verdict']} in sample"
        rows.append(
            {
                "claim": row["id"],
                "says": said(about),
                "type": row["type"],
                "found": found["estimate"],
                "found_low": found["low"],
                "found_high": found["high"],
                "found_n": found["n"],
                "found_runs": " ".join(json.loads(row["runs"])),
                "estimate": confirmed.get("estimate"),
                "low": confirmed.get("low"),
                "high": confirmed.get("high"),
                "n": confirmed.get("n"),
                "adjusted": confirmed.get("adjusted"),
                "runs": " ".join(confirmed.get("runs", ())),
                "verdict": verdict,
            }
        )
    return rows


def run_rows(ledger: SessionLedger, metric: str) -> list[dict[str, Any]]:
    """One row per run, in order."""
    rows = []
    for row in ledger.rows("SELECT id, plan, task, held_out, summary, key FROM runs ORDER BY rowid"):
        means, items = json.loads(row["summary"]), json.loads(row["key"])["items"]
        shown = {name: means.get(name) for name in dict.fromkeys((metric, LOSS, CONTROL))}
        where = {"run": row["id"], "plan": row["plan"], "task": row["task"], "items": len(items)}
        rows.append({**where, "kept_back": "yes" if row["held_out"] else "", **shown})
    return rows


def sections(ledger: SessionLedger) -> list[tuple[str, list[str], list[dict[str, Any]]]]:
    """Heading, sentences and table of each part of the report."""
    [session] = ledger.rows("SELECT * FROM sessions")
    card = json.loads(session["card"])
    asked, counts, spent = card["arguments"], count(ledger), ledger.spent()
    held = (
        f", {spent.held_in + spent.held_out} more held as unknown" if spent.held_in + spent.held_out else ""
    )
    head = [
        f"Goal: {asked['goal']}",
        f"Model {card['model'] or 'unnamed'}, weights {str(card['weights'])[:12]}; policy {asked['policy']}, "
        f"seed {asked['seed']}; metric {asked['metric']}, breaks from {asked['least']:g}, preserves below "
        f"{asked['within']:g}; level {asked['level']:g}.",
        f"Ended: {session['stop_reason']}. Spent: {spent.calls} calls, {spent.tokens_in} prompt and "
        f"{spent.tokens_out} completion tokens{held}, {spent.forwards} forwards, {ledger.elapsed():.1f} s.",
        f"{counts.claims} claims, {counts.supported} supported by the explored items, {counts.confirmed} of "
        f"these confirmed on others; {counts.refused} claims refused, {counts.invalid} calls invalid.",
    ]
    notes = [
        {**row, "runs": " ".join(json.loads(row["runs"]))}
        for row in ledger.rows("SELECT id, hypothesis, statement, verdict, runs FROM notes ORDER BY rowid")
    ]
    columns = "id AS study, experiment, arguments, folder"
    studies = ledger.rows(f"SELECT {columns} FROM studies ORDER BY rowid") if ledger.has("studies") else []
    claims = [{name: v for name, v in row.items() if name != "type"} for row in claim_rows(ledger)]
    return [
        ("Session", head, []),
        ("Claims", list(NOTES) if claims else ["None was made."], claims),
        (
            "Studies",
            ["Tables of other experiments, in the folder of the session; no claim stands on them."]
            if studies
            else ["None was run."],
            studies,
        ),
        ("The policy's summary", [session["summary"] or "None was given."], []),
        ("Notes", [] if notes else ["None was made."], notes),
        (
            "Runs",
            ["Means over items; every run is beside the intact plan's."],
            run_rows(ledger, asked["metric"]),
        ),
    ]


def markdown(ledger: SessionLedger) -> str:
    """The report as Markdown."""
    lines = [f"# {ledger.value('SELECT id FROM sessions')}", ""]
    for head, sentences, rows in sections(ledger):
        lines += [f"## {head}", ""]
        for sentence in sentences:
            lines += [_plain(sentence), ""]
        if rows:
            lines += [_row(list(rows[0])), _row(["---"] * len(rows[0]))]
            lines += [_row([_cell(value) for value in row.values()]) for row in rows]
            lines.append("")
    return "\n".join(lines)


def html(ledger: SessionLedger) -> str:
    """The report as a page that stands alone."""
    import pandas as pd

    from interpcore.runs import pages

    parts = []
    for head, sentences, rows in sections(ledger):
        body: list[Any] = [pages.note(sentence) for sentence in sentences]
        if rows:
            shown = [{name: _cell(value) for name, value in row.items()} for row in rows]
            body.append(pages.table(pd.DataFrame(shown)))
        parts.append((head, pages.joined(body)))
    return pages.page(str(ledger.value("SELECT id FROM sessions")), parts)


def report(ledger: SessionLedger, artifacts: Artifacts | None) -> Report:
    """Write the report beside the ledger; gives the claims as a table."""
    import pandas as pd

    files = []
    for name, text in (("report.md", markdown(ledger)), ("report.html", html(ledger))):
        if artifacts is not None:
            files.append(artifacts.artifact(name))
            write_bytes(files[-1], text.encode())
    claims = claim_rows(ledger)
    table = pd.DataFrame(claims, columns=list(claims[0]) if claims else ["claim", "says", "verdict"])
    _, head, _ = sections(ledger)[0]
    shown = ("claim", "says", "found", "estimate", "low", "high", "n", "adjusted", "verdict")
    problems = broken_off(ledger)
    return Report(table, tuple(files), (*head, *NOTES), problems, shown if claims else ())


def broken_off(ledger: SessionLedger) -> tuple[str, ...]:
    """Why a session was broken off by what its policy said, in a sentence; () for others."""
    reason = str(ledger.value("SELECT stop_reason FROM sessions"))
    if reason == INVALID:
        last = next(m for m in reversed(ledger.messages()) if m["role"] == "tool")
        told = json.loads(last["content"])["error"]["message"]
        return (f"The session ended behind {MOST_INVALID} invalid calls in a row; the last: {told}",)
    if reason == SILENT:
        return ("The session ended because its policy called no tool, though it was told to.",)
    return ()


def _plain(text: str) -> str:
    """Text on one line, without what Markdown or a browser would take for a mark."""
    text = " ".join(text.split())
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return text


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(_plain(cell) if cell != '---' else cell for cell in cells)} |"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
