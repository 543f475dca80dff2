"""Decoder-only transformers with execution plans, sites and caches."""

from interpcore.model.cache import Cache
from interpcore.model.call import Call
from interpcore.model.decoder import Model
from interpcore.model.generate import Generation
from interpcore.model.maps import Add, Affine, Function, LowRank, Map, Replace, Scale
from interpcore.model.names import site_address, site_name
from interpcore.model.output import Output
from interpcore.model.plan import Plan
from interpcore.model.sites import SITES, Edit, Tap
from interpcore.model.spec import ModelSpec

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
