"""The linearised decoder: one forward's local linear maps, walked down (cotangents) or up (tangents).

Jacobians at every depth, edge attribution, integrated gradients and steering effects are reducers over these
walks. Autograd over the same forward is what the tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.adapter import ConcatAdapter
from interpcore.model.block import Block
from interpcore.model.cache import Cache, CacheWriter
from interpcore.model.call import RESID
from interpcore.model.combine import Combine
from interpcore.model.context import Context
from interpcore.model.decoder import Model
from interpcore.model.linearize.block import LinearBlock
from interpcore.model.linearize.edits import pull, push
from interpcore.model.linearize.mlp import LinearMLP
from interpcore.model.linearize.norm import LinearNorm
from interpcore.model.linearize.rules import EXACT, Rules
from interpcore.model.norm import Norm
from interpcore.model.prompts import read_prompts
from interpcore.model.sites import Edit, Tap, merged, resolve
from interpcore.model.state import State

LinearModule = LinearBlock | LinearNorm | ConcatAdapter | State | Combine


@dataclass(frozen=True, eq=False)
class Step(ShortRepr):
    """What a walk yields at a residual depth; its tensors are valid until the next step.

    Args:
        depth: residual depth d of `resid`; None for the token embedding, the last step down.
        resid: cotangent (down) or tangent (up) of resid[d] after its edits [batch, vector, position,
            d_model].
        sites: cotangents of call d's sites, of those asked for, each after its edits; and of `q_raw`,
            `k_raw` and `v_raw`, what the projections give, before edits and norms of queries and keys.
    """

    depth: int | None
    resid: Tensor
    sites: Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Linearization(ShortRepr):
    """A forward with its local linear maps. Positions are those of its tokens; cached ones before are
    constants.

    Args:
        model: the decoder, under the plan that ran.
        ctx: taps, edits and kept values of the forward.
        modules: linearised module of each call of the plan.
        output: resid[D] [batch, position, d_model].
        rules: local rules.
    """

    model: Model
    ctx: Context
    modules: Sequence[LinearModule]
    output: Tensor
    rules: Rules

    @property
    def n_positions(self) -> int:
        """Positions of its tokens."""
        return self.ctx.layout.n_new

    @property
    def taps(self) -> Mapping[Tap, Tensor]:
        """Value of each tap, as in `Output`."""
        return self.ctx.values

    def with_precision(self, precision: str) -> Linearization:
        """The same linear maps with the blocks' products in another precision, without another forward."""
        modules: list[LinearModule] = [
            m.with_precision(precision) if isinstance(m, LinearBlock) else m for m in self.modules
        ]
        return replace(self, modules=modules, rules=replace(self.rules, precision=precision))

    def reverse(
        self,
        cotangent: Tensor,
        *,
        depth: int = -1,
        stop: int = 0,
        sites: Sequence[str] = (),
        embed: bool = False,
        first_only: bool = False,
        mean: bool = False,
    ) -> Iterator[Step]:
        """Walk down from a residual depth.

        Args:
            cotangent: of resid[depth], at the last positions [batch, vector, last positions, d_model].
            depth: where it applies.
            stop: the last depth to reach.
            sites: sites of each call whose cotangents the steps carry (q, k, v, z, mlp_pre, ...).
            embed: end with the token embedding.
            first_only: at `stop`, only the first position's cotangent is wanted (not with `embed`).
            mean: at `stop`, only the mean over positions is wanted (not with `embed`), which costs less; the
                step then has one position.
        Yields: `Step` at depth, depth - 1, ..., stop, then the embedding.
        """
        plan = self.model.plan
        depth, stop = plan.depth(depth), plan.depth(stop)
        yield Step(depth, cotangent, {})
        if depth == stop and not embed:
            return
        # Cotangents of the streams' present values, at their last positions.
        streams = {self._entry_stream(depth): pull(self.ctx, "resid", depth, cotangent)}
        at = depth
        for index in reversed(range(plan.first_call(depth))):
            call, module = plan.calls[index], self.modules[index]
            total = _sum([streams.pop(name) for name in call.writes if name in streams])
            if isinstance(module, LinearBlock):
                at -= 1
                last = at == stop and not embed
                seen: dict[str, Tensor] | None = {} if sites else None
                # What later calls of a parallel range read of the stream that this one reads.
                later, first = streams.pop(call.reads[0], None), first_only and last
                averaged = mean and last
                out = (
                    self._nothing(cotangent)
                    if total is None
                    else module.vjp(total, seen, first and later is None, averaged and later is None)
                )
                out = _plus(out, later)[:, :, : 1 if first else None]
                if averaged and out.shape[2] > 1:
                    out = out.mean(2, keepdim=True)
                del total  # not to be held while the step is looked at
                yield Step(
                    at, out, {} if seen is None else {name: seen[name] for name in sites if name in seen}
                )
                if last:
                    return
                parts = [pull(self.ctx, "resid", at, out)]
            else:
                parts = [] if total is None else _module_vjp(module, total, len(call.reads))
            for name, part in zip(call.reads, parts, strict=False):
                streams[name] = _plus(part, streams.get(name))
        if embed:
            g = streams.get(RESID)
            yield Step(None, self._nothing(cotangent) if g is None else g * self.model.spec.embed_scale, {})

    def reverse_together(self, cotangents: Sequence[Tensor], **how: Any) -> Iterator[tuple[Step, ...]]:
        """Walk down with several blocks of vectors in step: what a block call forms for all is formed once.

        Args:
            cotangents: of each block of vectors, as `reverse` takes them.
            how: as `reverse` takes it.
        Yields: the steps of all of them at a depth.
        """
        folded = [
            b.mlp.folded for b in self.modules if isinstance(b, LinearBlock) and isinstance(b.mlp, LinearMLP)
        ]
        try:
            for each in folded:
                each.coming = sum(block.shape[1] for block in cotangents)
            yield from zip(*(self.reverse(block, **how) for block in cotangents), strict=True)
        finally:
            for each in folded:
                each.coming, each.matrices = 0, None

    def forward_mode(self, tangents: Mapping[int | None, Tensor]) -> Iterator[Step]:
        """Walk up, taking in vectors at several depths.

        Args:
            tangents: by residual depth (None: the token embedding), tangents of resid[depth] after its edits
                [batch, vector, position, d_model]. Vectors of deeper entries are appended behind earlier
                ones'.
        Yields: `Step` at every depth from the first entry to D, holding all vectors taken in so far.
        """
        plan = self.model.plan
        entries = {None if d is None else plan.depth(d): t for d, t in tangents.items()}
        first = 0 if None in entries else min(d for d in entries if d is not None)
        streams: dict[str, Tensor] = {}
        if None in entries:
            streams[RESID] = entries[None] * self.model.spec.embed_scale
        at, start = first, 0 if None in entries else plan.first_call(first)
        for index in range(start, len(plan.calls)):
            call, module = plan.calls[index], self.modules[index]
            if isinstance(module, LinearBlock):
                t = self._taken_in(at, streams, call.reads[0], entries)
                yield Step(at, t, {})
                out = module.jvp(t)
                at += 1
            else:
                out = _module_jvp(module, [streams.get(name) for name in call.reads])
            for name in call.writes:
                streams[name] = out
        yield Step(at, self._taken_in(at, streams, RESID, entries), {})

    def _taken_in(
        self, depth: int, streams: dict[str, Tensor], name: str, entries: Mapping[int | None, Tensor]
    ) -> Tensor:
        """Tangent of resid[depth] after its edits, with the vectors that enter there appended."""
        new = entries.get(depth)
        if name in streams:
            streams[name] = push(self.ctx, "resid", depth, streams[name])
        if new is None:
            return streams[name]
        old = max((t.shape[1] for t in streams.values()), default=0)
        before = streams.get(name, new.new_zeros(new.shape[0], old, *new.shape[2:]))
        for other, t in streams.items():
            streams[other] = torch.cat([t, t.new_zeros(t.shape[0], new.shape[1], *t.shape[2:])], 1)
        streams[name] = torch.cat([before, new], 1)
        return streams[name]

    def _entry_stream(self, depth: int) -> str:
        return RESID if depth == self.model.plan.n_calls else self.model.plan.blocks[depth].reads[0]

    def _nothing(self, like: Tensor) -> Tensor:
        return like.new_zeros(*like.shape[:2], self.n_positions, like.shape[3])


