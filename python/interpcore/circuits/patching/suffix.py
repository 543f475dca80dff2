"""The model from one layer on, for many copies of a batch whose earlier layers and positions are the clean
run's."""

from __future__ import annotations

import torch
from torch import Tensor

from interpcore.circuits.graph import Graph
from interpcore.circuits.patching.near import Halves, blocks_near
from interpcore.circuits.patching.sources import Record
from interpcore.model import Model
from interpcore.model.norm import apply


class Suffix:
    """Runs changed streams up to the logits at each row's last token.

    Streams are [copies, batch, position, d_model] with positions from `first` on; what comes before is taken
    from the clean run, so a change must not reach back. The last layer (with those beside it) runs at the
    last tokens alone: streams that leave it have one position.

    Args:
        model: the decoder.
        clean: the batch's clean run.
        halves: weights in bfloat16 for products near the clean run; None for products as they are.
    """

    def __init__(self, model: Model, clean: Record, halves: Halves | None = None):
        self.model, self.clean, self.graph = model, clean, Graph.of(model)
        depths = range(model.plan.n_calls)
        self.blocks = (
            [model.block(d) for d in depths]
            if halves is None
            else blocks_near(model, clean, halves, self.ends)
        )
        self.last = (clean.lengths - 1).to(model.device)
        self.width = clean.resid[0].shape[1]
        positions = torch.arange(self.width, device=model.device)[None]
        self.q = [model.block(d).attention.rotated(clean.q[d], positions) for d in depths]
        self.k = [model.block(d).attention.rotated(clean.k[d], positions) for d in depths]

    @property
    def top(self) -> int:
        """The last layer."""
        return self.graph.blocks - 1

    def ends(self, layer: int) -> bool:
        """Whether a layer is the last one, or stands beside it."""
        return self.graph.exit(layer) == self.top

    def positions(self, first: int) -> Tensor:
        """[1, position] from `first` on."""
        return torch.arange(first, self.width, device=self.last.device)[None]

    def queries(self, layer: int, first: int) -> Tensor:
        """Positions at which a layer is run: [1, position], the last tokens [batch, 1] in the last layer."""
        return self.last[:, None] if self.ends(layer) else self.positions(first)

    def at_last(self, x: Tensor, first: int) -> Tensor:
        """x [copies, batch, position, ...] of positions from `first` on at the last tokens [copies, batch, 1,
        ...]."""
        rows = torch.arange(x.shape[1], device=x.device)
        return x[:, rows, self.last - first][:, :, None]

    def logits(self, layer: int, stream: Tensor, first: int) -> Tensor:
        """Logits [copies, batch, vocabulary] of the stream entering a layer; the number of layers: the final
        norm."""
        entering = stream
        for at in range(layer, self.top + 1):
            if self.graph.entry(at) == at:
                entering = stream
                stream = self.at_last(stream, first) if self.ends(at) else stream
            own = self.at_last(entering, first) if self.ends(at) else entering
            stream = self.graph.behind(at, stream, own, self._block(at, entering, first))
        return self.model.unembed(self.model.final_norm(stream.squeeze(2)))

    def _block(self, layer: int, x: Tensor, first: int) -> Tensor:
        block = self.blocks[layer]
        attention = block.attention
        normed = apply(block.attn_norm, x)
        if not self.ends(layer):
            q, k, v = attention.qkv(normed)
        else:
            heads, groups = slice(0, self.model.spec.n_heads), slice(0, self.model.spec.n_kv_heads)
            x = self.at_last(x, first)
            q = attention.qkv.part("q", heads)(self.at_last(normed, first))
            k, v = (attention.qkv.part(letter, groups)(normed) for letter in "kv")
            q, k, v = (part.unflatten(-1, (-1, self.model.spec.d_head)) for part in (q, k, v))
        queries = self.queries(layer, first)
        q = attention.ready(q, attention.q_norm, queries)
        k = attention.ready(k, attention.k_norm, self.positions(first))
        k = with_prefix(self.k[layer][:, :first], k)
        v = with_prefix(self.clean.v[layer][:, :first], v)
        z = attention.mix(q, k, v, attention.sees(queries, self.width))
        return block.after_attention(x, attention.out(z.flatten(-2)))


def with_prefix(clean: Tensor, own: Tensor) -> Tensor:
    """Keys or values [copies, batch, position, kv_head, d_head] after those of the clean run's first
    positions [batch, position, kv_head, d_head]."""
    return torch.cat([clean.expand(len(own), *clean.shape), own], 2) if clean.shape[1] else own
