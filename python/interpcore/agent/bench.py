"""Policies on planted models: what they claim against what is so, beside what it took."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.agent.answers import server_of
from interpcore.agent.claims import Claim
from interpcore.agent.instrument import Instrument, Task, Values
from interpcore.agent.options import OFFLINE, SessionOptions
from interpcore.agent.planted import KINDS, Planted, found_fact, plant
from interpcore.agent.report import claim_rows, count
from interpcore.agent.session import Session, in_memory, open_session
from interpcore.errors import Refused
from interpcore.runs import RunCard, sweep
from interpcore.runs.experiment import Report
from interpcore.runs.options import Options, option

if TYPE_CHECKING:
    import pandas as pd

LOOKS_FOR = {
    "grid": ("matters", "does_not_matter", "appears_at", "interacts"),
    "greedy-delete": ("matters", "does_not_matter", "needs"),
    "greedy-keep": ("needs",),
    "halving": ("does_not_matter",),
    "bisect": ("appears_at",),
    "random": ("matters", "does_not_matter", "appears_at"),
    "guess": ("matters", "does_not_matter"),
    "llm": ("matters", "does_not_matter", "needs", "appears_at", "interacts"),
}
"""Types of facts that a policy's recall is a share of."""
NOTES = (
    "recall: share of the facts of the types that a policy looks for that it confirmed; precision: share of "
    "confirmed claims that are true; stated_precision: of all that it stated. Exact 95% intervals.",
    "holds: share of the claims supported in sample that other items confirmed.",
    "forwards: tokens times block calls per session, confirming included; per_true: per true confirmed one.",
)
CONFIRM_ITEMS = 60
MakeInstrument = Callable[[Any, Sequence[Any]], Instrument]


@dataclass(frozen=True, kw_only=True)
class BenchOptions(Options):
    """Which policies, on which planted models."""

    policies: tuple[str, ...] = option(
        OFFLINE, "Policies to compare; llm needs a server.", choices=(*OFFLINE, "llm"), flag="policy"
    )
    kinds: tuple[str, ...] = option(KINDS, "What is planted.", choices=KINDS, flag="kind")
    models: int = option(20, "Models of each kind.", least=1)
    seed: int = option(0, "Number of the first model.", least=0)
    budget: tuple[str, ...] = option(("forwards=2000000",), "What a session may spend, as in agent run.")
    llm: str | None = option(None, "The language model's name; else INTERPCORE_LLM_MODEL.")


@dataclass
class Remembering:
    """An instrument that policies share: what one has measured, the next is told. Each session pays for
    itself."""

    own: Instrument
    known: dict[tuple[str, str, tuple[str, ...]], Values] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.blocks, self.metrics = self.own.blocks, self.own.metrics
        self.tasks: Mapping[str, Task] = self.own.tasks
        self.identity: Mapping[str, Any] = self.own.identity

    def plan(self, text: str) -> str:
        """See `Instrument`."""
        return self.own.plan(text)

    def forwards(self, plan: str, task: str, items: Sequence[str]) -> int:
        """See `Instrument`."""
        return self.own.forwards(plan, task, items)

    def measure(self, plan: str, task: str, items: Sequence[str]) -> Values:
        """See `Instrument`."""
        key = (plan, task, tuple(items))
        if key not in self.known:
            self.known[key] = self.own.measure(plan, task, items)
        return self.known[key]


@dataclass(frozen=True)
class Setting:
    """What the cells of a bench share.

    Attributes:
        make: gives an instrument for a model and tasks.
        folder: where sessions of a language model are kept; None keeps none.
    """

    make: MakeInstrument
    folder: Path | None


def score_model(
    setting: Setting, kind: str, seed: int, policies: list[str], budget: list[str], llm: str | None = None
) -> list[dict[str, Any]]:
    """One cell: every policy on one planted model."""
    planted = plant(kind, seed)
    instrument = Remembering(setting.make(planted.model, planted.tasks))
    asked: dict[str, Any] = {"budget": budget, "llm": llm, "confirm_items": CONFIRM_ITEMS}
    return [
        _scored(setting, planted, instrument, SessionOptions(policy=policy, seed=seed, **asked))
        for policy in policies
    ]


