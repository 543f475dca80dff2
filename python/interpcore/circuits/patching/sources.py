"""What the sources of a graph write to the stream, recorded in one forward.

Heads are held as z, what the output projection reads: head h writes z_h W_O,h, which is `d_model / d_head`
times as large. Where a norm follows attention (Gemma, OLMo 2) its scale depends on all heads together; it is
frozen at the value of the recorded run and is part of z here, so that the sources of a run still add up to
its stream.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.graph import GraphError
from interpcore.model import Edit, Model, Scale, Tap
from interpcore.model.block import Block
from interpcore.model.generic import GenericModel
from interpcore.ops import product


@dataclass(frozen=True, eq=False)
class Sources(ShortRepr):
    """The sources of a batch, or of a mean (batch or position then of size 1).

    Args:
        input: token embeddings as they enter the stream [batch, position, d_model].
        z: per layer, what each head's output projection reads [batch, position, head, d_head], times the
            scale of a norm that follows.
        mlp: per layer, what the MLP writes [batch, position, d_model].
    """

    input: Tensor
    z: tuple[Tensor, ...]
    mlp: tuple[Tensor, ...]

    def map(self, function: Callable[[Tensor], Tensor]) -> Sources:
        """With a function applied to every tensor, of the shapes above."""
        return Sources(function(self.input), tuple(map(function, self.z)), tuple(map(function, self.mlp)))

    def named(self) -> dict[str, Tensor]:
        """Every tensor by a name."""
        layers = {f"{what}.{d}": x for what in ("z", "mlp") for d, x in enumerate(getattr(self, what))}
        return {"input": self.input, **layers}

    def __sub__(self, other: Sources) -> Sources:
        """Differences, source by source."""
        return Sources(
            self.input - other.input,
            tuple(a - b for a, b in zip(self.z, other.z, strict=True)),
            tuple(a - b for a, b in zip(self.mlp, other.mlp, strict=True)),
        )


@dataclass(frozen=True, eq=False)
class Record(ShortRepr):
    """One forward of a batch: rows begin with their real tokens, zeros at padding.

    Args:
        sources: what every source wrote.
        resid: the stream at depths 0 to D [batch, position, d_model].
        mlp_in: per layer, what the MLP read, before its norm.
        q, k, v: per layer, queries, keys and values [batch, position, heads, d_head] before rotary.
        z: per layer, the heads' mixed values [batch, position, head, d_head], without the scale of a norm
            after attention.
        lengths: real tokens per row [batch] int64.
        offset: of whole attentions, the stream entering without any token [position, d_model]; they have no
            q, k, v, z and mlp_in here.
    """

    sources: Sources
    resid: tuple[Tensor, ...]
    mlp_in: tuple[Tensor, ...]
    q: tuple[Tensor, ...]
    k: tuple[Tensor, ...]
    v: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    lengths: Tensor
    offset: Tensor | None = None


def record(model: Model | GenericModel, tokens: Tensor, lengths: Tensor) -> Record:
    """Run prompts and keep what patching needs.

    Args:
        model: with hand-written blocks, or through the adapter, then of whole attentions.
        tokens: right-padded token ids [batch, position] int64.
        lengths: real tokens per row [batch] int64.
    """
    if isinstance(model, GenericModel):
        return _record_whole(model, tokens, lengths)
    depths = range(model.plan.n_calls)
    taps = {(site, d): Tap(site, d) for site in ("q", "k", "v", "z", "mlp_in", "mlp_out") for d in depths}
    taps |= {("resid", d): Tap("resid", d) for d in range(model.plan.n_calls + 1)}
    embed = Tap("embed")
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        output = model.forward(tokens, mask, taps=[embed, *taps.values()], logits_at=None)
        ragged = bool((lengths != lengths[0]).any())

        def values(site: str) -> tuple[Tensor, ...]:
            found = [output.taps[tap] for (name, _), tap in taps.items() if name == site]
            return tuple(x.nan_to_num(0.0) if ragged else x for x in found)

        entering = output.taps[embed].nan_to_num(0.0) if ragged else output.taps[embed]
        z = values("z")
        sources = Sources(
            entering * model.spec.embed_scale,
            tuple(z[d] * post_scale(model.block(d), z[d]) for d in depths),
            values("mlp_out"),
        )
    return Record(
        sources, values("resid"), values("mlp_in"), values("q"), values("k"), values("v"), z, lengths
    )


@torch.no_grad()
def _record_whole(model: GenericModel, tokens: Tensor, lengths: Tensor) -> Record:
    """The same of whole attentions: `z` holds what each adds to the stream [batch, position, d_model],
    `input` what the token embeddings make of the stream that enters."""
    depths = range(model.plan.n_calls)
    taps = {(site, d): Tap(site, d) for site in ("attn_out", "mlp_out") for d in depths}
    taps |= {("resid", d): Tap("resid", d) for d in range(model.plan.n_calls + 1)}
    mask = torch.arange(tokens.shape[1]) < lengths[:, None]
    output = model.forward(tokens, mask, taps=list(taps.values()), logits_at=None)
    without = [] if "embed" in model.spec.absent else [Edit("embed", None, None, Scale(0.0))]
    enters = taps["resid", 0]
    offset = model.forward(tokens[:1], taps=[enters], edits=without, logits_at=None).taps[enters][0]
    offset = offset if without else torch.zeros_like(offset)
    found = {place: output.taps[tap].nan_to_num(0.0) for place, tap in taps.items()}
    real = mask[..., None].to(model.device)
    sources = Sources(
        (found["resid", 0] - offset) * real,
        tuple(found["attn_out", d] for d in depths),
        tuple(found["mlp_out", d] for d in depths),
    )
    resid = tuple(found["resid", d] for d in range(model.plan.n_calls + 1))
    return Record(sources, resid, (), (), (), (), (), lengths, offset)


def check_blocks(model: Model) -> None:
    """Refuse blocks whose attention writes something that is neither a head's nor constant.

    Raises: GraphError naming the block.
    """
    for d in range(model.plan.n_calls):
        block = model.block(d)
        if block.attn_post_norm is not None and block.attention.out.bias is not None:
            raise GraphError(
                f"Block {d} has a norm after attention and a bias before it, which no head's output "
                "contains; edges of such blocks are not defined."
            )


def post_scale(block: Block, z: Tensor) -> Tensor | float:
    """Scale [..., 1, 1] that the norm after attention applies to what the heads z [..., head, d_head] write;
    1 where there is none."""
    if block.attn_post_norm is None:
        return 1.0
    _, rstd = block.attn_post_norm.normalise(block.attention.out(z.flatten(-2)))
    return rstd.to(z.dtype)[..., None, None]


def head_output(block: Block, head: int, z: Tensor) -> Tensor:
    """What one head writes to the stream [..., d_model], of its z [..., d_head] as `Sources` holds it."""
    d_head = z.shape[-1]
    written = product(z, block.attention.out.weight[head * d_head : (head + 1) * d_head])
    return after_post_norm(block, written)


def heads_output(block: Block, z: Tensor) -> Tensor:
    """What all heads together write [..., d_model], of z [..., head, d_head] as `Sources` holds it."""
    return after_post_norm(block, product(z.flatten(-2), block.attention.out.weight))


def constant_output(block: Block) -> Tensor | float:
    """What attention writes whatever its heads do [d_model]: its bias, which belongs to no node."""
    norm = block.attn_post_norm
    bias = block.attention.out.bias if norm is None else norm.bias
    return 0.0 if bias is None else bias


def after_post_norm(block: Block, written: Tensor) -> Tensor:
    """The linear part of the norm after attention, of what heads write [..., d_model], without its scale."""
    norm = block.attn_post_norm
    if norm is None:
        return written
    centred = written - written.mean(-1, keepdim=True) if norm.center else written
    return centred if norm.weight is None else centred * (norm.weight + norm.offset).to(written.dtype)


def notes(model: Model) -> dict[str, str]:
    """What a file of results must say about a model's sources."""
    frozen = any(model.block(d).attn_post_norm is not None for d in range(model.plan.n_calls))
    return {"heads": "the norm after attention keeps the scale of each run"} if frozen else {}
