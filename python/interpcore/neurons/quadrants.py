"""Gated neurons by the signs of gate and factor: four ways to be active that one number hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.runs import Progress

if TYPE_CHECKING:
    import pandas as pd

SITES = ("mlp_gate_pre", "mlp_up", "mlp_act")
QUADRANTS = ("gate+ up+", "gate+ up-", "gate- up+", "gate- up-")


@dataclass(frozen=True, eq=False)
class Quadrants:
    """Per layer, quadrant of `QUADRANTS` and neuron, over the tokens that count.

    Args:
        count: tokens in the quadrant [layer, 4, d_mlp] int64.
        total: sums of activations [layer, 4, d_mlp] float64.
        extreme: the activation furthest from zero [layer, 4, d_mlp]; 0 where there is none.
        where: its flat token number, sequence * context + position [layer, 4, d_mlp] int64, -1 for none.
        tokens: tokens that count.
    """

    count: Tensor
    total: Tensor
    extreme: Tensor
    where: Tensor
    tokens: int

    @property
    def frequency(self) -> Tensor:
        """Share of tokens in each quadrant [layer, 4, d_mlp] float64; the four add to 1."""
        return self.count.double() / self.tokens


def quadrants(
    model: Model,
    shards: TokenShards,
    *,
    sequences: int | None = None,
    batch: int = 4,
    progress: bool = True,
) -> Quadrants:
    """Count every gated neuron's quadrants over a corpus; a zero counts as negative.

    Args:
        model: a decoder with gated MLPs.
        shards: the corpus.
        sequences: only the first so many.
        batch: sequences in one forward.
        progress: show it.
    Raises: ValueError where the MLPs have no gate.
    """
    if not model.spec.gated:
        raise Refused(f"{model.spec.name} has MLPs without a gate, so there are no quadrants.")
    shards.check_model(model)
    shape = (model.plan.n_calls, 4, model.spec.d_mlp)
    count, where = torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1)
    total, extreme = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape)
    n = min(shards.n_sequences, sequences or shards.n_sequences)
    taps = {(site, layer): Tap(site, layer) for site in SITES for layer in range(shape[0])}
    tokens_seen = 0
    starts = range(0, n, batch)
    with Progress("quadrants: blocks", len(starts), shown=progress) as shown:
        for first in starts:
            tokens = shards.sequences(first, min(n, first + batch))
            mask = shards.mask(tokens)
            number = torch.arange(tokens.numel()).view_as(tokens)[mask] + first * shards.context
            tokens_seen += len(number)
            if not len(number):
                continue
            with torch.no_grad():
                out = model.forward(tokens.to(model.device), taps=list(taps.values()), logits_at=None)
            for layer in range(shape[0]):
                gate, up, act = (
                    out.taps[taps[site, layer]][mask.to(model.device)].float().cpu() for site in SITES
                )
                signs = ((g, u) for g in (gate > 0, gate <= 0) for u in (up > 0, up <= 0))
                for q, (g, u) in enumerate(signs):
                    inside = act.where(g & u, 0)
                    count[layer, q] += (g & u).sum(0)
                    total[layer, q] += inside.sum(0, dtype=torch.float64)
                    size, at = inside.abs().max(0)
                    better = size > extreme[layer, q].abs()
                    extreme[layer, q] = torch.where(better, inside.gather(0, at[None])[0], extreme[layer, q])
                    where[layer, q] = torch.where(better, number[at], where[layer, q])
            shown.advance()
    return Quadrants(count, total, extreme, where, tokens_seen)


def quadrant_table(found: Quadrants) -> pd.DataFrame:
    """One row per neuron and quadrant.

    Returns: layer, neuron, quadrant, frequency, mean (of the activation in the quadrant), extreme (the
        activation furthest from zero) and token (its flat number).
    """
    import numpy as np
    import pandas as pd

    layers, _, width = found.count.shape
    layer, quadrant, neuron = (x.ravel() for x in np.indices((layers, 4, width)))
    columns = {
        "layer": layer,
        "neuron": neuron,
        "quadrant": np.array(QUADRANTS)[quadrant],
        "frequency": found.frequency.flatten().numpy(),
        "mean": (found.total / found.count).flatten().numpy(),
        "extreme": found.extreme.flatten().numpy(),
        "token": found.where.flatten().numpy(),
    }
    return pd.DataFrame(columns)
