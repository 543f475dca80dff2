"""The run in which every edge is corrupted: what each destination then reads, and the heads' q, k and v
there.

For patching it is the corrupted prompt's own run; for zero and mean no run of the model is like it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.graph import Graph
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.sources import (
    Record,
    Sources,
    check_blocks,
    constant_output,
    heads_output,
    record,
)
from interpcore.model import Model
from interpcore.model.norm import apply


@dataclass(frozen=True, eq=False)
class Ablated(ShortRepr):
    """Every edge corrupted, on one batch of pairs.

    Args:
        clean_input: the clean prompts' source `input` [batch, position, d_model].
        sources: what stands in for every source.
        attn_in, mlp_in: per layer, what heads and MLP read [batch, position, d_model].
        out: what the final norm reads [batch, position, d_model].
        q, k, v: per layer, of every head [batch, position, heads, d_head], before their norms and rotary.
        lengths: real tokens per row [batch] int64.
        first: positions before it are the clean run's, whatever is patched.
        consistent: whether a node whose inputs are all corrupted writes what stands in for it (patching).
    """

    clean_input: Tensor
    sources: Sources
    attn_in: tuple[Tensor, ...]
    mlp_in: tuple[Tensor, ...]
    out: Tensor
    q: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    lengths: Tensor
    first: int
    consistent: bool


def ablate(model: Model, pairs: Pairs, intervention: Intervention, clean: Record | None = None) -> Ablated:
    """Corrupt every edge of a batch of pairs.

    Args:
        model: with hand-written blocks.
        pairs: the batch.
        intervention: what stands in for the sources.
        clean: the clean prompts' record, where there is one already.
    Raises: GraphError for blocks whose edges are not defined.
    """
    check_blocks(model)
    graph = Graph.of(model)
    clean = record(model, pairs.clean, pairs.lengths) if clean is None else clean
    sources = intervention.sources(model, pairs, clean)
    attn_in: list[Tensor] = []
    mlp_in: list[Tensor] = []
    q: list[Tensor] = []
    k: list[Tensor] = []
    v: list[Tensor] = []
    with torch.no_grad():
        entering = stream = clean.resid[0] - clean.sources.input + sources.input
        for d in range(graph.blocks):
            block = model.block(d)
            entering = stream if graph.entry(d) == d else entering
            attn_in.append(entering)
            parts = block.attention.qkv(apply(block.attn_norm, entering))
            for into, part in zip((q, k, v), parts, strict=True):
                into.append(part)
            middle = entering + heads_output(block, sources.z[d]) + constant_output(block)
            mlp_in.append(entering if block.parallel else middle)
            stream = graph.behind(d, stream, entering, middle + sources.mlp[d])
    return Ablated(
        clean.sources.input,
        sources,
        tuple(attn_in),
        tuple(mlp_in),
        stream,
        tuple(q),
        tuple(k),
        tuple(v),
        pairs.lengths,
        intervention.first(pairs),
        intervention.name == "patching",
    )
