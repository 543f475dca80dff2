"""What fused statistics of every neuron add to a forward, on any device."""

import functools
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import torch
import transformers
from torch import Tensor

import interpcore
from interpcore import ops
from interpcore.model import Model
from interpcore.ops import RunningMoments

VOCABULARY = 5000
MOST_COST = 0.03

Clock = Callable[[Callable[[], object]], float]


def random_model(d_model: int, blocks: int, device: str, dtype: torch.dtype) -> Model:
    """A random model of a GPT-2 shape, with few token ids: no unembedding runs."""
    config = transformers.GPT2Config(
        n_embd=d_model,
        n_layer=blocks,
        n_head=d_model // 64,
        vocab_size=VOCABULARY,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    loaded = interpcore.load(hf.to(device, dtype))
    assert isinstance(loaded, Model)
    return loaded


class FusedStatistics:
    """An activation hook that adds to running moments of every block."""

    def __init__(self, model: Model, pilot: Tensor, thresholds: Sequence[float], mask: Tensor | None):
        self.mask = mask
        self.moments: list[tuple[RunningMoments, RunningMoments]] = []

        def shifts(function: Callable[[Tensor], Tensor], pre: Tensor, depth: int) -> Tensor:
            post = function(pre)
            means = [x.flatten(0, 1)[:64].float().mean(0) for x in (pre, post)]
            pairs = zip((thresholds, ()), means, strict=True)
            of_pre, of_post = (RunningMoments(len(mean), limits, mean, mean.device) for limits, mean in pairs)
            self.moments.append((of_pre, of_post))
            return post

        model.forward(pilot, logits_at=None, activation=shifts)

    def __call__(self, function: object, pre: Tensor, depth: int) -> Tensor:
        rows = pre.flatten(0, 1)
        return ops.activation_moments(rows, "gelu_tanh", *self.moments[depth], mask=self.mask).view(pre.shape)


def forward_costs(model: Model, batch: int, context: int, clock: Clock, rounds: int = 5) -> dict[str, float]:
    """Median time of a plain forward, and what statistics add to it as a part of it.

    Args:
        clock: time of a call.
    Returns: "plain" in the clock's unit; parts: "moments" (count, mean, M2 to M4, extremes of pre and post),
        "and frequency" (two thresholds), "and a mask" (of a twentieth of the tokens).
    """
    make = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (batch, context), generator=make).to(model.device)
    mask = (torch.rand(batch * context, generator=make) < 0.95).to(model.device)
    hooks = {
        "plain": None,
        "moments": FusedStatistics(model, tokens, (), None),
        "and frequency": FusedStatistics(model, tokens, (0.0, -0.098), None),
        "and a mask": FusedStatistics(model, tokens, (0.0, -0.098), mask),
    }
    spent: dict[str, list[float]] = {name: [] for name in hooks}
    for _ in range(rounds):
        for name, hook in hooks.items():
            run = functools.partial(model.forward, tokens, logits_at=None, activation=hook)
            spent[name].append(clock(run))
    plain = statistics.median(spent.pop("plain"))
    return {"plain": plain} | {name: statistics.median(times) / plain - 1 for name, times in spent.items()}


def cost_row(d_model: int, blocks: int, device: str, dtype: torch.dtype, clock: Clock) -> dict[str, Any]:
    """A row of `gpu_check.py`: 8 sequences of 512 tokens; ok where moments cost at most 3% of the forward."""
    costs = forward_costs(random_model(d_model, blocks, device, dtype), 8, 512, clock)
    name = str(dtype).removeprefix("torch.")
    case = f"forward with statistics {name} d={d_model} blocks={blocks} 8 x 512 tokens"
    return {"case": case, "ok": costs["moments"] <= MOST_COST, "ms": costs.pop("plain"), **costs}
