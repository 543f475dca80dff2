"""Any transformers decoder through hooks: slow, one plan, no cache, but the same sites, positions and edits.

Jacobians of such a model come from autograd over this forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.context import Context
from interpcore.model.generate import Generation, generate
from interpcore.model.names import site_table
from interpcore.model.origin import Origin, reloader
from interpcore.model.output import LogitsAt, Output, at_positions
from interpcore.model.plan import Plan
from interpcore.model.prompts import encode, read_prompts
from interpcore.model.sites import SITES, Edit, Tap, resolve
from interpcore.model.spec import ModelSpec
from interpcore.model.weights import Weights

ATTENTION_NAMES = ("self_attn", "attn", "attention", "self_attention", "mixer", "linear_attn")
MLP_NAMES = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")


@dataclass(frozen=True, eq=False)
class GenericModel:
    """A transformers model with taps and edits at module boundaries.

    Args:
        hf: the transformers model.
        spec: sizes and names; unknown sizes are 0.
        tokenizer: a transformers tokenizer, or None.
        layers: its blocks.
        origin, weights: as in `Model`.
    """

    hf: Any
    spec: ModelSpec
    tokenizer: Any
    layers: nn.ModuleList
    origin: Origin | None = None
    weights: Weights = field(default_factory=Weights, repr=False)

    keeps_cache = False

    @classmethod
    def wrap(cls, hf: Any, name: str, tokenizer: Any = None) -> GenericModel:
        """Find the blocks of a transformers causal language model.

        Raises: ValueError when it has no list of blocks or no embeddings.
        """
        config = hf.config.get_text_config()
        layers = _blocks(hf, config.num_hidden_layers, name)
        paths = {id(module): path for path, module in hf.named_modules()}
        prefix = paths[id(layers)] + ".{d}"
        names = {
            "embed": ("output", paths[id(hf.get_input_embeddings())]),
            "resid": ("input", prefix),
            "final_norm": ("input", paths[id(hf.get_output_embeddings())]),
            "logits": ("output", paths[id(hf.get_output_embeddings())]),
        }
        for site, children in (("attn_out", ATTENTION_NAMES), ("mlp_out", MLP_NAMES)):
            child = next((c for c in children if all(hasattr(layer, c) for layer in layers)), None)
            if child is not None:
                names[site] = ("output", f"{prefix}.{child}")
        heads = getattr(config, "num_attention_heads", 0) or 0
        spec = ModelSpec(
            family=config.model_type,
            name=name,
            d_model=config.hidden_size,
            n_heads=heads,
            n_kv_heads=getattr(config, "num_key_value_heads", None) or heads,
            d_head=getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0),
            d_mlp=getattr(config, "intermediate_size", None) or 0,
            n_blocks=len(layers),
            vocab_size=hf.get_output_embeddings().weight.shape[0],
            max_positions=getattr(config, "max_position_embeddings", None),
            gated=False,
            module_names=names,
            absent={
                site: "the generic adapter sees module boundaries only."
                for site in SITES
                if site not in names
            },
        )
        return cls(hf, spec, tokenizer, layers)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def config(self) -> ModelSpec:
        """Sizes, names and limits; the same as `spec`."""
        return self.spec

    @property
    def plan(self) -> Plan:
        """The identity plan; other plans need hand-written blocks."""
        return Plan.identity(len(self.layers))

    def reloader(self) -> Callable[[], Any]:
        """What loads this very model in another process, see `origin.reloader`."""
        return reloader(self)

    def with_plan(self, plan: Plan) -> GenericModel:
        """Refused: only hand-written blocks run other plans."""
        raise Refused(
            f"{self.spec.name} runs through the generic adapter, which cannot run another plan; its family "
            "needs hand-written blocks."
        )

    def encode(self, texts: str | Sequence[str], bos: bool | None = None) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of texts [batch, position], right-padded; as `Model.encode`."""
        return encode(self.tokenizer, texts, self.spec, self.device, bos)

    def sites(self) -> list[dict[str, str]]:
        """Every site of this model: name, depths, shape, meaning, and its transformers and TransformerLens
        names."""
        return site_table(self.spec, len(self.layers))

    def forward(
        self,
        tokens: Tensor,
        attention_mask: Tensor | None = None,
        *,
        cache: Cache | None = None,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
        logits_at: LogitsAt = "all",
    ) -> Output:
        """Run the model on tokens [batch, position]; arguments and result as in `Model.forward`, without a
        cache.

        Raises: ValueError as `Model.forward`, and when a cache is passed.
        """
        if cache is not None:
            raise Refused(
                f"{self.spec.name} runs through the generic adapter, which keeps no cache; leave cache=None."
            )
        layout, packed = read_prompts(tokens, attention_mask, None, self.spec, self.device)
        resolved = resolve(edits, layout.totals, self.plan, self.spec.absent)
        ctx = Context(layout, taps, resolved, plan=self.plan, absent=self.spec.absent)
        with _hooked(self, ctx):
            # Real tokens come first in every row, so causal attention needs no mask.
            logits = self.hf(input_ids=packed, use_cache=False).logits
        logits = ctx.site("logits", None, logits)
        if logits_at is None:
            return Output(None, ctx.values, None, layout.totals)
        everywhere = isinstance(logits_at, str) and logits_at == "all"
        return Output(
            layout.unpack(logits) if everywhere else at_positions(logits, layout, logits_at),
            ctx.values,
            None,
            layout.totals,
        )

    __call__ = forward

    def generate(self, tokens: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Generation:
        """Continue prompts [batch, position], rerunning the whole text for every token; options as in
        `interpcore.model.generate`."""
        return generate(self, tokens, attention_mask, **options)


def _blocks(hf: Any, count: int, name: str) -> nn.ModuleList:
    lists = [m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not lists or hf.get_input_embeddings() is None or hf.get_output_embeddings() is None:
        raise Refused(
            f"{name} is not a decoder the generic adapter can read: no list of {count} blocks with input and "
            "output embeddings."
        )
    return lists[0]


@contextmanager
def _hooked(model: GenericModel, ctx: Context) -> Any:
    """The model's modules with this forward's taps and edits attached."""
    last = len(model.layers)
    with ExitStack() as stack:
        for site, (side, path) in model.spec.module_names.items():
            if site == "logits":
                continue
            for depth in range(last) if SITES[site].depths != "none" else [None]:
                if ctx.wants(site, depth):
                    module = model.hf.get_submodule(path.format(d=depth))
                    stack.callback(_attach(module, side, site, depth, ctx))
        if ctx.wants("resid", last):
            stack.callback(_attach(model.layers[-1], "output", "resid", last, ctx))
        yield


def _attach(module: nn.Module, side: str, site: str, depth: int | None, ctx: Context) -> Callable[[], None]:
    """Hook one module boundary; returns what removes the hook."""

    def before(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (ctx.site(site, depth, args[0]), *args[1:]), kwargs
        return args, kwargs | {"hidden_states": ctx.site(site, depth, kwargs["hidden_states"])}

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (ctx.site(site, depth, output[0]), *output[1:])
        return ctx.site(site, depth, output)

    handle = (
        module.register_forward_pre_hook(before, with_kwargs=True)
        if side == "input"
        else module.register_forward_hook(after)
    )
    return handle.remove
