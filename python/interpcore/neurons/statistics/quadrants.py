"""Gated neurons by the signs of gate and factor: four ways to be active that one number hides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.statistics.mlp_sides import mlp_widths
from interpcore.neurons.statistics.token_pass import Part, accumulate
from interpcore.stats import TokenBlock
from interpcore.stats.accumulators import State

if TYPE_CHECKING:
    import pandas as pd

QUADRANTS = ("gate+ up+", "gate+ up-", "gate- up+", "gate- up-")
QUADRANT_SEQUENCES = 64
"""Sequences in which a study counts gated neurons by the signs of gate and factor."""


@dataclass(frozen=True, eq=False)
class Quadrants(ShortRepr):
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


class QuadrantSums:
    """The quadrants of every column over the first tokens of a corpus; a zero counts as negative.

    Args:
        columns: N.
        tokens: of the corpus, the first so many; those after them are passed over.
    """

    def __init__(self, columns: int, tokens: int, device: torch.device | str = "cpu") -> None:
        self._limit, shape = tokens, (4, columns)
        self._state = {
            "count": torch.zeros(shape, dtype=torch.int64, device=device),
            "total": torch.zeros(shape, dtype=torch.float64, device=device),
            "extreme": torch.zeros(shape, device=device),
            "where": torch.full(shape, -1, device=device),
            "tokens": torch.zeros(1, dtype=torch.int64, device=device),
        }

    def update(self, gate: Tensor, up: Tensor, act: Tensor, tokens: TokenBlock) -> None:
        """Adds gates, factors and activations [T, N] of tokens in increasing order."""
        number = tokens.index[tokens.index < self._limit]
        if not len(number):
            return
        gate, up, act = (x[: len(number)].float() for x in (gate, up, act))
        self._state["tokens"] += len(number)
        signs = ((g, u) for g in (gate > 0, gate <= 0) for u in (up > 0, up <= 0))
        for q, (g, u) in enumerate(signs):
            inside = act.where(g & u, 0)
            self._state["count"][q] += (g & u).sum(0)
            self._state["total"][q] += inside.sum(0, dtype=torch.float64)
            at = inside.abs().argmax(0)
            self._keep(q, inside.gather(0, at[None])[0], number[at])

    def _keep(self, q: int | slice, value: Tensor, number: Tensor) -> None:
        """Keep values that are further from zero than those there; among equals those there."""
        extreme, where = self._state["extreme"][q], self._state["where"][q]
        better = value.abs() > extreme.abs()
        extreme.copy_(torch.where(better, value, extreme))
        where.copy_(torch.where(better, number, where))

    def merge(self, other: QuadrantSums) -> None:
        """Adds another's; of equal extremes the one that comes first stays."""
        mine, its = self._state, other._state
        for name in ("count", "total", "tokens"):
            mine[name] += its[name]
        ties = (its["extreme"].abs() == mine["extreme"].abs()) & (its["where"] >= 0)
        ties &= its["where"] < mine["where"]
        for name in ("extreme", "where"):
            mine[name].copy_(torch.where(ties, its[name], mine[name]))
        self._keep(slice(None), its["extreme"], its["where"])

    def state_dict(self) -> State:
        """count, total, extreme, where [4, N] and tokens [1]."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        for name, tensor in self._state.items():
            tensor.copy_(state[name])


def quadrants(
    model: Model,
    shards: TokenShards,
    *,
    limit: int | None = None,
    batch: int = 4,
    progress: bool = True,
) -> Quadrants:
    """Count every gated neuron's quadrants over a corpus by a pass of their own; `summarize` takes them in
    its pass where it is asked for `quadrants`.

    Args:
        model: a decoder with gated MLPs.
        shards: the corpus.
        limit: only the first so many sequences.
        batch: sequences in one forward.
        progress: show it.
    Raises: Refused where the MLPs have no gate.
    """
    check_gated(model)
    shards.check_model(model)
    n = shards.count(limit)
    sums = {
        Part("quadrants", depth, 0, width): QuadrantSums(width, n * shards.context, model.device)
        for depth, width in enumerate(mlp_widths(model))
    }
    card = corpus_card(model, shards, "default", None, step="quadrants", limit=n, batch=batch)
    accumulate(model, shards, sums, card=card, limit=n, batch=batch, progress=progress)
    return joined_quadrants([[of_layer] for of_layer in sums.values()])


def check_gated(model: Model) -> None:
    """Raises: Refused where the MLPs have no gate."""
    if not model.spec.gated:
        raise Refused(f"{model.spec.name} has MLPs without a gate, so there are no quadrants.")


def joined_quadrants(layers: Sequence[Sequence[QuadrantSums]]) -> Quadrants:
    """The quadrants of all layers, each of which may be cut into parts of its neurons."""
    states = [[part.state_dict() for part in of_layer] for of_layer in layers]

    def joined(name: str) -> Tensor:
        return torch.stack([torch.cat([state[name] for state in part], 1) for part in states]).cpu()

    tokens = int(states[0][0]["tokens"])
    return Quadrants(joined("count"), joined("total"), joined("extreme"), joined("where"), tokens)


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
