"""Circuits: which edges of a model carry a behaviour, by attribution, exact patching and faithfulness.

Sign everywhere: score = metric(clean) - metric(edge corrupted), so that a positive edge helps.
"""

from interpcore.circuits.graph import Graph, GraphError

__all__ = ["Graph", "GraphError"]
