"""A forward in which every destination has its own input, for many circuits at once.

Destination b of circuit C reads

    x_b = rest + sum over u -> b in C of current_u + sum over other sources u of replacement_u,

where current_u is what u writes in this same run (recursive, as in ACDC and Hanna et al. 2024, arXiv
2403.17806) and the rest is what no node writes. So only sources inside a circuit are ever computed: each one
leaves its difference current_u - replacement_u behind, and x_b is the fully corrupted input plus those of the
edges kept. Heads of blocks that norm attention's output, or queries over all heads at once, are computed
together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.patching.ablated import Ablated
from interpcore.circuits.patching.sources import head_output, post_scale
from interpcore.model import Model
from interpcore.model.attention import Attention
from interpcore.model.norm import Norm, apply


@dataclass(eq=False)
class Watch(ShortRepr):
    """What one circuit's run reads and writes, every node of it; pass one to `run_patched` to have it filled.

    Args:
        read: in order, destinations [n] and what they read before their norm [n, batch, position, d_model],
            each with a gradient where grad mode is on. Positions count from `Ablated.first`; of the last
            tokens alone there is one.
        written: by source, what it writes minus what stands in for it [batch, position, d_model], likewise.
    """

    read: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    written: dict[int, Tensor] = field(default_factory=dict)

    def reads(self, destinations: Tensor, x: Tensor) -> Tensor:
        """Take in what destinations [n] read, x [n, batch, position, d_model]; returns what to go on with."""
        if torch.is_grad_enabled() and not x.requires_grad:
            x.requires_grad_()
        self.read.append((destinations, x))
        return x


def run_patched(
    model: Model,
    graph: Graph,
    ablated: Ablated,
    edges: Tensor,
    *,
    neurons: Tensor | None = None,
    watch: Watch | None = None,
) -> Tensor:
    """Logits at every row's last token under many circuits. Differentiable where grad mode is on.

    Args:
        model: with hand-written blocks, whose graph this is.
        graph: of the edges.
        ablated: the batch with every edge corrupted.
        edges: kept edges of each circuit [circuit, n_sources, n_destinations] bool.
        neurons: dimensions of each source's output that a kept edge passes on [circuit, n_sources, d_model]
            bool; None = all.
        watch: filled by the run of a single circuit, whose nodes are then computed whether it keeps them or
            not.
    Returns: [circuit, batch, vocabulary].
    Raises: GraphError for edges of another graph.
    """
    graph.check_model(model)
    check_over_heads(model, graph)
    if edges.shape[1:] != graph.legal.shape or bool((edges & ~graph.legal).any()):
        raise GraphError(f"Circuits {tuple(edges.shape)} are not of the graph {graph}.")
    if watch is not None and len(edges) != 1:
        raise GraphError(f"One circuit is watched at a time; got {len(edges)}.")
    return _Run(model, graph, ablated, edges, neurons, watch).logits()


def check_over_heads(model: Model, graph: Graph) -> None:
    """Refuse ungrouped keys of heads that are normed together: a copy of one key has no norm of its own."""
    for d in range(model.plan.n_calls):
        if model.block(d).attention.norm_over_heads and graph.kv_heads != model.spec.n_kv_heads:
            raise GraphError(
                f"Block {d} norms the keys of all groups together, so every query head cannot have its own; "
                "use the grouped graph."
            )


class _Written:
    """Differences that a circuit's sources left behind, [n, batch * position * d_model]."""

    def __init__(self, capacity: int, like: Tensor):
        self.sources: list[int] = []
        self._parts = [like.new_empty((0, like.numel()))]
        self._room = None if torch.is_grad_enabled() else like.new_empty((capacity, like.numel()))

    def add(self, source: int, difference: Tensor) -> None:
        """Take in one source's difference [batch, position, d_model]."""
        if self._room is None:
            self._parts.append(difference.reshape(1, -1))
        else:
            self._room[len(self.sources)] = difference.reshape(-1)
        self.sources.append(source)

    def stacked(self) -> Tensor:
        """All of them, in the order of `sources`."""
        if self._room is not None:
            return self._room[: len(self.sources)]
        self._parts = [torch.cat(self._parts)]
        return self._parts[0]

    def narrow(self, cut: Callable[[Tensor], Tensor]) -> None:
        """Keep what `cut` takes of the differences [n, batch * position * d_model], with room for as many."""
        kept = cut(self.stacked())
        self._parts = [kept]
        if self._room is not None:
            self._room = kept.new_empty((len(self._room), kept.shape[1]))
            self._room[: len(kept)] = kept


