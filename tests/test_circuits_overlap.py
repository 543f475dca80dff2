"""Overlaps, agreement and MIB's areas against their definitions."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import pytest
import torch

from interpcore.circuits import Circuit, Graph, GraphError, Scores, select
from interpcore.circuits.study.agreement import agreement, average_overlap, cmd, cpr
from interpcore.circuits.study.overlap import edge_overlap, node_overlap, overlap_table

GRAPH = Graph(2, 2, 2)


def scores(seed: int, graph: Graph = GRAPH) -> Scores:
    generator = torch.Generator().manual_seed(seed)
    return Scores(graph, torch.randn(graph.legal.shape, generator=generator), "random", "none")


def circuit(*edges: str) -> Circuit:
    return Circuit(GRAPH, GRAPH.mask(edges))


def test_overlap_by_hand() -> None:
    a = circuit("input->m0", "m0->logits", "input->logits", "m0->m1", "m1->logits")
    b = circuit("input->m0", "m0->logits", "input->a0.h0<q>", "a0.h0->logits")
    edges, nodes = edge_overlap(a, b), node_overlap(a, b)
    assert (edges.shared, edges.first, edges.second) == (2, 5, 4)
    assert (edges.iou, edges.recall, edges.precision) == (2 / 7, 2 / 5, 2 / 4)
    assert (nodes.shared, nodes.first, nodes.second) == (1, 2, 2)  # m0 of m0, m1 and a0.h0, m0; not `input`
    n = GRAPH.n_edges
    tail = [Fraction(math.comb(5, x) * math.comb(n - 5, 4 - x), math.comb(n, 4)) for x in range(5)]
    assert edges.p == pytest.approx(float(sum(tail[2:])), rel=1e-12)
    assert edge_overlap(a, b, "paper").p == pytest.approx(float(sum(tail[3:])), rel=1e-12)


def test_tables_are_pairwise_and_different_graphs_refused() -> None:
    circuits = [select(scores(i), 15) for i in range(3)]
    table = overlap_table(circuits, "edge", "recall")
    assert table.diag().tolist() == [1, 1, 1]
    for i, j in itertools.product(range(3), repeat=2):
        assert float(table[i, j]) == edge_overlap(circuits[i], circuits[j]).recall
    iou = overlap_table(circuits, "node", "iou")
    assert torch.equal(iou, iou.T)
    with pytest.raises(GraphError, match="different graphs"):
        edge_overlap(circuits[0], Circuit.full(Graph(2, 2, 2, True)))
    assert math.isnan(edge_overlap(Circuit.empty(GRAPH), Circuit.empty(GRAPH)).iou)


def test_agreement_with_oneself_and_by_pairs() -> None:
    a, b = scores(0), scores(1)
    same = agreement(a, a)
    assert (
        same.pearson == pytest.approx(1)
        and same.kendall == 1
        and same.sign == 1
        and same.mean_difference == 0
    )
    turned = agreement(a.negated(), a)
    assert turned.pearson == pytest.approx(1) and turned.sign == 0
    found = agreement(a, b)
    x, y = (s.values[s.scored].abs().tolist() for s in (a, b))
    pairs = list(itertools.combinations(range(len(x)), 2))
    concordant = sum(math.copysign(1, x[i] - x[j]) * math.copysign(1, y[i] - y[j]) for i, j in pairs)
    assert found.kendall == pytest.approx(concordant / len(pairs))
    assert found.edges == GRAPH.n_edges and found.kendall_top == found.kendall


def test_rank_correlation_of_the_best_takes_the_union_of_both() -> None:
    graph = Graph(6, 6, 6)
    a, b = scores(0, graph), scores(1, graph)
    x, y = (s.values[graph.legal].abs() for s in (a, b))
    best = sorted(
        set(x.argsort(descending=True)[:400].tolist()) | set(y.argsort(descending=True)[:400].tolist())
    )
    small = Graph(6, 6, 6)
    keep = torch.zeros(graph.n_edges, dtype=torch.bool)
    keep[best] = True
    only = torch.full(graph.legal.shape, torch.nan)
    only[graph.legal] = torch.where(keep, a.values[graph.legal], torch.nan)
    restricted = agreement(Scores(small, only, "x", "y"), b)
    assert restricted.edges == len(best)
    assert agreement(a, b).kendall_top == pytest.approx(restricted.kendall)


def test_average_overlap_by_its_definition() -> None:
    a, b = scores(0), scores(1)
    x, y = (s.values[s.scored].abs().sort(descending=True).indices.tolist() for s in (a, b))
    depths = [len(set(x[:d]) & set(y[:d])) / d for d in range(1, 21)]
    expected = [sum(depths[:d]) / d for d in range(1, 21)]
    torch.testing.assert_close(average_overlap(a, b, 20), torch.tensor(expected, dtype=torch.float64))
    assert average_overlap(a, a, 10).tolist() == [1.0] * 10


def test_only_common_edges_are_compared() -> None:
    a, b = scores(0), scores(1)
    values = b.values.clone()
    values[:, -1] = torch.nan
    some = Scores(GRAPH, values, "exact", "none")
    assert agreement(a, some).edges == GRAPH.n_edges - GRAPH.n_sources
    with pytest.raises(GraphError, match="fewer than two"):
        agreement(a, Scores(GRAPH, torch.full(GRAPH.legal.shape, torch.nan), "exact", "none"))


def test_areas() -> None:
    shares = (0.1, 0.2, 0.5, 1.0)
    assert cpr(shares, [1, 1, 1, 1]) == pytest.approx(0.9) and cmd(shares, [1, 1, 1, 1]) == 0
    assert cpr(shares, [0, 1, 1, 2]) == pytest.approx(0.05 + 0.3 + 0.75)
    assert cmd(shares, [0, 1, 1, 2]) == pytest.approx(0.05 + 0.25)
    with pytest.raises(GraphError, match="rising order"):
        cpr((0.5, 0.1), [1, 1])
