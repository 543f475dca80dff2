"""attn_jvp: C++ on the CPU for each instruction set, against torch and the measured rate of a dense product.

The yardstick in torch is the same algorithm in its best layout: batched products for the three terms, added
in place. On one thread of a shared AVX-512 server the C++ form was 1.1 to 1.7 times that.
"""

import time
from collections.abc import Callable

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


def in_torch(
    tq: Tensor, tk: Tensor, tv: Tensor, q: Tensor, k: Tensor, v: Tensor, pattern: Tensor, key_value: Tensor
) -> Tensor:
    """The fastest form found in torch."""
    _, c, p, h, e = tq.shape
    live = tk.shape[2]
    dead = k.shape[1] - live
    a = pattern[..., dead:]
    z = torch.einsum("bpht,bthe->bphe", pattern, v)
    # factor pattern (v_t - z_p), [B, P, H, live, e]
    centred = (SCALE * a)[..., None] * (v[:, dead:].transpose(1, 2)[:, None] - z[..., None, :])
    out = torch.empty_like(tq)
    for b in range(len(tq)):
        by_query = out[b].view(c, p * h, e).transpose(0, 1)  # [P H, C, e]
        torch.bmm(tq[b].view(c, p * h, e).transpose(0, 1), key_value[b].flatten(0, 1), out=by_query)
        keys = tk[b].reshape(c * live, h, e).permute(1, 2, 0)
        scores = torch.bmm(q[b].transpose(0, 1), keys).view(h, p, c, live).transpose(0, 1)
        torch.baddbmm(by_query, scores.reshape(p * h, c, live), centred[b].flatten(0, 1), out=by_query)
    return out.add_(torch.matmul(a.transpose(1, 2)[:, None], tv.transpose(2, 3)).transpose(2, 3))


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def bench_attn_jvp(
    shape: tuple[int, int, int, int],
    isa: str,
    benchmark: BenchmarkFixture,
    baseline_seconds: Callable[[Callable[[], object]], float],
    product_peak: float,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    b, _, p, h = shape
    make = torch.Generator().manual_seed(0)
    tq, tk, tv = (torch.randn(*shape, WIDTH, generator=make) for _ in range(3))
    q = torch.randn(b, p, h, WIDTH, generator=make)
    k, v = (torch.randn(b, KEYS, h, WIDTH, generator=make) for _ in range(2))
    pattern = torch.randn(b, p, h, KEYS, generator=make).softmax(-1)
    args = (tq, tk, tv, q, k, v, pattern, SCALE)
    kept = ops.key_value_covariance(k, v, pattern, SCALE).contiguous()
    exact = reference.attn_jvp(*args)
    for got in (ops.attn_jvp(*args, key_value=kept, backend="cpu"), in_torch(*args[:7], kept)):
        assert (got.double() - exact).norm() < 1e-6 * exact.norm()

    benchmark.pedantic(ops.attn_jvp, args, {"key_value": kept, "backend": "cpu"}, rounds=30, warmup_rounds=3)
    seconds = benchmark.stats.stats.min
    rate = 1e-9 * tq.numel() * (2 * WIDTH + 6 * p) / seconds
    torch_seconds = baseline_seconds(lambda: in_torch(*args[:7], kept))
    report(
        f"attn_jvp {shape!s:17s} {isa:8s}: {rate:5.1f} GFLOP/s, {rate / product_peak:4.0%} of product, "
        f"{torch_seconds / seconds:4.1f}x torch"
    )


bench_attn_jvp_on_a_gpu = device_rows("attn_jvp")
