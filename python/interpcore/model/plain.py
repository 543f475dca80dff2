"""The plan written out, for checking: one whole prompt, every score and product in the open, autograd through
it all.

Nothing of what makes the other forward fast is here: no batch, padding, cache, taps, fused op or hand-written
derivative. It reads the weights and sizes of a model's parts and nothing else of them; `check_plain` compares
its logits with transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.attention import Attention
from interpcore.model.block import Block
from interpcore.model.call import RESID
from interpcore.model.decoder import Model
from interpcore.model.layout import read_layout
from interpcore.model.mlp import ACTIVATIONS, MLP
from interpcore.model.norm import Norm
from interpcore.model.projection import Projection
from interpcore.model.state import State

AGREES = 1e-5
"""Largest |logit difference| to transformers over the largest |logit|, both in float64: transformers rounds
norms or scores of several families to float32."""

WRITTEN = ("attn_in", "attn_out", "mlp_in", "mlp_out", "block_out")
"""Sites of d_model entries inside a block."""
Write = Callable[[str, int | None, Tensor], Tensor]
Found = dict[str, dict[int, Tensor]]
Read = Callable[[str, int, Tensor, Found], Tensor]


@dataclass(frozen=True, eq=False)
class PlainRun(ShortRepr):
    """One prompt's values.

    Args:
        embed: the token embeddings [position, d_model].
        resid: the stream at the depths that it went through [position, d_model], by depth.
        z: per block call, what the output projection reads [position, head, d_head].
        pre, act: per block call, neurons before the activation and as the down projection reads them
            [position, d_mlp]; no entry for mixtures of experts.
        mlp: per block call, what the MLP writes [position, d_model].
        logits: [position, vocabulary].
    """

    embed: Tensor
    resid: dict[int, Tensor]
    z: dict[int, Tensor]
    pre: dict[int, Tensor]
    act: dict[int, Tensor]
    mlp: dict[int, Tensor]
    logits: Tensor

    @property
    def end(self) -> Tensor:
        """The stream before the final norm [position, d_model]."""
        return self.resid[max(self.resid)]


def plain_model(model: Model) -> Model:
    """The model in float64 on the CPU. Raises: Refused for one that is not written out here."""
    if model.unwritten is not None:
        raise Refused(model.unwritten)
    return model.to("cpu", torch.float64)


def plain_run(
    model: Model,
    ids: Sequence[int] | Tensor,
    *,
    write: Write | None = None,
    read: Read | None = None,
) -> PlainRun:
    """Run a prompt.

    Args:
        model: the decoder, as `plain_model` gives it.
        ids: its token ids [position].
        write: called (site, depth, value) at "embed", "resid" and the sites of `WRITTEN`; gives what goes on.
        read: called (destination, depth, stream, found) with destination "q", "k", "v", "mlp" or "logits" and
            what the run has so far, by name as in `PlainRun`; gives what it reads, [position, d_model], or
            [head, position, d_model] for each head (each group, of "k" and "v") its own.
    """
    write, read = write or (lambda site, depth, x: x), read or (lambda destination, depth, x, found: x)
    ids = torch.as_tensor(ids, dtype=torch.int64)
    embed = write("embed", None, model.embedding[ids])
    stream = embed * model.spec.embed_scale
    if model.positions is not None:
        stream = stream + model.positions[torch.arange(len(ids)).clamp(max=len(model.positions) - 1)]
    found: Found = {name: {} for name in ("resid", "z", "pre", "act", "mlp")}
    values, depth = {RESID: stream}, 0
    for call in model.plan.calls:
        module = model.modules[call.module]
        if isinstance(module, Block):
            x = found["resid"][depth] = values[call.reads[0]] = write("resid", depth, values[call.reads[0]])
            out = _block(module, depth, x, write, read, found)
            depth += 1
        elif isinstance(module, Norm):
            out = _norm(module, values[call.reads[0]])
        elif isinstance(module, State):
            out = module(values[call.reads[0]][None], read_layout((1, len(ids)), None, None, ids.device))[0]
        else:
            out = module(*(values[name] for name in call.reads))
        values |= dict.fromkeys(call.writes, out)
    found["resid"][depth] = write("resid", depth, values[RESID])
    logits = plain_logits(model, read("logits", depth, found["resid"][depth], found))
    return PlainRun(embed, **found, logits=logits)


def plain_logits(model: Model, stream: Tensor) -> Tensor:
    """Logits [..., vocabulary] of the stream before the final norm [..., d_model]."""
    logits = _dense(model.unembedding, _norm(model.final_norm, stream))
    cap = model.spec.logit_softcap
    return logits if cap is None else cap * torch.tanh(logits / cap)


def check_plain(model: Model, ids: Sequence[int]) -> float | None:
    """Compare a prompt's plain logits with those of transformers, loaded anew in float64 from the model's
    origin.

    Returns: the largest difference over the largest logit; None where transformers has no such model: no
        origin, or a plan of its own.
    Raises: Refused where they disagree.
    """
    from interpcore.model.load.check import _experts_in
    from interpcore.model.load.location import locate
    from interpcore.model.load.source import read_checkpoint
    from interpcore.model.plan import Plan

    if model.origin is None or model.plan != Plan.identity(model.spec.n_blocks):
        return None
    location = locate(model.origin.source, model.origin.revision)
    hf, _ = read_checkpoint(location, torch.float64, "cpu", model.origin.trust_remote_code)
    with torch.no_grad(), _experts_in(torch.float64, hf):
        theirs: Any = hf.eval()(torch.tensor([list(ids)]), use_cache=False).logits[0].double()
        ours = plain_run(model, ids).logits
    gap = float((ours - theirs).abs().max() / theirs.abs().max())
    if not gap <= AGREES:
        raise Refused(
            f"{model.spec.name} written out differs from transformers by {gap:.1e} of the largest logit, so "
            "neither can be checked against the other; load it anew with its check, or report it."
        )
    return gap


def _block(block: Block, depth: int, x: Tensor, write: Write, read: Read, found: Found) -> Tensor:
    """The stream that leaves a block."""
    z = found["z"][depth] = _attention(block, depth, write("attn_in", depth, x), read, found)
    attended = write(
        "attn_out", depth, _norm(block.attn_post_norm, _dense(block.attention.out, z.flatten(-2)))
    )
    middle = _norm(block.attn_stream_norm, x + attended)
    entering = write("mlp_in", depth, x if block.parallel else middle)
    normed = _norm(block.mlp_norm, read("mlp", depth, entering, found))
    added = write("mlp_out", depth, _norm(block.mlp_post_norm, _mlp(block, depth, normed, found)))
    found["mlp"][depth] = added
    return write("block_out", depth, _norm(block.mlp_stream_norm, middle + added))


def _attention(block: Block, depth: int, x: Tensor, read: Read, found: Found) -> Tensor:
    """What the heads pass to the output projection [position, head, d_head]."""
    attention, position = block.attention, torch.arange(x.shape[0])
    q, k, v = (
        _heads(attention, letter, _norm(block.attn_norm, read(letter, depth, x, found))) for letter in "qkv"
    )
    q = _turned(attention, _normed(attention, q, attention.q_norm), position)
    k = _turned(attention, _normed(attention, k, attention.k_norm), position)
    k, v = (each.repeat_interleave(q.shape[0] // each.shape[0], 0) for each in (k, v))
    scores = q @ k.mT * attention.scale
    if attention.alibi is not None:
        scores = scores + attention.alibi(len(position), scores.dtype)
    if attention.softcap is not None:
        scores = attention.softcap * torch.tanh(scores / attention.softcap)
    back = position[:, None] - position
    hidden = back < 0 if attention.window is None else (back < 0) | (back >= attention.window)
    scores = scores.masked_fill(hidden, -torch.inf)
    if attention.sinks is not None:  # a key like the others, but without a value
        sinks = attention.sinks[:, None, None].expand(-1, len(position), 1)
        scores = torch.cat([scores, sinks], -1)
    return (scores.softmax(-1)[..., : len(position)] @ v).transpose(0, 1)


def _heads(attention: Attention, letter: str, normed: Tensor) -> Tensor:
    """Queries, keys or values [head, position, d_head] of what all heads read [position, d_model] or each one
    its own [head, position, d_model]; groups that are read head by head are formed head by head."""
    d_head = attention.qkv.d_head
    whole = attention.qkv.part(letter, slice(0, attention.out.weight.shape[0] // d_head))
    made = _dense(whole, normed).unflatten(-1, (-1, d_head))  # [.., position, head, d_head]
    if normed.dim() == 2:
        return made.transpose(0, 1)
    share = len(normed) // made.shape[-2] if len(normed) > made.shape[-2] else 1
    return torch.stack([made[n, :, n // share] for n in range(len(normed))])


def _normed(attention: Attention, x: Tensor, norm: Norm | None) -> Tensor:
    """Queries or keys [head, position, d_head] after their own norm."""
    if norm is None or not attention.norm_over_heads:
        return _norm(norm, x)
    flat = _norm(norm, x.transpose(0, 1).flatten(-2))
    return flat.unflatten(-1, (x.shape[0], -1)).transpose(0, 1)


def _turned(attention: Attention, x: Tensor, position: Tensor) -> Tensor:
    """Queries or keys [head, position, d_head] turned by their positions."""
    rotary = attention.rotary
    if rotary is None:
        return x
    angles = position[:, None].float() * rotary.frequencies  # in float32, as checkpoints were trained
    cos, sin = ((f(angles) * rotary.scaling).to(x.dtype) for f in (torch.cos, torch.sin))
    n = angles.shape[-1]
    one = slice(0, 2 * n, 2) if rotary.interleaved else slice(0, n)
    two = slice(1, 2 * n, 2) if rotary.interleaved else slice(n, 2 * n)
    parts = x[..., one] * cos - x[..., two] * sin, x[..., two] * cos + x[..., one] * sin
    turned = torch.stack(parts, -1).flatten(-2) if rotary.interleaved else torch.cat(parts, -1)
    return torch.cat([turned, x[..., 2 * n :]], -1)


def _mlp(block: Block, depth: int, normed: Tensor, found: Found) -> Tensor:
    """What the MLP's down projection writes; a mixture of experts as it stands."""
    mlp = block.mlp
    if not isinstance(mlp, MLP):
        return mlp(normed)
    up = _dense(mlp.up, normed)
    pre = up if mlp.gate is None else _dense(mlp.gate, normed)
    act = ACTIVATIONS[mlp.activation](pre) * (1.0 if mlp.gate is None else up)
    found["pre"][depth], found["act"][depth] = pre, act
    return _dense(mlp.down, act)


def _norm(norm: Norm | None, x: Tensor) -> Tensor:
    if norm is None:
        return x
    centred = x - x.mean(-1, keepdim=True) if norm.center else x
    out = centred / (centred.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    out = out if norm.weight is None else out * (norm.weight + norm.offset)
    return out if norm.bias is None else out + norm.bias


def _dense(projection: Projection, x: Tensor) -> Tensor:
    y = x @ projection.weight
    return y if projection.bias is None else y + projection.bias
