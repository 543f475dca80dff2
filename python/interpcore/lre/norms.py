"""How large operators are, and how much their examples' Jacobians differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from interpcore.errors import Refused
from interpcore.lre.points import SUMMARY, points_figure, summary
from interpcore.lre.report import RELATIONS
from interpcore.lre.shared import SharedOperators
from interpcore.model.jacobians import jacobians
from interpcore.model.names import source_name
from interpcore.model.prompts import pad
from interpcore.runs.experiment import Report
from interpcore.runs.frames import read_frame, write_frame
from interpcore.runs.plots import caption, save_figure
from interpcore.stats import correlation

if TYPE_CHECKING:
    import pandas as pd

MEASURES = ["weight", "bias", "jh", "target", "spread"]
NOTES = (
    "weight: |W|; bias, jh: mean over examples of |b_i| and |J_i h_i|; target: of |z_i|; all over "
    "sqrt(d_model).",
    "spread: mean over examples of |J_i - W|^2 / |W|^2: how far one example's Jacobian is from their mean.",
    SUMMARY.format("norms"),
)


def norms_cell(study: SharedOperators, relation: str, trial: int) -> dict[str, Any]:
    """One cell: sizes at every depth, means over a trial's examples."""
    try:
        return {"relation": relation, "trial": trial, "depths": _norms(study, relation, trial), "reason": ""}
    except Refused as error:
        return {"relation": relation, "trial": trial, "depths": [], "reason": str(error)}


def _norms(study: SharedOperators, relation: str, trial: int) -> list[dict[str, Any]]:
    queries = study.training_queries(relation, trial)
    tokens, mask = pad([q.ids for q in queries], study.model.device)
    source = [q.subject for q in queries]
    swept = jacobians(
        study.model, tokens, mask, source_position=source, source_depths=study.depths, reduce="mean+var"
    )
    mean, variance = swept.values
    unit = mean.shape[-1] ** 0.5
    carried = swept.z[:, None] - swept.bias  # J_i h_i [example, depth, d_model]

    def length(x: Tensor) -> float:
        return float(x.norm(dim=-1).mean() / unit)

    return [
        {
            "depth": source_name(depth),
            "weight": float(mean[at].norm() / unit),
            "bias": length(swept.bias[:, at]),
            "jh": length(carried[:, at]),
            "target": length(swept.z),
            "spread": float(variance[at].sum() / mean[at].square().sum()),
        }
        for at, depth in enumerate(study.depths)
    ]


def run(study: Any) -> Report:
    """Sizes on every relation; after `lre run` in that folder, whether spread goes with faithfulness."""
    import pandas as pd

    grid = [{"relation": r, "trial": t} for t in range(study.options.trials) for r in study.relations]
    results: list[Any] = [row.result for row in study.sweep(norms_cell, grid, on_error="raise")]
    rows = [{"relation": r["relation"], "trial": r["trial"], **at} for r in results for at in r["depths"]]
    left_out = tuple(dict.fromkeys(f"Left out: {r['reason']}" for r in results if r["reason"]))
    if not rows:
        return Report(pd.DataFrame(), (), (*NOTES, *left_out), ("no relation has an operator",))
    table = pd.DataFrame(rows)
    by_relation = table.groupby(["relation", "depth"], sort=False)[MEASURES].mean().reset_index()
    short = summary(by_relation, ["depth"], MEASURES)
    drawn = caption(
        model=str(study.artifacts.card.model),
        data=f"{table.relation.nunique()} relations, {study.options.examples} examples each",
        n=f"{table.groupby(['relation', 'trial']).ngroups} trials",
        note="Mean over relations, band: its standard error.",
    )
    files = (
        *write_frame(study.artifacts.artifact("tables/norms"), table),
        *save_figure(
            study.artifacts.artifact("figures/norms"), points_figure(short, ["depth"], MEASURES), drawn
        ),
    )
    faithful = study.artifacts.artifact(RELATIONS)
    said = _prediction(table, read_frame(faithful)) if faithful.is_file() else ()
    return Report(short, files, (*NOTES, *said, *left_out))


def _prediction(table: pd.DataFrame, relations: pd.DataFrame) -> tuple[str, ...]:
    """Over relations, whether the spread at the depth that reads best goes with faithfulness."""
    done = relations[relations.trials > 0]
    spread = table.groupby(["relation", "depth"]).spread.mean()
    both = [
        (float(spread[row.relation, str(row.depth)]), row.faithfulness)
        for row in done.itertuples()
        if (row.relation, str(row.depth)) in spread.index
    ]
    if len(both) < 4:
        return ()
    r = correlation([a for a, _ in both], [b for _, b in both])
    return (
        f"Spread at the depth that reads best correlates with faithfulness at {r.value:.2f} "
        f"[{r.low:.2f}, {r.high:.2f}] over {r.n} relations.",
    )
