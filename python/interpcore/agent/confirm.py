"""Confirming: what the explored items support is measured again on items that no policy saw, and Holm's
procedure over all claims of the session decides."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

from interpcore.agent.budget import Account, Spend
from interpcore.agent.claims import Claim, decide, holm
from interpcore.agent.lab import Lab


def confirm(lab: Lab, account: Callable[[], Account], spend: Callable[[str, Spend], None]) -> None:
    """Make the runs that are missing, one transaction each, then write every verdict in one.

    Args:
        lab: the session's.
        account: gives what is left now; what is set aside is for these runs.
        spend: adds a step to what was spent.
    """
    claims = lab.supported()
    for (plan, task), cost in lab.confirmation([claim for _, claim in claims]).items():
        now = replace(account(), reserved=0)
        if now.exhausted() == "seconds" or now.over(seconds=cost * now.pace) is not None:
            break
        with lab.ledger.transaction():
            run, forwards = lab.run(plan, task, lab.kept_back(task), held_out=True)
            spend(f"confirm {run.id}", Spend(forwards=forwards))
    found = {name: _found(lab, claim) for name, claim in claims}
    names = [row["id"] for row in lab.ledger.rows("SELECT id FROM claims ORDER BY rowid")]
    adjusted = dict(zip(names, holm([found.get(name, {}).get("p", 1.0) for name in names]), strict=True))
    with lab.ledger.transaction():
        for name, each in found.items():
            holds = each["done"] and adjusted[name] <= lab.options.level
            said = {**each, "adjusted": adjusted[name], "verdict": "confirmed" if holds else "not confirmed"}
            lab.ledger.change("UPDATE claims SET confirmed = ? WHERE id = ?", said, name)
        lab.ledger.change("UPDATE sessions SET status = 'finished', finished = ?", time.time())


def _found(lab: Lab, claim: Claim) -> dict[str, Any]:
    """What the items kept back say of a claim."""
    items, plans = lab.kept_back(claim.task), claim.needed(lab.instrument)
    if lab.missing(plans, claim.task, items):
        return {"p": 1.0, "done": False, "runs": [], "reason": "no time was left to confirm it"}
    runs = [lab.run(plan, claim.task, items)[0] for plan in plans]
    intact = lab.intact_of(runs[0])
    options = lab.options
    finding = decide(claim, [lab.change(run) for run in runs], least=options.least, within=options.within)
    named = [*(run.id for run in runs), intact.id]
    return {**asdict(finding), "done": lab.is_done(intact), "runs": named, "reason": None}
