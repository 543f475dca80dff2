"""Loading models: by name, folder, hub id or transformers object; safetensors only, no remote code unless
asked for."""

from interpcore.model.load.loading import FAMILIES, from_checkpoint, from_transformers, load

__all__ = ["FAMILIES", "from_checkpoint", "from_transformers", "load"]
