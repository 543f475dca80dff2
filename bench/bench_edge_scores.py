"""edge_scores on the CPU against the rate of one square product of the same torch."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops

pytestmark = pytest.mark.benchmark(timer=time.process_time)
Seconds = Callable[[Callable[[], object]], float]

# GPT-2 small, one call per layer as a walk makes it: 4 examples of 16 tokens.
LAYERS, HEADS, WIDTH, BATCH, POSITIONS = 12, 12, 768, 4, 16


@pytest.mark.parametrize("moments", [False, True], ids=["sum", "moments"])
def bench_edge_scores(
    moments: bool, benchmark: BenchmarkFixture, baseline_seconds: Seconds, report: Callable[[str], None]
) -> None:
    make = torch.Generator().manual_seed(0)
    sources, columns = 1 + LAYERS * (HEADS + 1), 3 * HEADS + 1
    difference = torch.randn(BATCH, sources, POSITIONS, WIDTH, generator=make).transpose(0, 1)
    grad = torch.randn(BATCH, columns, POSITIONS, WIDTH, generator=make).transpose(0, 1)
    prefixes = [1 + layer * (HEADS + 1) for layer in range(LAYERS)]

    def layers() -> None:
        for prefix in prefixes:
            ops.edge_scores(
                difference, grad, [prefix] * (columns - 1) + [prefix + HEADS], moments=moments, backend="cpu"
            )

    def einsum() -> None:
        for prefix in prefixes:
            torch.einsum("sbpd,tbpd->st", difference[: prefix + HEADS], grad)

    edges = sum(prefix * (columns - 1) + prefix + HEADS for prefix in prefixes)
    square = torch.ones(1024, 1024)
    rate = 2e-9 * 1024**3 / baseline_seconds(lambda: square @ square)
    benchmark.pedantic(layers, rounds=5, warmup_rounds=1)
    taken = benchmark.stats.stats.median
    ours = 2e-9 * edges * BATCH * POSITIONS * WIDTH / taken
    report(
        f"edge_scores {'moments' if moments else 'sum':8s}: {1e3 * taken:6.1f} ms, {ours:5.1f} GFLOP/s of "
        f"legal edges, {ours / rate:4.0%} of a square product, "
        f"{baseline_seconds(einsum) / taken:4.2f}x torch.einsum"
    )


bench_edge_scores_on_a_gpu = device_rows("edge_scores")
