"""The Jacobian sweep on a GPU against `torch.func.jacrev`: parts of `bench/gpu_check.py`."""

import functools
import gc
import time
from collections.abc import Callable
from typing import Any

import study_jacobian as study
import torch
import transformers
from sweep_products import products_of
from torch import Tensor

import interpcore
from interpcore.model import Model
from interpcore.model.linearize import linearize
from interpcore.ops.meter import metered

# Their configurations' names and values.
LARGE: dict[str, dict[str, Any]] = {
    "GPT-2 XL": {"n_embd": 1600, "n_layer": 48, "n_head": 25},
    "GPT-J": {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64},
}
TOLERANCE = 1e-4
FLOAT_PEAK = "torch.float32 TFLOP/s"

Clock = Callable[[Callable[[], object]], float]


def timed(run: Callable[[], Any], device: str) -> tuple[float, Any]:
    """Wall milliseconds of one call, until the device is done, and what it returned."""
    if device == "cuda":
        torch.cuda.synchronize()
    begun = time.perf_counter()
    found = run()
    if device == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - begun), found


def captured(run: Callable[[], list[Tensor]], clock: Clock) -> dict[str, Any]:
    """What a CUDA graph saves of a walk that the host may hold up: milliseconds of `run` and of its graph, or
    why there is none. The first call comes before the capture."""
    found: dict[str, Any] = {"walk ms": clock(run)}
    if not torch.cuda.is_available():
        return found | {"captured walk": "no GPU"}
    expected, graph = run(), torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            values = run()
        found["captured walk ms"] = clock(graph.replay)
    except RuntimeError as error:
        return found | {"captured walk": str(error).splitlines()[0]}
    pairs = zip(values, expected, strict=True)
    found["captured walk error"] = max(float((a - b).norm() / b.norm()) for a, b in pairs)
    return found


def walk_of(model: Model, tokens: Tensor) -> Callable[[], list[Tensor]]:
    """Every depth's Jacobian of the last position by the first, of one linearised forward."""
    line = linearize(model, tokens)
    basis = torch.eye(model.spec.d_model, dtype=model.dtype, device=model.device)[None, :, None]
    return lambda: [step.resid.clone() for step in line.reverse(basis, first_only=True)]


def sweep_row(d_model: int, blocks: int, device: str, clock: Clock, peak: float) -> dict[str, Any]:
    """One model shape: all depths in one sweep, and the peer one depth at a time.

    Args:
        d_model, blocks: GPT-2 shape, random weights, float32.
        device: where to run.
        clock: milliseconds of a call.
        peak: measured float32 matmul rate of the device in TFLOP/s.
    Returns: times, their ratio, percent of the peak, whether both agree, and `captured` of a walk.
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
    walk = captured(walk_of(model, tokens[:, : study.LIVE]), clock)
    agree = walk.get("captured walk error", 0.0) < TOLERANCE
    return walk | {
        "case": f"jacobians float32 d={d_model} blocks={blocks} {study.PREFIX}+{study.LIVE} tokens",
        "ok": error < TOLERANCE and agree,
        "error": error,
        "ms": ours,
        "jacrev ms": theirs,
        "jacrev / ours": theirs / ours,
        "percent of matmul peak": 100 * rate / peak,
    }


def large_model(name: str, small: bool) -> Any:
    """A random transformers model of the shape of GPT-2 XL or GPT-J, frozen, with few token ids.

    small: of the same family, but tiny.
    """
    common: dict[str, Any] = {
        "vocab_size": 1000,
        "n_positions": 1024,
        "bos_token_id": None,
        "eos_token_id": None,
        "attn_implementation": "eager",
    } | LARGE[name]
    if small:
        common |= {"n_embd": 64, "n_layer": 2, "n_head": 2}
    if small and name == "GPT-J":
        common["rotary_dim"] = 16
    if name == "GPT-2 XL":
        return transformers.GPT2LMHeadModel(transformers.GPT2Config(**common))
    return transformers.GPTJForCausalLM(transformers.GPTJConfig(**common))


def large_row(name: str, device: str, peak: float, small: bool = False) -> dict[str, Any]:
    """All depths of a large shape in one sweep; jacrev at the middle depth, and from that at all depths.

    Args:
        name: a key of `LARGE`; random weights, float32.
        device: where to make and run it.
        peak: measured float32 matmul rate of the device in TFLOP/s.
        small: a tiny model of the family instead.
    Returns: times, their ratio, percent of the peak, and whether both agree at the middle depth.
    """
    torch.manual_seed(0)
    with torch.device(device):
        hf = large_model(name, small).eval().requires_grad_(False)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    blocks = len(hf.transformer.h)
    middle, tokens = blocks // 2, study.prompt(study.PREFIX + study.LIVE).to(device)
    sweep = functools.partial(interpcore.jacobians, model, tokens, source_position=study.PREFIX)
    sweep(source_depths=[blocks - 1])
    with metered() as meter:
        ours, swept = timed(lambda: sweep(source_depths=[*range(blocks)]), device)
    assert isinstance(swept.values, torch.Tensor)
    found = swept.values[0, middle].clone()
    del swept
    gc.collect()
    cache = hf(tokens[:, : study.PREFIX], use_cache=True).past_key_values
    study.jacrev(hf, cache, tokens, blocks - 1, None)
    theirs, expected = timed(lambda: study.jacrev(hf, cache, tokens, middle, None), device)
    error = float((found - expected).norm() / expected.norm())
    # Of depth d it goes through blocks - d blocks.
    total = theirs * sum(range(1, blocks + 1)) / (blocks - middle)
    return {
        "case": f"jacobians float32 {name} shape, {study.PREFIX}+{study.LIVE} tokens, all {blocks} depths",
        "ok": error < TOLERANCE,
        "error": error,
        "ms": ours,
        "jacrev at one depth ms": theirs,
        "jacrev ms, extrapolated": total,
        "jacrev / ours, extrapolated": total / ours,
        "percent of matmul peak": 100 * 2e-9 * meter.done / ours / peak,
    }
