"""A study of neurons in short: three sentences, and which neurons to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

MOST = 20
EACH = 4
"""Neurons of each reason."""
REASONS = {
    "prediction": "raises few tokens most (prediction, by vocab_kurt)",
    "suppression": "lowers few tokens most (suppression, by vocab_kurt)",
    "partition": "splits the vocabulary most (partition, by vocab_var)",
    "entropy": "moves no token more than another (entropy)",
}


def sentences(
    table: pd.DataFrame, best: pd.DataFrame, counts: dict[str, int], *, model: str, corpus: str, tokens: int
) -> list[str]:
    """What the study found, in three sentences.

    Args:
        table: the neuron table, with families.
        best: each neuron's best explanation.
        counts: neurons with a defect, by its name.
        model, corpus, tokens: whose neurons, on what.
    """
    layers = table.layer.nunique()
    said = (f"{n} {name}" for name, n in counts.items() if n and name != "neurons")
    odd = ", ".join(said) or "none is dead, constant or not finite"
    first = f"{model} has {len(table):,} neurons in {layers} layers; on {tokens:,} tokens of {corpus}: {odd}."
    named = table.family[table.family != ""].value_counts()
    kinds = ", ".join(f"{n} {name}" for name, n in named.items()) or "none stands out"
    second = f"By what they write to the vocabulary: {kinds}."
    if not len(best):
        return [first, second, "No label explains a neuron."]
    top, half = best.loc[best.variance_reduction.idxmax()], int((best.variance_reduction > 0.5).sum())
    third = (
        f"A label explains more than half of the variance of {half} neurons; most of "
        f"{top.layer}.{top.neuron}, by {top.feature} ({top.variance_reduction:.2f})."
    )
    return [first, second, third]


def worth_a_look(table: pd.DataFrame, best: pd.DataFrame, universal: float) -> pd.DataFrame:
    """At most `MOST` neurons with the reason why: the extremes of each family, the best explained, those most
    like others in partner models, the most peaked. Columns layer, neuron, why, value."""
    import pandas as pd

    parts = []
    for family, why in REASONS.items():
        column = "vocab_var" if family == "partition" else "vocab_kurt"
        mine = table[table.family == family]
        parts.append(_taken(mine, column, f"{why}"))
    if len(best):
        explained = best.nlargest(EACH, "variance_reduction")
        why = explained.feature.map(lambda feature: f"best explained: {feature}")
        value = explained.variance_reduction
        parts.append(explained[["layer", "neuron"]].assign(why=why, value=value))
    if "excess_corr" in table and (table.excess_corr > universal).any():
        parts.append(_taken(table, "excess_corr", "most alike in other models (excess_corr)"))
    parts.append(_taken(table, "kurt", "most peaked activation (kurtosis)"))
    found = pd.concat(parts).drop_duplicates(["layer", "neuron"], ignore_index=True)
    return found.head(MOST)


def _taken(table: pd.DataFrame, column: str, why: str) -> pd.DataFrame:
    best = table.nlargest(EACH, column)
    return best[["layer", "neuron"]].assign(why=why, value=best[column])
