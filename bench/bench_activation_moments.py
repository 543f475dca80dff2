"""activation_moments: what fused statistics of every neuron add to a forward of GPT-2 medium's shape."""

import statistics
import time
from collections.abc import Callable, Sequence

import pytest
import torch
import transformers
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

import interpcore
from interpcore import ops
from interpcore.model import Model
from interpcore.ops import RunningMoments
from interpcore.ops.backend import supported_isas
from interpcore.ops.reference.activation_moments import ACTIVATIONS

pytestmark = pytest.mark.benchmark(timer=time.process_time)

BATCH, CONTEXT, ROUNDS = 2, 256, 5
MOST_COST = 0.03
Seconds = Callable[[Callable[[], object]], float]


@pytest.fixture(scope="module")
def model() -> Model:
    """A random model of GPT-2 medium's shape, with few token ids: no unembedding runs."""
    config = transformers.GPT2Config(
        n_embd=1024, n_layer=24, n_head=16, vocab_size=5000, bos_token_id=None, eos_token_id=None
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    loaded = interpcore.load(hf)
    assert isinstance(loaded, Model)
    return loaded


class Statistics:
    """Running moments of every block, filled through the activation hook."""

    def __init__(self, model: Model, pilot: Tensor, thresholds: Sequence[float], mask: Tensor | None):
        self.mask = mask
        self.moments: list[tuple[RunningMoments, RunningMoments]] = []

        def shifts(function: Callable[[Tensor], Tensor], pre: Tensor, depth: int) -> Tensor:
            post = function(pre)
            means = [x.flatten(0, 1)[:64].mean(0) for x in (pre, post)]
            pair = (
                RunningMoments(pre.shape[-1], thresholds, means[0]),
                RunningMoments(pre.shape[-1], (), means[1]),
            )
            self.moments.append(pair)
            return post

        model.forward(pilot, logits_at=None, activation=shifts)

    def __call__(self, function: object, pre: Tensor, depth: int) -> Tensor:
        flat = pre.flatten(0, 1)
        post = ops.activation_moments(flat, "gelu_tanh", *self.moments[depth], mask=self.mask)
        return post.view(pre.shape)


def bench_forward_with_statistics(
    model: Model, benchmark: BenchmarkFixture, report: Callable[[str], None]
) -> None:
    make = torch.Generator().manual_seed(0)
    tokens = torch.randint(5000, (BATCH, CONTEXT), generator=make)
    mask = torch.rand(BATCH * CONTEXT, generator=make) < 0.95
    ways: dict[str, Callable[..., Tensor] | None] = {
        "plain": None,
        "moments": Statistics(model, tokens, (), None),
        "and frequency": Statistics(model, tokens, (0.0, -0.098), None),
        "and a mask": Statistics(model, tokens, (0.0, -0.098), mask),
        "activation only": lambda function, pre, depth: activation_only(pre),
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, hook in ways.items():
            start = time.process_time()
            model.forward(tokens, logits_at=None, activation=hook)
            spent[name].append(time.process_time() - start)
    plain = statistics.median(spent.pop("plain"))
    cost = {name: statistics.median(seconds) / plain - 1 for name, seconds in spent.items()}
    benchmark.pedantic(lambda: model.forward(tokens, logits_at=None, activation=ways["moments"]), rounds=1)
    lines = ", ".join(f"{name} {part:+.1%}" for name, part in cost.items())
    report(f"forward of 24 blocks, d=1024, {BATCH} x {CONTEXT} tokens: {plain:.2f} s; {lines}")
    assert cost["moments"] <= MOST_COST, cost


def activation_only(pre: Tensor) -> Tensor:
    """The same activation without statistics: its rows are all masked."""
    flat = pre.flatten(0, 1)
    moments = RunningMoments(flat.shape[1]), RunningMoments(flat.shape[1])
    none = torch.zeros(len(flat), dtype=torch.bool)
    return ops.activation_moments(flat, "gelu_tanh", *moments, mask=none).view(pre.shape)


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
