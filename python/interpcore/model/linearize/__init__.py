"""The linearised decoder: one forward's local linear maps, walked down (cotangents) or up (tangents)."""

from interpcore.model.linearize.heads import RAW, head_inputs
from interpcore.model.linearize.rules import EXACT, Rules
from interpcore.model.linearize.walk import Linearization, Step, linearize

__all__ = ["EXACT", "RAW", "Linearization", "Rules", "Step", "head_inputs", "linearize"]
