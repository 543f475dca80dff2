"""Loading models: by name, folder, hub id or transformers object; safetensors only, no remote code unless
asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interpcore.errors import Refused

from ..decoder import Model
from ..origin import Origin
from ..plan import Plan
from ..spec import ModelSpec
from .check import check_against_transformers, check_finite
from .gpt2 import gpt2, gpt_neo
from .gpt_neox import gpt_neox
from .gptj import gptj
from .llama import gemma, llama, olmo2
from .parts import Parts
from .source import locate, read_checkpoint
from .tensors import Unsupported

if TYPE_CHECKING:
    from ..generic import GenericModel

FAMILIES: dict[str, Callable[[Any], Parts]] = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "olmo2": olmo2,
    "gemma2": gemma,
    "gemma3_text": gemma,
}


def load(
    source: str | Path | Any = "tiny",
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    check: bool = True,
    trust_remote_code: bool = False,
) -> Model | GenericModel:
    """Load a model.

    Args:
        source: an embedded model ("tiny", "tiny-s1", "tiny-s2", "tiny-llama"), a transformers folder, a hub
            id, or a transformers model object, whose tensors are shared.
        dtype: of the weights; None takes float32 on a CPU and the checkpoint's on a GPU (an object keeps its
            own).
        device: where to put the weights (an object stays where it is).
        revision: of a hub id; the commit that it means is kept in `origin`.
        check: look for NaN weights and compare logits with transformers on 16 tokens; the gap stays in
            `load_gap`.
        trust_remote_code: run a checkpoint's own Python code; off unless asked for by name.
    Returns: a `Model`; for architectures without hand-written blocks a `GenericModel`, with a warning that
    says so.
    Raises: ValueError with one sentence for a missing folder, missing or pickled weights, files that cannot
        be read, an unknown architecture, NaN weights, or logits that disagree with transformers.
    """
    origin = None
    if isinstance(source, str | Path):
        name, location = str(source), locate(source, revision)
        hf, tokenizer = read_checkpoint(location, dtype, device, trust_remote_code)
        commit = getattr(hf.config, "_commit_hash", None) if location.cached else location.revision
        place = hf.get_input_embeddings().weight
        origin = Origin(location.source, place.dtype, str(place.device), commit, trust_remote_code)
    else:
        hf, tokenizer, name = source, None, source.config._name_or_path or type(source).__name__
    hf.eval()
    if check:
        check_finite(hf, name)
    try:
        model = replace(from_transformers(hf, name, tokenizer), origin=origin)
    except Unsupported as reason:
        from ..generic import GenericModel

        warnings.warn(f"{name} loads through the generic adapter, the slow path: {reason}.", stacklevel=2)
        return replace(GenericModel.wrap(hf, name, tokenizer), origin=origin)
    return check_against_transformers(model, hf) if check else model


def from_transformers(hf: Any, name: str, tokenizer: Any = None) -> Model:
    """A `Model` that shares the tensors of a transformers model.

    Raises: Unsupported when no hand-written block covers it.
    """
    family = hf.config.model_type
    if family not in FAMILIES:
        raise Unsupported(
            f"there are no hand-written blocks for {family!r} (there are for {', '.join(FAMILIES)})"
        )
    parts = FAMILIES[family](hf)
    if not parts.blocks:
        raise Refused(f"{name} has no blocks; its config gives their number as 0 or less.")
    first = parts.blocks[0].mlp
    spec = ModelSpec(
        family=family,
        name=name,
        d_model=parts.embedding.shape[1],
        n_heads=parts.n_heads,
        n_kv_heads=parts.n_kv_heads or parts.n_heads,
        d_head=parts.d_head,
        d_mlp=first.up.weight.shape[1],
        n_blocks=len(parts.blocks),
        vocab_size=parts.unembedding.weight.shape[1],
        max_positions=parts.max_positions,
        gated=first.gate is not None,
        embed_scale=parts.embed_scale,
        logit_softcap=parts.logit_softcap,
        module_names=parts.module_names,
    )
    return Model(
        spec=spec,
        modules={f"block.{i}": block for i, block in enumerate(parts.blocks)},
        plan=Plan.identity(len(parts.blocks)),
        embedding=parts.embedding,
        final_norm=parts.final_norm,
        unembedding=parts.unembedding,
        positions=parts.positions,
        tokenizer=tokenizer,
    )
