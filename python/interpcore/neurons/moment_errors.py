"""Standard errors of activation moments: tokens of a text are not independent, so whole groups of sequences
are left out in turn."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.neurons.cards import corpus_card
from interpcore.ops import ColumnMoments
from interpcore.ops.column_moments import RunningMoments
from interpcore.runs import checkpointed
from interpcore.stats.jackknife import jackknife_error

GROUPS = 20
_THRESHOLDS = (0.0,)


def moment_errors(
    model: Model,
    shards: TokenShards,
    *,
    groups: int = GROUPS,
    sequences: int | None = None,
    batch: int = 8,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> dict[str, Tensor]:
    """Delete-a-group jackknife errors of the moments of every neuron's pre-activation.

    Args:
        model: the decoder; gated neurons: of the gate.
        shards: the corpus, cut into groups of sequences that follow one another.
        groups: 20 or more; fewer only where there are fewer batches.
        sequences: only the first so many.
        batch: sequences in one forward.
        path: keeps the sums, so that the pass can be killed and go on.
        progress: show it.
    Returns: mean, var, skew, kurt and frequency, each [layer * d_mlp] float64; NaN with fewer than two
    groups.
    """
    shards.check_model(model)
    n = min(shards.n_sequences, sequences or shards.n_sequences)
    blocks = -(-n // batch)
    groups = min(groups, blocks)
    width = model.plan.n_calls * model.spec.d_mlp
    sums = [RunningMoments(width, _THRESHOLDS, device=model.device) for _ in range(groups)]
    state = {f"counts/{g}": s.counts for g, s in enumerate(sums)}
    state |= {f"moments/{g}": s.moments for g, s in enumerate(sums)}

    def step(block: int) -> None:
        tokens = shards.sequences(block * batch, min(n, (block + 1) * batch))
        mask = shards.mask(tokens).flatten().to(model.device)
        found: list[RunningMoments] = []

        def hook(
            function: Callable[[Tensor], Tensor], pre: Tensor, depth: int, up: Tensor | None = None
        ) -> Tensor:
            of_layer = RunningMoments(pre.shape[-1], _THRESHOLDS, device=model.device)
            of_layer.add(pre.flatten(0, 1), mask)
            found.append(of_layer)
            return function(pre) if up is None else function(pre) * up

        with torch.no_grad():
            model.forward(tokens.to(model.device), logits_at=None, activation=hook)
        into = sums[block * groups // blocks]
        into.take(torch.cat([f.counts for f in found], 1), torch.cat([f.moments for f in found], 1))

    card = corpus_card(model, shards, "default", None, step="errors", limit=n, batch=batch, groups=groups)
    checkpointed(path, state, blocks, step, meaning=card.key, label="moment errors", progress=progress)
    return errors_of(sums)


def errors_of(sums: Sequence[RunningMoments]) -> dict[str, Tensor]:
    """Jackknife errors from the moments of each group."""
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
