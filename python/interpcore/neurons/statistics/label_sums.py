"""Sums of activations over the tokens with each label: per block two products, Y^T x and Y^T x^2."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.statistics.labels import Labeller, labeller_meaning
from interpcore.neurons.statistics.mlp_sides import measure_pilot, mlp_widths
from interpcore.neurons.statistics.token_pass import Part, accumulate
from interpcore.ops import product
from interpcore.stats.accumulators import State, expect_same


@dataclass(frozen=True, eq=False)
class LabelSums(ShortRepr):
    """Sums of activations over the tokens that have a label, and over all tokens. Float64.

    Args:
        count: tokens with each label [label].
        total: sums [label, neuron].
        square: sums of squares [label, neuron].
        all_count: tokens.
        all_total, all_square: [neuron].
        shift: subtracted from every activation before it was summed [neuron]; None for 0.
    """

    count: Tensor
    total: Tensor
    square: Tensor
    all_count: float
    all_total: Tensor
    all_square: Tensor
    shift: Tensor | None = None

    def centred(self) -> LabelSums:
        """The same about each neuron's mean, where differences of squares lose least."""
        mean = self.all_total / self.all_count
        shift = mean if self.shift is None else self.shift + mean
        return LabelSums(
            self.count,
            self.total - self.count[:, None] * mean,
            self.square - 2 * mean * self.total + self.count[:, None] * mean.square(),
            self.all_count,
            torch.zeros_like(self.all_total),
            self.all_square - self.all_count * mean.square(),
            shift,
        )


def joined_sums(parts: Sequence[LabelSums]) -> LabelSums:
    """Sums over the same labels and tokens of some neurons, then of others; each with its shift."""
    first = parts[0]
    return LabelSums(
        first.count,
        torch.cat([p.total for p in parts], 1),
        torch.cat([p.square for p in parts], 1),
        first.all_count,
        torch.cat([p.all_total for p in parts]),
        torch.cat([p.all_square for p in parts]),
        torch.cat([p.shift for p in parts if p.shift is not None]),
    )


class LabelTotals:
    """Sums of every column over the tokens with each label.

    Args:
        labels: how many.
        shift: a value near each column's mean [N] float32.
    """

    def __init__(self, labels: int, shift: Tensor) -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.float64, device=shift.device)

        n = len(shift)
        self._state = {
            "count": zeros(labels),
            "total": zeros(2, labels, n),
            "all_count": zeros(1),
            "all_total": zeros(2, n),
            "shift": shift,
        }

    def update(self, values: Tensor, labels: Tensor) -> None:
        """Adds values [T, N] of tokens with labels [label, T] float32."""
        state = self._state
        state["count"] += labels.sum(1).double()
        state["all_count"] += labels.shape[1]
        x = values.float() - state["shift"]
        for power, of_values in enumerate((x, x.square())):
            state["total"][power] += product(labels, of_values)
            state["all_total"][power] += of_values.sum(0, dtype=torch.float64)

    def merge(self, other: LabelTotals) -> None:
        """Adds another's, within 1e-12."""
        expect_same("their shift", self._state["shift"], other._state["shift"])
        for name in ("count", "total", "all_count", "all_total"):
            self._state[name] += other._state[name]

    def state_dict(self) -> State:
        """count [label], total [2, label, N], all_count [1], all_total [2, N]: of values minus shift [N] and
        of their squares."""
        return self._state

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        for name, tensor in self._state.items():
            tensor.copy_(state[name])

    def finalize(self) -> LabelSums:
        """The sums."""
        state = {name: x.cpu() for name, x in self._state.items()}
        total, square = state["total"]
        all_total, all_square = state["all_total"]
        all_count, shift = float(state["all_count"]), state["shift"].double()
        return LabelSums(state["count"], total, square, all_count, all_total, all_square, shift)


def label_sums(
    model: Model,
    shards: TokenShards,
    labellers: Sequence[Labeller],
    *,
    path: str | os.PathLike[str] | None = None,
    limit: int | None = None,
    batch: int = 8,
    progress: bool = True,
) -> LabelSums:
    """Sums of every neuron's activation over the tokens with each label, by a pass of their own; masked
    tokens count nowhere.

    Args:
        model: the decoder.
        shards: the corpus.
        labellers: their labels follow one another.
        path: where to keep the sums, so that the pass can be killed and go on; None keeps nothing.
        limit: use only the first so many sequences.
        batch: sequences in one forward.
        progress: show it.
    Returns: sums over labels [label, layer * d_mlp + neuron].
    """
    shards.check_model(model)
    n, labels = shards.count(limit), sum(len(labeller.names) for labeller in labellers)
    pilot = measure_pilot(model, shards)
    sums = {
        Part("labels", depth, 0, width): LabelTotals(labels, pilot[depth]["post"])
        for depth, width in enumerate(mlp_widths(model))
    }
    card = corpus_card(
        model,
        shards,
        "default",
        None,
        step="labels",
        limit=n,
        batch=batch,
        labellers=[labeller_meaning(labeller) for labeller in labellers],
    )
    accumulate(
        model,
        shards,
        sums,
        card=card,
        limit=n,
        batch=batch,
        labellers=labellers,
        path=path,
        progress=progress,
    )
    return joined_sums([of_layer.finalize() for of_layer in sums.values()])
