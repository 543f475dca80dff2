"""attn_vjp: C++ on the CPU for each instruction set, against torch and the measured rate of a dense product.

The yardstick in torch is the same algorithm in its best layout (batched products for dq, dS, dk and dv), and
with one vector, where no covariance is kept, the definition's own products. On one thread of a shared AVX-512
server the C++ form was 1.2 to 1.4 times that with many vectors, and 0.9 times with one.
"""

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas

pytestmark = pytest.mark.benchmark(timer=time.process_time)

# B, C, P, H; 71 keys of width 64, the last P live
SHAPES = [(1, 64, 7, 6), (1, 384, 7, 6), (1, 64, 7, 12), (1, 768, 7, 12), (8, 1, 16, 12)]
KEYS, WIDTH, SCALE = 71, 64, 0.125


def through_keys(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: Tensor, live: int
) -> tuple[Tensor, ...]:
    """The definition in float32."""
    dead = k.shape[1] - live
    dp = torch.einsum("bcphe,bthe->bcpht", g, v)
    a = pattern[:, None]
    ds = SCALE * a * (dp - (a * dp).sum(-1, keepdim=True))
    dk = torch.einsum("bcpht,bphe->bcthe", ds[..., dead:], q)
    return (
        torch.einsum("bcpht,bthe->bcphe", ds, k),
        dk,
        torch.einsum("bpht,bcphe->bcthe", pattern[..., dead:], g),
    )


def in_torch(
    g: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: Tensor, live: int, key_value: Tensor | None
) -> tuple[Tensor, ...]:
    """The fastest form found in torch."""
    if key_value is None:
        return through_keys(g, q, k, v, pattern, live)
    _, c, p, h, e = g.shape
    dead = k.shape[1] - live
    a = pattern[..., dead:]
    z = torch.einsum("bpht,bthe->bphe", pattern, v)
    # factor pattern (v_t - z_p): dS = g times this, [B, P, H, live, e]
    centred = (SCALE * a)[..., None] * (v[:, dead:].transpose(1, 2)[:, None] - z[..., None, :])
    dq, dk = torch.empty_like(g), g.new_empty(len(g), c, live, h, e)
    for b in range(len(g)):
        by_query = g[b].view(c, p * h, e).transpose(0, 1)  # [P H, C, e]
        torch.bmm(by_query, key_value[b].flatten(0, 1).mT, out=dq[b].view(c, p * h, e).transpose(0, 1))
        ds = torch.bmm(by_query, centred[b].flatten(0, 1).mT)  # [P H, C, live]
        rows = ds.view(p, h, c * live).permute(1, 2, 0)
        torch.bmm(rows, q[b].transpose(0, 1), out=dk[b].view(c * live, h, e).transpose(0, 1))
    dv = torch.matmul(a.permute(0, 2, 3, 1)[:, None], g.transpose(2, 3)).transpose(2, 3)
    return dq, dk, dv


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_attn_vjp(
    shape: tuple[int, int, int, int],
    isa: str,
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    product_peak: float,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    b, c, p, h = shape
    make = torch.Generator().manual_seed(0)
    g, q = torch.randn(*shape, WIDTH, generator=make), torch.randn(b, p, h, WIDTH, generator=make)
    k, v = (torch.randn(b, KEYS, h, WIDTH, generator=make) for _ in range(2))
    pattern = torch.randn(b, p, h, KEYS, generator=make).softmax(-1)
    args = (g, q, k, v, pattern, p, SCALE)
    kept = ops.key_value_covariance(k, v, pattern, SCALE) if c > 1 else None
    given: dict[str, Any] = {"key_value": kept, "z": ops.mixed_values(v, pattern), "backend": "cpu"}
    exact = reference.attn_vjp(*args)
    for got in (ops.attn_vjp(*args, **given), in_torch(*args[:6], kept)):
        assert all((x.double() - y).norm() < 1e-6 * y.norm() for x, y in zip(got, exact, strict=True))

    benchmark.pedantic(ops.attn_vjp, args, given, rounds=30, warmup_rounds=3)
    seconds = benchmark.stats.stats.min
    through = 2 * WIDTH if kept is not None else 4 * KEYS
    rate = 1e-9 * g.numel() * (through + 6 * p) / seconds
    torch_seconds = baseline_seconds(lambda: in_torch(*args[:6], kept))
    report(
        f"attn_vjp {shape!s:17s} {isa:8s}: {rate:5.1f} GFLOP/s, {rate / product_peak:4.0%} of product, "
        f"{torch_seconds / seconds:4.1f}x torch"
    )


bench_attn_vjp_on_a_gpu = device_rows("attn_vjp")
