"""The Jacobian sweep on a GPU against `torch.func.jacrev`: one part of `bench/gpu_check.py`."""

import functools
from collections.abc import Callable
from typing import Any

import study_jacobian as study
import torch
from sweep_products import products_of

import interpcore
from interpcore.model import Model

SHAPES = ((384, 6), (768, 12), (1600, 12))
TOLERANCE = 1e-4

Clock = Callable[[Callable[[], object]], float]


def sweep_row(d_model: int, blocks: int, device: str, clock: Clock, peak: float) -> dict[str, Any]:
    """One model shape: all depths in one sweep, and the peer one depth at a time.

    Args:
        d_model, blocks: GPT-2 shape, random weights, float32.
        device: where to run.
        clock: milliseconds of a call.
        peak: measured float32 matmul rate of the device in TFLOP/s.
    Returns: times, their ratio, percent of the peak, and whether both agree.
    """
    hf, _ = study.models(d_model, blocks)
    hf = hf.to(device)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    tokens = study.prompt(study.PREFIX + study.LIVE).to(device)
    depths = list(range(blocks))
    sweep = functools.partial(
        interpcore.jacobians, model, tokens, source_position=study.PREFIX, source_depths=depths
    )
    operations = sum(product.operations * count for product, count in products_of(sweep).items())
    ours = clock(sweep)
    cache = hf(tokens[:, : study.PREFIX], use_cache=True).past_key_values
    theirs = sum(clock(functools.partial(study.jacrev, hf, cache, tokens, depth, None)) for depth in depths)
    found = sweep().values
    assert isinstance(found, torch.Tensor)
    expected = study.jacrev(hf, cache, tokens, 0, None)
    error = float((found[0, 0] - expected).norm() / expected.norm())
    rate = operations / ours * 1e-9
    return {
        "case": f"jacobians float32 d={d_model} blocks={blocks} {study.PREFIX}+{study.LIVE} tokens",
        "ok": error < TOLERANCE,
        "error": error,
        "ms": ours,
        "jacrev ms": theirs,
        "jacrev / ours": theirs / ours,
        "percent of matmul peak": 100 * rate / peak,
    }
