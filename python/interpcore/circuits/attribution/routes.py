"""Information flow routes: how near each source's output lies to what a destination reads.

On the clean prompt alone, per destination with input x and position, proximity(u) = max(0, |x| - |x - u|) in
the L1 norm, as a share of the sum over u; then the mean over positions (Ferrando and Voita 2024, arXiv
2403.00824). No metric enters.
"""

from __future__ import annotations

import torch
from torch import Tensor

from interpcore.circuits.attribution.batches import LiveBatch, written
from interpcore.circuits.graph import Graph
from interpcore.circuits.patching.sources import record


def route_scores(batch: LiveBatch, graph: Graph) -> Tensor:
    """Shares of proximity of each example [batch, n_sources, n_destinations], each destination's adding up
    to 1 where any source is near."""
    with torch.no_grad():
        clean = record(batch.model, batch.pairs.clean, batch.pairs.lengths)
        outputs = written(batch.model, clean.sources)
        scores = torch.zeros(len(batch.pairs), *graph.legal.shape, dtype=outputs.dtype, device=outputs.device)
        for layer in range(graph.blocks):
            first = layer * graph.per_layer
            heads = slice(first, first + graph.per_layer - 1)
            reach = graph.attention_prefix(layer)
            shared = outputs[:reach] * graph.shares[:reach, None, None, None].to(outputs)
            scores[:, :reach, heads] = _shares(shared, clean.resid[layer])[..., None]
            reach = graph.mlp_prefix(layer)
            mlp = graph.mlp_destination(layer)
            read = outputs[:reach] * graph.weights[:reach, mlp, None, None, None].to(outputs)
            scores[:, :reach, mlp] = _shares(read, clean.mlp_in[layer])
        shared = outputs * graph.shares[:, None, None, None].to(outputs)
        scores[:, :, graph.logits] = _shares(shared, clean.resid[-1])
    return scores


def _shares(outputs: Tensor, read: Tensor) -> Tensor:
    """Mean over positions of each source's share [batch, source], of outputs [source, batch, position,
    d_model] and what is read [batch, position, d_model]."""
    distance = torch.stack(
        [(outputs[:, b] - x).abs_().sum(-1) for b, x in enumerate(read)], 1
    )  # [source, batch, position]
    near = (read.abs().sum(-1) - distance).clamp(min=0)
    return (near / near.sum(0).clamp(min=torch.finfo(near.dtype).tiny)).mean(2).T
