"""What of a Jacobian is the relation's, what its subject's and what its context's: means and variances over
subjects crossed with contexts, and whether they tell how faithful the operator is."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.data.relations import RelationError, Sample
from interpcore.errors import Refused
from interpcore.lre.crossfit import by_depth, cross_fit
from interpcore.lre.figures import COLORS
from interpcore.lre.operator import Operator, predict
from interpcore.lre.options import Variance
from interpcore.lre.points import ready
from interpcore.lre.prompts import Query, relation_queries
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import evenly
from interpcore.lre.trial import Trial, reason
from interpcore.model.jacobians import Reducer, Shape, jacobians
from interpcore.model.names import source_name
from interpcore.model.prompts import pad
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, counted, empty, named_ticks, new_figure, save_figure
from interpcore.stats import rank_correlation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PARTS = ("subject", "context", "rest")
CORRELATION = ("correlation", "correlation_low", "correlation_high")
LEAST = 4
NAMED = 0.95
"""Faithfulness below which the figure names a relation: above, their names would cover one another."""
NOTES = (
    "Every subject in every context (draw of examples). subject, context, rest: variance of a prompt's "
    "Jacobian J, summed over its entries, that goes with the subject, with the context, and with neither "
    "alone, over |mean J|^2; total: their sum. Unbiased: a part that is not there may fall below 0.",
    "size: |mean J| over sqrt(d_model); faithfulness: of the trial's operator at that depth, cross-fitted.",
    "Predictions: Spearman's correlation over relations of faithfulness with each part, at the depth that "
    "the other half of the facts chose; control: size.",
)
MEANS = "Each row is a mean over relations, _se its standard error over them."


class Crossed(Reducer):
    """Means over the columns and over the rows of a table of examples, and their sum of squares, in one pass;
    example i stands in row i // columns and column i % columns. Gives subject means [row, depth, rows,
    columns], context means [column, depth, rows, columns] and sums of squares [depth] float64.

    Args:
        columns: how many.
    """

    def __init__(self, columns: int) -> None:
        self.columns = columns

    def start(self, shape: Shape, dtype: torch.dtype, device: torch.device) -> None:
        """See `Reducer`. Raises: Refused for examples that fill no table."""
        if shape.examples % self.columns:
            raise Refused(f"{shape.examples} examples fill no table of {self.columns} columns.")
        self.rows = shape.examples // self.columns
        wide = torch.promote_types(dtype, torch.float32)
        size = (shape.depths, shape.rows, shape.columns)
        self.subjects, self.contexts = (
            torch.zeros(n, *size, dtype=wide, device=device) for n in (self.rows, self.columns)
        )
        self.squares = torch.zeros(shape.depths, dtype=torch.float64, device=device)

    def add(self, examples: Tensor, depth: int, rows: slice, block: Tensor, h: Tensor) -> None:
        """See `Reducer`."""
        for example, one in zip(examples.tolist(), block, strict=True):
            row, column = divmod(example, self.columns)
            self.subjects[row, depth, rows].add_(one, alpha=1 / self.columns)
            self.contexts[column, depth, rows].add_(one, alpha=1 / self.rows)
            self.squares[depth] += one.double().square().sum()

    def result(self) -> tuple[Tensor, Tensor, Tensor]:
        """Subject means, context means and sums of squares, of the shapes above."""
        return self.subjects, self.contexts, self.squares

    def nbytes(self, shape: Shape, itemsize: int) -> int:
        """See `Reducer`."""
        cells = shape.examples // self.columns + self.columns
        return cells * shape.depths * shape.rows * shape.columns * max(4, itemsize)


@dataclass(frozen=True)
class Components:
    """Variance components of matrices in a two-way layout, summed over entries.

    J_sc = mean + subject_s + context_c + rest_sc with one matrix in each cell of n subjects x m contexts. The
    sums of squares of rows, columns and remainder over n - 1, m - 1 and (n - 1)(m - 1) are mean squares with
    the expectations m V_subject + V_rest, n V_context + V_rest and V_rest, which are solved for the variances
    (the method of moments of the random-effects analysis of variance; Searle, Casella & McCulloch 1992).

    Args:
        subject, context, rest: variances.
        size: square of the grand mean's norm.
    """

    subject: float
    context: float
    rest: float
    size: float

    @classmethod
    def of(cls, subjects: Tensor, contexts: Tensor, squares: float) -> Components:
        """Components from the means of rows [n, ...] and columns [m, ...] and the sum of all squares."""
        n, m = len(subjects), len(contexts)
        rows, columns = subjects.double().flatten(1), contexts.double().flatten(1)
        grand = rows.mean(0)
        size = float(grand.square().sum())
        between_rows = m * float((rows - grand).square().sum())
        between_columns = n * float((columns - grand).square().sum())
        left = squares - n * m * size - between_rows - between_columns
        rest = left / ((n - 1) * (m - 1))
        return cls((between_rows / (n - 1) - rest) / m, (between_columns / (m - 1) - rest) / n, rest, size)

    def over_size(self) -> dict[str, float]:
        """Every part, and their sum as total, over the squared size."""
        parts = {name: getattr(self, name) / self.size for name in PARTS}
        return parts | {"total": sum(parts.values())}


def variance_cell(
    study: SharedOperators, relation: str, trial: int, subjects: int, contexts: int, depths: int
) -> dict[str, Any]:
    """One cell: components and faithfulness at some depths, and where each half chose."""
    record = {"relation": relation, "relation_type": study.relations[relation].relation_type, "trial": trial}
    try:
        return record | _measured(study, relation, trial, subjects, contexts, depths) | {"reason": ""}
    except Refused as error:
        return record | {"depths": [], "reason": reason(relation, error)}


def _measured(
    study: SharedOperators, relation: str, trial: int, subjects: int, contexts: int, depths: int
) -> dict[str, Any]:
    found, whole = ready(study, relation, trial), study.operator(relation, trial)
    places = evenly(study.depths, depths)
    operator = Operator(
        tuple(study.depths[i] for i in places), whole.weight[places], whole.bias[places], whole.made_on
    )
    tokens = predict(study.model, operator, found.states.h[:, places], study.options.betas)[..., 0]
    faithful = tokens == found.states.top.cpu()
    outcome, choices = cross_fit(faithful, found.folds)
    queries = crossed_queries(study, found, subjects, contexts)
    ids, mask = pad([q.ids for q in queries], study.model.device)
    swept = jacobians(
        study.model,
        ids,
        mask,
        source_position=[q.subject for q in queries],
        source_depths=operator.depths,
        reduce=Crossed(contexts),
    )
    rows, columns, squares = swept.values
    each = [Components.of(rows[:, at], columns[:, at], float(squares[at])) for at in range(len(places))]
    by = by_depth(faithful, found.folds)[:, found.known].double().mean(1).tolist()
    unit = rows.shape[-1] ** 0.5
    return {
        "faithfulness": float(outcome[found.known].double().mean()),
        "n_known": int(found.known.sum()),
        "chosen": [at for at, _ in choices],
        "depths": [
            {"depth": source_name(depth), **one.over_size(), "size": one.size**0.5 / unit, "faithfulness": f}
            for depth, one, f in zip(operator.depths, each, by, strict=True)
        ],
    }


def crossed_queries(study: SharedOperators, trial: Trial, subjects: int, contexts: int) -> list[Query]:
    """Every one of some known test facts' subjects below every one of several draws of examples, which are
    facts about other subjects; subject by subject.

    Raises: RelationError where there are too few facts.
    """
    name, options = trial.relation.name, study.options
    known = [s.subject for s, k in zip(trial.test, trial.known.tolist(), strict=True) if k]
    asked = list(dict.fromkeys(known))[:subjects]
    others = [s for s in trial.relation.samples if s.subject not in asked]
    if len(asked) < 2 or len(others) <= options.examples:
        raise RelationError(
            f"{name}: {len(asked)} known subjects and {len(others)} facts about others make no table of "
            f"subjects and contexts; at least 2 and {options.examples + 1} do."
        )
    template = trial.relation.prompt_templates[options.template]
    draws = [random.Random(f"{trial.seed} {c}").sample(others, options.examples) for c in range(contexts)]
    columns = [_column(study, template, shown, asked) for shown in draws]
    return [column[row] for row in range(len(asked)) for column in columns]


def _column(
    study: SharedOperators, template: str, shown: Sequence[Sample], asked: Sequence[str]
) -> list[Query]:
    return relation_queries(study.model.tokenizer, template, shown, asked, study.options.protocol)


def relation_rows(results: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per relation: faithfulness and, at the depths that its halves chose, every part, total and
    size, means over trials; n_known, their sum."""
    import pandas as pd

    rows = []
    for one in results:
        chosen = [one["depths"][at] for at in one["chosen"]]
        means = {k: float(np.mean([c[k] for c in chosen])) for k in (*PARTS, "total", "size")}
        names = {key: one[key] for key in ("relation", "relation_type", "n_known")}
        rows.append(names | {"faithfulness": one["faithfulness"]} | means)
    how = dict.fromkeys(("faithfulness", *PARTS, "total", "size"), "mean") | {"n_known": "sum"}
    return pd.DataFrame(rows).groupby(["relation", "relation_type"], sort=False).agg(how).reset_index()