def linearize(
    model: Model,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    *,
    cache: Cache | None = None,
    edits: Sequence[Edit] = (),
    taps: Sequence[Tap] = (),
    rules: Rules = EXACT,
) -> Linearization:
    """Run a forward of tokens [batch, position] and keep its local linear maps.

    Args:
        model, tokens, attention_mask, cache, edits, taps: as in `Model.forward`; the walk covers `tokens`,
            and what the cache holds is constant. Rows must have equal numbers of real tokens.
        rules: what each nonlinear part passes on.
    Returns: a `Linearization`; tapped values are in its `taps`.
    Raises: ValueError as `Model.forward`, and for rows of different lengths.
    """
    if not isinstance(model, Model):
        raise Refused(
            "Only models with hand-written blocks can be linearised; differentiate this one with autograd."
        )
    with torch.no_grad():
        start = None if cache is None else cache.start(len(tokens))
        layout, packed = read_prompts(tokens, attention_mask, start, model.spec, model.device)
        if layout.ragged:
            raise ValueError("Rows to linearise have equal numbers of real tokens; group them by length.")
        if layout.uniform_start is None and any(edit.site == "scores" for edit in edits):
            raise ValueError(
                "Edits of scores need rows with equal numbers of cached tokens; run the rows one by one."
            )
        edits = merged(edits, model.plan, model.spec.absent)
        resolved = resolve(edits, layout)
        ctx = Context(layout, taps, resolved, plan=model.plan, absent=model.spec.absent, record=True)
        writer = None
        if cache is not None:
            cache.check(model.identity, model.plan, edits, layout)
            writer = CacheWriter(cache, layout)
        blocks: list[LinearBlock] = []

        def linear(depth: int) -> None:
            """What a block kept becomes its derivative at once, so that no two blocks' values are held."""
            blocks.append(LinearBlock.at(model.block(depth), ctx, depth, rules))
            del ctx.kept[depth]

        ctx.recorded = linear  # type: ignore[method-assign]
        output = model.run_plan(model.embed(packed, ctx), ctx, writer)
        del ctx.recorded  # which refers to the blocks, and they to the context
        modules = _linear_modules(model, ctx, blocks, rules)
        ctx.kept.clear()
    return Linearization(model, ctx, modules, output, rules)


