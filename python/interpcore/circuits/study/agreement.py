"""How well scores agree with exact ones: correlation, rank correlation, overlap of the best; and MIB's
areas."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.circuits.graph import GraphError
from interpcore.circuits.scores import Scores
from interpcore.stats.association import pearson

MIB_POINTS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
UNION_TOP = 400
"""Rank correlation is also taken over the edges among the best of either side, this many each."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of two sets of scores over the edges (or nodes, or neurons) that both have, all of |score|
    but the difference.

    Args:
        edges: how many were compared.
        pearson: correlation; NaN where one side is constant.
        kendall: tau-b over all edges.
        kendall_top: tau-b over the union of both best `UNION_TOP`.
        mean_difference: mean |score - other score|.
        sign: share of edges with the same sign, among those where neither is 0; NaN without any.
    """

    edges: int
    pearson: float
    kendall: float
    kendall_top: float
    mean_difference: float
    sign: float


def agreement(scores: Scores, exact: Scores) -> Agreement:
    """Agreement of scores with exact ones.

    Raises: GraphError for scores of different graphs or levels, or fewer than two common edges.
    """
    from scipy.stats import kendalltau

    found, wanted = _common(scores, exact)
    a, b = found.abs(), wanted.abs()
    top = min(UNION_TOP, len(a))
    best = torch.zeros(len(a), dtype=torch.bool)
    best[_order(a)[:top]] = True
    best[_order(b)[:top]] = True
    clear = (found != 0) & (wanted != 0)
    return Agreement(
        len(a),
        float(pearson(a, b)),
        float(kendalltau(a, b).statistic),
        float(kendalltau(a[best], b[best]).statistic),
        float((found - wanted).abs().mean()),
        float((found.sign() == wanted.sign())[clear].double().mean()) if bool(clear.any()) else float("nan"),
    )


def average_overlap(scores: Scores, exact: Scores, depth: int = UNION_TOP) -> Tensor:
    """Average overlap of the best edges at depths 1 to `depth` [depth] float64: at depth d the mean over i <=
    d of |best i of one & best i of the other| / i (Webber et al. 2010)."""
    found, wanted = _common(scores, exact)
    depth = min(depth, len(found))
    ranks = []
    for side in (found, wanted):
        rank = torch.empty(len(side), dtype=torch.int64)
        rank[_order(side.abs())] = torch.arange(len(side))
        ranks.append(rank)
    joined = torch.bincount(torch.maximum(*ranks), minlength=depth)[:depth].cumsum(0)
    counts = torch.arange(1, depth + 1, dtype=torch.float64)
    return (joined / counts).cumsum(0) / counts


def cpr(shares: Sequence[float], faithfulness: Sequence[float]) -> float:
    """MIB's circuit performance ratio: area under faithfulness over the share of edges (trapezoids); higher
    is better. The published points are `MIB_POINTS`, circuits chosen by signed score."""
    return _area(shares, faithfulness)


def cmd(shares: Sequence[float], faithfulness: Sequence[float]) -> float:
    """MIB's circuit-model distance: area of |1 - faithfulness| over the share of edges; lower is better.
    Circuits are chosen by |score|."""
    return _area(shares, [abs(1 - value) for value in faithfulness])


def _area(x: Sequence[float], y: Sequence[float]) -> float:
    if len(x) != len(y) or len(x) < 2 or any(b <= a for a, b in itertools.pairwise(x)):
        raise GraphError("An area needs as many values as shares, at least two, in rising order.")
    return sum((b - a) * (p + q) / 2 for a, b, p, q in zip(x, x[1:], y, y[1:], strict=False))


def _common(scores: Scores, exact: Scores) -> tuple[Tensor, Tensor]:
    if scores.graph != exact.graph:
        raise GraphError(f"Scores of different graphs cannot be compared: {scores.graph} and {exact.graph}.")
    if scores.level != exact.level:
        raise GraphError(f"Scores of {scores.level}s and of {exact.level}s cannot be compared.")
    a, b = scores.scores.double(), exact.scores.double()
    both = ~(a.isnan() | b.isnan())
    if int(both.sum()) < 2:
        raise GraphError(f"The two have fewer than two scored {scores.level}s in common.")
    return a[both], b[both]


def _order(values: Tensor) -> Tensor:
    return values.sort(descending=True, stable=True).indices
