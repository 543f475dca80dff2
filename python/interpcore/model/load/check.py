"""What is checked of a model before anyone builds on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.decoder import Model
from interpcore.model.load.location import first_line

N_TOKENS = 16
# Largest |logit difference| over largest |logit| that a correct load shows: rounding, by dtype. transformers
# rounds scores or norms of float64 models to float32 in several families.
GAP = {torch.float64: 1e-5, torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}


def check_finite(tensors: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that hold NaN or infinity, naming the first such tensor."""
    for key, tensor in tensors.items():
        # The sum of finite numbers is finite unless it overflows, so the full scan is seldom needed.
        wide = torch.promote_types(tensor.dtype, torch.float32)
        if (
            tensor.is_floating_point()
            and not bool(tensor.sum(dtype=wide).isfinite())
            and not bool(tensor.isfinite().all())
        ):
            raise Refused(f"The weights of {name} hold NaN or infinity in {key}; the checkpoint is damaged.")


@torch.no_grad()
def check_against_transformers(model: Model, hf: Any) -> Model:
    """The model with `load_gap` set: its logits against transformers' on 16 tokens.

    Raises: ValueError when they disagree beyond rounding.
    """
    generator = torch.Generator().manual_seed(0)
    n = min(N_TOKENS, model.spec.max_positions or N_TOKENS)
    tokens = torch.randint(model.spec.vocab_size, (1, n), generator=generator).to(model.device)
    try:
        with _experts_in(model.dtype, hf):
            theirs = hf(tokens, use_cache=False).logits.to(torch.float64)
    except Exception as error:  # whatever a config that does not fit the weights brings about
        raise Refused(
            f"transformers cannot run {model.spec.name} ({first_line(error)}); its config does not fit its "
            "weights."
        ) from error
    ours = model.forward(tokens).logits
    assert ours is not None
    gap = float((ours.to(torch.float64) - theirs).abs().max() / theirs.abs().max().clamp(min=1e-30))
    if not gap <= GAP[model.dtype]:
        raise Refused(
            f"{model.spec.name} loads, but its logits differ from transformers' by {gap:.1e} of the largest "
            "one; please report this "
            "architecture, or pass check=False to go on regardless."
        )
    return replace(model, load_gap=gap)


@contextmanager
def _experts_in(dtype: torch.dtype, hf: Any) -> Iterator[None]:
    """Transformers' mixtures of experts in float64, which their fast form does not take."""
    before = getattr(hf.config, "_experts_implementation", None)
    if dtype != torch.float64 or before is None:
        yield
        return
    hf.set_experts_implementation("eager")
    try:
        yield
    finally:
        hf.set_experts_implementation(before)
