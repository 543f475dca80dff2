"""Circuits: which edges of a model carry a behaviour, by attribution, exact patching and faithfulness.

Sign everywhere: score = metric(clean) - metric(edge corrupted), so that a positive edge helps.
"""

from interpcore.circuits.attribute import attribute
from interpcore.circuits.circuit import Circuit, nested, random_circuit, select, sizes_of, threshold
from interpcore.circuits.draw import draw
from interpcore.circuits.exact import exact, verify
from interpcore.circuits.faithfulness import evaluate, faithfulness, more_faithful
from interpcore.circuits.files import load_mib, load_scores, save_mib, save_scores
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.interventions import Intervention
from interpcore.circuits.metrics import Metric, MetricError
from interpcore.circuits.pairs import Pairs, PairsError
from interpcore.circuits.scores import SIGN, Scores
from interpcore.circuits.tasks import TASKS, generate_pairs, load_pairs
from interpcore.circuits.totals import Segments

__all__ = [
    "SIGN",
    "TASKS",
    "Circuit",
    "Graph",
    "GraphError",
    "Intervention",
    "Metric",
    "MetricError",
    "Pairs",
    "PairsError",
    "Scores",
    "Segments",
    "attribute",
    "draw",
    "evaluate",
    "exact",
    "faithfulness",
    "generate_pairs",
    "load_mib",
    "load_pairs",
    "load_scores",
    "more_faithful",
    "nested",
    "random_circuit",
    "save_mib",
    "save_scores",
    "select",
    "sizes_of",
    "threshold",
    "verify",
]
