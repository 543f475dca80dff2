"""How alike the operators of different relations are: cosines between their W, each from facts of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.data.relations import file_stem
from interpcore.errors import Refused
from interpcore.lre.operator import Operator, estimate
from interpcore.lre.options import Cosines
from interpcore.lre.shared import SharedOperators
from interpcore.lre.trial import reason
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, counted, new_figure, save_figure
from interpcore.stats import jackknife_interval

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd
    from matplotlib.figure import Figure

KINDS = ("itself", "same category", "another category")
NOTES = (
    "cosine: between W of one half of a relation's training facts and W of the other half of another's (of "
    "its own: how far W can be repeated), each half in prompts of its own; mean of both ways and of trials.",
    "centred: after the mean W of all relations is taken away, which leaves -1 / (relations - 1) of "
    "relations that share nothing else; shuffled: control, with the other W's columns in random order.",
    "Each row is a mean over relations, with the jackknife's 95% interval over them (none of a single pair); "
    "tables/cosines.parquet has every pair.",
)


def cosines_cell(study: SharedOperators, relation: str, trial: int, depths: Sequence[int]) -> dict[str, Any]:
    """One cell: W of either half of a trial's training facts, written to files."""
    record = {"relation": relation, "relation_type": study.relations[relation].relation_type, "trial": trial}
    try:
        facts, options = study.training(relation, trial), study.options
        if len(facts) < 2:
            raise Refused(f"{relation}: two halves need two training facts or more; raise --examples.")
        template = study.relation(relation).prompt_templates[options.template]
        for half, path in enumerate(_files(study, relation, trial, depths)):
            operator = estimate(
                study.model, template, facts[half::2], protocol=options.protocol, depths=depths
            )
            operator.save(path, relation=relation)
    except Refused as error:
        return record | {"reason": reason(relation, error)}
    return record | {"reason": ""}


def _files(study: SharedOperators, relation: str, trial: int, depths: Sequence[int]) -> list[Path]:
    assert study.artifacts is not None
    place = f"halves/{file_stem(relation)}/{'-'.join(map(str, depths))}/{trial}"
    return [study.artifacts.artifact(f"{place}.{half}.safetensors") for half in (0, 1)]


def cosines(first: Tensor, second: Tensor) -> Tensor:
    """Cosines of every matrix of one list with every one of another, as [relation, relation] float64; entry
    (i, j) is the mean of first_i with second_j and second_i with first_j.

    Args:
        first, second: [relation, d_model, d_model].
    """
    a, b = (x.flatten(1).double() for x in (first, second))
    a, b = a / a.norm(dim=1, keepdim=True), b / b.norm(dim=1, keepdim=True)
    both = a @ b.mT
    return (both + both.mT) / 2


def centred(first: Tensor, second: Tensor) -> Tensor:
    """`cosines` [relation, relation] after the mean matrix of each list [relation, d_model, d_model] is taken
    away."""
    return cosines(first - first.mean(0), second - second.mean(0))


def shuffled(first: Tensor, second: Tensor, seed: int) -> Tensor:
    """`cosines` [relation, relation] with the columns of the second list [relation, d_model, d_model] in a
    random order, which keeps every entry."""
    order = torch.randperm(second.shape[-1], generator=torch.Generator().manual_seed(seed))
    return cosines(first, second[..., order])


def pair_table(study: SharedOperators, results: Sequence[Mapping[str, Any]], depths: Sequence[int]) -> Any:
    """One row per depth and pair of relations: relation, other, pair (of `KINDS`), trials, and means over
    trials of cosine, centred and shuffled."""
    import pandas as pd

    rows: dict[tuple[int, str, str], dict[str, Any]] = {}
    for trial in sorted({r["trial"] for r in results}):
        mine = [r for r in results if r["trial"] == trial]
        files = [_files(study, r["relation"], trial, depths) for r in mine]
        for depth in depths:
            halves = [torch.stack([_weight(pair[half], depth) for pair in files]) for half in (0, 1)]
            found = {
                "cosine": cosines(halves[0], halves[1]),
                "centred": centred(halves[0], halves[1]),
                "shuffled": shuffled(halves[0], halves[1], study.options.seed),
            }
            for i, one in enumerate(mine):
                for j, other in enumerate(mine):
                    row = rows.setdefault(
                        (depth, one["relation"], other["relation"]), _row(depth, one, other)
                    )
                    row["trials"] += 1
                    for name, matrix in found.items():
                        row[name] += float(matrix[i, j])
    table = pd.DataFrame(list(rows.values()))
    measures = ["cosine", "centred", "shuffled"]
    table[measures] = table[measures].div(table.trials, axis=0)
    return table


def _weight(path: Path, depth: int) -> Tensor:
    operator, _ = Operator.load(path)
    return operator.weight[operator.at(depth)].float()


