"""Kinds of neurons: what they do to the next token, and how universal ones differ from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from interpcore.errors import Refused
from interpcore.neurons.options import UNIVERSAL
from interpcore.stats import Interval, mean_over_clusters

if TYPE_CHECKING:
    import pandas as pd

CONTRASTS = (
    "mean", "var", "skew", "kurt", "frequency", "sparsity", "input_bias", "w_in_norm", "w_out_norm",
    "in_out_sim", "l2_penalty", "vocab_mean", "vocab_var", "vocab_skew", "vocab_kurt",
)  # fmt: skip
"""Columns in which universal neurons are compared with the rest."""


@dataclass(frozen=True)
class Cuts:
    """Where the families begin; the published choices.

    Args:
        kurtosis: of cos(W_U, w_out) above which a neuron moves few tokens: up (prediction, positive skewness)
            or down (suppression, negative).
        variance: above which it moves all tokens one way or the other (partition).
        entropy_layers: last layers in which entropy neurons are looked for.
        entropy_quantile: of vocab_var below, and of l2_penalty above, which is an entropy neuron.
    """

    kurtosis: float = 10.0
    variance: float = 0.005
    entropy_layers: int = 2
    entropy_quantile: float = 0.02

    def __post_init__(self) -> None:
        if not 0 < self.entropy_quantile < 0.5 or self.entropy_layers < 1:
            raise Refused("entropy_quantile is between 0 and 0.5, entropy_layers at least 1.")


def add_families(table: pd.DataFrame, cuts: Cuts | None = None) -> pd.DataFrame:
    """The table with the column `family`: "prediction", "suppression", "partition", "entropy" or "".

    Entropy neurons come first: in the last layers, with a vocab_var in the lowest and an l2_penalty in the
    highest `entropy_quantile` of these layers' neurons, they write much and move no token more than another.

    Args:
        table: with layer, l2_penalty and the vocab_ columns.
        cuts: where the families begin.
    """
    cuts = Cuts() if cuts is None else cuts
    family = np.full(len(table), "", dtype=object)
    family[np.asarray(table.vocab_var > cuts.variance)] = "partition"
    high = table.vocab_kurt > cuts.kurtosis
    family[np.asarray(high & (table.vocab_skew > 0))] = "prediction"
    family[np.asarray(high & (table.vocab_skew < 0))] = "suppression"
    family[np.asarray(entropy_mask(table, cuts))] = "entropy"
    return table.assign(family=family)


def entropy_mask(table: pd.DataFrame, cuts: Cuts | None = None) -> pd.Series:
    """Which neurons are entropy neurons by `Cuts`."""
    cuts = Cuts() if cuts is None else cuts
    late = _late(table, cuts)
    low = table.vocab_var <= table.vocab_var[late].quantile(cuts.entropy_quantile)
    large = table.l2_penalty >= table.l2_penalty[late].quantile(1 - cuts.entropy_quantile)
    return late & low & large


def entropy_candidates(table: pd.DataFrame, count: int = 6, cuts: Cuts | None = None) -> pd.DataFrame:
    """The neurons of the last layers that look most like entropy neurons, for interventions: those with the
    largest rank difference of l2_penalty over vocab_var.

    Args:
        table: with layer, neuron, l2_penalty and vocab_var.
        count: how many.
        cuts: which layers.
    """
    late = table[_late(table, cuts)]
    score = late.l2_penalty.rank(pct=True) - late.vocab_var.rank(pct=True)
    return late.loc[score.sort_values(ascending=False, kind="stable").index[:count]]


def frequency_candidates(table: pd.DataFrame, count: int = 3, cuts: Cuts | None = None) -> pd.DataFrame:
    """The neurons of the last layers whose logit effects lie most along the log-frequency of tokens, up or
    down (token-frequency neurons, Stolfo et al. 2024): they move the prediction towards the unigram
    distribution or away from it.

    Args:
        table: with layer, neuron and frequency_alignment.
        count: how many.
        cuts: which layers.
    """
    late = table[_late(table, cuts)]
    strength = late.frequency_alignment.abs()
    return late.loc[strength.sort_values(ascending=False, kind="stable").index[:count]]


def entropy_controls(
    table: pd.DataFrame, count: int = 20, cuts: Cuts | None = None, seed: int = 0
) -> pd.DataFrame:
    """Random neurons of the same layers, as published: l2_penalty at most the 90th and vocab_var at least the
    10th percentile.

    Args:
        table: with layer, neuron, l2_penalty and vocab_var.
        count: how many, fewer where there are fewer.
        cuts: which layers.
        seed: fixes them.
    """
    late = table[_late(table, cuts)]
    plain = late[
        (late.l2_penalty <= late.l2_penalty.quantile(0.9)) & (late.vocab_var >= late.vocab_var.quantile(0.1))
    ]
    return plain.sample(min(count, len(plain)), random_state=seed).sort_index()


def roles_by_weights(table: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """The neurons whose weights look most like entropy neurons' and token-frequency neurons', and controls:
    layer, neuron, role ("entropy", "frequency" or "control").

    Args:
        table: the columns of a weight study.
        seed: of the controls.
    """
    import pandas as pd

    chosen = {
        "entropy": entropy_candidates(table),
        "frequency": frequency_candidates(table),
        "control": entropy_controls(table, seed=seed),
    }
    parts = [part[["layer", "neuron"]].assign(role=role) for role, part in chosen.items()]
    return pd.concat(parts).drop_duplicates(["layer", "neuron"], ignore_index=True)


def percentiles_within_layer(table: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Each value's percentile among its layer's neurons, 0 to 100, equals sharing the mean; NaN stays NaN."""
    by_layer = table.groupby("layer")
    return by_layer[list(columns)].rank(pct=True) * 100 - by_layer[list(columns)].transform("count").rdiv(50)


def universal_contrasts(
    table: pd.DataFrame, columns: Sequence[str] = CONTRASTS, *, universal: float = UNIVERSAL
) -> pd.DataFrame:
    """Universal neurons against the rest of their layer: the mean percentile, 50 where they are like the
    rest.

    Args:
        table: with layer, excess_corr and the columns (those that it lacks are passed over).
        columns: what to compare.
        universal: excess correlation above which a neuron is universal.
    Returns: column, neurons, universal_mean, rest_mean, percentile, its percentile_low and
        percentile_high (95%, over neurons; NaN for one).
    """
    import pandas as pd

    present = [name for name in columns if name in table]
    ranks = percentiles_within_layer(table, present)
    chosen = table.excess_corr > universal
    rows = []
    for name in present:
        values = ranks.loc[chosen, name].dropna()
        if len(values):
            found = mean_over_clusters(values.to_numpy(), list(range(len(values))), share=False)
        else:
            found = Interval(np.nan, np.nan, np.nan, 0)
        rows.append(
            {
                "column": name,
                "neurons": found.n,
                "universal_mean": float(table.loc[chosen, name].mean()),
                "rest_mean": float(table.loc[~chosen, name].mean()),
                "percentile": found.value,
                "percentile_low": found.low,
                "percentile_high": found.high,
            }
        )
    return pd.DataFrame(rows)


def _late(table: pd.DataFrame, cuts: Cuts | None) -> pd.Series:
    layers = (Cuts() if cuts is None else cuts).entropy_layers
    return table.layer > table.layer.max() - layers
