"""Loading models: by name, folder, hub id or transformers object; safetensors only, no remote code unless
asked for."""

from typing import TYPE_CHECKING, Any

from interpcore import _faces

if TYPE_CHECKING:
    from interpcore.model.load.loading import FAMILIES as FAMILIES
    from interpcore.model.load.loading import from_checkpoint as from_checkpoint
    from interpcore.model.load.loading import from_transformers as from_transformers
    from interpcore.model.load.loading import load as load

_FACE = {"loading": "FAMILIES from_checkpoint from_transformers load"}
__all__ = _faces.names(_FACE)


def __getattr__(name: str) -> Any:
    return _faces.shown(__name__, _FACE, name)
