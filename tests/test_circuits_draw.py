"""Pictures: every kind of file, all edges in them, widths and signs; the manual circuits."""

from __future__ import annotations

import itertools
import json
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from browser import browse

from interpcore.circuits import Circuit, Graph, GraphError, Scores, select
from interpcore.circuits.study.about import About
from interpcore.circuits.study.draw import HELPS, HURTS, draw
from interpcore.circuits.study.page import circuit_page
from interpcore.circuits.study.placement import arrows, places
from interpcore.circuits.study.published import GPT2_SMALL, manual_circuit, recovery, touched


@pytest.fixture
def scored() -> Scores:
    graph = Graph(4, 4, 4)
    return Scores(graph, torch.randn(graph.legal.shape, generator=torch.Generator().manual_seed(1)), "x", "y")


@pytest.mark.parametrize("parallel", [False, True])
def test_rows_rise_from_input_to_logits_and_nodes_do_not_meet(parallel: bool) -> None:
    graph = Graph(4, 4, 4, parallel)
    circuit = Circuit.full(graph)
    drawn = arrows(circuit)
    placed = places(circuit, drawn)
    assert set(placed) == set(graph.node_names) and len(drawn) == graph.n_edges
    for arrow in drawn:
        assert placed[arrow.source].y < placed[arrow.target].y
    spots = sorted((p.y, p.x) for p in placed.values())
    assert all(a[0] < b[0] or b[1] - a[1] >= 0.99 for a, b in itertools.pairwise(spots))


def test_strongest_first_and_grouped_inputs_lead_to_a_head() -> None:
    graph = Graph(2, 4, 2)
    scores = Scores(graph, torch.randn(graph.legal.shape), "x", "y")
    drawn = arrows(Circuit.full(graph), scores, 10)
    strengths = [abs(a.score) for a in drawn]
    assert strengths == sorted(strengths, reverse=True) and len(drawn) == 10
    shared = arrows(Circuit(graph, graph.mask(["m0->a1.g1<v>"])))
    assert (shared[0].source, shared[0].target, shared[0].letter) == ("m0", "a1.h2", "v")


