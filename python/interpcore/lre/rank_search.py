"""Which ranks of an inverse are tried: a grid, or a coarse one that is refined where it does best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from interpcore.lre.crossfit import Fold, choose, cross_fit, per_fold
from interpcore.lre.options import AUTO

COARSE = 9
NOTE = (
    f"Ranks were searched coarse to fine: of {COARSE} from 0 to d_model, then halfway from the best to its "
    "neighbours among those tried, in the half that chooses; curves show the coarse ones."
)


def rank_grid(d_model: int, count: int | str) -> list[int]:
    """`count` ranks evenly from 0 to d_model, both included; fewer where d_model + 1 is less. A search
    ("auto") begins with few."""
    n = COARSE if count == AUTO else int(count)
    return sorted({round(r) for r in torch.linspace(0, d_model, n, dtype=torch.float64).tolist()})


def between(ranks: Sequence[int], best: int) -> list[int]:
    """Ranks halfway from the best to its neighbours among those tried, ascending; none where it has them
    next to it.

    Args: ranks: those tried, ascending; best: one of them.
    """
    at = ranks.index(best)
    halfway = [(best + near) // 2 for near in (*ranks[at - 1 : at], *ranks[at + 1 : at + 2])]
    return sorted(set(halfway) - set(ranks))


def finest(
    ranks: Sequence[int], hits: Tensor, fold: Fold, run: Callable[[list[int]], Tensor]
) -> tuple[int, Tensor]:
    """The best rank that a search finds, from a coarse grid on.

    Args:
        ranks: those tried, ascending.
        hits: their successes [rank, prompt] bool.
        fold: which prompts choose.
        run: gives the successes of further ranks, ascending.
    Returns: the rank, and its successes [prompt] bool.
    """
    tried = dict(zip(ranks, hits, strict=True))
    for _ in range(max(ranks).bit_length()):
        order = sorted(tried)
        best = order[choose(torch.stack([tried[rank] for rank in order])[None, :, fold.choose])[1]]
        new = between(order, best)
        if not new:
            break
        tried |= dict(zip(new, run(new), strict=True))
    order = sorted(tried)
    best = order[choose(torch.stack([tried[rank] for rank in order])[None, :, fold.choose])[1]]
    return best, tried[best]


def searched(
    ranks: Sequence[int],
    hits: Tensor,
    folds: Sequence[Fold],
    given: tuple[int, int] | None = None,
    run: Callable[[int, list[int]], Tensor] | None = None,
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Each prompt's success at the depth and rank that the other half chose, and these.

    Args:
        ranks: those tried at every depth, ascending.
        hits: their successes [depth, rank, prompt] bool.
        folds: halves of the prompts.
        given: places of a depth and a rank to take instead of a choice.
        run: gives the successes at a depth's place of further ranks [rank, prompt], to go on from the best
            rank of the best depth, see `finest`; None where the grid is all.
    Returns: successes [prompt] bool, and each fold's place of the depth and rank.
    """
    outcome, choices = cross_fit(hits, folds, given)
    if run is None or given is not None:
        return outcome, [(depth, ranks[rank]) for depth, rank in choices]
    found = [
        finest(ranks, hits[depth], fold, partial(run, depth))
        for (depth, _), fold in zip(choices, folds, strict=True)
    ]
    chosen = [(depth, rank) for (depth, _), (rank, _) in zip(choices, found, strict=True)]
    return per_fold(folds, [mine for _, mine in found]), chosen
