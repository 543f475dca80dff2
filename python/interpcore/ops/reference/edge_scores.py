"""Definition of `interpcore.ops.edge_scores`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def edge_scores(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None = None,
    segments: int = 1,
) -> tuple[Tensor, Tensor]:
    """Sum over positions and features of difference[source] * grad[destination], in float64.

    Shapes are those of `interpcore.ops.edge_scores`. Per example b and segment g,

        e[b, g, s, t] = sum over p with segment[b, p] = g of difference[s, b, p] . grad[t, b, p]

    for s < prefix[t], else 0.

    Returns:
        Sum and sum of squares of e over examples, each `[segments, S, D]` float64.
    """
    positions = torch.einsum("sbpd,tbpd->bpst", difference.double(), grad.double())
    if segment is None:
        segment = torch.zeros(positions.shape[:2], dtype=torch.int64, device=grad.device)
    each = torch.stack(
        [(positions * (segment == g)[..., None, None]).sum(1) for g in range(segments)], 1
    )  # [B, segments, S, D]
    legal = torch.arange(difference.shape[0])[:, None] < torch.tensor(list(prefix), dtype=torch.int64)
    each = each * legal.to(each.device)
    return each.sum(0), each.square().sum(0)
