"""Files of scores and circuits: this package's (safetensors), the published ones (JSON, .pt) and MIB's
folders."""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.circuits.circuit import Circuit, nested
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.options import DIRECTIONS
from interpcore.circuits.scores import Scores
from interpcore.model.made_on import NOT_RECORDED, MadeOn
from interpcore.runs import RunError, atomic_path, read_json, read_tensors, write_tensors
from interpcore.runs.fields import Fields, is_number, parse_json

MIB_SHARES = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
_TENSORS = ("values", "squares", "nodes", "neurons", "segments", "segment_squares")
_OWN = "interpcore"
_MOST = 1 << 20  # layers or heads, beyond which a number is none of a model
Loaded = tuple[Graph, dict[str, Tensor], Fields | None]
"""A file's graph, its tensors by the names of `Scores` (`edges` and `neurons_in` are the circuit), and what a
file of this package says of itself."""


def save_scores(scores: Scores, path: str | Path, circuit: Circuit | None = None) -> None:
    """Write scores, and a circuit chosen from them, in the format of the file's suffix.

    Args:
        scores: what to write.
        path: `.safetensors` keeps everything; `.json` and `.pt` are the published formats, which have no
            grouped key/value destinations, layers side by side, segments or standard errors.
        circuit: marks what is in the graph; None marks every edge.
    Raises: GraphError for another suffix, or a graph that the published formats cannot hold.
    """
    path = Path(path)
    writers = {".json": _save_json, ".pt": _save_pt}
    if path.suffix not in (".safetensors", *writers):
        raise GraphError(f"Scores are written as .safetensors, {', '.join(writers)}; got {path.name}.")
    if path.suffix in writers and scores.graph.beside:
        raise GraphError("The published formats hold no layers side by side; write .safetensors.")
    if path.suffix in writers and scores.graph.whole:
        raise GraphError("The published formats hold no whole attentions; write .safetensors.")
    if path.suffix in writers and scores.graph.grouped:
        raise GraphError(
            "The published formats have no key/value groups; attribute with group_kv=False, or write "
            ".safetensors."
        )
    circuit = Circuit.full(scores.graph) if circuit is None else circuit
    if bool((scores.values.isinf() & scores.graph.legal).any()):
        raise GraphError(f"{scores.method} scores are infinite, which no file keeps; score them in float32.")
    if path.suffix == ".safetensors":
        return _save_own(scores, circuit, path)
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
    readers = {".safetensors": _load_own, ".json": _load_json, ".pt": _load_pt}
    if path.suffix not in readers:
        raise GraphError(f"Scores are read from {', '.join(readers)}; got {path.name}.")
    where = f"{path} is no file of scores"
    try:
        graph, tensors, own = readers[path.suffix](path, where)
    except RunError as error:
        raise GraphError(f"{where}: {error}.") from error
    # In a published .json an edge may lack its score; this package writes NaN for what it did not score.
    unscored = _TENSORS if own is not None else ("values",) if path.suffix == ".json" else ()
    _check_tensors(graph, tensors, where, unscored)
    edges, neurons = tensors.pop("edges").bool() & graph.legal, tensors.pop("neurons_in", None)
    facts: dict[str, Any] = {"method": method, "metric": metric} if own is None else _facts(own, graph)
    facts |= tensors
    notes = facts.pop("notes", {})
    if path.suffix != ".safetensors":
        notes |= {"file": path.name, "file_direction": direction}
    if facts.get("made_on") is None:
        notes["weights"] = NOT_RECORDED
    scores = Scores(graph, **facts, notes=notes)
    scores = scores.negated() if direction == "hurts" and own is None else scores
    kept = None if neurons is None else neurons.bool()
    return scores, Circuit(graph, edges, kept, made_on=scores.made_on)


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
    tensors = {n: getattr(scores, n) for n in _TENSORS if getattr(scores, n) is not None}
    tensors["edges"] = circuit.edges
    if circuit.neurons is not None:
        tensors["neurons_in"] = circuit.neurons
    facts = scores.describe() | {"segment_names": list(scores.segment_names)}
    write_tensors(path, tensors, {_OWN: json.dumps(facts)})


def _load_own(path: Path, where: str) -> Loaded:
    tensors, header = read_tensors(path)
    own = _own(header.get(_OWN), where)
    if own is None:
        raise GraphError(f"{where}: its header has no {_OWN}.")
    if not {"values", "edges"} <= set(tensors) <= {*_TENSORS, "edges", "neurons_in"}:
        raise GraphError(f"{where}: it holds the tensors {', '.join(sorted(tensors)) or 'none'}.")
    return _own_graph(own), tensors, own