class _Run:
    def __init__(
        self,
        model: Model,
        graph: Graph,
        ablated: Ablated,
        edges: Tensor,
        neurons: Tensor | None,
        watch: Watch | None,
    ):
        self.model, self.graph, self.ablated, self.neurons, self.watch = (
            model,
            graph,
            ablated,
            neurons,
            watch,
        )
        self.edges = edges.cpu()
        self.used = torch.ones_like(edges[:, :, 0]) if watch else self.edges.any(2)
        self.there = torch.zeros_like(self.used)
        batch, width, d = ablated.attn_in[0].shape
        self.batch, self.d = batch, d
        self.positions = torch.arange(ablated.first, width, device=model.device)[None]
        self.last = (ablated.lengths - 1 - ablated.first).to(model.device)
        self.narrowed = False
        like = self._live(ablated.clean_input)
        self.written = [_Written(int(n), like) for n in self.used.sum(1)]

    def logits(self) -> Tensor:
        """At the last tokens [circuit, batch, vocabulary]."""
        entering = self._live(self.ablated.clean_input) - self._live(self.ablated.sources.input)
        for c in self.used[:, 0].nonzero().flatten().tolist():
            self._write(c, 0, entering)
        for layer in range(self.graph.blocks):
            self._attention(layer)
            self._mlp(layer)
        self._narrow()
        every = torch.ones(len(self.edges), 1, dtype=torch.bool)
        x, _ = self._inputs(every, torch.tensor([self.graph.logits]), self.ablated.out)
        return self.model.unembed(self.model.final_norm(x.squeeze(2)))

    def _live(self, x: Tensor) -> Tensor:
        """The part of [batch, position, ...] that is run: from the first position on, or the last tokens
        alone."""
        x = x[:, self.ablated.first :].expand(self.batch, *[-1] * (x.dim() - 1))
        if not self.narrowed:
            return x
        return x[torch.arange(self.batch, device=x.device), self.last][:, None]

    def _narrow(self) -> None:
        """From here on nothing but the last tokens is read."""
        if self.narrowed:
            return
        rows = torch.arange(self.batch, device=self.last.device)
        shape = self.batch, self.positions.shape[1], self.d

        def cut(stacked: Tensor) -> Tensor:
            return stacked.view(len(stacked), *shape)[:, rows, self.last].flatten(1)

        for written in self.written:
            written.narrow(cut)
        self.narrowed = True

    def _write(self, circuit: int, source: int, difference: Tensor) -> None:
        if self.neurons is not None:
            difference = difference * self.neurons[circuit, source].to(difference)
        self.written[circuit].add(source, difference)
        if self.watch is not None:
            self.watch.written[source] = difference
        self.there[circuit, source] = True

    def _inputs(self, wanted: Tensor, destinations: Tensor, ablated: Tensor) -> tuple[Tensor, Tensor]:
        """What destinations read.

        Args:
            wanted: [circuit, n] bool.
            destinations: indices [n].
            ablated: what they read when every edge is corrupted [batch, position, d_model].
        Returns: x [m, batch, live position, d_model] and (circuit, which of n) of each [m, 2].
        """
        which = wanted.nonzero()
        base = self._live(ablated)
        flat = base.reshape(1, -1)
        parts = [flat[:0]]
        x = None if torch.is_grad_enabled() else flat.new_empty((len(which), flat.shape[1]))
        at = 0
        for c, n in enumerate(wanted.sum(1).tolist()):
            if not n:
                continue
            chosen, written = destinations[wanted[c]], self.written[c]
            kept = self.edges[c][:, chosen][written.sources].T.to(flat)
            if self.graph.beside:
                kept = kept * self.graph.weights[:, chosen][written.sources].T.to(flat)
            part = torch.addmm(flat, kept, written.stacked(), out=None if x is None else x[at : at + n])
            parts.append(part)
            at += n
        x = torch.cat(parts) if x is None else x
        x = x.view(len(which), *base.shape)
        if self.watch is not None:
            x = self.watch.reads(destinations[which[:, 1]], x)
        return x, which

    def _attention(self, layer: int) -> None:
        graph, attention = self.graph, self.model.block(layer).attention
        computed, live = self._heads_to_run(layer)
        top = layer == graph.blocks - 1
        if not bool(computed.any()):
            return self._narrow() if top else None
        groups = computed.unflatten(1, (graph.kv_heads, -1)).any(2)
        pairs = {"q": computed, "k": groups, "v": groups}
        if top:  # every key and value is read, but only by the last query
            parts = self._projected(layer, "kv", pairs, live)
            k = self._ready(attention, attention.k_norm, parts["k"], groups)
            self._narrow()
            parts |= self._projected(layer, "q", pairs, live)
        else:
            parts = self._projected(layer, "qkv", pairs, live)
            k = self._ready(attention, attention.k_norm, parts["k"], groups)
        q = self._ready(attention, attention.q_norm, parts["q"], computed)
        self._mixed(layer, computed, groups, q, k, parts["v"])

    def _heads_to_run(self, layer: int) -> tuple[Tensor, dict[str, Tensor]]:
        """Heads whose output is computed [circuit, head], and which q, k and v inputs keep an edge [circuit,
        head]."""
        graph, block = self.graph, self.model.block(layer)
        needed = self.used[:, graph.head_sources(layer)]
        live = {
            letter: (self.edges[:, :, graph.head_destinations(layer, letter)] & self.there[:, :, None]).any(1)
            for letter in "qkv"
        }
        if self.watch is not None:
            live = {letter: torch.ones_like(x) for letter, x in live.items()}
        per_group = graph.heads // graph.kv_heads
        moved = live["q"] | (live["k"] | live["v"]).repeat_interleave(per_group, 1)
        if not self.ablated.consistent:
            moved = torch.ones_like(moved)
        if block.attn_post_norm is None and not block.attention.norm_over_heads:
            return needed & moved, live
        together = (needed.any(1) & moved.any(1))[:, None]
        return together.expand_as(needed), live

    def _projected(
        self, layer: int, letters: str, pairs: dict[str, Tensor], live: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Queries, keys or values of (circuit, head) pairs.

        Args:
            letters: of "qkv".
            pairs: those wanted [circuit, head], heads as the graph counts them.
            live: those with an input of their own; the others read the corrupted one.
        Returns: by letter [n, batch, position, d_head], before head norms and rotary.
        """
        block = self.model.block(layer)
        columns = [self.graph.head_destinations(layer, letter) for letter in letters]
        destinations = torch.cat([torch.arange(part.start, part.stop) for part in columns])
        wanted = torch.cat([pairs[letter] & live[letter] for letter in letters], 1)
        x, which = self._inputs(wanted, destinations, self.ablated.attn_in[layer])
        normed = apply(block.attn_norm, x)
        found, start = {}, 0
        for letter in letters:
            corrupted = self._live(getattr(self.ablated, letter)[layer]).movedim(2, 0)
            heads, in_model = pairs[letter].shape[1], len(corrupted)
            shared = heads // in_model
            place = (torch.arange(heads) // shared).expand_as(pairs[letter]).clone()
            parts, at = [corrupted], in_model
            for head in range(heads):
                rows = (which[:, 1] == start + head).nonzero().flatten()
                if len(rows):
                    projection = block.attention.qkv.part(letter, slice(head // shared, head // shared + 1))
                    parts.append(projection(normed[rows]))
                    place[which[rows, 0], head] = torch.arange(at, at + len(rows))
                    at += len(rows)
            found[letter] = torch.cat(parts)[place[pairs[letter]].to(corrupted.device)]
            start += heads
        return found

    def _ready(self, attention: Attention, norm: Norm | None, x: Tensor, pairs: Tensor) -> Tensor:
        """Queries or keys x [n, batch, position, d_head] of (circuit, head) pairs after norm and rotary."""
        positions = self.positions if not self.narrowed else (self.last + self.ablated.first)[:, None]
        if norm is None or not attention.norm_over_heads:
            return attention.ready(x[..., None, :], norm, positions)[..., 0, :]
        together = x.unflatten(0, (int(pairs.any(1).sum()), -1)).movedim(1, -2)
        return attention.ready(together, norm, positions).movedim(-2, 1).flatten(0, 1)

    def _before(self, layer: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the positions before the first live one [group, batch, position, d_head]."""
        attention, first = self.model.block(layer).attention, self.ablated.first
        k, v = (part[layer][:, :first] for part in (self.ablated.k, self.ablated.v))
        k = attention.ready(k, attention.k_norm, torch.arange(first, device=k.device)[None])
        return k.movedim(2, 0), v.movedim(2, 0)

    def _mixed(self, layer: int, computed: Tensor, groups: Tensor, q: Tensor, k: Tensor, v: Tensor) -> None:
        """Mix values, and leave behind what the circuits' heads write."""
        graph, block = self.graph, self.model.block(layer)
        pairs = computed.nonzero()
        of_group = torch.full(groups.shape, -1)
        of_group[groups] = torch.arange(int(groups.sum()))
        kv = of_group[pairs[:, 0], pairs[:, 1] // (graph.heads // graph.kv_heads)].to(k.device)
        k, v = k[kv], v[kv]
        if self.ablated.first:
            before = self._before(layer)
            model_group = (pairs[:, 1] // (graph.heads // self.model.spec.n_kv_heads)).to(k.device)
            k, v = (torch.cat([b[model_group], x], 2) for b, x in zip(before, (k, v), strict=True))
        queries = (self.last + self.ablated.first)[:, None] if self.narrowed else self.positions
        seen = block.attention.sees(queries, k.shape[2])
        q, k, v = (x[..., None, :] for x in (q, k, v))
        z = block.attention.mix(q, k, v, seen, pairs[:, 1:].to(k.device))[..., 0, :]
        if block.attn_post_norm is not None:
            together = z.unflatten(0, (-1, graph.heads)).movedim(1, -2)
            z = (together * post_scale(block, together)).movedim(-2, 1).flatten(0, 1)
        needed = self.used[:, graph.head_sources(layer)]
        standing_in = self._live(self.ablated.sources.z[layer])
        for head in range(graph.heads):
            rows = ((pairs[:, 1] == head) & needed[pairs[:, 0], head]).nonzero().flatten()
            if len(rows):
                written = head_output(block, head, z[rows.to(z.device)] - standing_in[:, :, head])
                for row, difference in zip(rows.tolist(), written, strict=True):
                    self._write(int(pairs[row, 0]), graph.head_sources(layer).start + head, difference)

    def _mlp(self, layer: int) -> None:
        graph, block = self.graph, self.model.block(layer)
        source, destination = graph.mlp_source(layer), graph.mlp_destination(layer)
        wanted = self.used[:, source]
        if self.ablated.consistent and self.watch is None:
            wanted = wanted & (self.edges[:, :, destination] & self.there).any(1)
        if not bool(wanted.any()):
            return
        x, which = self._inputs(wanted[:, None], torch.tensor([destination]), self.ablated.mlp_in[layer])
        difference = block.mlp_branch(x) - self._live(self.ablated.sources.mlp[layer])
        for row, c in enumerate(which[:, 0].tolist()):
            self._write(c, source, difference[row])
