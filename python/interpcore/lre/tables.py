"""Tables over trials: one row per relation with intervals, one per test fact, one per point of a curve."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from interpcore.model.names import published_layer, source_name
from interpcore.stats import mean_over_clusters, paired_sign_test

if TYPE_CHECKING:
    import pandas as pd

Result = dict[str, Any]
READING = ("faithfulness", "recall@1", "recall@2", "recall@3", "first_token@1")
EDITING = ("causality",)
READING_CONTROLS = ("majority", "b alone", "other operator", "shuffled")
EDITING_CONTROLS = ("no edit", "random edit", "other edit")
INTERVALS = (
    "Intervals are 95%, exact at the effective number of facts, over subjects. A star: higher than the best "
    "control with p < 0.05 in the exact paired test over subjects (sign test)."
)
CURVES = {"faithfulness by depth": "depth", "causality by depth": "depth", "causality by rank": "rank"}


def relation_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per relation, in order of first appearance.

    Columns: relation, relation_type, n_objects, trials (measured), n_test and n_known (summed over trials),
    n_subjects (distinct known ones); each measure over the known facts with `_low`, `_high` (95%, exact at
    the effective number of facts, over subjects, see `mean_over_clusters`) and `_all` (over all test facts);
    each control over the known facts; for faithfulness and causality the best control, `_control`, the exact
    p-value against it by subject, `_p` (`paired_sign_test`), and `_above`: higher with p < 0.05; depth, beta,
    edit_depth and rank as most often chosen; rank_search: "grid" or "coarse to fine"; status of the trials,
    "measured" if any was; reason: why others were not, or "".

    Args: results: what `run_trial` gave.
    """
    import pandas as pd

    names = list(dict.fromkeys(result["relation"] for result in results))
    return pd.DataFrame([_relation_row([r for r in results if r["relation"] == name]) for name in names])


def subject_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per test fact of each measured trial: relation, trial, subject, object, known, outcomes."""
    import pandas as pd

    parts = [
        pd.DataFrame(
            {
                "relation": r["relation"],
                "trial": r["trial"],
                "subject": r["subjects"],
                "object": r["objects"],
                "known": r["known"],
                **r["outcomes"],
            }
        )
        for r in measured(results)
    ]
    return pd.concat(parts, ignore_index=True)


def curve_table(results: Sequence[Result]) -> pd.DataFrame:
    """One row per point: relation, relation_type, trial, curve, at (depth's name or rank), place, value."""
    import pandas as pd

    return pd.DataFrame(
        [
            {
                "relation": r["relation"],
                "relation_type": r["relation_type"],
                "trial": r["trial"],
                "curve": curve,
                "at": source_name(at) if axis == "depth" else str(at),
                "place": at if axis == "rank" else place,
                "value": value,
            }
            for r in measured(results)
            for curve, axis in CURVES.items()
            for place, (at, value) in enumerate(zip(r["axes"][axis], r["curves"][curve], strict=True))
        ]
    )


def published_hparams(model: str, results: Sequence[Result]) -> dict[str, Any]:
    """A relation's hyperparameters in the published file's format, chosen as published over its trials: the
    layer whose mean over trials of the best recall@1 (for edits: of the best causality) is highest, the mean
    of the best betas there, the floor of the mean of the best ranks.

    Args:
        model: the model's name.
        results: measured trials of one relation.
    Returns: model_name, relation_name, h_layer, beta, rank, z_layer, h_layer_edit; layer i is the output of
        block i, "emb" the token embedding.
    """
    axes = results[0]["axes"]
    reads = np.array([r["curves"]["recall@1 by depth and beta"] for r in results])
    edits = np.array([r["curves"]["causality by depth and rank"] for r in results])
    layer, edit_layer = (int(grid.max(2).mean(0).argmax()) for grid in (reads, edits))
    beta = np.mean([axes["beta"][int(grid[layer].argmax())] for grid in reads])
    rank = np.mean([axes["rank"][int(grid[edit_layer].argmax())] for grid in edits])
    return {
        "model_name": model,
        "relation_name": results[0]["relation"],
        "h_layer": published_layer(axes["depth"][layer]),
        "beta": float(beta),
        "rank": int(rank),
        "z_layer": -1,
        "h_layer_edit": published_layer(axes["depth"][edit_layer]),
    }


def measured(results: Sequence[Result]) -> list[Result]:
    """The trials that were measured."""
    return [result for result in results if result["status"] == "measured"]


def speedup(results: Sequence[Result]) -> float:
    """How many times the published way's time the batched edits save, over all measured trials."""
    timings = [result["timing"] for result in measured(results)]
    return float(sum(t["edits"] * t["published"] for t in timings) / sum(t["seconds"] for t in timings))


def _relation_row(results: Sequence[Result]) -> dict[str, Any]:
    done = measured(results)
    row = {
        "relation": results[0]["relation"],
        "relation_type": results[0]["relation_type"],
        "n_objects": results[0]["n_objects"],
        "status": "measured" if done else results[0]["status"],
        "trials": len(done),
        "n_test": sum(r["n_test"] for r in results),
        "n_known": sum(r["n_known"] for r in results),
        "reason": next((r["reason"] for r in results if r["status"] != "measured"), ""),
    }
    if not done:
        return row | {"n_subjects": 0}
    subjects = [s for r in done for s in r["subjects"]]
    known = np.array([k for r in done for k in r["known"]])
    clusters = [s for s, k in zip(subjects, known, strict=True) if k]
    row |= {"n_subjects": len(set(clusters))}
    for measures, controls in ((READING, READING_CONTROLS), (EDITING, EDITING_CONTROLS)):
        for name in measures:
            values = _outcome(done, name)
            interval = mean_over_clusters(values[known], clusters)
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
            row[f"{name}_all"] = float(values.mean())
        present = [name for name in controls if all(name in r["outcomes"] for r in done)]
        against = {name: _outcome(done, name)[known] for name in present}
        row |= {name: float(values.mean()) for name, values in against.items()}
        row |= _against_best(measures[0], _outcome(done, measures[0])[known], against, clusters)
    chosen = {
        "depth": _most(done, "faithfulness", "depth"),
        "beta": _most(done, "faithfulness", "beta"),
        "edit_depth": _most(done, "causality", "depth"),
        "rank": _most(done, "causality", "rank"),
    }
    chosen["rank_search"] = done[0].get("rank_search", "grid")  # runs from before name none
    names = {key: source_name(chosen[key]) for key in ("depth", "edit_depth")}
    return row | chosen | names


def _against_best(
    measure: str, values: np.ndarray, controls: dict[str, np.ndarray], clusters: Sequence[str]
) -> dict[str, Any]:
    """The best control and the exact paired test against it; of equals, the one with the largest p."""
    p = {name: paired_sign_test(values, others, clusters) for name, others in controls.items()}
    best = max(controls, key=lambda name: (float(controls[name].mean()), p[name]))
    above = bool(values.mean() > controls[best].mean() and p[best] < 0.05)
    return {f"{measure}_control": best, f"{measure}_p": p[best], f"{measure}_above": above}


def _outcome(results: Sequence[Result], name: str) -> np.ndarray:
    return np.array([value for r in results for value in r["outcomes"][name]], dtype=np.float64)


def _most(results: Sequence[Result], measure: str, what: str) -> Any:
    """The most frequent choice over trials and folds, the first among equals."""
    choices = [c[what] for r in results for c in r["choices"] if c["measure"] == measure]
    return Counter(choices).most_common(1)[0][0]
