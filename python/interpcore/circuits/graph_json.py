"""Graphs in circuit-tracer's JSON, which Neuronpedia shows: of latents on a prompt, and of heads and MLPs.

A latent's `feature` is the pairing of layer and latent, (a + b)(a + b + 1) / 2 + b; an error's is -1. Of a
circuit, which is no one position's, all nodes stand at the first.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import GraphError
from interpcore.circuits.latents import ERROR, LATENT, LOGIT, TOKEN, LatentGraph, Node
from interpcore.circuits.scores import Scores
from interpcore.runs import read_json
from interpcore.runs.artifacts import atomic_path
from interpcore.runs.fields import Fields, is_number, is_whole
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

KINDS = {
    LATENT: "cross layer transcoder",
    ERROR: "mlp reconstruction error",
    TOKEN: "embedding",
    LOGIT: "logit",
}
_NODE = {"node_id", "feature", "layer", "ctx_idx", "feature_type", "jsNodeId", "clerp"}


@dataclass(frozen=True, eq=False)
class GraphFile(AsTable):
    """A graph as its file has it.

    Args:
        slug, scan: names of the graph and of the model.
        prompt: the text; prompt_tokens: its tokens.
        nodes: as in the file.
        links: source and target by node_id, and the weight.
        header: what scores say of themselves, of a circuit that was written here; else "".
    """

    slug: str
    scan: str
    prompt: str
    prompt_tokens: tuple[str, ...]
    nodes: tuple[Mapping[str, Any], ...]
    links: tuple[tuple[str, str, float], ...]
    header: str = ""

    def __repr__(self) -> str:
        return f"GraphFile({self.slug} of {self.scan}: {len(self.nodes)} nodes, {len(self.links)} links)"

    def to_pandas(self) -> pd.DataFrame:
        """The links: source, target, weight; the largest |weight| first."""
        import pandas as pd

        frame = pd.DataFrame(self.links, columns=["source", "target", "weight"])
        return frame.sort_values("weight", key=abs, ascending=False, kind="stable", ignore_index=True)

    def latents(self) -> LatentGraph:
        """The graph of latents that it holds.

        Raises: GraphError for a graph with other nodes.
        """
        kinds = {value: kind for kind, value in KINDS.items()}
        other = next((n for n in self.nodes if n["feature_type"] not in kinds), None)
        if other is not None:
            raise GraphError(f"{self.slug} holds {other['node_id']!r}, a {other['feature_type']}: no latent.")
        read = [_node(n, kinds[n["feature_type"]], self.prompt_tokens) for n in self.nodes]
        order = sorted(range(len(read)), key=lambda i: list(KINDS).index(read[i].kind))
        at = {self.nodes[i]["node_id"]: place for place, i in enumerate(order)}
        weights = torch.zeros(len(read), len(read))
        for source, target, weight in self.links:
            weights[at[target], at[source]] = weight
        return LatentGraph(self.scan, self.prompt_tokens, tuple(read[i] for i in order), weights)

    def circuit(self) -> tuple[Circuit, Scores]:
        """The circuit that `circuit_graph` wrote, with its scores.

        Raises: GraphError for another graph.
        """
        from interpcore.circuits.files import scores_from_header

        if not self.header:
            raise GraphError(f"{self.slug} is no circuit that was written here.")
        scores = scores_from_header(self.header, self.slug)
        names = {n["node_id"]: n["clerp"] for n in self.nodes}
        values = torch.full(scores.values.shape, torch.nan)
        edges = torch.zeros(scores.values.shape, dtype=torch.bool)
        for source, target, weight in self.links:
            at = scores.graph.edge(f"{names[source]}->{names[target]}")
            edges[at], values[at] = True, weight
        found = Scores(**{**vars(scores), "values": values})
        return Circuit(scores.graph, edges, made_on=scores.made_on), found


def latent_graph_file(graph: LatentGraph, slug: str, scan: str | None = None) -> GraphFile:
    """A graph of latents, with each node's influence: the share of the influence of all nodes that are at
    least as strong as it.

    Args:
        graph: what `attribute_latents` gave, pruned or not.
        slug: the graph's name.
        scan: the model's name at Neuronpedia; None for the graph's.
    """
    strength = graph.influence
    order = strength.argsort(descending=True)
    shares = torch.zeros_like(strength)
    shares[order] = strength[order].cumsum(0) / strength.sum().clamp(min=1e-30)
    best = max((n.value for n in graph.nodes if n.kind == LOGIT), default=0.0)
    nodes = []
    for node, share in zip(graph.nodes, shares.tolist(), strict=True):
        found = _entry(node)
        if node.kind == LOGIT:
            found |= {"token_prob": node.value, "is_target_logit": node.value == best}
        else:
            found["influence"] = share
        nodes.append(found)
    ids = [n["node_id"] for n in nodes]
    links = tuple((ids[j], ids[i], float(graph.weights[i, j])) for i, j in graph.weights.nonzero().tolist())
    text = "".join(graph.tokens)
    return GraphFile(slug, scan or graph.model, text, graph.tokens, tuple(nodes), links)


def circuit_graph_file(circuit: Circuit, scores: Scores, slug: str) -> GraphFile:
    """A circuit of heads and MLPs; a link for each edge, its weight the score (0 where it has none). A head
    that reads through q, k and v is a node for each.

    Args:
        circuit: which edges.
        scores: of its graph.
        slug: the graph's name.
    """
    graph = circuit.graph
    if scores.graph != graph:
        raise GraphError(f"The scores are of another graph: {scores.graph}, not {graph}.")
    example = scores.notes.get("example", {})
    prompt = str(example.get("clean", ""))
    names: dict[str, dict[str, Any]] = {}

    def entry(name: str, layer: int) -> str:
        kind = {"i": "embedding", "l": "logit", "m": "mlp"}.get(name[0], "attention head")
        shown = {"embedding": "E", "logit": str(graph.blocks + 1)}.get(kind, str(layer))
        found = {"node_id": f"{shown}_{name}_0", "feature": None, "layer": shown, "ctx_idx": 0}
        found |= {"feature_type": kind, "jsNodeId": f"{shown}_{name}-0", "clerp": name}
        names.setdefault(name, found)
        return str(found["node_id"])

    links = []
    for source, target in circuit.edges.nonzero().tolist():
        score = float(scores.values[source, target])
        ends = (
            entry(graph.source_names[source], int(graph.source_layers[source])),
            entry(graph.destination_names[target], int(graph.destination_layers[target])),
        )
        links.append((*ends, 0.0 if math.isnan(score) else score))
    nodes, header = tuple(names.values()), json.dumps(scores.describe())
    return GraphFile(slug, scores.model or "unknown", prompt, (prompt,), nodes, tuple(links), header)


def save_graph(graph: GraphFile, path: str | Path) -> Path:
    """Write a graph's JSON, whole or not at all.

    Raises: GraphError for a weight that is not finite.
    """
    broken = next((link for link in graph.links if not math.isfinite(link[2])), None)
    if broken is not None:
        raise GraphError(
            f"The weight from {broken[0]} to {broken[1]} is {broken[2]}, which JSON cannot hold."
        )
    content = {
        "metadata": {
            "slug": graph.slug,
            "scan": graph.scan,
            "transcoder_list": [],
            "prompt_tokens": list(graph.prompt_tokens),
            "prompt": graph.prompt,
            "schema_version": 1,
            "info": {"generator": {"name": "interpcore"}},
            **({"interpcore": graph.header} if graph.header else {}),
        },
        "qParams": {"pinnedIds": [], "supernodes": [], "linkType": "both", "clickedId": "", "sg_pos": ""},
        "nodes": list(graph.nodes),
        "links": [{"source": s, "target": t, "weight": w} for s, t, w in graph.links],
    }
    with atomic_path(Path(path)) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=False, allow_nan=False), encoding="utf-8")
    return Path(path)


def load_graph(path: str | Path) -> GraphFile:
    """Read a graph's JSON, as circuit-tracer and Neuronpedia write it.

    Raises: GraphError for what does not keep to the form, with what is wrong.
    """
    where = f"{path} is no graph"
    whole = Fields.of(read_json(Path(path)), where, GraphError)
    metadata = whole.object("metadata")
    whole.object("qParams")
    nodes, ids = [], set()
    for node in whole.objects("nodes"):
        _check_node(node)
        if node.content["node_id"] in ids:
            raise GraphError(f"{node.where}: node_id {node.content['node_id']!r} is there twice.")
        ids.add(node.content["node_id"])
        nodes.append(dict(node.content))
    links = []
    for link in whole.objects("links"):
        ends = link.text("source"), link.text("target")
        lost = next((end for end in ends if end not in ids), None)
        if lost is not None:
            raise GraphError(f"{link.where}: there is no node {lost!r}.")
        links.append((*ends, link.number("weight")))
    if len({link[:2] for link in links}) < len(links):
        raise GraphError(f"{where}: a link is there twice.")
    return GraphFile(
        metadata.text("slug"),
        metadata.text("scan"),
        metadata.text("prompt"),
        metadata.texts("prompt_tokens"),
        tuple(nodes),
        tuple(links),
        metadata.text("interpcore") if "interpcore" in metadata.content else "",
    )


def _check_node(node: Fields) -> None:
    missing = sorted(_NODE - set(node.content))
    if missing:
        raise GraphError(f"{node.where}: missing key {missing[0]!r}.")
    for name in ("node_id", "feature_type", "jsNodeId", "clerp"):
        node.text(name)
    node.whole("ctx_idx")
    if node.content["feature"] is not None:
        node.whole("feature", -1)
    layer = node.content["layer"]
    if not isinstance(layer, str) and not is_whole(layer):
        raise GraphError(f"{node.where}: layer is {layer!r}, not text or a whole number.")
    for name in ("influence", "activation"):
        if node.content.get(name) is not None and not is_number(node.content[name]):
            raise GraphError(f"{node.where}: {name} is {node.content[name]!r}, not a number.")


def pairing(layer: int, index: int) -> int:
    """A latent's `feature`."""
    return (layer + index) * (layer + index + 1) // 2 + index


