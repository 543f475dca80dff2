"""activation_moments: what fused statistics of every neuron add to a forward of GPT-2 medium's shape."""

import time
from collections.abc import Callable

import pytest
import torch
from forward_statistics import MOST_COST, forward_costs, random_model
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops
from interpcore.ops import RunningMoments
from interpcore.ops.backend import supported_isas
from interpcore.ops.reference.activation_moments import ACTIVATIONS

pytestmark = pytest.mark.benchmark(timer=time.process_time)

BATCH, CONTEXT = 2, 256
Seconds = Callable[[Callable[[], object]], float]


def bench_forward_with_statistics(benchmark: BenchmarkFixture, report: Callable[[str], None]) -> None:
    model = random_model(1024, 24, "cpu", torch.float32)

    def seconds(run: Callable[[], object]) -> float:
        start = time.process_time()
        run()
        return time.process_time() - start

    costs = forward_costs(model, BATCH, CONTEXT, seconds)
    plain = costs.pop("plain")
    benchmark.pedantic(lambda: None)
    lines = ", ".join(f"{name} {part:+.1%}" for name, part in costs.items())
    report(f"forward of 24 blocks, d=1024, {BATCH} x {CONTEXT} tokens: {plain:.2f} s; {lines}")
    assert costs["moments"] <= MOST_COST, costs


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("isa", supported_isas())
def bench_activation_moments(
    isa: str,
    activation: str,
    baseline_seconds: Seconds,
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x = torch.randn(512, 4096, generator=torch.Generator().manual_seed(0)).sub_(0.5)
    function = ACTIVATIONS[activation]
    post = function(x)
    moments = RunningMoments(4096, (), x.mean(0)), RunningMoments(4096, (), post.mean(0))

    def unfused() -> None:
        made = function(x)
        for total, values in zip(moments, (x, made), strict=True):
            ops.column_moments(values, shift=total.shift, backend="cpu")

    others = {
        "torch's activation": baseline_seconds(lambda: function(x)),
        "unfused": baseline_seconds(unfused),
    }
    benchmark.pedantic(
        ops.activation_moments, (x, activation, *moments), {"backend": "cpu"}, rounds=30, warmup_rounds=2
    )
    mine = benchmark.stats.stats.median
    ratios = ", ".join(f"{1e3 * taken:.2f} ms {way}" for way, taken in others.items())
    report(f"activation_moments {isa:8s} {activation:9s} [512, 4096]: {1e3 * mine:.2f} ms; {ratios}")


bench_activation_moments_on_a_gpu = device_rows("activation_moments")
