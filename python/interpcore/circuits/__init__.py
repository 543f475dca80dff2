"""Circuits: which edges of a model carry a behaviour, by attribution, exact patching and faithfulness.

Sign everywhere: score = metric(clean) - metric(edge corrupted), so that a positive edge helps.
"""

from interpcore.circuits.circuit import Circuit, nested, random_circuit, select, sizes_of, threshold
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric, MetricError
from interpcore.circuits.pairs import Pairs, PairsError
from interpcore.circuits.scores import SIGN, Scores

__all__ = [
    "SIGN",
    "Circuit",
    "Graph",
    "GraphError",
    "Metric",
    "MetricError",
    "Pairs",
    "PairsError",
    "Scores",
    "nested",
    "random_circuit",
    "select",
    "sizes_of",
    "threshold",
]