def _scored(
    setting: Setting, planted: Planted, instrument: Instrument, options: SessionOptions
) -> dict[str, Any]:
    policy, seed = options.policy, options.seed
    with _session(setting, instrument, options, f"{planted.kind}-{seed}") as session:
        session.run()
        ledger = session.ledger
        stated = [
            {"claim": json.loads(row["arguments"]), "verdict": shown["verdict"], "found": row["verdict"]}
            for row, shown in zip(
                ledger.rows("SELECT * FROM claims ORDER BY rowid"), claim_rows(ledger), strict=True
            )
        ]
        counts, spent = count(ledger), ledger.spent()
    facts = {(kind, *fact) for kind in LOOKS_FOR[policy] for fact in planted.facts(kind)}
    found = set()
    for each in stated:
        claim = Claim.from_json({**each["claim"], "runs": ["any"]})
        each["true"] = planted.holds(claim)
        if each["true"] and each["verdict"] == "confirmed":
            found.add((claim.type, *found_fact(claim)))
    return {
        "policy": policy,
        "stated": stated,
        "facts": len(facts),
        "found": len(facts & found),
        "refused": counts.refused,
        "invalid": counts.invalid,
        "forwards": spent.forwards,
        "tokens": spent.tokens_in + spent.tokens_out,
    }


def _session(setting: Setting, instrument: Instrument, options: SessionOptions, name: str) -> Session:
    """A session of a language model is kept, so that no call is paid twice."""
    if options.policy != "llm" or setting.folder is None:
        return in_memory(instrument, options)
    return open_session(instrument, setting.folder / "sessions" / name, options, RunCard())


def bench(
    make: MakeInstrument,
    options: BenchOptions,
    out: str | os.PathLike[str] | None = None,
    *,
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Run every policy on every planted model, and score what they claim.

    Args:
        make: gives an instrument for a model and its tasks; for several workers at the top of a module.
        options: which policies and models.
        out: a run folder, where finished models are kept; None keeps none.
        workers: processes that share the models.
        progress: show it on standard error.
    """
    if "llm" in options.policies and out is None:
        raise Refused("A bench of a language model needs a folder, so that no call is paid twice; give out.")
    asked: dict[str, Any] = {"policies": list(options.policies), "budget": list(options.budget)}
    if "llm" in options.policies:
        asked["llm"] = options.llm or os.environ.get("INTERPCORE_LLM_MODEL")
        server_of(asked["llm"])  # refuses what cannot answer
    folder = None if out is None else Path(out) / "artifacts"
    grid = [
        {"kind": kind, "seed": options.seed + i, **asked}
        for kind in options.kinds
        for i in range(options.models)
    ]
    rows = sweep(
        score_model,
        grid,
        out=out,
        workers=workers,
        progress=progress,
        on_error="raise",
        initialize=partial(Setting, make, folder),
    )
    results = [
        {
            **each,
            "kind": row.parameters["kind"],
            "model": f"{row.parameters['kind']} {row.parameters['seed']}",
        }
        for row in rows
        for each in row.result
    ]
    return Report(_table(options, results), notes=NOTES)


def _table(options: BenchOptions, results: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row per policy and kind, and one per policy over all kinds but the null."""
    import pandas as pd

    rows = []
    for policy in options.policies:
        for kind in (*options.kinds, "all"):
            kept = [r for r in results if r["policy"] == policy and kind in (r["kind"], "all")]
            if kept:
                rows.append({"policy": policy, "kind": kind, **_scores(kept)})
    return pd.DataFrame(rows)


def _scores(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    claims = [(each, r["model"]) for r in results for each in r["stated"]]
    confirmed = [(each["true"], model) for each, model in claims if each["verdict"] == "confirmed"]
    true = sum(holds for holds, _ in confirmed)
    forwards = sum(r["forwards"] for r in results)
    supported = [(c["verdict"] == "confirmed", model) for c, model in claims if c["found"] == "supported"]
    met = [
        (hit, r["model"])
        for r in results
        for hit in [True] * r["found"] + [False] * (r["facts"] - r["found"])
    ]
    stated = [(each["true"], model) for each, model in claims]
    return {
        "models": len({r["model"] for r in results}),
        "claims": len(claims),
        "confirmed": len(confirmed),
        "false": len(confirmed) - true,
        **_share("precision", confirmed),
        **_share("recall", met),
        **_share("stated_precision", stated),
        **_share("holds", supported),
        "refused": sum(r["refused"] for r in results),
        "invalid": sum(r["invalid"] for r in results),
        "forwards": forwards / len(results),
        "per_true": forwards / true if true else float("nan"),
        "tokens": sum(r["tokens"] for r in results) / len(results),
    }


def _share(name: str, values: Sequence[tuple[bool, str]]) -> dict[str, float]:
    """A share over claims or facts with its interval over models; NaN where there are none."""
    from interpcore.stats import mean_over_clusters

    if not values:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    found = mean_over_clusters([float(hit) for hit, _ in values], [model for _, model in values])
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
