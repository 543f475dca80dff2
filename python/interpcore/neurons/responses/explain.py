"""How much of a neuron's activation a yes-or-no label explains.

With b = P(label), s1^2, s0^2 the variances with and without it and s^2 of all, the variance reduction is
1 - ((1 - b) s0^2 + b s1^2) / s^2 (sample variances). For labels of the token itself it follows from each
token id's count, sum and sum of squares: all features times all neurons are one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.neurons.features import FeatureTable
from interpcore.neurons.statistics.label_sums import LabelSums
from interpcore.neurons.weights.fold import FoldedWeights
from interpcore.ops import product

if TYPE_CHECKING:
    import pandas as pd

_SUMS, _ACTIVATIONS = 1e-13, 2.0**-46
"""Shares of a mean square below which rounding alone says something: of float64 sums, of float32 squared."""


@dataclass(frozen=True, eq=False)
class Explained(ShortRepr):
    """What labels say about neurons, each [label, neuron] float64. NaN is undefined: a label that is always
    or never there, a neuron that never varies (but for rounding), and what is said below.

    Args:
        variance_reduction: see the module.
        mean_difference: (mean with - mean without) / overall mean; undefined where that mean is 0.
        welch_t: Welch's t statistic of the two means; undefined where neither side varies.
    """

    variance_reduction: Tensor
    mean_difference: Tensor
    welch_t: Tensor


def token_sums(has: Tensor, count: Tensor, total: Tensor, square: Tensor) -> LabelSums:
    """Sums per feature of the token from sums per token id.

    Args:
        has: [feature, vocabulary] bool.
        count: occurrences of each id [vocabulary].
        total, square: sums and sums of squares of each id's activations [vocabulary, neuron] float64.
    """
    weights = has.to(total)
    counts = count.to(total)
    return LabelSums(
        product(weights, counts[:, None])[:, 0],
        product(weights, total),
        product(weights, square),
        float(counts.sum()),
        total.sum(0),
        square.sum(0),
    )


def explain(sums: LabelSums) -> Explained:
    """Variance reduction, mean difference and Welch's t of every label for every neuron."""
    c = sums.centred()
    n, n1 = c.all_count, c.count[:, None]
    n0 = n - n1
    mean1, mean0 = c.total / n1, -c.total / n0
    with_label = (c.square - n1 * mean1.square()).clamp(min=0) / (n1 - 1)
    without = (c.all_square - c.square - n0 * mean0.square()).clamp(min=0) / (n0 - 1)
    overall = c.all_square / (n - 1)
    b = n1 / n
    assert c.shift is not None
    mean_square = overall + c.shift.square()
    # What rounding leaves of a variance: of these sums, and of float32 activations about their mean.
    noise = _SUMS * sums.all_square / n + _ACTIVATIONS * c.shift.square()
    reduction = 1 - ((1 - b) * without + b * with_label) / overall
    spread = with_label / n1 + without / n0
    defined = (n1 >= 2) & (n0 >= 2) & (overall > noise)
    nothing = torch.nan
    return Explained(
        reduction.where(defined, nothing),
        ((mean1 - mean0) / c.shift).where(defined & (c.shift.square() > _ACTIVATIONS * mean_square), nothing),
        ((mean1 - mean0) / spread.sqrt()).where(defined & (with_label + without > noise), nothing),
    )


@dataclass(frozen=True, eq=False)
class LogitExplained(ShortRepr):
    """What token features say about a layer's logit effects W_U^T w_out over the vocabulary, each [feature,
    neuron].

    Args:
        explained: as for activations, each token counting once.
        skew_reduction, kurtosis_reduction: 1 - (n1 m1 + n0 m0) / (n m), m the absolute skewness, or the
            kurtosis, of the tokens with the feature, without it, and of all; undefined where m is 0.
    """

    explained: Explained
    skew_reduction: Tensor
    kurtosis_reduction: Tensor