@pytest.mark.parametrize("suffix", ["svg", "png", "pdf", "html"])
def test_every_kind_of_file(tmp_path, suffix, scored) -> None:
    path = tmp_path / f"circuit.{suffix}"
    draw(select(scored, 60, "greedy"), path, scored, title="a <circuit>")
    head = path.read_bytes()[:9]
    start = {"svg": b"<?xml", "png": b"\x89PNG", "pdf": b"%PDF", "html": b"<!doctype"}[suffix]
    assert head.startswith(start) and [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_picture_has_a_line_per_edge_with_its_sign(tmp_path, scored) -> None:
    circuit = select(scored, 60, "greedy")
    draw(circuit, tmp_path / "c.svg", scored)
    text = (tmp_path / "c.svg").read_text()
    ET.fromstring(text)
    lines = re.findall(r'style="fill: none; opacity: [\d.]+; stroke: (#\w+); stroke-width: ([\d.]+)', text)
    helps = int((scored.values[circuit.edges] > 0).sum())
    assert [sum(c == color for c, _ in lines) for color in (HELPS, HURTS)] == [helps, circuit.n_edges - helps]
    assert max(float(width) for _, width in lines) == 4.0


def test_the_page_holds_its_data_and_nothing_from_elsewhere(tmp_path, scored) -> None:
    circuit = select(scored, 60, "greedy")
    draw(circuit, tmp_path / "c.html", scored, title="</script>")
    text = (tmp_path / "c.html").read_text()
    data = json.loads(re.search(r'type="application/json">(.*?)</script>', text, re.S)[1])
    assert len(data["edges"]) == circuit.n_edges
    for source, target, letter, score in data["edges"]:
        name = f"{source}->{target}" + (f"<{letter}>" if letter else "")
        assert score == pytest.approx(float(scored.values[scored.graph.edge(name)]), rel=1e-5)
    assert "{{" not in text and "&lt;/script&gt;" in text
    assert not re.search(r'(src|href)="|https?://(?!www\.w3\.org/2000/svg)', text)


READER = """
const told = [], edges = [...document.querySelectorAll("g.edge")];
const drawn = () => edges.filter(edge => edge.style.display !== "none").length;
const act = (element, value) => { element.value = value; element.dispatchEvent(new Event("input")); };
told.push(drawn(), at("faithfulness").textContent);
act(count, 2); told.push(drawn(), at("shown").textContent);
act(search, "logits"); told.push(at("list").querySelectorAll("tr").length);
document.querySelector("h1").textContent = JSON.stringify(told);
"""


def test_the_page_opens_at_the_smallest_faithful_circuit(tmp_path, scored) -> None:
    values = {"metric": "logit_diff", "pairs": 7}
    rows = [
        {"requested": n, "kept": c.n_edges, "faithfulness": f, "faithfulness_low": f - 0.1}
        | {"faithfulness_high": f + 0.1, **values}
        for n, f in ((60, 0.3), (70, 0.6), (80, 0.9), (120, 1.0))
        for c in [select(scored, n, "greedy")]
    ]
    about = About.of(scored, rows)
    assert about.opens == 2 and [c.n_edges for c in about.circuits] == [row["kept"] for row in rows]
    page = circuit_page(Circuit.full(scored.graph), scored, most=None, about=about)
    html = browse(page.save(tmp_path / "c.html"), script=READER)
    told = json.loads(re.search(r"<h1>(.*?)</h1>", html)[1])
    assert told[:2] == [rows[2]["kept"], "faithfulness 0.90 [0.80, 1.00] of logit_diff, 7 held-out pairs"]
    assert told[2:4] == [rows[1]["kept"], f"{rows[1]['kept']} edges"]
    to_logits = about.circuits[1].edges[:, scored.graph.logits]
    assert told[4] == int(to_logits.sum()) and html.count('class="tip"') == scored.graph.n_edges
    # A study of which none is faithful, and no study at all, are told in a sentence.
    none = circuit_page(Circuit.full(scored.graph), scored, about=About.of(scored, rows[:2]))
    assert "None of the circuits measured keeps 0.85" in none
    assert "No circuit of these scores was measured" in circuit_page(Circuit.full(scored.graph), scored)


def test_heads_of_a_row_are_in_order(scored) -> None:
    circuit = select(scored, 60, "greedy")
    placed = places(circuit, arrows(circuit, scored))
    for layer in range(4):
        heads = sorted((p.x, p.name) for p in placed.values() if p.kind == "head" and p.layer == layer)
        assert [name for _, name in heads] == sorted(name for _, name in heads)


def test_what_cannot_be_drawn(tmp_path, scored) -> None:
    with pytest.raises(GraphError, match="no edges to draw"):
        draw(Circuit.empty(scored.graph), tmp_path / "c.svg")
    with pytest.raises(GraphError, match=r"written as \.svg"):
        draw(select(scored, 60, "greedy"), tmp_path / "c.gif")
    draw(Circuit.full(scored.graph), tmp_path / "c.svg", scored, most=30)


def test_manual_circuits_have_the_published_sizes() -> None:
    ioi, greater = manual_circuit("ioi"), manual_circuit("greater-than")
    assert (ioi.n_edges, greater.n_edges) == (215, 240)
    heads = [n for n in ioi.node_names() if ".h" in n]
    assert len(heads) == 26 and greater.n_nodes == 20  # with `input`
    for circuit in (ioi, greater):
        assert circuit.pruned().edges.equal(circuit.edges)
    assert "a2.h2->a5.h5<q>" in ioi.edge_names() and "a9.h9->logits" in ioi.edge_names()
    with pytest.raises(GraphError, match="manual circuits of ioi and greater-than"):
        manual_circuit("sva")
    with pytest.raises(GraphError, match="GPT-2 small"):
        manual_circuit("ioi", Graph(2, 2, 2))


def test_recovery_of_a_planted_circuit() -> None:
    wanted = manual_circuit("greater-than")
    noise = torch.rand(wanted.edges.shape, generator=torch.Generator().manual_seed(0))
    scores = Scores(GPT2_SMALL, noise + wanted.edges * 2, "x", "y")
    found = recovery(scores, wanted, [120, 240, 480])
    assert found.edge_precision.tolist() == [1, 1, 0.5] and found.edge_recall.tolist() == [0.5, 1, 1]
    assert found.node_recall[1] == 1 and found.node_precision[1] == 1 and found.node_precision[2] < 0.2
    heads = recovery(
        Scores(GPT2_SMALL, 1.0 * manual_circuit("ioi").edges, "x", "y"),
        manual_circuit("ioi"),
        [215],
        mlps=False,
    )
    assert heads.node_precision.item() == heads.node_recall.item() == heads.edge_precision.item() == 1
    assert heads.edge_recall.item() == pytest.approx(213 / 215)
    assert int(touched(GPT2_SMALL, wanted.edges).sum()) == 19