def _own_graph(own: Fields) -> Graph:
    found = own.object("graph")
    blocks, heads, kv_heads = (found.whole(name, 1, _MOST) for name in ("blocks", "heads", "kv_heads"))
    whole = "whole" in found.content and found.flag("whole")
    return Graph(blocks, heads, kv_heads, found.flag("parallel"), _beside(found), whole)


def _beside(graph: Fields) -> tuple[tuple[int, int, str], ...]:
    """Layers side by side, of which older files and other plans have none."""
    if "beside" not in graph.content:
        return ()
    ranges = (each.split(" ") for each in graph.texts("beside"))
    try:
        return tuple((int(first), int(last), combine) for first, last, combine in ranges)
    except ValueError:
        raise GraphError(f"{graph.where}: its beside is no list such as ['1 2 mean'].") from None


def scores_from_header(header: str, where: str) -> Scores:
    """Scores without values, from what `Scores.describe` gave as JSON.

    Raises: GraphError for another text.
    """
    own = _own(header, where)
    assert own is not None
    graph = _own_graph(own)
    if graph.n_sources * graph.n_destinations > 1 << 27:
        raise GraphError(f"{where}: a graph of {graph.n_edges:,} edges is more than a picture's file holds.")
    return Scores(graph, torch.full((graph.n_sources, graph.n_destinations), torch.nan), **_facts(own, graph))


def _own(header: Any, where: str) -> Fields | None:
    """What a file of this package says of itself; None for a published one."""
    if header is None:
        return None
    try:
        return Fields.of(parse_json(header) if isinstance(header, str) else header, where, GraphError)
    except ValueError as error:
        raise GraphError(f"{where}: its header cannot be read: {error}.") from error


def _facts(own: Fields, graph: Graph) -> dict[str, Any]:
    """What `Scores` takes from a header."""
    if _own_graph(own) != graph:
        raise GraphError(f"{own.where}: its header says a graph of {_own_graph(own)}, the file has {graph}.")
    names = ("method", "metric", "intervention", "model", "task", "split", "direction")
    return {
        **{name: own.text(name) for name in names},
        "examples": own.whole("examples"),
        "segment_names": own.texts("segment_names") if "segment_names" in own.content else (),
        "made_on": MadeOn.read(own),
        "notes": dict(own.object("notes").content),
    }


def _check_tensors(graph: Graph, tensors: Mapping[str, Any], where: str, unscored: Collection[str]) -> None:
    """Shapes are the graph's, before anything of its size is made; masks are masks, scores finite. NaN stands
    for no score in the `unscored` tensors."""
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise GraphError(f"{where}: its {name} are no plain tensor.")
        if not _fits(graph, name, tuple(tensor.shape)):
            raise GraphError(f"{where}: its {name} are {tuple(tensor.shape)} for a graph of {graph}.")
        if name in ("edges", "neurons_in"):
            if tensor.dtype is not torch.bool and not bool(((tensor == 0) | (tensor == 1)).all()):
                raise GraphError(f"{where}: its {name} are neither true nor false everywhere.")
            continue
        if not tensor.is_floating_point():
            raise GraphError(f"{where}: its {name} are {tensor.dtype}, no numbers with fractions.")
        wrong = tensor.isinf() if name in unscored else ~tensor.isfinite()
        if name not in ("nodes", "neurons"):
            wrong = wrong & graph.legal
        if bool(wrong.any()):
            raise GraphError(f"{where}: {int(wrong.sum())} of its {name} are not finite.")


def _fits(graph: Graph, name: str, shape: tuple[int, ...]) -> bool:
    edges = (graph.n_sources, graph.n_destinations)
    if name == "nodes":
        return shape == edges[:1]
    if name in ("neurons", "neurons_in"):
        return len(shape) == 2 and shape[0] == edges[0]
    if name in ("segments", "segment_squares"):
        return len(shape) == 3 and shape[1:] == edges
    return shape == edges


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


