"""Pairs of random prompts, and the patched run written out from its definition: one circuit, one pair, every
node."""

from __future__ import annotations

import torch
from torch import Tensor

from interpcore.circuits import Graph, Pairs
from interpcore.circuits.patching.sources import Sources, constant_output, head_output, post_scale, record
from interpcore.model import Model
from interpcore.model.context import Context
from interpcore.model.layout import read_layout


def random_pairs(n: int = 3, width: int = 7, *, ragged: bool = False, same: int = 2, seed: int = 0) -> Pairs:
    """Pairs that share their first `same` tokens; ragged ones have lengths from width down."""
    draw = torch.Generator().manual_seed(seed)
    clean, corrupted = torch.randint(1, 61, (2, n, width), generator=draw)
    corrupted[:, :same] = clean[:, :same]
    lengths = torch.full((n,), width)
    if ragged:
        lengths -= torch.arange(n) % 3
    mask = torch.arange(width) < lengths[:, None]
    good, bad = torch.randint(1, 61, (2, n, 1), generator=draw)
    return Pairs("random", clean * mask, corrupted * mask, lengths, good, bad)


def random_edges(graph: Graph, share: float, seed: int = 0) -> Tensor:
    """Each edge with a probability [n_sources, n_destinations] bool."""
    draw = torch.Generator().manual_seed(seed)
    return graph.legal & (torch.rand(graph.legal.shape, generator=draw) < share)


def naive_logits(model: Model, graph: Graph, pair: Pairs, standing_in: Sources, edges: Tensor) -> Tensor:
    """Logits at the last token [vocabulary] of one pair: every destination reads the stream of this run, with
    the sources whose edge is not kept exchanged for what stands in for them."""
    tokens = pair.clean[:, : int(pair.lengths[0])]
    layout = read_layout(tuple(tokens.shape), None, None, model.device)
    ctx = Context(layout, plan=model.plan, absent=model.spec.absent)
    clean = record(model, tokens, pair.lengths)
    stream = clean.resid[0]
    current, other = [clean.sources.input], [standing_in.input]

    def read(destination: int) -> Tensor:
        x = stream
        for source in range(int(graph.prefix[destination])):
            if not edges[source, destination]:
                x = x + other[source] - current[source]
        return x

    for layer in range(graph.blocks):
        block = model.block(layer)
        attention = block.attention
        norm = block.attn_norm or (lambda x: x)
        parts = []
        for i, letter in enumerate("qkv"):
            inputs = range(*graph.head_destinations(layer, letter).indices(graph.n_destinations))
            raw = [attention.qkv(norm(read(b)))[i] for b in inputs]
            repeat = len(raw) // raw[0].shape[-2] if len(raw) > raw[0].shape[-2] else 1
            parts.append(torch.stack([x[..., j // repeat, :] for j, x in enumerate(raw)], -2))
        q = attention.ready(parts[0], attention.q_norm, layout.positions)
        k = attention.ready(parts[1], attention.k_norm, layout.positions)
        z = attention._mix_explicit(q, k, parts[2], (), None, ctx, layer)
        z = z * post_scale(block, z)
        heads = [head_output(block, h, z[..., h, :]) for h in range(graph.heads)]
        before = stream
        if not block.parallel:
            stream = stream + sum(heads) + constant_output(block)
            current += heads
            other += [head_output(block, h, standing_in.z[layer][..., h, :]) for h in range(graph.heads)]
        x = read(graph.mlp_destination(layer))
        out = block.mlp(x if block.mlp_norm is None else block.mlp_norm(x), ctx, layer)
        out = out if block.mlp_post_norm is None else block.mlp_post_norm(out)
        if block.parallel:
            stream = before + sum(heads) + constant_output(block)
            current += heads
            other += [head_output(block, h, standing_in.z[layer][..., h, :]) for h in range(graph.heads)]
        stream = stream + out
        current.append(out)
        other.append(standing_in.mlp[layer])
    return model.unembed(model.final_norm(read(graph.logits)[:, -1]))[0]
