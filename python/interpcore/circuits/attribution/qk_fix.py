"""QK fix: edges into queries and keys scored through the attention probabilities that they give.

A softmax that is saturated has next to no gradient, however much a corrupted query or key
would move it. So the head's attention is computed again with what the edge puts in, and only what follows it
is linear (Kramar et al. 2024, AtP*, arXiv 2403.00745):

    score = - sum over queries p of g_p . (z'_p - z_p),

with g the gradient at the head's mixed values z, and z' those of the changed query (or of the changed keys).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from interpcore.circuits.attribution.gradients import Points, walk
from interpcore.circuits.graph import Graph, GraphError
from interpcore.model import Model
from interpcore.model.linearize.block import LinearBlock
from interpcore.model.norm import apply

# Bytes of the sources' changed streams that are held at once.
CHUNK = 32 << 20


def check_separate(model: Model) -> None:
    """Refuse models whose heads do not change one by one.

    Raises: GraphError naming the block.
    """
    for d in range(model.plan.n_calls):
        if model.block(d).attention.norm_over_heads:
            raise GraphError(
                f"Block {d} norms the queries of all heads together, so no edge changes one head's alone; "
                "the QK fix is not defined there."
            )


def qk_scores(graph: Graph, points: Points, difference: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Scores of all edges into queries and keys, with what an edge puts in added at every point.

    Args:
        graph: whose edges.
        points: the prompts, linearised.
        difference: what each source writes, corrupted - clean [n_sources, batch, live position, d_model].
    Yields: destinations, and scores [batch, n_sources before them, destination].
    """
    for step, block in walk(points, ("z",)):
        if block is None or "z" not in step.sites:
            continue
        assert step.depth is not None
        head = _Heads(graph, points, block, step.sites["z"][:, 0])
        reach = graph.attention_prefix(step.depth)
        moved = difference[:reach] * graph.shares[:reach, None, None, None].to(difference)
        rows = moved.repeat(1, points.copies, 1, 1)
        size = max(1, CHUNK // (rows[0].numel() * rows.element_size()))
        for letter in "qk":
            found = torch.cat([head.scores(letter, some) for some in rows.split(size)])
            summed = found.unflatten(1, (points.copies, -1)).sum(1)
            yield graph.head_destinations(step.depth, letter), summed.transpose(0, 1)


class _Heads:
    """A layer's attention at all points of a batch (rows, points outermost), and the gradient g at its mixed
    values [batch, last positions, head, d_head]."""

    def __init__(self, graph: Graph, points: Points, block: LinearBlock, g: Tensor):
        self.graph, self.block, self.g = graph, block, g
        self.linear, self.attention = block.attention, block.attention.attention
        start, length = points.batch.start, points.batch.length
        self.positions = torch.arange(start, length, device=g.device)[None]
        self.seen = self.attention.sees(self.positions[:, -g.shape[1] :], length)
        norm = block.attn_norm
        assert norm is not None
        # A norm does not see what it centres away, so this stream serves as well as the one that was read.
        self.stream = norm.normed / norm.rstd[..., None].to(norm.normed.dtype)
        self.before = self.linear.keys[:, : self.linear.keys.shape[1] - self.linear.q.shape[1]]
        self.z = self._mixed(self.linear.q[None], self.linear.keys[None])

    def scores(self, letter: str, moved: Tensor) -> Tensor:
        """Scores of edges [source, batch, destination] that add `moved` [source, batch, position, d_model]
        to what queries or keys read."""
        attention = self.attention
        heads = slice(0, (self.linear.q if letter == "q" else self.linear.keys).shape[2])
        raw = attention.qkv.part(letter, heads)(apply(self.block.block.attn_norm, self.stream + moved))
        norm = attention.q_norm if letter == "q" else attention.k_norm
        changed = attention.ready(raw.unflatten(-1, (heads.stop, -1)), norm, self.positions)
        if letter == "q":
            z = self._mixed(changed, self.linear.keys[None].expand(len(moved), *[-1] * 4))
        else:
            before = self.before[None].expand(len(moved), *[-1] * 4)
            q = self.linear.q[None].expand(len(moved), *[-1] * 4)
            z = self._mixed(q, torch.cat([before, changed], 2))
        found = -(self.g * (z - self.z)).sum((2, 4))  # [source, batch, head]
        shared = letter == "k" and self.graph.grouped
        return found.unflatten(2, (self.graph.kv_heads, -1)).sum(3) if shared else found

    def _mixed(self, q: Tensor, k: Tensor) -> Tensor:
        """z [copies, batch, last positions, head, d_head] of queries and keys."""
        values = self.linear.values[None].expand(len(q), *[-1] * 4)
        return self.attention.mix(q[:, :, -self.g.shape[1] :], k, values, self.seen)
