"""The published tables: their columns, their binned moments, and a summary that both sides can be put
into."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.options import UNIVERSAL

if TYPE_CHECKING:
    import pandas as pd

CORRELATION_COLUMNS = (
    "max_corr", "mean_corr", "min_corr", "max_baseline", "min_baseline", "mean_baseline",
)  # fmt: skip
WEIGHT_COLUMNS = ("w_in_norm", "input_bias", "w_out_norm", "in_out_sim", "l2_penalty")
MOMENT_COLUMNS = ("mean", "var", "skew", "kurt")
VOCABULARY_COLUMNS = ("vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt")
COLUMNS = (
    "layer", "neuron", *CORRELATION_COLUMNS, *WEIGHT_COLUMNS, *MOMENT_COLUMNS, *VOCABULARY_COLUMNS,
    "sparsity",
)  # fmt: skip
"""The published neuron table's columns, in order."""

BIN_EDGES = torch.linspace(-10, 15, 256)
"""Edges of the published histogram of pre-activations; bin = number of edges below the value, 257 bins."""

FIRST_ACTIVE_BIN = 102
"""The published "sparsity" counts from this bin on. It begins at -0.098, not at 0."""


def binned_moments(counts: Tensor) -> dict[str, Tensor]:
    """The published moments: of bin centres, weighted by counts. Bins are 0.098 wide, so the variance is too
    large by 8.0e-4 (Sheppard), and what lies beyond -10 and 15 counts as being just there.

    Args:
        counts: of pre-activations per bin [neuron, 257].
    Returns: mean, var, skew, kurt (population; normal = 3) and sparsity = P(pre > -0.098), each [neuron]
        float64.
    """
    edges = BIN_EDGES.double()
    width = edges[1] - edges[0]
    extended = torch.cat((edges[:1] - width, edges, edges[-1:] + width))
    centres = (extended[1:] + extended[:-1]) / 2
    weights = counts.double()
    total = weights.sum(1)
    mean = (weights * centres).sum(1) / total
    off = centres - mean[:, None]
    var = (weights * off.square()).sum(1) / total
    return {
        "mean": mean,
        "var": var,
        "skew": (weights * off.pow(3)).sum(1) / (total * var.pow(1.5)),
        "kurt": (weights * off.pow(4)).sum(1) / (total * var.square()),
        "sparsity": weights[:, FIRST_ACTIVE_BIN:].sum(1) / total,
    }


def read_published(path: str | os.PathLike[str]) -> pd.DataFrame:
    """A published table: a neuron table, universal.csv or prediction_neurons.csv. Neurons named twice count
    once.

    Raises: ValueError for a file without the columns of any of them.
    """
    import pandas as pd

    if not Path(path).is_file():
        raise Refused(f"There is no file {path}.")
    try:
        table = pd.read_csv(path, encoding="utf-8-sig")
    except ValueError as error:
        raise Refused(f"{path} is no CSV file: {' '.join(str(error).split())}") from error
    table = table.loc[:, [not str(name).startswith("Unnamed") for name in table.columns]]
    if not {"layer", "neuron"} <= set(table.columns):
        shown = ", ".join(map(str, table.columns))[:200]
        raise Refused(f"{path} has no columns layer and neuron; it has {shown}.")
    if len(table.columns) < 3:
        raise Refused(f"{path} has no column besides layer and neuron.")
    _check_columns(table, path)
    keys = [name for name in ("layer", "neuron", "model") if name in table]
    table = table.drop_duplicates(keys).reset_index(drop=True)
    if "excess_corr" not in table and {"mean_corr", "mean_baseline"} <= set(table.columns):
        table["excess_corr"] = table.mean_corr - table.mean_baseline
    return table


def _check_columns(table: pd.DataFrame, path: str | os.PathLike[str]) -> None:
    """Layers and neurons are whole numbers from 0, the published columns finite numbers or empty."""
    if table.empty:
        raise Refused(f"{path} has no rows.")
    for name in ("layer", "neuron"):
        column = table[name]
        wrong = [True] if column.dtype.kind not in "iu" else (column < 0).tolist()
        if any(wrong):
            raise Refused(f"{path}: the column {name} holds other things than whole numbers from 0.")
    for name in (*COLUMNS[2:], "excess_corr"):
        if name not in table:
            continue
        if table[name].dtype.kind not in "iuf":
            raise Refused(f"{path}: the column {name} holds other things than numbers.")
        if np.isinf(table[name]).any():
            raise Refused(f"{path}: the column {name} holds numbers that are not finite.")


def summarize_table(table: pd.DataFrame, universal: float = UNIVERSAL) -> dict[str, Any]:
    """Headline numbers of a neuron table, ours or a published one.

    Args:
        table: with what columns it has; one that holds universal neurons alone says nothing of the rest.
        universal: excess correlation above which a neuron is universal.
    Returns: name -> number: rows, universal neurons and their share, then over the universal ones (over all
        rows where no correlation is known) the mean of every published column, medians of skew, kurt and
        input_bias, shares with input_bias < 0 and kurt > 3, the mean range of max_corr over partners, how
        many have vocab_kurt > 10 with positive and with negative skew, and for a prediction table its
        suppression neurons.
    """
    found: dict[str, Any] = {"rows": len(table)}
    chosen = table
    if "excess_corr" in table and table.excess_corr.notna().any():
        chosen = table[table.excess_corr > universal]
        found |= {"universal": len(chosen), "universal share": len(chosen) / max(1, len(table))}
    for name in (*COLUMNS[2:], "excess_corr"):
        if name in chosen:
            found[f"mean {name}"] = _mean(chosen[name])
    for name in ("skew", "kurt", "input_bias"):
        if name in chosen:
            found[f"median {name}"] = float(np.nanmedian(chosen[name])) if len(chosen) else np.nan
    if "input_bias" in chosen:
        found["share input_bias < 0"] = _mean(chosen.input_bias < 0)
    if "kurt" in chosen:
        found["share kurt > 3"] = _mean(chosen["kurt"] > 3)
    if {"max_corr", "min_corr"} <= set(chosen.columns):
        found["mean range of max_corr"] = _mean(chosen.max_corr - chosen.min_corr)
    if {"vocab_kurt", "vocab_skew"} <= set(chosen.columns):
        high = chosen[chosen.vocab_kurt > 10]
        found |= {
            "vocab_kurt > 10": len(high),
            "of these vocab_skew > 0": int((high.vocab_skew > 0).sum()),
            "of these vocab_skew < 0": int((high.vocab_skew < 0).sum()),
        }
    if "is_surpress" in table:
        found["suppression"] = int(table.is_surpress.astype(bool).sum())
    return found


def _mean(values: Any) -> float:
    numbers = np.asarray(values, dtype=np.float64)
    return float(np.nanmean(numbers)) if np.isfinite(numbers).any() else float("nan")
