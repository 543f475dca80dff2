"""Any transformers decoder through hooks: slow, one plan, but the same sites, positions and edits.

Jacobians of such a model come from autograd over this forward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from interpcore.errors import Refused
from interpcore.model import transformers_cache
from interpcore.model.attach import attached
from interpcore.model.cache import Cache
from interpcore.model.context import ActivationHook, Context
from interpcore.model.facts import model_facts
from interpcore.model.generate import Generation, checkpoint_stops, generate
from interpcore.model.layout import read_layout
from interpcore.model.maps import Replace
from interpcore.model.names import site_table
from interpcore.model.origin import Origin, reloader
from interpcore.model.output import LogitsAt, Output, at_positions
from interpcore.model.plan import Plan
from interpcore.model.probe import find_sites, frozen, site_places, size_of
from interpcore.model.probe_run import Function, Watched
from interpcore.model.prompts import encode, read_prompts
from interpcore.model.rescaled import by_row, grows, rescaling
from interpcore.model.sites import SITES, Edit, Tap, merged, resolve
from interpcore.model.spec import ModelSpec
from interpcore.model.transformers_cache import LAST
from interpcore.model.weights import Weights
from interpcore.runs.shown import AsFacts, Rows


@dataclass(frozen=True, eq=False)
class GenericModel(AsFacts):
    """A transformers model with taps and edits at module boundaries.

    Args:
        hf: the transformers model.
        spec: sizes and names; unknown sizes are 0.
        tokenizer: a transformers tokenizer, or None.
        layers: its blocks.
        functions: each block's activation between its MLP's projections; none where it was not found.
        widths: neurons of each block; none where they were not found.
        parallel: whether both branches of a block read the stream that enters it; None where it was not seen.
        origin, weights: as in `Model`.
    """

    hf: Any
    spec: ModelSpec
    tokenizer: Any
    layers: nn.ModuleList
    functions: tuple[Function, ...] = ()
    widths: tuple[int, ...] = ()
    parallel: bool | None = None
    origin: Origin | None = None
    weights: Weights = field(default_factory=Weights, repr=False)

    keeps_cache = False

    @classmethod
    def wrap(cls, hf: Any, name: str, tokenizer: Any = None) -> GenericModel:
        """Find the blocks and sites of a transformers causal language model by running it on a few tokens.

        Raises: ValueError for a model that is no causal decoder, or whose config or modules do not say what
        the adapter must know.
        """
        config = _text_config(hf, name)
        lists = [
            m for m in hf.modules() if isinstance(m, nn.ModuleList) and len(m) == config.num_hidden_layers
        ]
        if not lists or hf.get_input_embeddings() is None or hf.get_output_embeddings() is None:
            raise Refused(
                f"{name} is not a decoder the generic adapter can read: no list of "
                f"{config.num_hidden_layers} blocks with input and output embeddings."
            )
        if hf.dtype == torch.float64 and getattr(hf.config, "_experts_implementation", None) is not None:
            hf.set_experts_implementation("eager")  # the fast form takes no float64
        found = find_sites(hf, lists, config.hidden_size, name)
        heads = size_of(config, "num_attention_heads")
        boundaries = "the generic adapter sees module boundaries only."
        spec = ModelSpec(
            family=config.model_type,
            name=name,
            d_model=config.hidden_size,
            n_heads=heads,
            n_kv_heads=size_of(config, "num_key_value_heads") or heads,
            d_head=size_of(config, "head_dim") or (config.hidden_size // heads if heads else 0),
            d_mlp=max(found.widths, default=0) or size_of(config, "intermediate_size"),
            n_blocks=len(found.layers),
            vocab_size=hf.get_output_embeddings().weight.shape[0],
            max_positions=None if grows(hf) else size_of(config, "max_position_embeddings") or None,
            gated="mlp_up" in found.boundaries,
            stop_tokens=checkpoint_stops(hf),
            module_names=found.boundaries,
            absent={
                site: found.absent.get(site, boundaries)
                for site in SITES
                if site not in found.boundaries and site != "logits"
            },
        )
        return cls(hf, spec, tokenizer, found.layers, found.functions, found.widths, found.parallel)

    def __repr__(self) -> str:
        spec = self.spec
        return (
            f"GenericModel({spec.name}, {spec.family}: {spec.n_blocks} blocks, d_model {spec.d_model}, "
            f"vocabulary {spec.vocab_size}; transformers' modules, sites {', '.join(spec.module_names)}; "
            f"{self.dtype} on {self.device})"
        )

    def facts(self) -> dict[str, Any]:
        """What a notebook says of it, by name."""
        return model_facts(self)

    @property
    def embedding(self) -> Tensor:
        """Token embeddings [vocabulary, d_model]."""
        found: Tensor = self.hf.get_input_embeddings().weight.detach()
        return found

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.embedding.device

    @property
    def unwritten(self) -> str | None:
        """As in `Model`."""
        return f"{self.spec.name} runs through the generic adapter, which is not written out in float64."

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return self.embedding.dtype

    @property
    def config(self) -> ModelSpec:
        """Sizes, names and limits; the same as `spec`."""
        return self.spec

    def check_neurons(self) -> None:
        """Raises: Refused where the activation of its neurons was not found."""
        if not self.functions:
            why = self.spec.absent["mlp_act" if "mlp_act" in self.spec.absent else "mlp_gate_pre"]
            raise Refused(f"No study can see the activations of {self.spec.name}: {why}")

    @cached_property
    def rotaries(self) -> list[nn.Module]:
        """Its rotary embeddings whose scale depends on the length of the text."""
        return rescaling(self.hf)

    @cached_property
    def places(self) -> tuple[Watched, ...]:
        """Where its sites are watched."""
        inner = {site: at for site, at in self.spec.module_names.items() if site != "logits"}
        return tuple(site_places(self.hf, inner, len(self.layers)))

    @cached_property
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

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> GenericModel:
        """A model with copied weights on another device or in another dtype, its sites found anew."""
        hf = copy.deepcopy(self.hf).to(device=device, dtype=dtype)
        model = GenericModel.wrap(hf, self.spec.name, self.tokenizer)
        origin = self.origin
        if origin is not None:
            origin = replace(origin, dtype=model.dtype, device=str(model.device))
        return replace(model, origin=origin)

    def encode(self, texts: str | Sequence[str], bos: bool | None = None) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of texts [batch, position], right-padded; as `Model.encode`."""
        return encode(self.tokenizer, texts, self.spec, self.device, bos)

    def sites(self) -> Rows:
        """Every site of this model: name, depths, shape, meaning, and its names in transformers and other
        libraries; `.absent`, shown below the table, says why the others are not there."""
        rows = site_table(self.spec, len(self.layers))
        rows.absent = self.spec.absent
        return rows

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
        """Run the model on tokens [batch, position]; arguments and result as in `Model.forward`, without a
        cache. An activation hook stands in where transformers' own activation was found; that is computed as
        well.

        Raises: ValueError as `Model.forward`, when a cache is passed, and for an activation hook where none
            was found.
        """
        if activation is not None:
            self.check_neurons()
        if cache is not None:
            raise Refused(
                f"{self.spec.name} runs through the generic adapter, which keeps no cache; leave cache=None."
            )
        layout, packed = read_prompts(tokens, attention_mask, None, self.spec, self.device)
        resolved = resolve(merged(edits, self.plan, self.spec.absent), layout)
        ctx = Context(layout, taps, resolved, plan=self.plan, absent=self.spec.absent, activation=activation)
        last = logits_at is None or (isinstance(logits_at, str) and logits_at == "last" and not layout.ragged)
        last = last and not ctx.wants("logits", None) and self.unembeds_last
        with attached(self, ctx), by_row(self.rotaries, layout), frozen(self.hf):
            # Real tokens come first in every row, so causal attention needs no mask.
            logits = self.hf(input_ids=packed, use_cache=False, **(LAST if last else {})).logits
        logits = ctx.site("logits", None, logits)
        if logits_at is None:
            return Output(None, ctx.values, None, layout.totals)
        if last:
            return Output(logits[:, -1], ctx.values, None, layout.totals)
        everywhere = isinstance(logits_at, str) and logits_at == "all"
        return Output(
            layout.unpack(logits) if everywhere else at_positions(logits, layout, logits_at),
            ctx.values,
            None,
            layout.totals,
        )

    __call__ = forward

    def run_from(
        self,
        depth: int | tuple[str, int, int],
        resid: Tensor,
        cache: Cache | None = None,
        *,
        lengths: Tensor | None = None,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
        logits_at: LogitsAt = "last",
    ) -> Output:
        """Run the blocks from `depth` on with a given residual stream; arguments as in `Model.run_from`.

        The earlier blocks run as well, on tokens that do not matter.

        Raises: ValueError for a cached prefix, a site before `depth`, or a model whose later blocks read more
            than the stream.
        """
        depth = self.plan.depth(depth)
        if cache is not None and cache.segments:
            raise Refused(
                f"{self.spec.name} runs through the generic adapter, which keeps no cache; pass the whole "
                "stream."
            )
        every: list[Tap | Edit] = [*taps, *edits]
        early = [one.site for one in every if _before(one, depth)]
        if early:
            raise Refused(f"Site {early[0]!r} is before depth {depth}, from which this forward counts.")
        if not self._stream_alone:
            raise Refused(
                f"The blocks of {self.spec.name} read more than the residual stream; only forward runs them."
            )
        mask = None if lengths is None else torch.arange(resid.shape[1]) < lengths.cpu()[:, None]
        rows, width = resid.shape[:2]
        layout = read_layout((rows, width), mask, None, self.device)
        tokens = torch.zeros(resid.shape[:2], dtype=torch.int64, device=self.device)
        written = Edit("resid", depth, None, Replace(layout.pack(resid)))
        return self.forward(tokens, mask, taps=taps, edits=[written, *edits], logits_at=logits_at)

    @cached_property
    def _stream_alone(self) -> bool:
        """Whether of the tokens later blocks see only the stream: two prompts, one stream, same logits."""
        tokens = transformers_cache.short_texts(self, 2)
        for depth in (1, len(self.layers) - 1):
            tap = Tap("resid", depth, rows=[0])
            stream = self.forward(tokens, taps=[tap]).taps[tap]
            written = Edit("resid", depth, None, Replace(stream.expand(2, -1, -1)))
            logits = self.forward(tokens, edits=[written]).logits
            assert logits is not None
            if not transformers_cache.agree(self, logits[0], logits[1]):
                return False
        return True

    def generate(self, tokens: Tensor, attention_mask: Tensor | None = None, **options: Any) -> Generation:
        """Continue prompts [batch, position]; options as in `interpcore.model.generate`.

        Transformers' own cache is used where it was seen to give what the whole text gives; otherwise the
        whole text is run for every token.
        """
        return generate(self, tokens, attention_mask, **options)

    def step(
        self, tokens: Tensor, past: Any, start: int, edits: Sequence[Edit] = (), last: bool = False
    ) -> tuple[Tensor, Any]:
        """Logits [batch, position, vocabulary] of new tokens [batch, position] that follow `start` cached
        ones, and transformers' cache grown by them.

        Args:
            past: transformers' cache, None for an empty one.
            last: whether the logits of the last token are enough [batch, 1 or position, vocabulary].
        """
        layout = read_layout(
            (len(tokens), tokens.shape[1]), None, torch.full((len(tokens),), start), self.device
        )
        resolved = resolve(merged(edits, self.plan, self.spec.absent), layout, more=True)
        ctx = Context(layout, (), resolved, plan=self.plan, absent=self.spec.absent)
        kept = LAST if last and not ctx.wants("logits", None) and self.unembeds_last else {}
        with attached(self, ctx), frozen(self.hf):
            output = self.hf(input_ids=tokens, past_key_values=past, use_cache=True, **kept)
        logits = ctx.site("logits", None, output.logits)
        return logits, getattr(output, "past_key_values", None)

    @cached_property
    def unembeds_last(self) -> bool:
        """Whether it gives the logits of the last token alone when asked to, as most of transformers' do."""
        return transformers_cache.unembeds_last(self)

    @cached_property
    def continues(self) -> bool:
        """Whether transformers' cache is a text's beginning: what follows it is as in the whole text."""
        return transformers_cache.continues(self)

    @cached_property
    def shares(self) -> bool:
        """Whether a beginning on transformers' cache serves several rows, and stays as it is."""
        return self.continues and transformers_cache.shares(self)


def _text_config(hf: Any, name: str) -> Any:
    """The config of a model's text decoder.

    Raises: ValueError for an encoder-decoder, or a config without the sizes.
    """
    if getattr(hf.config, "is_encoder_decoder", False):
        raise Refused(f"{name} is an encoder with a decoder; only decoders alone can be read.")
    config = hf.config.get_text_config()
    lacking = [size for size in ("num_hidden_layers", "hidden_size") if not size_of(config, size)]
    if lacking:
        raise Refused(
            f"The config of {name} ({config.model_type}) has no single {' and no '.join(lacking)}, which the "
            "generic adapter must know."
        )
    return config


def _before(one: Tap | Edit, depth: int) -> bool:
    """Whether a site is computed before the block call at `depth`."""
    if one.depth is None:
        return one.site == "embed"
    return not isinstance(one.depth, int) or 0 <= one.depth < depth