def _row(depth: int, one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    same = one["relation_type"] == other["relation_type"]
    kind = KINDS[0] if one["relation"] == other["relation"] else KINDS[1 if same else 2]
    names = {"depth": depth, "relation": one["relation"], "other": other["relation"], "pair": kind}
    return names | {"trials": 0, "cosine": 0.0, "centred": 0.0, "shuffled": 0.0}


def summary(table: pd.DataFrame) -> pd.DataFrame:
    """Means by depth and kind of pair, with the jackknife's interval over relations."""
    import pandas as pd

    rows = []
    for (depth, kind), part in table.groupby(["depth", "pair"], sort=False):
        row: dict[str, Any] = {"depth": depth, "pair": kind, "pairs": len(part), "trials": part.trials.max()}
        names = list(dict.fromkeys(part.relation))
        for measure in ("cosine", "centred", "shuffled"):
            row |= dict.fromkeys((measure, f"{measure}_low", f"{measure}_high"), np.nan)
            row[measure] = part[measure].mean()
            without = [part[(part.relation != name) & (part.other != name)][measure].mean() for name in names]
            if len(names) > 1 and np.isfinite([*without, row[measure]]).all():
                found = jackknife_interval(without, row[measure])
                low, high = np.clip((found.low, found.high), -1, 1)  # where cosines end
                row |= {f"{measure}_low": low, f"{measure}_high": high}
        rows.append(row)
    order = {kind: i for i, kind in enumerate(KINDS)}
    return pd.DataFrame(rows).sort_values(
        ["depth", "pair"], key=lambda c: c.map(order) if c.name == "pair" else c
    )


def heat_maps(table: pd.DataFrame, types: Mapping[str, str]) -> Figure:
    """A matrix of relations at every depth, cosines above and centred ones below, relations by category."""
    names = sorted(dict.fromkeys(table.relation), key=lambda name: (types[name], name))
    depths = list(dict.fromkeys(table.depth))
    side = max(3.0, 0.2 * len(names) + 0.6)
    long = 0.07 * max(map(len, names))
    figure, panels = new_figure(
        side * len(depths) + long + 1, 2 * side + long + 0.6, 2 * len(depths), len(depths)
    )
    for i, panel in enumerate(panels):
        measure, depth = ("cosine", "centred")[i // len(depths)], depths[i % len(depths)]
        matrix = table[table.depth == depth].pivot(index="relation", columns="other", values=measure)
        image = panel.imshow(matrix.loc[names, names], vmin=-1, vmax=1, cmap="RdBu_r")
        places, bare = range(len(names)), [""] * len(names)
        panel.set_yticks(places, names if i % len(depths) == 0 else bare, fontsize=7)
        panel.set_xticks(places, names if i >= len(depths) else bare, fontsize=7, rotation=90)
        panel.set_title(f"{measure}, depth {depth}", fontsize=9)
        if i % len(depths) == len(depths) - 1:
            figure.colorbar(image, ax=panel, shrink=0.8)
    return figure


def run(study: Any, asked: Cosines) -> Report:
    """Cosines between the operators of all relations."""
    import pandas as pd

    plan = study.model.plan
    depths = list(dict.fromkeys(plan.depth(d) for d in asked.depths or spread(plan.n_calls)))
    grid = [
        {"relation": r, "trial": t, "depths": depths}
        for t in range(study.options.trials)
        for r in study.relations
    ]
    results: list[Any] = [row.result for row in study.sweep(cosines_cell, grid, on_error="raise")]
    left_out = tuple(dict.fromkeys(f"Left out: {r['reason']}" for r in results if r["reason"]))
    done = [r for r in results if not r["reason"]]
    if len({r["relation"] for r in done}) < 2:
        problem = "cosines between relations need two that have an operator"
        return Report(pd.DataFrame(), (), (*NOTES, *left_out), (problem,))
    table = pair_table(study, done, depths)
    files = write_frame(study.artifacts.artifact("tables/cosines"), table)
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"W of half of {study.options.examples} facts at depths {', '.join(map(str, depths))}",
        n=f"{table.relation.nunique()} relations, {counted(int(table.trials.max()), 'trial')} each at most",
        note="Diagonal: two halves of one relation's facts.",
    )
    types = {r["relation"]: r["relation_type"] for r in done}
    drawn = save_figure(study.artifacts.artifact("figures/cosines"), heat_maps(table, types), said)
    return Report(summary(table), (*files, *drawn), (*NOTES, *left_out))


def spread(n_calls: int) -> Iterator[int]:
    """A quarter, half and three quarters of the way through the blocks."""
    return iter(dict.fromkeys(max(1, n_calls * part // 4) for part in (1, 2, 3)))
