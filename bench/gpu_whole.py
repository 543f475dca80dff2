"""Which whole runs `gpu_check.py` makes, and of what shapes.

What a run needs is loaded as it runs: a process of kernels alone then starts in a third of the time.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import torch

SHAPES = ((384, 6), (768, 12), (1600, 12))
LARGE = ("GPT-2 XL", "GPT-J")
EDGES = 2000

Run = Callable[[dict[str, float]], dict[str, Any]]
Runs = list[tuple[str, Run]]
Clock = Callable[..., float]


def whole_runs(dry: bool, clock: Clock) -> dict[str, Runs]:
    """By the name of its part the runs: what each is called, and what makes its row, given the ceilings.

    Args:
        dry: of a tiny shape on the CPU.
        clock: milliseconds of a call, so many `calls` of it.
    """
    called = "jacobians float32 d={} blocks={} against torch.func.jacrev"
    sweeps: Runs = [
        (called.format(*shape), functools.partial(_small_sweep if dry else _sweep, clock, *shape))
        for shape in SHAPES
    ]
    large = {
        f"jacobians {name}": (f"jacobians float32 {name} shape", functools.partial(_large, name, dry))
        for name in LARGE
    }
    bfloat16, where = torch.bfloat16, "cpu" if dry else "cuda"
    shape = (64, 2, where) if dry else (768, 12, where)
    lens, pairs, edges = ((24, 8), (2, 6), (20, 6)) if dry else ((128, 32), (32, 16), (EDGES, 16))
    medium = (64, 2, where, bfloat16) if dry else (1024, 24, where, bfloat16)
    tokens = (256, 2, 16) if dry else (1 << 21, 64, 512)
    single = {
        "forward": ("forward with statistics bfloat16 d=1024 blocks=24", _forward(dry, clock)),
        "tokens": ("moments of 2M tokens d=1024 blocks=24", _row("tokens_row", *medium, *tokens)),
        "exact": ("exact edges d=768 blocks=12", _row("exact_row", *shape, *edges)),
        "attribution": ("EAP-IG d=768 blocks=12", _row("attribution_row", *shape, *pairs)),
        "lens": ("lens fit d=768 blocks=12", _row("lens_row", *shape, *lens)),
    }
    return {"jacobians": sweeps} | {name: [run] for name, run in (large | single).items()}


def _row(name: str, *args: Any) -> Run:
    """A row of `gpu_runs`."""

    def run(_: dict[str, float]) -> dict[str, Any]:
        import gpu_runs

        return getattr(gpu_runs, name)(*args)

    return run


def _large(name: str, dry: bool, limits: dict[str, float]) -> dict[str, Any]:
    import gpu_jacobian

    peak = limits.get(gpu_jacobian.FLOAT_PEAK, math.nan)
    return gpu_jacobian.large_row(name, "cpu" if dry else "cuda", peak, dry)


def _sweep(clock: Clock, d_model: int, blocks: int, limits: dict[str, float]) -> dict[str, Any]:
    import gpu_jacobian

    peak = limits.get(gpu_jacobian.FLOAT_PEAK, math.nan)
    return gpu_jacobian.sweep_row(d_model, blocks, "cuda", functools.partial(clock, calls=3), peak)


@functools.cache
def _tiny(clock: Clock) -> dict[str, Any]:
    import gpu_jacobian

    return gpu_jacobian.sweep_row(64, 2, "cpu", clock, 1.0)


def _small_sweep(clock: Clock, d_model: int, blocks: int, limits: dict[str, float]) -> dict[str, Any]:
    return _tiny(clock)


def _forward(dry: bool, clock: Clock) -> Run:
    """The row of `forward_statistics`."""

    def run(_: dict[str, float]) -> dict[str, Any]:
        import forward_statistics

        if dry:
            return forward_statistics.cost_row(64, 1, "cpu", torch.float32, clock)
        few = functools.partial(clock, calls=10)
        return forward_statistics.cost_row(1024, 24, "cuda", torch.bfloat16, few)

    return run
