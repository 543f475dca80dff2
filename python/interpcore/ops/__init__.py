"""Public ops: shape checks, choice of backend, and one call per op.

Every op has one name in csrc/, kernels/, ops/, ops/reference/, tests/test_<op>.py and bench/bench_<op>.py.
"""

from interpcore.ops import registration, registration_in_place  # noqa: F401  (declare torch.ops.interpcore.*)
from interpcore.ops.activation_moments import activation_moments
from interpcore.ops.attn_jvp import attn_jvp
from interpcore.ops.attn_vjp import (
    attn_vjp,
    covariance_pays,
    covariance_sizes,
    key_value_covariance,
    mixed_values,
)
from interpcore.ops.batch_product import batch_product
from interpcore.ops.bin_counts import bin_counts
from interpcore.ops.column_moments import ColumnMoments, RunningMoments, column_moments
from interpcore.ops.column_top import column_top
from interpcore.ops.comoments import (
    CoMoments,
    Pilot,
    add_products,
    centered,
    centered_cross,
    centered_moments,
    comoments,
)
from interpcore.ops.edge_scores import edge_scores
from interpcore.ops.gate import gate
from interpcore.ops.group_sums import group_sums
from interpcore.ops.meter import WorkSpent, metered
from interpcore.ops.norm_jvp import norm_jvp
from interpcore.ops.norm_vjp import norm_vjp
from interpcore.ops.product import product
from interpcore.ops.product_parts import product_error
from interpcore.ops.product_routes import ProductProbe, hold_routes, product_probe, product_routes
from interpcore.ops.row_summary import row_summary

__all__ = [
    "CoMoments",
    "ColumnMoments",
    "Pilot",
    "ProductProbe",
    "RunningMoments",
    "WorkSpent",
    "activation_moments",
    "add_products",
    "attn_jvp",
    "attn_vjp",
    "batch_product",
    "bin_counts",
    "centered",
    "centered_cross",
    "centered_moments",
    "column_moments",
    "column_top",
    "comoments",
    "covariance_pays",
    "covariance_sizes",
    "edge_scores",
    "gate",
    "group_sums",
    "hold_routes",
    "key_value_covariance",
    "metered",
    "mixed_values",
    "norm_jvp",
    "norm_vjp",
    "product",
    "product_error",
    "product_probe",
    "product_routes",
    "row_summary",
]