def _linear_modules(
    model: Model, ctx: Context, blocks: Sequence[LinearBlock], rules: Rules
) -> list[LinearModule]:
    """What each call of the plan is in the linearised decoder, given its blocks in order."""
    left = iter(blocks)
    modules: list[LinearModule] = []
    for index, call in enumerate(model.plan.calls):
        module = model.modules[call.module]
        if isinstance(module, Block):
            modules.append(next(left))
        elif isinstance(module, Norm):
            modules.append(LinearNorm.at(module, ctx.kept["call", index]["input"], rules.norm == "frozen"))
        else:
            modules.append(module)
    return modules


def _module_vjp(module: LinearNorm | ConcatAdapter | State | Combine, g: Tensor, count: int) -> list[Tensor]:
    if isinstance(module, LinearNorm):
        return [module.vjp(g)]
    if isinstance(module, Combine):
        return module.pull(g, count)
    return [] if isinstance(module, State) else list(module.projection.pull(g).split(g.shape[-1], -1))


def _module_jvp(
    module: LinearNorm | ConcatAdapter | State | Combine, tangents: list[Tensor | None]
) -> Tensor:
    known = next(t for t in tangents if t is not None)
    if isinstance(module, LinearNorm):
        return module.jvp(known)
    if isinstance(module, Combine):
        return module.push(tangents)
    if isinstance(module, State):
        return torch.zeros_like(known)
    return module.projection.push(
        torch.cat([torch.zeros_like(known) if t is None else t for t in tangents], -1)
    )


def _sum(parts: list[Tensor]) -> Tensor | None:
    total = None
    for part in parts:
        total = _plus(part, total)
    return total


def _plus(a: Tensor, b: Tensor | None) -> Tensor:
    """Sum of two cotangents that cover the last positions, perhaps of different number."""
    if b is None:
        return a
    if a.shape[2] < b.shape[2]:
        a, b = b, a
    if a.shape[2] == b.shape[2]:
        return a + b
    out = a.clone()
    out[:, :, a.shape[2] - b.shape[2] :] += b
    return out
