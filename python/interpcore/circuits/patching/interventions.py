"""What stands in for a source on a corrupted edge: the corrupted prompt's value, zero, or a mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from interpcore.circuits.graph import GraphError
from interpcore.circuits.options import INTERVENTIONS
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.sources import Record, Sources, record
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import MadeOn, check_made_on


@dataclass(frozen=True, eq=False)
class Intervention:
    """How corrupted edges are filled; make one with `Intervention.of`.

    Args:
        name: in `INTERVENTIONS`.
        means: of every source over the data set's clean prompts, [1, 1 or position, ...].
        data: name of that data set; None for interventions without one.
        made_on: weights and plan of the model that the means are of.
    """

    name: str = "patching"
    means: Sources | None = None
    data: str | None = None
    made_on: MadeOn | None = None

    @classmethod
    def of(
        cls,
        intervention: str | Intervention,
        model: Model | GenericModel,
        pairs: Pairs,
        *,
        batch_size: int = 32,
        other_model: bool = False,
    ) -> Intervention:
        """An intervention by name.

        Args:
            intervention: "patching" (the corrupted prompt's value), "zero", "mean" (each source's mean over
                all real tokens) or "mean-positional" (at each position, over the prompts that reach it); or
                one that is ready, which is returned.
            model: whose sources.
            pairs: data set whose clean prompts the means are taken over.
            batch_size: prompts per forward.
            other_model: take means of another model, too.
        Raises: GraphError for an unknown name, Refused for another model's means.
        """
        if isinstance(intervention, Intervention):
            check_made_on(model, intervention.made_on, "The means of the intervention were", other_model)
            return intervention
        if intervention not in INTERVENTIONS:
            raise GraphError(f"An intervention is one of {', '.join(INTERVENTIONS)}; got {intervention!r}.")
        if not intervention.startswith("mean"):
            return cls(intervention)
        positional = intervention == "mean-positional"
        means = mean_sources(model, pairs, positional, batch_size)
        return cls(intervention, means, pairs.task, MadeOn.of(model))

    @property
    def skips(self) -> bool:
        """Whether nothing changes before the first position at which a pair differs."""
        return self.name == "patching"

    def notes(self) -> dict[str, str]:
        """What a file of results must say about it."""
        return {} if self.data is None else {"mean over": self.data}

    def sources(self, model: Model | GenericModel, pairs: Pairs, clean: Record) -> Sources:
        """What stands in for every source of a batch, [batch or 1, position, ...].

        Args:
            model: the decoder.
            pairs: the batch.
            clean: its clean prompts, recorded.
        Raises: GraphError for prompts longer than a mean by position reaches.
        """
        if self.name == "patching":
            return record(model, pairs.corrupted, pairs.lengths).sources
        return self.constants(clean.sources)

    def constants(self, clean: Sources) -> Sources:
        """What stands in without a corrupted prompt: zeros or means, [batch or 1, position, ...].

        Raises: GraphError for prompts longer than a mean by position reaches.
        """
        if self.means is None:
            return clean.map(torch.zeros_like)
        width = clean.input.shape[1]
        if self.name == "mean-positional" and self.means.input.shape[1] < width:
            raise GraphError(
                f"A prompt has {width} tokens; the mean over {self.data} by position reaches "
                f"{self.means.input.shape[1]}. Take the mean over longer prompts, or use intervention='mean'."
            )
        return self.means.map(lambda mean: mean[:, :width].expand(-1, width, *mean.shape[2:]))

    def first(self, pairs: Pairs) -> int:
        """First position of a batch that can change: 0 unless this patches."""
        last = int(pairs.lengths.min()) - 1
        return min(int(pairs.first_difference.min()), last) if self.skips else 0


def mean_sources(
    model: Model | GenericModel, pairs: Pairs, positional: bool, batch_size: int = 32
) -> Sources:
    """Mean of every source over the clean prompts of a data set, real tokens alone.

    Args:
        model: the decoder.
        pairs: the data set.
        positional: per position, over the prompts that reach it; else over all tokens.
        batch_size: prompts per forward.
    Returns: tensors [1, position, ...] (positional) or [1, 1, ...], in the model's dtype.
    """
    total: Sources | None = None
    counts = torch.zeros(pairs.clean.shape[1], dtype=torch.float64)
    for batch, sums in _sums(model, pairs, batch_size):
        counts[: batch.clean.shape[1]] += batch.mask.sum(0)
        total = sums if total is None else _added(total, sums)
    assert total is not None

    def mean(x: Tensor) -> Tensor:
        n = counts.to(x.device)
        x = x / n.view(-1, *[1] * (x.dim() - 1)) if positional else x.sum(0, keepdim=True) / n.sum()
        return x[None].to(model.dtype)

    return total.map(mean)


def _sums(model: Model | GenericModel, pairs: Pairs, batch_size: int) -> Iterator[tuple[Pairs, Sources]]:
    """Per batch, sums over its prompts [position, ...] float64 (zeros stand at padding)."""
    for batch in pairs.batches(batch_size):
        recorded = record(model, batch.clean, batch.lengths).sources
        real = batch.mask.to(recorded.input.device)
        yield batch, recorded.map(partial(_real_sum, real))


def _real_sum(real: Tensor, x: Tensor) -> Tensor:
    return (x * real.view(*real.shape, *[1] * (x.dim() - 2))).double().sum(0)


def _added(a: Sources, b: Sources) -> Sources:
    """Sums of two batches of different length."""

    def add(x: Tensor, y: Tensor) -> Tensor:
        if len(x) < len(y):
            x, y = y, x
        return torch.cat([x[: len(y)] + y, x[len(y) :]])

    return Sources(
        add(a.input, b.input),
        tuple(add(x, y) for x, y in zip(a.z, b.z, strict=True)),
        tuple(add(x, y) for x, y in zip(a.mlp, b.mlp, strict=True)),
    )
