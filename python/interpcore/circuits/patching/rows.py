"""The streams that single corrupted edges, nodes or neurons leave behind, for exact patching to run on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from interpcore.circuits.graph import Graph
from interpcore.circuits.patching.near import Halves
from interpcore.circuits.patching.sources import Record, Sources, head_output
from interpcore.circuits.patching.suffix import Suffix, with_prefix
from interpcore.model import Model
from interpcore.model.norm import apply
from interpcore.ops import product


class Change(NamedTuple):
    """Changed streams.

    Args:
        layer: the layer that they enter.
        first: position of their first column.
        stream: [copies, batch, position, d_model]; of the last tokens alone after the last layer.
        source: which of the sources asked for each copy belongs to [copies] int64.
        column: destination, or neuron, of each copy [copies] int64.
    """

    layer: int
    first: int
    stream: Tensor
    source: Tensor
    column: Tensor


class Rows:
    """Changes of one batch.

    Args:
        model: the decoder.
        graph: of the model.
        clean: the batch's clean run.
        standing_in: what stands in for every source.
        first: first position that can change.
        halves: as in `Suffix`.
    """

    def __init__(
        self,
        model: Model,
        graph: Graph,
        clean: Record,
        standing_in: Sources,
        first: int,
        halves: Halves | None = None,
    ):
        self.model, self.graph, self.clean, self.first = model, graph, clean, first
        self.suffix = Suffix(model, clean, halves)
        self.blocks = self.suffix.blocks
        self.delta = (standing_in - clean.sources).map(lambda x: x[:, first:])
        # A first token attends to itself alone, so no query or key changes what is mixed there.
        self.first_qk = max(first, min(1, int(clean.lengths.min()) - 1))

    @property
    def tokens(self) -> int:
        """Tokens of one copy."""
        return len(self.clean.lengths) * (self.suffix.width - self.first)

    def changed(self, source: int) -> Tensor:
        """What corrupting a source adds to what it writes [batch, position, d_model]."""
        layer = int(self.graph.source_layers[source])
        if layer < 0:
            return self.delta.input
        if source == self.graph.mlp_source(layer):
            return self.delta.mlp[layer]
        head = source - self.graph.head_sources(layer).start
        return head_output(self.model.block(layer), head, self.delta.z[layer][:, :, head])

    def nodes(self, source: int) -> Iterator[Change]:
        """A source corrupted on all its edges."""
        yield self._after(source, self.changed(source)[None], torch.zeros(1, dtype=torch.int64))

    def neurons(self, source: int, tokens: int) -> Iterator[Change]:
        """Each dimension of what a source writes corrupted alone, about `tokens` tokens at a time."""
        changed = self.changed(source)
        d = changed.shape[-1]
        for dimensions in torch.arange(d).split(max(1, tokens // self.tokens)):
            chosen = torch.zeros(len(dimensions), 1, 1, d, dtype=changed.dtype, device=changed.device)
            chosen[torch.arange(len(dimensions)), 0, 0, dimensions] = 1
            yield self._after(source, changed * chosen, dimensions)

    def _after(self, source: int, changed: Tensor, column: Tensor) -> Change:
        """The streams of a source whose output changes by [copies, batch, position, d_model]."""
        layer = int(self.graph.source_layers[source])
        enters = 0 if layer < 0 else self.graph.exit(layer) + 1
        if layer < 0:
            stream = self._live(self.clean.resid[0]) + changed
        elif source == self.graph.mlp_source(layer) or self.graph.parallel:
            behind = self._live(self.clean.resid[enters]) + changed * self.graph.share(layer)
            stream = self._cut(layer, behind, self.first)
        else:
            middle = self._cut(layer, self._live(self.clean.mlp_in[layer]) + changed, self.first)
            stream = self._behind(layer, middle + self.blocks[layer].mlp_branch(middle), self.first)
        return Change(enters, self.first, stream, torch.zeros(len(column), dtype=torch.int64), column)

    def edges(self, stage: int, sources: Sequence[int], wanted: Tensor) -> Iterator[Change]:
        """Edges into one layer; the number of layers stands for `logits`.

        Args:
            stage: the layer.
            sources: indices.
            wanted: which of their edges [source, n_destinations] bool.
        """
        graph = self.graph
        written = torch.stack([self.changed(source) for source in sources])

        def read(destination: int) -> Tensor:
            """What of it a destination reads."""
            if not graph.beside:
                return written
            return written * graph.weights[list(sources), destination, None, None, None].to(written)

        if stage == graph.blocks:
            chosen = wanted[:, graph.logits].nonzero().flatten()
            if len(chosen):
                x = self.suffix.at_last(self._live(self.clean.resid[-1])[None], self.first)
                stream = x + self.suffix.at_last(read(graph.logits)[chosen], self.first)
                yield Change(stage, self.first, stream, chosen, torch.full_like(chosen, graph.logits))
            return
        attn_raw = self.blocks[stage].attention.out(self.clean.z[stage].flatten(-2))
        yield from self._into_mlp(stage, read(graph.mlp_destination(stage)), wanted, attn_raw)
        heads = slice(graph.head_destinations(stage, "q").start, graph.mlp_destination(stage))
        if bool(wanted[:, heads].any()):
            yield from self._into_heads(stage, read(heads.start), wanted, attn_raw)

    def _into_mlp(self, layer: int, delta: Tensor, wanted: Tensor, attn_raw: Tensor) -> Iterator[Change]:
        block, destination = self.blocks[layer], self.graph.mlp_destination(layer)
        chosen = wanted[:, destination].nonzero().flatten()
        if not len(chosen):
            return
        read = self._cut(layer, self._live(self.clean.mlp_in[layer])[None], self.first)
        middle = self.clean.resid[layer] + apply(block.attn_post_norm, attn_raw)
        middle = self._cut(layer, self._live(middle)[None], self.first)
        own = middle + block.mlp_branch(read + self._cut(layer, delta[chosen], self.first))
        stream, enters = self._behind(layer, own, self.first), self.graph.exit(layer) + 1
        yield Change(enters, self.first, stream, chosen, torch.full_like(chosen, destination))

    def _into_heads(self, layer: int, delta: Tensor, wanted: Tensor, attn_raw: Tensor) -> Iterator[Change]:
        block = self.blocks[layer]
        normed = apply(block.attn_norm, self._live(self.clean.resid[layer]) + delta)
        parts = dict(zip("qkv", block.attention.qkv(normed), strict=True))
        for letter, first in (("q", self.first_qk), ("k", self.first_qk), ("v", self.first)):
            part = parts[letter][:, :, first - self.first :] if letter == "q" else parts[letter]
            entering = self._cut(layer, self.clean.resid[layer][None, :, first:], first)
            raw = self._cut(layer, attn_raw[None, :, first:], first)
            where = self.graph.head_destinations(layer, letter)
            shared = (where.stop - where.start) // part.shape[-2]
            for j in range(where.stop - where.start):
                chosen = wanted[:, where.start + j].nonzero().flatten()
                if not len(chosen):
                    continue
                own = part[:, :, :, j // shared]
                own = own if len(chosen) == len(own) else own[chosen]
                written = raw + self._written(layer, letter, j, own, first)
                stream = self._behind(layer, block.after_attention(entering, written), first)
                enters = self.graph.exit(layer) + 1
                yield Change(enters, first, stream, chosen, torch.full_like(chosen, where.start + j))

    def _behind(self, layer: int, own: Tensor, first: int) -> Tensor:
        """The stream behind a layer and those beside it, where it gives `own` [copies, batch, position,
        d_model], of positions from `first` on."""
        if self.graph.entry(layer) == self.graph.exit(layer):
            return own
        attention, norm = self.blocks[layer].attention, self.blocks[layer].attn_post_norm
        written = apply(norm, attention.out(self.clean.z[layer].flatten(-2))) + self.clean.sources.mlp[layer]
        clean = self.clean.resid[layer] + written, self.clean.resid[self.graph.exit(layer) + 1]
        before, stream = (self._cut(layer, x[None, :, first:], first) for x in clean)
        return self.graph.behind(layer, stream, before, own)

    def _written(self, layer: int, letter: str, j: int, own: Tensor, first: int) -> Tensor:
        """What attention's projection writes more [copies, batch, query, d_model] when destination j of a
        letter has its own q, k or v [copies, batch, position, d_head], before head norms."""
        attention, suffix = self.blocks[layer].attention, self.suffix
        heads = self.graph.heads
        per = 1 if letter == "q" else heads // self.graph.kv_heads
        if attention.norm_over_heads and letter != "v":
            affected = slice(0, heads)
        else:
            affected = slice(j * per, (j + 1) * per)
        groups = heads // self.model.spec.n_kv_heads
        kv = slice(affected.start // groups, (affected.stop - 1) // groups + 1)
        queries = suffix.queries(layer, first)
        q, k, v = (
            suffix.q[layer][:, first:, affected],
            suffix.k[layer][:, :, kv],
            self.clean.v[layer][:, :, kv],
        )
        q, k, v = q[None], k[None], v[None]
        copies = len(own)
        if letter == "q":
            q = self._own_heads(layer, "q", j, own, first)
        elif letter == "k":
            own = self._own_heads(layer, "k", j, own, self.first)
            k = with_prefix(suffix.k[layer][:, : self.first, kv], own)
        else:
            v = with_prefix(self.clean.v[layer][:, : self.first, kv], own[..., None, :])
        q = self._cut(layer, q, first)
        q, k, v = (x.expand(copies, -1, -1, -1, -1) for x in (q, k, v))
        z = attention.mix(q, k, v, attention.sees(queries, suffix.width), affected)
        clean = self._cut(layer, self.clean.z[layer][None, :, first:, affected], first)
        d_head = z.shape[-1]
        weight = attention.out.weight[affected.start * d_head : affected.stop * d_head]
        return product((z - clean).flatten(-2), weight)

    def _own_heads(self, layer: int, letter: str, j: int, own: Tensor, first: int) -> Tensor:
        """Queries or keys of one head after norm and rotary [copies, batch, position, head, d_head]; of all
        heads where they are normed together."""
        attention = self.blocks[layer].attention
        norm = attention.q_norm if letter == "q" else attention.k_norm
        if attention.norm_over_heads and norm is not None:
            normed = apply(self.blocks[layer].attn_norm, self.clean.resid[layer][:, first:])
            clean = attention.qkv(normed)["qkv".index(letter)]
            own = torch.cat(
                [
                    clean[None, :, :, :j].expand(len(own), -1, -1, -1, -1),
                    own[..., None, :],
                    clean[None, :, :, j + 1 :].expand(len(own), -1, -1, -1, -1),
                ],
                -2,
            )
        else:
            own = own[..., None, :]
        return attention.ready(own, norm, self.suffix.positions(first))

    def _live(self, x: Tensor) -> Tensor:
        return x[:, self.first :]

    def _cut(self, layer: int, x: Tensor, first: int) -> Tensor:
        return self.suffix.at_last(x, first) if self.suffix.ends(layer) else x
