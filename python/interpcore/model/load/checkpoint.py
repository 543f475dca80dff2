"""What a family's loader reads, and the model that it makes of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.block import Block
from interpcore.model.decoder import Model
from interpcore.model.generate import checkpoint_stops
from interpcore.model.load.parts import Parts
from interpcore.model.load.source import check_device
from interpcore.model.plan import Plan
from interpcore.model.spec import ModelSpec


@dataclass(frozen=True, eq=False)
class Checkpoint(ShortRepr):
    """A checkpoint's config and tensors.

    Args:
        config: transformers' config, or config.json's entries as attributes.
        tensors: by name, as stored [any shape]; shared.
        hf: the transformers model, None of a family that transformers does not have.
        tokenizer: a transformers tokenizer, or None.
        stop_tokens: ids that end a text, as its generation config says.
    """

    config: Any
    tensors: Mapping[str, Tensor]
    hf: Any = None
    tokenizer: Any = None
    stop_tokens: tuple[int, ...] = ()

    @classmethod
    def of(cls, hf: Any, tokenizer: Any = None) -> Checkpoint:
        """A transformers model's."""
        return cls(hf.config, hf.state_dict(), hf, tokenizer, checkpoint_stops(hf))

    @classmethod
    def read(cls, folder: Path, dtype: torch.dtype | None, device: str | torch.device) -> Checkpoint:
        """A folder's, without transformers: config.json and safetensors files.

        Args:
            dtype: of floating-point tensors; None takes float32 on a CPU and the stored one elsewhere.
        Raises: ValueError for files that cannot be read.
        """
        from safetensors.torch import load_file

        place = check_device(device)
        kind = torch.float32 if dtype is None and place.type == "cpu" else dtype
        tensors: dict[str, Tensor] = {}
        generation = folder / "generation_config.json"
        try:
            config = SimpleNamespace(**json.loads((folder / "config.json").read_text()))
            ends = json.loads(generation.read_text()).get("eos_token_id") if generation.is_file() else None
            stops = () if ends is None else (ends,) if isinstance(ends, int) else tuple(map(int, ends))
            for file in sorted(folder.glob("*.safetensors")):
                tensors |= load_file(file, str(place))
        except Exception as error:
            raise Refused(f"{folder} cannot be read: {str(error).splitlines()[0]}") from error
        tensors = {n: t.to(kind) if t.is_floating_point() else t for n, t in tensors.items()}
        return cls(config, tensors, stop_tokens=stops)


def assemble(checkpoint: Checkpoint, parts: Parts, name: str) -> Model:
    """The model that a family's parts make."""
    modules = parts.modules or {f"block.{i}": block for i, block in enumerate(parts.blocks)}
    blocks = [module for module in modules.values() if isinstance(module, Block)]
    plan = parts.plan or Plan.identity(len(blocks))
    states = {} if parts.recurrence is None else parts.recurrence.made(plan, modules)
    absent: dict[str, str] = dict(parts.absent)
    for block in blocks:
        absent |= block.absent
    spec = ModelSpec(
        family=checkpoint.config.model_type,
        name=name,
        d_model=parts.embedding.shape[1],
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads or parts.n_heads,
        d_head=parts.d_head,
        d_mlp=max(block.mlp.d_mlp for block in blocks),
        n_blocks=len(blocks),
        vocab_size=parts.unembedding.weight.shape[1],
        max_positions=parts.max_positions,
        gated=all(block.mlp.gated for block in blocks),
        embed_scale=parts.embed_scale,
        logit_softcap=parts.logit_softcap,
        stop_tokens=checkpoint.stop_tokens,
        module_names={site: at for site, at in parts.module_names.items() if site not in absent},
        recurrence=parts.recurrence,
        absent=absent,
    )
    return Model(
        spec=spec,
        modules={**modules, **states},
        plan=plan,
        embedding=parts.embedding,
        final_norm=parts.final_norm,
        unembedding=parts.unembedding,
        positions=parts.positions,
        tokenizer=checkpoint.tokenizer,
    )
