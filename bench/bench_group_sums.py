"""group_sums: by position and by token, beside torch's own kernels."""

import time
from collections.abc import Callable

import pytest
import torch
from gpu_rows import device_rows
from pytest_benchmark.fixture import BenchmarkFixture

from interpcore import ops
from interpcore.ops.backend import supported_isas

pytestmark = pytest.mark.benchmark(timer=time.process_time)
TOKENS, NEURONS, CONTEXT, VOCABULARY = 2048, 3072, 128, 5000


@pytest.mark.parametrize("grouping", ["position", "token"])
@pytest.mark.parametrize("isa", supported_isas())
def bench_group_sums(
    isa: str,
    grouping: str,
    baseline_seconds: Callable[[Callable[[], object]], float],
    benchmark: BenchmarkFixture,
    report: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    make = torch.Generator().manual_seed(0)
    x, shift = torch.randn(TOKENS, NEURONS, generator=make), torch.zeros(NEURONS)
    frequency = 1 / torch.arange(1, VOCABULARY + 1)
    group = {
        "position": torch.arange(TOKENS) % CONTEXT,
        "token": torch.multinomial(frequency, TOKENS, True, generator=make),
    }[grouping]
    sums = [torch.zeros(VOCABULARY, NEURONS, dtype=torch.float64) for _ in range(2)]
    args = (x, group, shift, *sums)
    theirs = baseline_seconds(lambda: ops.group_sums(*args, backend="reference"))
    benchmark.pedantic(ops.group_sums, args, {"backend": "cpu"}, rounds=9, warmup_rounds=1)
    mine = benchmark.stats.stats.median
    each = 1e9 * mine / x.numel()
    report(f"group_sums {isa:8s} {grouping}: {each:.2f} ns a value, {theirs / mine:.1f} x torch's")
    assert mine < theirs


bench_group_sums_on_a_gpu = device_rows("group_sums")
