"""Decoder-only transformers with execution plans, sites and caches."""

from .cache import Cache
from .decoder import Model
from .generate import Generation
from .maps import Add, Affine, Function, LowRank, Map, Replace, Scale
from .names import site_address, site_name
from .output import Output
from .plan import Call, Plan
from .sites import SITES, Edit, Tap
from .spec import ModelSpec

__all__ = [
    "SITES",
    "Add",
    "Affine",
    "Cache",
    "Call",
    "Edit",
    "Function",
    "Generation",
    "LowRank",
    "Map",
    "Model",
    "ModelSpec",
    "Output",
    "Plan",
    "Replace",
    "Scale",
    "Tap",
    "site_address",
    "site_name",
]
