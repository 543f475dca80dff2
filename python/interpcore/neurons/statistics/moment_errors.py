"""Standard errors of activation moments: tokens of a text are not independent, so whole groups of sequences
are left out in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.statistics.mlp_sides import mlp_widths
from interpcore.neurons.statistics.token_pass import Part, accumulate
from interpcore.ops import ColumnMoments
from interpcore.ops.column_moments import RunningMoments
from interpcore.stats import TokenBlock
from interpcore.stats.accumulators import State
from interpcore.stats.jackknife import jackknife_error

GROUPS, BLOCK = 20, 8
"""Groups of sequences, and sequences of the blocks that groups are made of."""
_THRESHOLDS = (0.0,)


class GroupMoments:
    """Moments of every column in each group of sequences that follow one another.

    Args:
        columns: N.
        groups: G; fewer where there are fewer blocks.
        sequences: of the corpus.
        block: sequences that are never in two groups.
        context: tokens of a sequence.
    """

    def __init__(
        self,
        columns: int,
        groups: int,
        sequences: int,
        block: int,
        context: int,
        device: torch.device | str = "cpu",
    ) -> None:
        self._blocks, self._tokens = -(-sequences // block), block * context
        groups = min(groups, self._blocks)
        self.groups = [RunningMoments(columns, _THRESHOLDS, device=device) for _ in range(groups)]

    def update(self, values: Tensor, tokens: TokenBlock) -> None:
        """Adds values [T, N]."""
        group = tokens.index // self._tokens * len(self.groups) // self._blocks
        there, counts = group.unique_consecutive(return_counts=True)
        for number, rows in zip(there.tolist(), values.split(counts.tolist()), strict=True):
            self.groups[number].add(rows)

    def merge(self, other: GroupMoments) -> None:
        """Adds another's, within 1e-12."""
        for mine, its in zip(self.groups, other.groups, strict=True):
            mine.take(its.counts, its.moments)

    def state_dict(self) -> State:
        """counts/g [3, N] int64 and moments/g [6, N] float64 of each group."""
        state = {f"counts/{g}": s.counts for g, s in enumerate(self.groups)}
        return state | {f"moments/{g}": s.moments for g, s in enumerate(self.groups)}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[name])

    def finalize(self) -> dict[str, Tensor]:
        """What `errors_of` gives."""
        return errors_of(self.groups)


def moment_errors(
    model: Model,
    shards: TokenShards,
    *,
    groups: int = GROUPS,
    limit: int | None = None,
    batch: int = BLOCK,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Delete-a-group jackknife errors of the moments of every neuron's pre-activation, by a pass of their
    own; `summarize` takes them in its pass where it is asked for `errors`.

    Args:
        model: the decoder; gated neurons: of the gate.
        shards: the corpus, cut into groups of sequences that follow one another.
        groups: 20 or more; fewer only where there are fewer batches.
        limit: only the first so many sequences.
        batch: sequences in one forward.
        path: keeps the sums, so that the pass can be killed and go on.
        progress: show it.
    Returns: mean, var, skew, kurt and frequency, each [layer * d_mlp] float64; NaN with fewer than two
    groups.
    """
    shards.check_model(model)
    n = shards.count(limit)
    sums = {
        Part("errors", depth, 0, width): GroupMoments(width, groups, n, batch, shards.context, model.device)
        for depth, width in enumerate(mlp_widths(model))
    }
    card = corpus_card(
        model, shards, "default", None, step="moment errors", limit=n, batch=batch, groups=groups
    )
    accumulate(model, shards, sums, card=card, limit=n, batch=batch, path=path, progress=progress)
    return joined_errors([of_layer.finalize() for of_layer in sums.values()])


def joined_errors(layers: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The errors of all layers' neurons [N], one layer after another."""
    return {name: torch.cat([of_layer[name] for of_layer in layers]) for name in _MEASURES}


def errors_of(sums: Sequence[RunningMoments]) -> dict[str, Tensor]:
    """Jackknife errors [N] from the moments of each group."""
    width, device = sums[0].counts.shape[1], sums[0].counts.device
    if len(sums) < 2:
        missing = torch.full((width,), torch.nan, dtype=torch.float64)
        return dict.fromkeys(("mean", "var", "skew", "kurt", "frequency"), missing)
    suffix = [RunningMoments(width, _THRESHOLDS, device=device)]
    for group in reversed(sums[1:]):
        suffix.append(_joined(suffix[-1], group))
    before = RunningMoments(width, _THRESHOLDS, device=device)
    deleted = []
    for group, after in zip(sums, reversed(suffix), strict=True):
        deleted.append(_joined(before, after).result())
        before = _joined(before, group)
    return {
        name: jackknife_error(torch.stack([of(d) for d in deleted])).cpu() for name, of in _MEASURES.items()
    }


_MEASURES: dict[str, Callable[[ColumnMoments], Tensor]] = {
    "mean": lambda m: m.mean,
    "var": lambda m: m.variance,
    "skew": lambda m: m.skewness,
    "kurt": lambda m: m.kurtosis,
    "frequency": lambda m: m.frequency[0],
}


def _joined(a: RunningMoments, b: RunningMoments) -> RunningMoments:
    both = RunningMoments(a.counts.shape[1], _THRESHOLDS, device=a.counts.device)
    for part in (a, b):
        both.take(part.counts, part.moments)
    return both