def explain_logits(folded: FoldedWeights, write: Tensor, has: Tensor, tile: int = 1 << 23) -> LogitExplained:
    """Which class of next tokens neurons move.

    Args:
        folded: folded weights.
        write: writing vectors [n, d_model]; unit ones make effects cosines up to each token's norm.
        has: [feature, vocabulary] bool.
        tile: logit effects held at once.
    """
    weights = has.to(write.device, torch.float64)
    n1 = weights.sum(1)[:, None]
    step = max(1, tile // has.shape[1])
    parts = []
    for rows in write.double().split(step):
        effects = product(rows, folded.unembedding.double())  # [n, vocabulary]
        effects = effects - effects.mean(1, keepdim=True)
        powers = [product(weights, effects.pow(k).mT.contiguous()) for k in (1, 2, 3, 4)]
        every = [effects.pow(k).sum(1) for k in (1, 2, 3, 4)]
        parts.append((powers, every))
    powers = [torch.cat([p[k] for p, _ in parts], 1) for k in range(4)]
    every = [torch.cat([e[k] for _, e in parts]) for k in range(4)]
    n = float(has.shape[1])
    sums = LabelSums(n1[:, 0], powers[0], powers[1], n, every[0], every[1])
    classes = (_shape(n1, powers), _shape(n - n1, [e - p for e, p in zip(every, powers, strict=True)]))
    whole = _shape(torch.tensor(n, dtype=torch.float64), every)
    reductions = [
        (1 - (n1 * with_label + (n - n1) * without) / (n * overall)).where(overall > _SUMS, torch.nan)
        for with_label, without, overall in zip(*classes, whole, strict=True)
    ]
    return LogitExplained(explain(sums), *reductions)


def best_labels(
    explained: Explained, names: tuple[str, ...], groups: tuple[str, ...], *, keep: int = 3
) -> pd.DataFrame:
    """The labels that reduce each neuron's variance most.

    Args:
        explained: of one or all layers [label, neuron].
        names, groups: of the labels [label].
        keep: how many per neuron.
    Returns: one row per neuron and place: column (its number), place from 0, feature, group,
        variance_reduction, mean_difference, welch_t; neurons that never vary are missing.
    """
    import pandas as pd

    values = explained.variance_reduction.nan_to_num(nan=-torch.inf)
    top, which = values.topk(min(keep, len(names)), dim=0)
    frames = [
        pd.DataFrame(
            {
                "column": range(values.shape[1]),
                "place": place,
                "feature": [names[i] for i in which[place]],
                "group": [groups[i] for i in which[place]],
                "variance_reduction": top[place].numpy(),
                "mean_difference": explained.mean_difference.gather(0, which[place : place + 1])[0].numpy(),
                "welch_t": explained.welch_t.gather(0, which[place : place + 1])[0].numpy(),
            }
        )
        for place in range(len(top))
    ]
    table = pd.concat(frames, ignore_index=True).sort_values(["column", "place"], ignore_index=True)
    return table[table.variance_reduction > -torch.inf].reset_index(drop=True)


def letter_neurons(explained: Explained, features: FeatureTable, least: float = 0.37) -> pd.DataFrame:
    """The neuron that each letter of the alphabet explains best.

    Args:
        explained: over `features` [feature, neuron].
        features: with the group "alphabet".
        least: the published cut for showing one.
    Returns: letter, column, variance_reduction, shown.
    """
    import pandas as pd

    rows = []
    for number, (name, group) in enumerate(zip(features.names, features.groups, strict=True)):
        if group != "alphabet" or not name.endswith(" alone"):
            continue
        best, column = explained.variance_reduction[number].nan_to_num(nan=-torch.inf).max(0)
        letter = name.removesuffix(" alone")
        value = float(best)
        if value == -torch.inf:  # the letter never stands alone in this corpus
            continue
        rows.append(
            {"letter": letter, "column": int(column), "variance_reduction": value, "shown": value > least}
        )
    return pd.DataFrame(rows, columns=["letter", "column", "variance_reduction", "shown"])


def families(best: pd.DataFrame, least: float = 0.05) -> pd.DataFrame:
    """How many neurons each kind of feature explains best; below `least` a neuron is unexplained.

    Args:
        best: what `best_labels` gave.
    Returns: group, neurons, median variance_reduction; most first.
    """
    first = best[best.place == 0]
    group = first.group.where(first.variance_reduction >= least, "unexplained")
    by_group = first.assign(group=group).groupby("group").variance_reduction
    table = by_group.agg(neurons="size", median="median").reset_index()
    return table.sort_values("neurons", ascending=False, ignore_index=True)


def _shape(n: Tensor, powers: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Absolute skewness and kurtosis from raw power sums."""
    a1, a2, a3, a4 = (p / n for p in powers)
    m2 = a2 - a1.square()
    m3 = a3 - 3 * a1 * a2 + 2 * a1.pow(3)
    m4 = a4 - 4 * a1 * a3 + 6 * a1.square() * a2 - 3 * a1.pow(4)
    return (m3 / m2.pow(1.5)).abs(), m4 / m2.square()