def predictions(relations: pd.DataFrame) -> pd.DataFrame:
    """Rank correlations over relations of faithfulness with every part, with intervals; no rows for fewer
    than four relations."""
    import pandas as pd

    rows = []
    for name in (*PARTS, "total", "size"):
        if len(relations) < LEAST or min(relations[name].nunique(), relations.faithfulness.nunique()) < 2:
            continue
        r = rank_correlation(relations[name], relations.faithfulness)
        rows.append(
            {"with": name, "correlation": r.value, "correlation_low": r.low, "correlation_high": r.high}
            | {"relations": r.n}
        )
    return pd.DataFrame(rows, columns=["with", *CORRELATION, "relations"])


def by_depth_table(table: pd.DataFrame) -> pd.DataFrame:
    """Every part, size and faithfulness by depth: relations, and means over them, each the mean of its
    trials, with their standard errors (_se; none of one relation)."""
    names = [*PARTS, "total", "size", "faithfulness"]
    each = table.groupby(["depth", "relation"], sort=False)[names].mean().groupby("depth", sort=False)
    found = each.size().rename("relations").to_frame()
    mean, error = each.mean(), each.sem()
    for name in names:
        found[name], found[f"{name}_se"] = mean[name], error[name]
    return found.reset_index()


def variance_figure(table: pd.DataFrame, relations: pd.DataFrame, predicted: pd.DataFrame) -> Figure:
    """Left: every part by depth, mean over relations with its standard error; right: faithfulness over the
    total, a point for each relation."""
    figure, (left, right) = new_figure(10, 4, panels=2)
    depths = list(dict.fromkeys(table.depth))
    for name in (*PARTS, "total"):
        over = table.groupby(["depth", "relation"], sort=False)[name].mean().groupby("depth", sort=False)
        mean, error = over.mean()[depths], over.sem().fillna(0)[depths]
        (line,) = left.plot(range(len(depths)), mean, "o-", ms=3, label=name)
        left.fill_between(range(len(depths)), mean - error, mean + error, color=line.get_color(), alpha=0.15)
    named_ticks(left.xaxis, list(range(len(depths))), depths)
    left.set(xlabel="source depth", ylabel="variance of J / |mean J|$^2$")
    left.legend(frameon=False, fontsize=8)
    if not len(relations):
        empty(right, "No relation was measured.")
        return figure
    for kind, part in relations.groupby("relation_type"):
        right.scatter(part.total, part.faithfulness, s=20, color=COLORS[str(kind)], label=kind)
        for row in part[part.faithfulness < NAMED].itertuples():
            where = (row.total, row.faithfulness)
            right.annotate(row.relation, where, (3, 3), textcoords="offset points", fontsize=6)
    right.set(xlabel="total variance of J / |mean J|$^2$", ylabel="faithfulness", ylim=(-0.05, 1.08))
    if len(predicted):
        row = predicted.set_index("with").loc["total"] if "total" in set(predicted["with"]) else None
        if row is not None:
            right.set_title(_said(row), fontsize=9)
    right.legend(frameon=False, fontsize=7)
    return figure


