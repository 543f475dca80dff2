"""Whole experiments on a device beside plain torch: the lens, statistics of many tokens, circuits.

bench/gpu_check.py runs them, each in a process of its own. All models have random weights. A figure that was
not measured whole says "extrapolated" in its name.
"""

import functools
from collections.abc import Callable
from typing import Any

import study_circuits
import study_lens
import torch
import transformers
from forward_statistics import VOCABULARY, FusedStatistics, random_model
from gpu_jacobian import timed
from torch import Tensor

import interpcore
from interpcore.circuits import Graph, attribute, exact
from interpcore.lens.sweep import slice_moments
from interpcore.model import Model

Row = dict[str, Any]
STEPS = 5
# Of a result's norm: float32 on another device or in another order, and half precision.
TOLERANCE, HALF_TOLERANCE = 1e-3, 1e-2


def gpt2(d_model: int, blocks: int, device: str) -> tuple[Any, Model]:
    """A random GPT-2 on a device in float32, and ours on the same tensors."""
    config = transformers.GPT2Config(  # type: ignore[call-arg]
        vocab_size=VOCABULARY,
        n_embd=d_model,
        n_layer=blocks,
        n_head=d_model // 64,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False).to(device)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    return hf, model


def error_from_cpu(run: Callable[[Model], Tensor], model: Model, d_model: int, blocks: int) -> float:
    """Of what `run` gives with `model`, against the same weights on the CPU, over the latter's norm."""
    expected = run(gpt2(d_model, blocks, "cpu")[1]).double().cpu()
    return float((run(model).double().cpu() - expected).norm() / expected.norm())


def lens_row(d_model: int, blocks: int, device: str, length: int, replicas: int) -> Row:
    """One prompt of a Jacobian lens fit; the published loop beside it, as many rows at once as `replicas`."""
    hf, model = gpt2(d_model, blocks, device)
    ids = torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(0))
    skip = min(study_lens.SKIP, length // 2)

    def fit() -> Tensor:
        halves = slice_moments(model, [ids.tolist()], skip=skip, target_depth=blocks, first_depth=1)
        return halves[0].mean[1:-1]

    fit()
    taken, found = timed(fit, device)
    peer = functools.partial(study_lens.published, hf, ids.to(device), replicas, skip)
    theirs, expected = timed(peer, device)
    found, expected = found.double().cpu(), expected.double().cpu()
    error = float((found - expected).norm() / expected.norm())
    return {
        "case": f"lens fit float32 d={d_model} blocks={blocks}, a prompt of {length} tokens",
        "ok": error < TOLERANCE,
        "error": error,
        "ms": taken,
        f"published loop x{replicas} ms": theirs,
        "published loop / ours": theirs / taken,
    }


class PlainStatistics:
    """An activation hook that adds sums of powers and extremes by torch's own ops."""

    def __init__(self) -> None:
        self.sums: dict[tuple[int, int], Tensor] = {}
        self.ends: dict[tuple[int, int], Tensor] = {}

    def __call__(self, function: Callable[[Tensor], Tensor], pre: Tensor, depth: int) -> Tensor:
        post = function(pre)
        for side, values in enumerate((pre, post)):
            x = values.flatten(0, 1).float()
            square = x * x
            sums = torch.stack([y.sum(0).double() for y in (x, square, square * x, square * square)])
            ends = torch.stack([x.amax(0), -x.amin(0)])
            at = (depth, side)
            self.sums[at] = self.sums[at] + sums if at in self.sums else sums
            self.ends[at] = torch.maximum(self.ends[at], ends) if at in self.ends else ends
        return post


def tokens_row(
    d_model: int, blocks: int, device: str, dtype: torch.dtype, tokens: int, batch: int, context: int
) -> Row:
    """Moments of every neuron before and after its activation over `tokens` tokens, the forward included.

    Plain torch sees an eighth of the batches. ok: our means of the first block, after its activation, are
    those of plain torch over the same batches.
    """
    model = random_model(d_model, blocks, device, dtype)
    make = torch.Generator().manual_seed(0)
    batches = [
        torch.randint(VOCABULARY, (batch, context), generator=make).to(device)
        for _ in range(max(1, tokens // (batch * context)))
    ]
    few = batches[: max(1, len(batches) // 8)]

    def all_of(hook: Any, some: list[Tensor]) -> Any:
        for ids in some:
            model.forward(ids, logits_at=None, activation=hook)
        return hook

    def fused() -> FusedStatistics:
        return FusedStatistics(model, batches[0][:1], (), None)

    checked, plain = all_of(fused(), few), all_of(PlainStatistics(), few)
    mean = checked.moments[0][1].result().mean.double()
    expected = plain.sums[0, 1][0] / (len(few) * batch * context)
    error = float((mean - expected).norm() / expected.norm())
    taken, _ = timed(lambda: all_of(fused(), batches), device)
    theirs, _ = timed(lambda: all_of(PlainStatistics(), few), device)
    alone, _ = timed(lambda: all_of(None, few), device)
    seen, more = len(batches) * batch * context, len(batches) / len(few)
    return {
        "case": f"moments of {seen:,} tokens {str(dtype)[6:]} d={d_model} blocks={blocks}, with the forward",
        "ok": error < (TOLERANCE if dtype == torch.float32 else HALF_TOLERANCE),
        "error": error,
        "ms": taken,
        "tokens/s": 1e3 * seen / taken,
        "seconds of 100M tokens, extrapolated": 1e5 * taken / seen,
        "plain torch ms, extrapolated": theirs * more,
        "forward alone ms, extrapolated": alone * more,
        "plain torch / ours": theirs * more / taken,
    }


def attribution_row(d_model: int, blocks: int, device: str, pairs: int, length: int) -> Row:
    """EAP-IG of all edges on pairs of prompts; beside it the forwards and backwards that plain torch needs.

    ok: the scores of two pairs are those of the CPU.
    """
    hf, model = gpt2(d_model, blocks, device)
    some = study_circuits.pairs(model, pairs, length)
    clean, good, bad = (x.to(device) for x in (some.clean, some.good, some.bad))

    def passes() -> None:
        for _ in range(STEPS):
            embeds = hf.transformer.wte(clean).requires_grad_()
            last = hf(inputs_embeds=embeds).logits[:, -1]
            (last.gather(1, good) - last.gather(1, bad)).sum().backward()

    two, legal = study_circuits.pairs(model, 2, length), Graph.of(model).legal

    def scores(on: Model) -> Tensor:
        return attribute(on, two, method="eap-ig-inputs", steps=STEPS).values.cpu()[legal]

    error = error_from_cpu(scores, model, d_model, blocks)
    way = functools.partial(attribute, model, some, method="eap-ig-inputs", steps=STEPS)
    way()
    taken, _ = timed(way, device)
    passes()
    theirs, _ = timed(passes, device)
    return {
        "case": f"EAP-IG float32 d={d_model} blocks={blocks}, {STEPS} steps, {pairs} pairs, {length} tokens",
        "ok": error < TOLERANCE,
        "error": error,
        "ms": taken,
        "edges": Graph.of(model).n_edges,
        f"{STEPS} forwards and backwards of transformers, no scores, ms": theirs,
        "ours / those": taken / theirs,
    }


def exact_row(d_model: int, blocks: int, device: str, edges: int, length: int) -> Row:
    """Exact patching of edges drawn at random; beside it the forward that plain torch needs for each.

    ok: the scores of a hundredth of the edges, one at least, are those of the CPU.
    """
    hf, model = gpt2(d_model, blocks, device)
    some, graph = study_circuits.pairs(model, study_circuits.BATCH, length), Graph.of(model)
    draw = torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(0))
    order = draw.masked_fill(~graph.legal, 2).flatten().argsort()
    n = min(edges, graph.n_edges)

    def scores(on: Model, count: int) -> Tensor:
        chosen = torch.zeros_like(graph.legal).flatten()
        chosen[order[:count]] = True
        chosen = chosen.view_as(graph.legal)
        return exact(on, some, edges=chosen)["logit_diff"].values.cpu()[chosen]

    few = functools.partial(scores, count=max(1, n // 100))
    error = error_from_cpu(few, model, d_model, blocks)
    taken, _ = timed(lambda: scores(model, n), device)
    clean = some.clean.to(device)

    def forwards(n: int) -> None:
        with torch.no_grad():
            for _ in range(n):
                hf(clean, use_cache=False)

    forwards(3)
    theirs = timed(lambda: forwards(10), device)[0] / 10
    return {
        "case": f"exact edges float32 d={d_model} blocks={blocks}, {len(some)} pairs of {length} tokens",
        "ok": error < TOLERANCE,
        "error": error,
        "ms": taken,
        "edges": n,
        "edges/s": 1e3 * n / taken,
        f"seconds of all {graph.n_edges} edges, extrapolated": 1e-3 * taken * graph.n_edges / n,
        "a forward of transformers per edge, edges/s, extrapolated": 1e3 / theirs,
        "forwards per edge / ours": theirs * n / taken,
    }