def unpaired(feature: int) -> tuple[int, int]:
    """The layer and latent of a `feature`."""
    diagonal = (math.isqrt(8 * feature + 1) - 1) // 2
    index = feature - diagonal * (diagonal + 1) // 2
    return diagonal - index, index


def _entry(node: Node) -> dict[str, Any]:
    """A node in the file's form."""
    at, index = node.position, node.index
    layer = {TOKEN: "E", LOGIT: str(node.layer + 1)}.get(node.kind, str(node.layer))
    feature = {TOKEN: at, LOGIT: index, ERROR: -1}.get(node.kind)
    slot = {TOKEN: at, LOGIT: at, ERROR: at}.get(node.kind, 0)
    found = {
        "node_id": f"{layer}_{index}_{at}",
        "feature": pairing(node.layer, index) if feature is None else feature,
        "layer": layer,
        "ctx_idx": at,
        "feature_type": KINDS[node.kind],
        "jsNodeId": f"{'L' if node.kind == LOGIT else layer}_{index}-{slot}",
        "clerp": f'Output "{node.text}" (p={node.value:.3f})' if node.kind == LOGIT else "",
    }
    return found | ({"activation": node.value} if node.kind == LATENT else {})


def _node(entry: Mapping[str, Any], kind: str, tokens: Sequence[str]) -> Node:
    """A node of a file."""
    place = int(entry["ctx_idx"])
    try:
        layer, index = str(entry["layer"]), int(str(entry["node_id"]).split("_")[1])
        number = -1 if kind == TOKEN else int(layer) - (kind == LOGIT)
    except (ValueError, IndexError):
        raise GraphError(f"{entry['node_id']!r} is no name of a {kind} such as 1_57794_3.") from None
    value = {LATENT: entry.get("activation"), LOGIT: entry.get("token_prob")}.get(kind)
    text = tokens[place] if kind == TOKEN and place < len(tokens) else ""
    if kind == LOGIT:
        text = str(entry["clerp"]).partition('"')[2].rpartition('"')[0]
    return Node(kind, number, place, index, float("nan") if value is None else float(value), text)