def _said(row: Any) -> str:
    ends = f"[{row.correlation_low:.2f}, {row.correlation_high:.2f}]"
    return f"rank correlation {row.correlation:.2f} {ends}, {row.relations:.0f} relations"


def run(study: Any, asked: Variance) -> Report:
    """Components of every relation's Jacobians, and what they tell of its faithfulness."""
    import pandas as pd

    how = {"subjects": asked.crossed, "contexts": asked.contexts, "depths": asked.depths}
    grid = [{"relation": r, "trial": t, **how} for t in range(study.options.trials) for r in study.relations]
    results: list[Any] = [row.result for row in study.sweep(variance_cell, grid, on_error="raise")]
    left_out = tuple(dict.fromkeys(f"Left out: {r['reason']}" for r in results if r["reason"]))
    done = [r for r in results if not r["reason"]]
    if not done:
        return Report(pd.DataFrame(), (), (*NOTES, *left_out), ("no relation could be measured",))
    names = ("relation", "relation_type", "trial")
    table = pd.DataFrame([{k: r[k] for k in names} | at for r in done for at in r["depths"]])
    relations = relation_rows(done)
    predicted = predictions(relations)
    files: list[Any] = []
    for name, frame in (
        ("variance", table),
        ("variance_relations", relations),
        ("variance_predicts", predicted),
    ):
        files += write_frame(study.artifacts.artifact(f"tables/{name}"), frame)
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"{asked.crossed} subjects at most in {asked.contexts} contexts of {study.options.examples} "
        f"examples, {counted(study.options.trials, 'trial')} at most",
        n=counted(len(relations), "relation"),
        note="Band: standard error over relations.",
    )
    figure = variance_figure(table, relations, predicted)
    files += save_figure(study.artifacts.artifact("figures/variance"), figure, said)
    return Report(by_depth_table(table), tuple(files), (*NOTES, MEANS, *_told(predicted), *left_out))


def _told(predicted: pd.DataFrame) -> Iterator[str]:
    for _, row in predicted.iterrows():
        yield f"Faithfulness with {row['with']}: {_said(row)}."
