"""Inputs of circuits: pairs, scores and graphs, and what reads them and sees that they are whole."""

from __future__ import annotations

import json
from pathlib import Path

import mutations
import torch
from input_kinds import Kind, tokenizer

from interpcore.circuits import Graph, Scores, select
from interpcore.circuits.files import load_mib, load_scores, save_mib, save_scores
from interpcore.circuits.graph_json import latent_graph_file, load_graph, save_graph
from interpcore.circuits.latents import LatentGraph, Node
from interpcore.circuits.tasks import TASKS, load_pairs
from interpcore.data import prompt_pairs
from interpcore.model.made_on import MadeOn


def table_kind(task: str) -> Kind:
    def write(folder: Path) -> Path:
        prompt_pairs.generate(task, tokenizer(), 12, seed=2).write_csv(folder / "rows.csv")
        return folder / "rows.csv"

    words = tokenizer()

    def read(path: Path) -> None:
        pairs = load_pairs(task, path, words)
        for side in (pairs.good, pairs.bad):
            assert side.min() >= -1 and side.max() < len(words) and (side >= 0).any(1).all()
        assert not (pairs.clean == pairs.corrupted).all(1).any() and pairs.lengths.min() > 0
        assert pairs.clean.min() >= 0 and pairs.clean.max() < len(words)
        assert len(pairs.texts) == len(pairs)

    return Kind(write, read, mutations.TABLE, 40)


def some_scores() -> Scores:
    graph = Graph(2, 2, 2)
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(graph.legal.shape, generator=draw)
    nodes, neurons = (
        torch.randn(graph.n_sources, generator=draw),
        torch.randn(graph.n_sources, 3, generator=draw),
    )
    notes = {"steps": 5, "rules": None}
    made_on = MadeOn("abc", "def")
    return Scores(
        graph,
        values,
        "eap",
        "kl",
        "zero",
        "m",
        "ioi",
        examples=7,
        nodes=nodes,
        neurons=neurons,
        notes=notes,
        made_on=made_on,
    )


def score_kind(suffix: str, own: bool = True) -> Kind:
    def write(folder: Path) -> Path:
        scores, path = some_scores(), folder / f"s.{suffix}"
        save_scores(scores, path, select(scores, 12))
        if not own:
            found = json.loads(path.read_text())
            del found["interpcore"]
            path.write_text(json.dumps(found))
        return path

    damage = {"safetensors": mutations.SAFETENSORS, "json": mutations.JSON, "pt": mutations.BYTES}[suffix]
    return Kind(write, read_scores, damage, 150 if suffix == "json" else 60)


def read_scores(path: Path) -> None:
    scores, circuit = load_scores(path)
    graph = scores.graph
    assert graph == circuit.graph and graph.n_edges < 1000
    assert tuple(scores.values.shape) == tuple(circuit.edges.shape) == tuple(graph.legal.shape)
    assert not scores.values.isinf().any() and not (circuit.edges & ~graph.legal).any()
    assert scores.direction.startswith("metric(clean)") and isinstance(scores.examples, int)
    for value in (scores.nodes, scores.neurons):
        assert value is None or (len(value) == graph.n_sources and not value.isinf().any())
    assert circuit.neurons is None or circuit.neurons.dtype is torch.bool


def write_mib(folder: Path) -> Path:
    return save_mib(some_scores(), folder, "ioi", "m", circuits=True)[3]


def read_mib(path: Path) -> None:
    assert len(load_mib(path.parent)) == 9
    read_scores(path)


def write_graph(folder: Path) -> Path:
    nodes = (Node("latent", 0, 0, 3, 1.5), Node("token", -1, 0, 5), Node("logit", 2, 1, 7, 0.5, " a"))
    weights = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.5, 0.25, 0.0]])
    return save_graph(latent_graph_file(LatentGraph("m", ("x", "y"), nodes, weights), "s"), folder / "g.json")


def read_graph(path: Path) -> None:
    found = load_graph(path)
    graph = found.latents()
    assert len(graph.nodes) == len(graph.weights) and graph.weights.isfinite().all()
    assert len(found.to_pandas()) == len(found.links)


KINDS = {
    "attribution graph": Kind(write_graph, read_graph, mutations.JSON, 120),
    **{f"pairs of {task}": table_kind(task) for task in TASKS},
    "own scores, safetensors": score_kind("safetensors"),
    "own scores, json": score_kind("json"),
    "published scores, json": score_kind("json", own=False),
    "scores, pt": score_kind("pt"),
    "mib": Kind(write_mib, read_mib, mutations.JSON, 20),
}
