"""Definitions of the ops: plain torch in float64, each reading like its formula."""

from interpcore.ops.reference.norm_vjp import norm_vjp
from interpcore.ops.reference.product import product

__all__ = ["norm_vjp", "product"]
