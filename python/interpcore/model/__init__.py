"""Decoder-only transformers with execution plans, sites and caches."""

from typing import TYPE_CHECKING, Any

from interpcore import _faces

if TYPE_CHECKING:
    from interpcore.model.cache import Cache as Cache
    from interpcore.model.call import Call as Call
    from interpcore.model.decoder import Model as Model
    from interpcore.model.generate import Generation as Generation
    from interpcore.model.maps import Add as Add
    from interpcore.model.maps import Affine as Affine
    from interpcore.model.maps import Function as Function
    from interpcore.model.maps import LowRank as LowRank
    from interpcore.model.maps import Map as Map
    from interpcore.model.maps import Replace as Replace
    from interpcore.model.maps import Scale as Scale
    from interpcore.model.names import site_address as site_address
    from interpcore.model.names import site_name as site_name
    from interpcore.model.output import Output as Output
    from interpcore.model.plan import Plan as Plan
    from interpcore.model.sites import SITES as SITES
    from interpcore.model.sites import Edit as Edit
    from interpcore.model.sites import Tap as Tap
    from interpcore.model.spec import ModelSpec as ModelSpec

_FACE = {
    "cache": "Cache",
    "decoder": "Model",
    "generate": "Generation",
    "maps": "Add Affine Function LowRank Map Replace Scale",
    "names": "site_address site_name",
    "output": "Output",
    "call": "Call",
    "plan": "Plan",
    "sites": "SITES Edit Tap",
    "spec": "ModelSpec",
}
__all__ = _faces.names(_FACE)


def __getattr__(name: str) -> Any:
    return _faces.shown(__name__, _FACE, name)
