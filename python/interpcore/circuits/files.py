"""Files of scores and circuits: this package's (safetensors), the published ones (JSON, .pt) and MIB's
folders."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.circuits.circuit import Circuit, nested
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.scores import Scores
from interpcore.runs import RunError
from interpcore.runs.artifacts import atomic_path

DIRECTIONS = ("helps", "hurts")
MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_TENSORS = ("values", "squares", "nodes", "neurons", "segments", "segment_squares")
_FACTS = ("method", "metric", "intervention", "model", "task", "split", "direction", "examples")
_OWN = "interpcore"


def save_scores(scores: Scores, path: str | Path, circuit: Circuit | None = None) -> None:
    """Write scores, and a circuit chosen from them, in the format of the file's suffix.

    Args:
        scores: what to write.
        path: `.safetensors` keeps everything; `.json` and `.pt` are the published formats, which have no
            grouped key/value destinations, segments or standard errors.
        circuit: marks what is in the graph; None marks every edge.
    Raises: GraphError for another suffix, or a graph that the published formats cannot hold.
    """
    path = Path(path)
    writers = {".safetensors": _save_own, ".json": _save_json, ".pt": _save_pt}
    if path.suffix not in writers:
        raise GraphError(f"Scores are written as {', '.join(writers)}; got {path.name}.")
    if path.suffix != ".safetensors" and scores.graph.grouped:
        raise GraphError(
            "The published formats have no key/value groups; attribute with group_kv=False, or write "
            ".safetensors."
        )
    circuit = Circuit.full(scores.graph) if circuit is None else circuit
    with atomic_path(path) as partial:
        writers[path.suffix](scores, circuit, partial)


def load_scores(
    path: str | Path, direction: str = "helps", *, method: str = "imported", metric: str = "unknown"
) -> tuple[Scores, Circuit]:
    """Read scores and their circuit.

    Args:
        path: `.safetensors`, or `.json` or `.pt` as published (also MIB's).
        direction: what a positive score of a published file means: "helps" (the published scripts minimise a
            loss), or "hurts", which turns every sign. Files of this package know it themselves.
        method, metric: what the file was made with, where it does not say.
    Raises: GraphError for a damaged file or another format, with what is wrong.
    """
    path = Path(path)
    if direction not in DIRECTIONS:
        raise GraphError(f"A positive score {' or '.join(DIRECTIONS)}; got {direction!r}.")
    if path.suffix == ".safetensors":
        return _load_own(path)
    readers = {".json": _load_json, ".pt": _load_pt}
    if path.suffix not in readers:
        raise GraphError(f"Scores are read from .safetensors, {', '.join(readers)}; got {path.name}.")
    try:
        graph, tensors, facts = readers[path.suffix](path)
    except (KeyError, TypeError, json.JSONDecodeError, UnicodeDecodeError, RuntimeError, RunError) as error:
        raise GraphError(f"{path} is no file of scores: {type(error).__name__} {error}.") from error
    edges, neurons = tensors.pop("edges"), tensors.pop("neurons_in", None)
    own = facts or {"method": method, "metric": metric}
    notes = {**own.pop("notes", {}), "file": path.name, "file_direction": direction}
    given: dict[str, Any] = {key: value for key, value in own.items() if key in _FACTS} | tensors
    scores = Scores(graph, **given, notes=notes)
    scores = scores.negated() if direction == "hurts" and not facts else scores
    return scores, Circuit(graph, edges & graph.legal, neurons)


def save_mib(
    scores: Scores, folder: str | Path, task: str, model: str, *, circuits: bool = False
) -> list[Path]:
    """Write what MIB's circuit track takes: `<folder>/<task>_<model>/` with the importance of every edge, or
    with one circuit for each of its shares of edges.

    Returns: the files.
    """
    place = Path(folder) / f"{task}_{model}"
    place.mkdir(parents=True, exist_ok=True)
    if not circuits:
        save_scores(scores, place / "importances.json")
        return [place / "importances.json"]
    # A circuit may hold no more than its share, so sizes are rounded down.
    sizes = [int(share * scores.graph.n_edges) for share in MIB_SHARES]
    files = [place / f"{100 * share:g}.json" for share in MIB_SHARES]
    for file, circuit in zip(files, nested(scores, sizes), strict=True):
        save_scores(scores, file, circuit)
    return files


def load_mib(folder: str | Path, direction: str = "helps") -> list[tuple[Scores, Circuit]]:
    """Read one of MIB's `<task>_<model>` folders: one entry with importances, or one per circuit, smallest
    first."""
    files = sorted(file for file in Path(folder).iterdir() if file.suffix in (".json", ".pt"))
    if not files:
        raise GraphError(f"{folder} has no .json or .pt file.")
    return sorted((load_scores(file, direction) for file in files), key=lambda found: found[1].n_edges)


def _save_own(scores: Scores, circuit: Circuit, path: Path) -> None:
    from safetensors.torch import save_file

    tensors = {n: getattr(scores, n).contiguous() for n in _TENSORS if getattr(scores, n) is not None}
    tensors["edges"] = circuit.edges
    if circuit.neurons is not None:
        tensors["neurons_in"] = circuit.neurons
    facts = scores.describe() | {"segment_names": list(scores.segment_names)}
    save_file(tensors, path, {_OWN: json.dumps(facts)})


def _load_own(path: Path) -> tuple[Scores, Circuit]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = json.loads((file.metadata() or {})[_OWN])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError, json.JSONDecodeError) as error:
        raise GraphError(f"{path} is no file of scores: {error}.") from error
    graph = Graph(**facts["graph"])
    edges, neurons = tensors.pop("edges"), tensors.pop("neurons_in", None)
    own = {name: facts[name] for name in _FACTS}
    scores = Scores(
        graph, **tensors, **own, segment_names=tuple(facts["segment_names"]), notes=facts["notes"]
    )
    return scores, Circuit(graph, edges, neurons)


def _config(scores: Scores) -> dict[str, Any]:
    width = 0 if scores.neurons is None else scores.neurons.shape[1]
    return {
        "n_layers": scores.graph.blocks,
        "n_heads": scores.graph.heads,
        "parallel_attn_mlp": scores.graph.parallel,
        "d_model": int(scores.notes.get("d_model", width)),
    }


def _save_json(scores: Scores, circuit: Circuit, path: Path) -> None:
    graph = scores.graph
    nodes: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(graph.source_names):
        nodes[name] = {"in_graph": bool(circuit.nodes[i])}
        if scores.nodes is not None:
            nodes[name]["score"] = float(scores.nodes[i])
        if circuit.neurons is not None:
            nodes[name]["neurons"] = circuit.neurons[i].tolist()
        if scores.neurons is not None:
            nodes[name]["neurons_scores"] = scores.neurons[i].tolist()
            nodes[name].setdefault("neurons", [True] * scores.neurons.shape[1])
    nodes["logits"] = {"in_graph": True}
    sources, destinations = graph.published_order()
    columns = zip(
        _names(graph),
        scores.values[sources, destinations].tolist(),
        circuit.edges[sources, destinations].tolist(),
        strict=True,
    )
    edges = {name: {"score": score, "in_graph": inside} for name, score, inside in columns}
    facts = {"cfg": _config(scores), "nodes": nodes, "edges": edges, _OWN: scores.describe()}
    path.write_text(json.dumps(facts), encoding="utf-8")


def _load_json(path: Path) -> tuple[Graph, dict[str, Tensor], dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    graph = _graph(found["cfg"])
    place = {name: i for i, name in enumerate(_names(graph))}
    sources, destinations = graph.published_order()
    values = torch.full((graph.n_edges,), torch.nan)
    inside = torch.zeros(graph.n_edges, dtype=torch.bool)
    for name, edge in found["edges"].items():
        if name not in place:
            raise GraphError(f"{path} has the edge {name!r}, which a graph of {graph} does not have.")
        edge = edge if isinstance(edge, Mapping) else {"in_graph": edge}
        values[place[name]] = edge.get("score", torch.nan)
        inside[place[name]] = bool(edge.get("in_graph", True))
    tensors = {"values": torch.full(graph.legal.shape, torch.nan), "edges": torch.zeros_like(graph.legal)}
    tensors["values"][sources, destinations] = values
    tensors["edges"][sources, destinations] = inside
    rows = [found["nodes"].get(name) for name in graph.source_names]
    described = [row if isinstance(row, Mapping) else {} for row in rows]
    for key, name, dtype in (
        ("score", "nodes", torch.float32),
        ("neurons_scores", "neurons", torch.float32),
        ("neurons", "neurons_in", torch.bool),
    ):
        if all(key in row for row in described):
            tensors[name] = torch.tensor([row[key] for row in described], dtype=dtype)
    return graph, tensors, found.get(_OWN, {})


def _save_pt(scores: Scores, circuit: Circuit, path: Path) -> None:
    found: dict[str, Any] = {
        "cfg": _config(scores),
        "src_nodes": list(scores.graph.source_names),
        "dst_nodes": list(scores.graph.destination_names),
        "edges_scores": scores.values.masked_fill(~scores.graph.legal, 0),
        "edges_in_graph": circuit.edges,
        "nodes_in_graph": circuit.nodes,
        _OWN: json.dumps(scores.describe()),
    }
    if scores.nodes is not None:
        found["nodes_scores"] = scores.nodes
    if scores.neurons is not None:
        inside = (
            torch.ones_like(scores.neurons, dtype=torch.bool) if circuit.neurons is None else circuit.neurons
        )
        found |= {"neurons_scores": scores.neurons, "neurons_in_graph": inside}
    torch.save(found, path)


def _load_pt(path: Path) -> tuple[Graph, dict[str, Tensor], dict[str, Any]]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise GraphError(f"{path} is no file of scores: it is damaged or holds more than tensors.") from error
    graph = _graph(found["cfg"])
    names = (list(found["src_nodes"]), list(found["dst_nodes"]))
    if names != (list(graph.source_names), list(graph.destination_names)):
        raise GraphError(f"{path} lists other nodes than a graph of {graph}.")
    keys = {
        "values": "edges_scores",
        "edges": "edges_in_graph",
        "nodes": "nodes_scores",
        "neurons": "neurons_scores",
        "neurons_in": "neurons_in_graph",
    }
    tensors = {name: found[key] for name, key in keys.items() if found.get(key) is not None}
    for name in ("edges", "neurons_in"):
        if name in tensors:
            tensors[name] = tensors[name].bool()
    return graph, tensors, json.loads(found.get(_OWN, "{}"))


def _graph(config: Mapping[str, Any]) -> Graph:
    heads = int(config["n_heads"])
    return Graph(int(config["n_layers"]), heads, heads, bool(config["parallel_attn_mlp"]))


def _names(graph: Graph) -> Sequence[str]:
    """Edge names in the published order."""
    sources, destinations = graph.source_names, graph.destination_names
    order = zip(*(side.tolist() for side in graph.published_order()), strict=True)
    return [f"{sources[s]}->{destinations[d]}" for s, d in order]