def _load_json(path: Path, where: str) -> Loaded:
    found = Fields.of(read_json(path), where, GraphError)
    if "qParams" in found.content:
        raise GraphError(f"{where}: it is an attribution graph; circuit-tracer and Neuronpedia show it.")
    graph, own = _graph(found.object("cfg")), _own(found.content.get(_OWN), where)
    nodes, edges = found.object("nodes").content, found.object("edges").content
    # Checked by counts before anything is made: a file of a kilobyte may claim ten thousand heads.
    if not graph.n_sources <= len(nodes) <= graph.n_sources + 1:
        raise GraphError(
            f"{where}: it lists {len(nodes)} nodes and {len(edges)} edges, and is said to be of {graph}."
        )
    unknown = sorted(set(nodes) - set(graph.node_names))
    if unknown:
        raise GraphError(f"{where}: it lists the node {unknown[0]!r}.")
    place = {name: i for i, name in enumerate(_names(graph))}
    values = torch.full((graph.n_edges,), torch.nan, dtype=torch.float64)
    inside = torch.zeros(graph.n_edges, dtype=torch.bool)
    for name, edge in edges.items():
        if name not in place:
            raise GraphError(f"{path} has the edge {name!r}, which a graph of {graph} does not have.")
        score, kept = _edge(edge, f"{where}: the edge {name}", unscored=own is not None)
        values[place[name]], inside[place[name]] = score, kept
    sources, destinations = graph.published_order()
    tensors = {"values": torch.full(graph.legal.shape, torch.nan), "edges": torch.zeros_like(graph.legal)}
    tensors["values"][sources, destinations] = values.float()
    tensors["edges"][sources, destinations] = inside
    return graph, tensors | _node_tensors(graph, nodes, where), own


def _edge(edge: Any, where: str, unscored: bool) -> tuple[float, bool]:
    """Score and membership of an edge; NaN for one without a score."""
    if isinstance(edge, bool):
        return torch.nan, edge
    found = Fields.of(edge, where, GraphError)
    kept = found.flag("in_graph") if "in_graph" in edge else True
    if "score" not in edge or (unscored and isinstance(edge["score"], float) and math.isnan(edge["score"])):
        return torch.nan, kept
    return found.number("score"), kept


def _node_tensors(graph: Graph, nodes: Mapping[str, Any], where: str) -> dict[str, Tensor]:
    """Scores and neurons of the nodes, where all have them."""
    rows = [nodes.get(name) for name in graph.source_names]
    for name, row in zip(graph.source_names, rows, strict=True):
        if not isinstance(row, bool):
            Fields.of(row, f"{where}: the node {name}", GraphError)
    described = [row if isinstance(row, Mapping) else {} for row in rows]
    tensors = {}
    for key, name, fits, dtype in (
        ("score", "nodes", is_number, torch.float64),
        ("neurons_scores", "neurons", is_number, torch.float64),
        ("neurons", "neurons_in", lambda item: isinstance(item, bool), torch.bool),
    ):
        if not all(key in row for row in described):
            continue
        lists = [row[key] if isinstance(row[key], list) else [row[key]] for row in described]
        listed = all(isinstance(row[key], list) == (key != "score") for row in described)
        if (
            not listed
            or len(set(map(len, lists))) != 1
            or not all(fits(item) for row in lists for item in row)
        ):
            raise GraphError(f"{where}: {key} of its nodes is not of one kind and length everywhere.")
        table = torch.tensor(lists, dtype=dtype)
        tensors[name] = table if dtype is torch.bool else table.float()
        tensors[name] = tensors[name][:, 0] if key == "score" else tensors[name]
    return tensors


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


def _load_pt(path: Path, where: str) -> Loaded:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # of any class: the file is read by an unpickler that takes tensors alone
        raise GraphError(f"{where}: it is damaged or holds more than tensors.") from error
    found = Fields.of(content, where, GraphError)
    graph = _graph(found.object("cfg"))
    listed = [found.texts(name) for name in ("src_nodes", "dst_nodes")]
    sizes = [graph.n_sources, graph.n_destinations]
    if [*map(len, listed)] != sizes or listed != [graph.source_names, graph.destination_names]:
        raise GraphError(f"{path} lists other nodes than a graph of {graph}.")
    keys = {
        "values": "edges_scores",
        "edges": "edges_in_graph",
        "nodes": "nodes_scores",
        "neurons": "neurons_scores",
        "neurons_in": "neurons_in_graph",
    }
    tensors = {name: content[key] for name, key in keys.items() if content.get(key) is not None}
    if not {"values", "edges"} <= set(tensors):
        raise GraphError(f"{where}: it has no edges_scores or no edges_in_graph.")
    return graph, tensors, _own(content.get(_OWN), where)


def _graph(config: Fields) -> Graph:
    heads = config.whole("n_heads", 1, _MOST)
    return Graph(config.whole("n_layers", 1, _MOST), heads, heads, config.flag("parallel_attn_mlp"))


def _names(graph: Graph) -> Sequence[str]:
    """Edge names in the published order."""
    sources, destinations = graph.source_names, graph.destination_names
    order = zip(*(side.tolist() for side in graph.published_order()), strict=True)
    return [f"{sources[s]}->{destinations[d]}" for s, d in order]
