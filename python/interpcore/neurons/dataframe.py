"""One row per neuron: the published columns, exact, with the binned ones beside them, and their errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.correlation.universal import Universality
from interpcore.neurons.families import add_families
from interpcore.neurons.published import (
    COLUMNS,
    CORRELATION_COLUMNS,
    MOMENT_COLUMNS,
    UNIVERSAL,
    binned_moments,
    read_published,
    summarize_table,
)
from interpcore.ops import ColumnMoments
from interpcore.runs import RunFolder, write_json
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

PROTOCOLS = ("default", "paper")


def neuron_table(
    weights: pd.DataFrame,
    pre: ColumnMoments,
    counts: Tensor,
    universality: Universality | None = None,
    *,
    errors: Mapping[str, Tensor] | None = None,
    protocol: str = "default",
) -> pd.DataFrame:
    """The neuron table of a model.

    Args:
        weights: one row per neuron, by layer, as `weight_study` gives it.
        pre: moments of pre-activations over the corpus, all layers one after another [N], with the threshold
            0.
        counts: of pre-activations in the published bins [N, 257].
        universality: correlations with other models; None leaves those columns empty.
        errors: standard errors of mean, var, skew, kurt and frequency, each [N]; None for none.
        protocol: "default": mean, var, skew and kurt are exact, and `_binned` are the published, binned ones;
            "paper": they are binned, and `_exact` the exact ones. `sparsity` is P(pre > -0.098) in both,
            `frequency` P(pre > 0).
    Returns: the published columns in order; then excess_corr with excess_se, frequency, errors (`_se`),
    binned
        or exact moments, tokens, nonfinite (values that enter nothing), never_active (pre never above 0),
        constant, family, and the other columns of `weights`.
    Raises: ValueError for tables of different models.
    """
    import pandas as pd

    if protocol not in PROTOCOLS:
        raise Refused(f"protocol is one of {', '.join(PROTOCOLS)}; got {protocol!r}.")
    n = len(weights)
    if len(pre.count) != n or len(counts) != n or (universality and len(universality.excess) != n):
        raise Refused(
            f"The weights are of {n} neurons, the activations of {len(pre.count)}: they are not of one model."
        )
    exact = {"mean": pre.mean, "var": pre.variance, "skew": pre.skewness, "kurt": pre.kurtosis}
    binned = binned_moments(counts)
    first, second, suffix = (exact, binned, "binned") if protocol == "default" else (binned, exact, "exact")
    nothing = torch.full((n,), torch.nan, dtype=torch.float64)
    correlations = dict.fromkeys((*CORRELATION_COLUMNS, "excess_corr"), nothing)
    if universality is not None:
        correlations = universality.columns
    zero = pre.thresholds.index(0.0)
    columns: dict[str, Any] = {name: weights[name] for name in weights.columns if name in COLUMNS}
    columns |= {name: correlations[name] for name in CORRELATION_COLUMNS}
    columns |= {name: first[name] for name in MOMENT_COLUMNS} | {"sparsity": binned["sparsity"]}
    columns = {name: columns[name] for name in COLUMNS}
    columns["excess_corr"] = correlations["excess_corr"]
    columns["excess_se"] = nothing if universality is None else universality.standard_error
    columns["frequency"] = pre.frequency[zero]
    columns |= {f"{name}_se": value for name, value in (errors or {}).items()}
    columns |= {f"{name}_{suffix}": second[name] for name in MOMENT_COLUMNS}
    columns |= {
        "tokens": pre.count,
        "nonfinite": pre.nonfinite,
        "never_active": pre.above[zero] == 0,
        "constant": pre.m2 == 0,
    }
    columns |= {name: weights[name] for name in weights.columns if name not in columns}
    return add_families(pd.DataFrame({name: np.asarray(value) for name, value in columns.items()}))


def table_counts(table: pd.DataFrame) -> dict[str, int]:
    """What a reader must know before trusting a table: neurons, those that are never active, constant, have
    values that overflowed or are NaN, and have no correlation."""
    return {
        "neurons": len(table),
        "never active": int(table.never_active.sum()),
        "constant": int(table.constant.sum()),
        "with non-finite values": int((table.nonfinite > 0).sum()),
        "non-finite values": int(table.nonfinite.sum()),
        "without correlation": int(table.excess_corr.isna().sum()),
    }


def compare_tables(
    table: pd.DataFrame, others: Mapping[str, pd.DataFrame], universal: float = UNIVERSAL
) -> pd.DataFrame:
    """Headline numbers, one row each: ours, and every other table's.

    Args:
        table: ours.
        others: name -> table.
        universal: excess correlation above which a neuron is universal, in all of them.
    """
    import pandas as pd

    columns = {
        name: summarize_table(one, universal) for name, one in ({"ours": table} | dict(others)).items()
    }
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    return pd.DataFrame(
        {"quantity": names} | {k: [c.get(name, np.nan) for name in names] for k, c in columns.items()}
    )


def write_table(
    table: pd.DataFrame,
    folder: RunFolder,
    published: Sequence[str | os.PathLike[str]] = (),
    universal: float = UNIVERSAL,
) -> pd.DataFrame:
    """Write neuron_df.csv and .parquet, counts.json and summary (.csv and .parquet); returns the summary.

    Args:
        table: what `neuron_table` gave.
        folder: the run.
        published: CSV files to summarise beside it.
        universal: excess correlation above which a neuron is universal.
    """
    others = {Path(path).stem: read_published(path) for path in published}
    summary = compare_tables(table, others, universal)
    for name, frame in (("neuron_df", table), ("summary", summary)):
        write_frame(folder.artifact(name), frame)
    write_json(folder.artifact("counts.json"), table_counts(table))
    return summary
