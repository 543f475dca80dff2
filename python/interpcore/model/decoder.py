"""The decoder: weights plus an execution plan, with taps, edits and caches that mean the same however a
prompt is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import generate as generation
from interpcore.model.adapter import ConcatAdapter
from interpcore.model.block import Block
from interpcore.model.cache import Cache, CacheWriter
from interpcore.model.call import RESID
from interpcore.model.combine import COMBINERS, Combine
from interpcore.model.context import ActivationHook, Context
from interpcore.model.facts import model_facts
from interpcore.model.layout import read_layout
from interpcore.model.move import moved
from interpcore.model.norm import Norm
from interpcore.model.origin import Origin, reloader
from interpcore.model.output import LogitsAt, Output, at_positions
from interpcore.model.plan import Plan
from interpcore.model.projection import Projection
from interpcore.model.prompts import check_length, encode, read_prompts
from interpcore.model.recurrence import started_from
from interpcore.model.sites import Edit, Tap, merged, resolve
from interpcore.model.spec import ModelSpec
from interpcore.model.state import State
from interpcore.model.weights import Weights
from interpcore.runs.shown import AsFacts, Rows

Module = Block | Norm | ConcatAdapter | State | Combine


@dataclass(frozen=True, eq=False)
class Model(AsFacts):
    """A decoder-only transformer.

    Args:
        spec: sizes, names and limits.
        modules: blocks ("block.0", ...), norms and adapters by the names the plan uses.
        plan: the calls to run.
        embedding: token embeddings [vocabulary, d_model].
        final_norm: norm before the unembedding.
        unembedding: [d_model, vocabulary].
        positions: learned position embeddings [max_positions, d_model], or None.
        tokenizer: a transformers tokenizer, or None.
        load_gap: largest |logit difference| to transformers at load over the largest |logit|; None when not
            checked.
        origin: what loads it again; None for a model made of an object in memory.
        weights: stands for the tensors: the same object under every plan over them.
    """

    spec: ModelSpec
    modules: Mapping[str, Module]
    plan: Plan
    embedding: Tensor
    final_norm: Norm
    unembedding: Projection
    positions: Tensor | None = None
    tokenizer: Any = None
    load_gap: float | None = None
    origin: Origin | None = None
    weights: Weights = field(default_factory=Weights, repr=False)

    keeps_cache: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", {**self.modules, **COMBINERS})
        for call in self.plan.calls:
            if call.module not in self.modules:
                raise Refused(f"The plan calls {call.module!r}; this model has {', '.join(self.modules)}.")

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding.dtype

    @property
    def unwritten(self) -> str | None:
        """Why `model.plain` does not write it out, in one sentence; None where it does."""
        return None

    @property
    def config(self) -> ModelSpec:
        """Sizes, names and limits; the same as `spec`."""
        return self.spec

    @property
    def identity(self) -> int:
        """A number shared by all plans over the same weights, and by no other model alive."""
        return id(self.weights)

    @property
    def additive(self) -> bool:
        """Whether every block of the plan writes to the stream by plain addition."""
        return all(self.block(d).additive for d in range(self.plan.n_calls))

    @property
    def structure(self) -> dict[str, str | bool]:
        """What differs between families, as the parts that compute it say: "positions" ("learned", "rotary",
        "alibi", several with +, or "none"), "middle stream" (whether the stream between attention and MLP
        exists, so that `resid_mid` is a site) and "additive residual" (whether components' outputs add up to
        the stream, as direct attribution needs)."""
        blocks = [self.block(d).attention for d in range(self.plan.n_calls)]
        kinds = {
            "learned": self.positions is not None,
            "rotary": any(one.rotary is not None for one in blocks),
            "alibi": any(one.alibi is not None for one in blocks),
        }
        return {
            "positions": "+".join(name for name, there in kinds.items() if there) or "none",
            "middle stream": "resid_mid" not in self.spec.absent,
            "additive residual": self.additive,
        }

    def block(self, depth: int) -> Block:
        """The block that call `depth` runs."""
        module = self.modules[self.plan.blocks[depth].module]
        assert isinstance(module, Block)
        return module

    def reloader(self) -> Callable[[], Any]:
        """What loads this very model in another process, see `origin.reloader`."""
        return reloader(self)

    def with_plan(self, plan: Plan) -> Model:
        """The same weights under another plan."""
        own = self.spec.recurrence
        states = {} if own is None else own.made(plan, self.modules)
        return replace(self, plan=plan, modules={**self.modules, **states})

    def with_steps(self, steps: int) -> Model:
        """A depth-recurrent model that makes another number of steps, from the same initial state.

        Raises: ValueError for less than one step, a model without recurrence, or a plan edited otherwise.
        """
        return self.with_plan(self.spec.recurs.with_steps(self.plan, steps))

    def with_state(self, state: int | Tensor | None) -> Model:
        """A depth-recurrent model started from another initial state.

        Args:
            state: a seed to draw it from, each position on its own and every row alike; the state itself
                [d_model], [position, d_model] or [rows, position, d_model], by absolute position; or None for
                zeros.
        Raises: ValueError for a state of another shape or that is not finite, or a model without recurrence.
        """
        name, made = self.spec.recurs.state(state, self.embedding)
        return replace(self, modules={**self.modules, name: made}, plan=started_from(self.plan, name))

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> Model:
        """A model with copied weights on another device or in another dtype; tied tensors stay tied."""
        return moved(self, device, dtype)

    def facts(self) -> dict[str, Any]:
        """What a notebook says of it, by name."""
        return model_facts(self)

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"Model({spec.name}, {spec.family}: {spec.n_blocks} blocks, d_model {spec.d_model}, "
            f"{spec.n_heads} heads, d_mlp {spec.d_mlp}, vocabulary {spec.vocab_size}; {self.plan}; "
            f"{self.dtype} on {self.device})"
        )

    def encode(self, texts: str | Sequence[str], bos: bool | None = None) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of texts, right-padded: the prompts that every experiment sees.

        Args:
            texts: one, or several.
            bos: None is as the checkpoint's own tokenizer says: what it puts in front itself, else the
                beginning-of-sequence token that it names, else nothing; True that token, False nothing.
        Returns: tokens [batch, position] int64 and mask [batch, position], on the model's device.
        Raises: ValueError without a tokenizer, for an empty text, or one that the tokenizer cannot write.
        """
        return encode(self.tokenizer, texts, self.spec, self.device, bos)

    def sites(self) -> Rows:
        """Every site of this model: name, depths, shape, meaning, and its names in transformers and other
        libraries."""
        from interpcore.model.names import site_table

        return site_table(self.spec, self.plan.n_calls)

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: Cache | None = None,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
        logits_at: LogitsAt = "all",
        activation: ActivationHook | None = None,
    ) -> Output:
        """Run the plan on a batch of prompts or on the continuation of cached ones.

        Args:
            tokens: token ids [batch, position] int64; with a cache, only the new ones.
            attention_mask: 1 at real tokens, 0 at padding on either side [batch, position]; None when all are
                real.
            cache: `Cache()` to have one filled, or an earlier output's to continue it; it is never changed.
            taps: sites to read.
            edits: sites to write, in this order where several write the same; with a cache, positions past
                the last token are those of tokens to come.
            logits_at: "all", "last" (each row's last real token), None, or absolute positions of new tokens
                (an int, a sequence, or int64 [batch] or [batch, n] per row).
            activation: replaces `function(pre)` by `activation(function, pre, depth)` in every plain MLP, and
                `function(pre) * up` by `activation(function, pre, depth, up)` in every gated one.
        Returns: `Output`.
        Raises: ValueError for tokens, mask, taps, edits or a cache that do not fit, with the reason.
        """
        if activation is not None and "mlp_act" in self.spec.absent:
            raise Refused(
                f"No study can see the activations of {self.spec.name}: {self.spec.absent['mlp_act']}"
            )
        start = None if cache is None else cache.start(len(tokens))
        layout, packed = read_prompts(tokens, attention_mask, start, self.spec, self.device)
        edits = merged(edits, self.plan, self.spec.absent)
        resolved = resolve(edits, layout, more=cache is not None)
        ctx = Context(layout, taps, resolved, plan=self.plan, absent=self.spec.absent, activation=activation)
        writer = None
        if cache is not None:
            cache.check(self.identity, self.plan, edits, layout)
            writer = CacheWriter(cache, layout)
        stream = self.run_plan(self.embed(packed, ctx), ctx, writer)
        logits = self.read_logits(stream, ctx, logits_at)
        filled = None if writer is None else writer.finish(packed, self.identity, self.plan, edits)
        return Output(logits, ctx.values, filled, layout.totals)

    __call__ = forward

    def run_from(
        self,
        depth: int | tuple[str, int, int],
        resid: Tensor,
        cache: Cache | None = None,
        *,
        streams: Mapping[str, Tensor] | None = None,
        lengths: Tensor | None = None,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
        logits_at: LogitsAt = "last",
    ) -> Output:
        """Start the plan at block call `depth` with a given residual stream, after a cached prefix.

        Args:
            depth: block call to enter, 0 to D or (group, block, step); D runs only the final norm and the
                unembedding.
            resid: stream entering it at the tokens after the cached ones [rows, position, d_model].
            cache: keys and values of the tokens before them; a shared one serves any number of rows. It is
                read only.
            streams: the plan's other streams at that point [rows, position, d_model], those that it still
                reads.
            lengths: real tokens per row of `resid` [rows]; None when all positions are real.
            taps, edits, logits_at: as in `forward`; "all" returns the columns of `resid`.
        Returns: `Output` without a cache.
        """
        depth = self.plan.depth(depth)
        rows, width = resid.shape[:2]
        cache = Cache() if cache is None else cache
        mask = None if lengths is None else torch.arange(width) < lengths.cpu()[:, None]
        layout = read_layout((rows, width), mask, cache.start(rows), self.device)
        check_length(layout, self.spec)
        edits = merged(edits, self.plan, self.spec.absent)
        resolved = resolve(edits, layout)
        cache.check(self.identity, self.plan, edits, layout)
        missing = self.plan.needs(depth) - set(streams or {})
        if missing:
            raise Refused(
                f"From depth {depth} on the plan also reads the stream(s) {', '.join(sorted(missing))}; pass "
                f"streams={{name: [rows, position, d_model]}}."
            )
        ctx = Context(layout, taps, resolved, plan=self.plan, absent=self.spec.absent)
        writer = CacheWriter(cache, layout) if cache.segments else None
        stream = self.run_plan(layout.pack(resid), ctx, writer, depth, streams)
        return Output(self.read_logits(stream, ctx, logits_at), ctx.values, None, layout.totals)

    def generate(
        self, tokens: Tensor, attention_mask: Tensor | None = None, **options: Any
    ) -> generation.Generation:
        """Continue prompts [batch, position] token by token; see `interpcore.model.generate.generate` for the
        options."""
        return generation.generate(self, tokens, attention_mask, **options)

    def embed(self, tokens: Tensor, ctx: Context) -> Tensor:
        """The stream entering call 0 [batch, position, d_model] of packed tokens [batch, position]."""
        x = ctx.site("embed", None, F.embedding(tokens, self.embedding))
        if self.spec.embed_scale != 1.0:
            x = x * torch.tensor(self.spec.embed_scale, dtype=x.dtype, device=x.device)
        if self.positions is None:
            return x
        top = self.positions.shape[0] - 1
        return x + F.embedding(ctx.layout.positions.clamp(max=top), self.positions)

    def run_plan(
        self,
        stream: Tensor,
        ctx: Context,
        writer: CacheWriter | None,
        depth: int | None = None,
        streams: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """All calls of the plan, or those from block call `depth` on; returns resid[D] [batch, position,
        d_model]."""
        values = {**(streams or {}), RESID: stream}
        first = 0 if depth is None else self.plan.first_call(depth)
        depth = self.run_calls(range(first, len(self.plan.calls)), values, ctx, writer)
        return ctx.site("resid", depth, values[RESID])

    def run_calls(
        self, calls: range, values: dict[str, Tensor], ctx: Context, writer: CacheWriter | None
    ) -> int:
        """Run calls of the plan, by index, on the streams' present values [batch, position, d_model], which
        they replace; returns the depth after them."""
        depth = sum(call.kind == "block" for call in self.plan.calls[: calls.start])
        for index in calls:
            call = self.plan.calls[index]
            module = self.modules[call.module]
            if isinstance(module, Block):
                assert call.slot is not None
                # An edit writes the stream itself, which later calls may read as well.
                entering = values[call.reads[0]] = ctx.site("resid", depth, values[call.reads[0]])
                out = module(entering, ctx, depth, call.slot, writer)
                ctx.recorded(depth)
                depth += 1
            else:
                ctx.keep(("call", index), input=values[call.reads[0]])
                read = [values[name] for name in call.reads]
                out = module(read[0], ctx.layout) if isinstance(module, State) else module(*read)
            values |= dict.fromkeys(call.writes, out)
        return depth

    def read_logits(self, stream: Tensor, ctx: Context, logits_at: LogitsAt) -> Tensor | None:
        """Final norm and unembedding of resid[D] at the positions asked for."""
        whole = ctx.wants("final_norm", None) or ctx.wants("logits", None)
        if logits_at is None and not whole:
            return None
        if isinstance(logits_at, str) and logits_at not in ("all", "last"):
            raise Refused(f"logits_at is 'all', 'last', None or positions; got {logits_at!r}.")
        if whole or (isinstance(logits_at, str) and logits_at == "all"):
            everywhere = ctx.site(
                "logits", None, self.unembed(ctx.site("final_norm", None, self.final_norm(stream)))
            )
            if logits_at is None:
                return None
            if isinstance(logits_at, str) and logits_at == "all":
                return ctx.layout.unpack(everywhere)
            return at_positions(everywhere, ctx.layout, logits_at)
        return self.unembed(self.final_norm(at_positions(stream, ctx.layout, logits_at)))

    def unembed(self, normed: Tensor) -> Tensor:
        """Logits [..., vocabulary] of the final norm's output [..., d_model], soft-capped where the model
        does so."""
        return self.capped(self.unembedding(normed))

    def capped(self, logits: Tensor) -> Tensor:
        """The unembedding's output [..., vocabulary] after the model's soft-cap, where it has one."""
        cap = self.spec.logit_softcap
        return logits if cap is None else cap * torch.tanh(logits / cap)
