"""Circuits: which edges of a model carry a behaviour, by attribution, exact patching and faithfulness.

Sign everywhere: score = metric(clean) - metric(edge corrupted), so that a positive edge helps.
"""

from typing import Any

from interpcore._faces import names, shown

_FACE = {
    "attribution.attribute": "attribute",
    "attribution.scoring": "Segments",
    "chance": "random_circuit",
    "circuit": "Circuit nested select sizes_of threshold",
    "experiments": "EXPERIMENTS",
    "files": "load_mib load_scores save_mib save_scores",
    "graph": "Graph GraphError",
    "graph_json": "GraphFile circuit_graph_file latent_graph_file load_graph save_graph",
    "induction": "Induction induction_pairs",
    "latents": "LatentGraph attribute_latents",
    "metrics": "Metric MetricError",
    "options": "Options",
    "pairs": "Pairs PairsError",
    "patching.exact": "exact verify",
    "patching.faithfulness": "evaluate faithfulness more_faithful",
    "patching.interventions": "Intervention",
    "scores": "SIGN Scores",
    "study.draw": "draw",
    "study.study": "Study open_study",
    "tasks": "TASKS generate_pairs load_pairs",
}
__all__ = names(_FACE)


def __getattr__(name: str) -> Any:
    return shown(__name__, _FACE, name)
