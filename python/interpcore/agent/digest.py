"""What a policy is asked: the goal, the tools, and a bounded digest of the session. One text for one state,
with no time and no place of this machine in it, so that the same session asks the same again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from interpcore.agent.budget import Account
from interpcore.agent.lab import Lab
from interpcore.agent.options import SessionOptions
from interpcore.agent.replies import carried
from interpcore.agent.tool import ALWAYS
from interpcore.runs.canonical import canonical_json

DIGEST_BYTES, TAIL_BYTES = 6000, 16000  # no tokenizer makes more tokens of a text than it has bytes
_FEW = 8
SYSTEM = """You study a language model by running its blocks under other plans: skipped, kept, swapped,
repeated. Measure with `run`; every run has the intact plan beside it on the same items. State what you find
with `claim`, which the harness tests: a claim needs the ids of runs that hold its plans on the same 20 items
or more, and what they show is tested again on other items after `finish`. Only confirmed claims count; false
ones count against you. Numbers in notes and summaries must be those of the runs you cite. Call tools only."""
REMINDER = "Call a tool. To end the session, call finish."
MOST_INVALID = 3  # calls in a row
INVALID, SILENT = "failed: invalid calls", "stopped: no tool call"
"""Why a session ended that was broken off by what its policy said."""


def build_request(
    lab: Lab,
    account: Account,
    transcript: Sequence[dict[str, Any]],
    last: str | None,
    tools: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """The body of a chat completion request.

    Args:
        lab: the session's.
        account: what is left.
        transcript: all messages so far.
        last: the limit for which this is the last request; None while there may be more.
        tools: as chat completions take them.
    """
    asked = [
        {"role": "system", "content": SYSTEM},
        {"role": "user", "content": digest(lab, account, last)},
        *_tail(transcript),
    ]
    return {"messages": asked, "tools": list(tools)} | _settings(lab.options)


def _settings(options: SessionOptions) -> dict[str, Any]:
    if options.policy != "llm":
        return {"model": options.policy, "seed": options.seed}
    found: dict[str, Any] = {
        "model": options.llm,
        "tool_choice": "auto",
        "parallel_tool_calls": False,
        "seed": options.seed,
        options.tokens_field: options.max_tokens,
    }
    if options.temperature is not None:
        found["temperature"] = options.temperature
    return {name: value for name, value in found.items() if name not in options.leave_out}


def request_text(request: dict[str, Any]) -> str:
    """A request as it is hashed, counted and kept."""
    return canonical_json(request, "the request")


def request_hash(text: str) -> str:
    """The name of a request."""
    return hashlib.sha256(text.encode()).hexdigest()


def digest(lab: Lab, account: Account, last: str | None) -> str:
    """Goal, rules, what is left, hypotheses, claims and best runs, in at most `DIGEST_BYTES` bytes."""
    options, instrument = lab.options, lab.instrument
    lines = [
        f"Goal: {options.goal}",
        f"Model: {instrument.blocks} blocks, 0 to {instrument.blocks - 1}; intact plan: {lab.intact}.",
        f"Tasks: {', '.join(instrument.tasks)}.",
        f"Metric of claims: {options.metric} ({instrument.metrics[options.metric]}); a rise of "
        f"{options.least:g} or more breaks a task, a change below {options.within:g} preserves it. Runs take "
        f"{options.items} items.",
        *_money_lines(account),
    ]
    if last is not None:
        lines.append(f"This is the last request ({last}): only {' and '.join(ALWAYS)} are obeyed.")
    return _bounded([*lines, *_hypotheses(lab), *_claims(lab), *_studies(lab), *_best(lab)])


def _money_lines(account: Account) -> list[str]:
    # Seconds are left out: they differ from one time to the next, and a request must not.
    shown = {name: limit for name, limit in account.limits.items().items() if name != "seconds"}
    if not shown:
        return []
    left = ", ".join(f"{max(account.left(name), 0):g} of {limit:g} {name}" for name, limit in shown.items())
    nearly = [name for name in account.nearly() if name != "seconds"]
    warned = [f"Four fifths of {', '.join(nearly)} are used; claim and finish in time."] if nearly else []
    return [f"Budget left: {left}.", *warned]


def _hypotheses(lab: Lab) -> list[str]:
    rows = lab.ledger.rows("SELECT id, hypothesis FROM notes WHERE verdict = 'open' ORDER BY rowid DESC")
    return [f"Open hypothesis {row['id']}: {row['hypothesis']}" for row in rows[:_FEW]]


def _claims(lab: Lab) -> list[str]:
    rows = lab.ledger.rows("SELECT id, arguments, verdict FROM claims ORDER BY rowid DESC")
    return [f"Claim {row['id']}: {said(json.loads(row['arguments']))}: {row['verdict']}." for row in rows]


def _studies(lab: Lab) -> list[str]:
    rows = lab.ledger.rows("SELECT id, experiment FROM studies ORDER BY rowid DESC")
    return [f"Study {row['id']}: {row['experiment']}." for row in rows[:_FEW]]


def _best(lab: Lab) -> list[str]:
    """Runs of other plans that changed the metric least."""
    found = []
    for row in lab.ledger.rows(
        "SELECT id, plan, task FROM runs WHERE held_out = 0 AND plan <> ?", lab.intact
    ):
        run = lab.stored(row["id"])
        assert run is not None
        found.append((float(lab.change(run).mean()), row["id"], row))
    lines = [
        f"Run {name}: plan {row['plan']}, task {row['task']}, change {change:.6g}."
        for change, name, row in sorted(found, key=lambda each: each[:2])[:_FEW]
    ]
    return [*lines, f"{len(found) - _FEW} more runs: query."] if len(found) > _FEW else lines


def said(about: dict[str, Any]) -> str:
    """A claim in words."""
    kind, task, blocks = about["type"], about["task"], ", ".join(map(str, about["blocks"]))
    if kind == "matters":
        return f"block {blocks} matters for {task}"
    if kind == "does_not_matter":
        return f"block {blocks} does not matter for {task}"
    if kind == "needs":
        return f"{task} needs blocks {blocks} and no others"
    if kind == "appears_at":
        return f"{task} appears with the first {about['n']} blocks"
    if kind == "interacts":
        return f"blocks {blocks} interact on {task}"
    worse, better = about["plans"]
    return f"plan {worse} is worse than {better} on {task}"


def _bounded(lines: list[str]) -> str:
    kept, size = [], 60
    for line in lines:
        size += len(line.encode()) + 1
        if size > DIGEST_BYTES:
            break
        kept.append(line)
    left_out = len(lines) - len(kept)
    return "\n".join([*kept, f"{left_out} more lines are left out: query."] if left_out else kept)


def _tail(transcript: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The last exchanges, each with all of its tools' answers, as far as they fit; the last one always."""
    turns: list[list[dict[str, Any]]] = []
    for message in transcript:
        if message["role"] == "assistant" or not turns:
            turns.append([])
        turns[-1].append(message)
    kept: list[dict[str, Any]] = []
    size = 0
    for turn in reversed(turns):
        size += sum(len(json.dumps(message).encode()) for message in turn)
        if kept and size > TAIL_BYTES:
            break
        kept = [*map(carried, turn), *kept]
    return kept
