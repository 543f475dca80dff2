"""Columns that a study adds to the neuron table, and tables on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from interpcore.neurons.correlation.setup import Correlations
from interpcore.ops import ColumnMoments

if TYPE_CHECKING:
    pass


def most_similar(found: Correlations) -> dict[str, Any]:
    """The most similar neuron over all partners of the first model: max_sim_model, max_sim_layer and
    max_sim_neuron, each [n]; "" and -1 for a neuron without a correlation."""
    others = range(1, len(found.sets))
    best = torch.stack([found.partners[0, b].maximum for b in others]).nan_to_num(nan=-2)
    partner = best.argmax(0)
    index = torch.stack([found.partners[0, b].argmax for b in others]).gather(0, partner[None])[0]
    layer, neuron = torch.full_like(index, -1), torch.full_like(index, -1)
    for number, b in enumerate(others):
        mine = partner == number
        layer[mine], neuron[mine] = found.sets[b].address(index[mine])
    pairs = zip(partner.tolist(), index.tolist(), strict=True)
    names = [found.sets[1 + p].name if i >= 0 else "" for p, i in pairs]
    return {"max_sim_model": names, "max_sim_layer": layer.numpy(), "max_sim_neuron": neuron.numpy()}


def up_columns(up: ColumnMoments) -> dict[str, Any]:
    """Moments of gated neurons' other factor, each [n]: up_mean, up_var, up_skew, up_kurt."""
    columns = {"mean": up.mean, "var": up.variance, "skew": up.skewness, "kurt": up.kurtosis}
    return {f"up_{name}": value.numpy() for name, value in columns.items()}


def joined_moments(layers: Sequence[ColumnMoments]) -> ColumnMoments:
    """The moments of all layers' neurons, one layer after another."""
    names = ("count", "nonfinite", "mean", "m2", "m3", "m4", "minimum", "maximum", "above")
    joined: dict[str, Any] = {
        name: torch.cat([getattr(layer, name).cpu() for layer in layers], -1) for name in names
    }
    return replace(layers[0], **joined)
