"""Definitions of the ops: plain torch in float64, each reading like its formula."""

from interpcore.ops.reference.activation_moments import activation_moments
from interpcore.ops.reference.attn_jvp import attn_jvp
from interpcore.ops.reference.attn_vjp import attn_vjp
from interpcore.ops.reference.batch_product import batch_product
from interpcore.ops.reference.bin_counts import bin_counts
from interpcore.ops.reference.column_moments import column_moments
from interpcore.ops.reference.column_top import column_top
from interpcore.ops.reference.comoments import comoments
from interpcore.ops.reference.edge_scores import edge_scores
from interpcore.ops.reference.gate import gate
from interpcore.ops.reference.group_sums import group_sums
from interpcore.ops.reference.norm_jvp import norm_jvp
from interpcore.ops.reference.norm_vjp import norm_vjp
from interpcore.ops.reference.product import product
from interpcore.ops.reference.row_summary import row_summary

__all__ = [
    "activation_moments",
    "attn_jvp",
    "attn_vjp",
    "batch_product",
    "bin_counts",
    "column_moments",
    "column_top",
    "comoments",
    "edge_scores",
    "gate",
    "group_sums",
    "norm_jvp",
    "norm_vjp",
    "product",
    "row_summary",
]
