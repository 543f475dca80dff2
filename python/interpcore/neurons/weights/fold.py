"""Weights as the published statistics define them: norms folded in, writing weights centred.

A layer norm subtracts its input's mean and scales by its weight, so what a neuron reads is fixed only after
the norm's weight is folded into the reading matrix and its bias into the reading bias, and what it writes
only up to a constant over d_model. Folding removes both freedoms, which is what makes norms and cosines
comparable between models. RMS norms subtract nothing, so nothing is centred there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.block import Block
from interpcore.model.norm import Norm
from interpcore.ops import product


@dataclass(frozen=True, eq=False)
class NeuronWeights(ShortRepr):
    """One block call's neurons, one row each.

    Args:
        read: what the activation function's argument reads (the gate, where gated) [d_mlp, d_model].
        bias: of that argument, the norm's bias folded in [d_mlp].
        write: what the neuron adds to the stream per unit of activation [d_mlp, d_model].
        up: the factor beside the gate [d_mlp, d_model], or None.
        up_bias: of that factor [d_mlp], or None.
    """

    read: Tensor
    bias: Tensor
    write: Tensor
    up: Tensor | None = None
    up_bias: Tensor | None = None


@dataclass(frozen=True, eq=False)
class HeadWeights(ShortRepr):
    """One block call's attention heads; keys and values are repeated for the query heads that share them.

    Args:
        query, key, value: [head, d_model, d_head].
        output: [head, d_head, d_model].
        scale: factor on query . key.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    scale: float


@dataclass(frozen=True, eq=False)
class FoldedWeights(ShortRepr):
    """A model's folded weights; those of a block are made when asked for and not kept.

    Args:
        n_layers: block calls.
        embedding: [vocabulary, d_model].
        unembedding: the final norm folded in, centred over the vocabulary [d_model, vocabulary].
        neurons: depth -> its neurons.
        heads: depth -> its heads.
        centred: whether writing weights have no mean over d_model.
        parallel: depth -> whether its MLP cannot read its attention's output.
    """

    n_layers: int
    embedding: Tensor
    unembedding: Tensor
    neurons: Callable[[int], NeuronWeights]
    heads: Callable[[int], HeadWeights]
    centred: bool = True
    parallel: Callable[[int], bool] = lambda depth: False


def fold(model: Model, dtype: torch.dtype = torch.float32) -> FoldedWeights:
    """Fold a model's norms into its weights and centre what nothing reads.

    Norm weights go into the matrices that read the normed stream, norm biases into their biases. Where every
    norm on the stream is a layer norm, reading and writing weights lose their mean over d_model. The
    unembedding loses its mean over the vocabulary, except under a logit soft-cap, which sees it. A norm on a
    branch's output (Gemma, OLMo 2) gives its weight to the writing weights; its scale depends on the token
    and stays out.

    Args:
        model: the decoder.
        dtype: of the result; arithmetic is float64.
    Raises: ValueError for a model without hand-written blocks, or whose blocks norm the stream itself.
    """
    if not isinstance(model, Model):
        raise Refused(
            "Weight statistics need a family that interpcore has its own blocks for; this model came through "
            "the generic adapter."
        )
    if any(model.block(d).norms_stream for d in range(model.plan.n_calls)):
        raise Refused(
            f"The blocks of {model.spec.name} ({model.spec.family}) norm the stream after each branch, so "
            "what a neuron writes does not stay in it, and no weight statistic says what it does."
        )
    centred = all(norm.center for norm in _stream_norms(model))

    def neurons(depth: int) -> NeuronWeights:
        return _neurons(model.block(depth), centred, dtype)

    def heads(depth: int) -> HeadWeights:
        return _heads(model.block(depth), model, centred, dtype)

    embedding = model.embedding.double() * model.spec.embed_scale
    unembedding, _ = _reading(model.unembedding.weight, None, model.final_norm)
    if model.spec.logit_softcap is None:
        unembedding = unembedding - unembedding.mean(1, keepdim=True)
    return FoldedWeights(
        model.plan.n_calls,
        _centred(embedding, centred).to(dtype),
        unembedding.to(dtype),
        neurons,
        heads,
        centred,
        lambda depth: model.block(depth).parallel,
    )


def neuron_columns(weights: NeuronWeights) -> dict[str, Tensor]:
    """Norms and cosines of one layer's neurons, each [d_mlp] float64.

    Returns: w_in_norm, input_bias, w_out_norm, in_out_sim = cos(w_in, w_out), l2_penalty = the sum of squares
        of all of a neuron's weights; where gated w_in is the gate, and w_up_norm, up_bias, gate_up_sim and
        up_out_sim are added. A cosine with a zero vector is NaN.
    """
    read, write = weights.read.double(), weights.write.double()
    columns = {
        "w_in_norm": read.norm(dim=1),
        "input_bias": weights.bias.double(),
        "w_out_norm": write.norm(dim=1),
        "in_out_sim": cosine(read, write),
        "l2_penalty": read.square().sum(1) + write.square().sum(1),
    }
    if weights.up is None:
        return columns
    assert weights.up_bias is not None
    up = weights.up.double()
    columns["l2_penalty"] = columns["l2_penalty"] + up.square().sum(1)
    return columns | {
        "w_up_norm": up.norm(dim=1),
        "up_bias": weights.up_bias.double(),
        "gate_up_sim": cosine(read, up),
        "up_out_sim": cosine(up, write),
    }


def null_space_fraction(folded: FoldedWeights, k: int | None = None) -> Callable[[Tensor], Tensor]:
    """How much of a writing vector lies where the unembedding hardly sees it (Stolfo et al. 2024).

    rho(w) = |V0^T w| / |w|, V0 the k left singular directions of W_U with the smallest singular values. The
    direction of the mean over d_model, which centred weights never use, is not among them.

    Args:
        folded: folded weights.
        k: number of directions; None takes 1% of d_model, at least 1.
    Returns: a function of w [n, d_model] giving [n] float64.
    """
    unembedding = folded.unembedding.double()
    d = unembedding.shape[0]
    k = max(1, round(0.01 * d)) if k is None else k
    skip = int(folded.centred)
    if not 1 <= k <= d - skip:
        raise Refused(f"The null space has 1 to {d - skip} directions here; got k={k}.")
    gram = product(unembedding, unembedding.mT)
    if skip:  # lift the mean's direction above all others, so that it is not taken for a null direction
        gram = gram + gram.trace() / d * torch.ones_like(gram)
    directions = torch.linalg.eigh(gram).eigenvectors[:, :k]

    def rho(w: Tensor) -> Tensor:
        w = w.double()
        return product(w, directions.to(w.device)).norm(dim=1) / w.norm(dim=1)

    return rho


def unigram_direction(folded: FoldedWeights, counts: Tensor) -> Tensor:
    """Centred log-frequency of the vocabulary [vocabulary] float64, add-one smoothed: the logit direction
    along which token-frequency neurons act.

    Args:
        counts: occurrences of each token id [vocabulary].
    """
    if counts.shape != folded.unembedding.shape[1:]:
        raise Refused(
            f"Token counts have shape {tuple(counts.shape)}; the vocabulary has "
            f"{folded.unembedding.shape[1]}."
        )
    log = (counts.double() + 1).log()
    return log - log.mean()


def frequency_alignment(folded: FoldedWeights, counts: Tensor) -> Callable[[Tensor], Tensor]:
    """Correlation over the vocabulary of a neuron's logit effect W_U^T w_out with the log-unigram direction.

    Args:
        folded: folded weights.
        counts: occurrences of each token id [vocabulary].
    Returns: a function of writing vectors w [n, d_model] giving [n] float64 in [-1, 1].
    """
    unembedding = folded.unembedding.double()
    centred = unembedding - unembedding.mean(1, keepdim=True)
    direction = unigram_direction(folded, counts).to(centred.device)
    towards = product(centred, direction[:, None])
    # |W_U^T w|^2 = w^T (W_U W_U^T) w needs no [n, vocabulary].
    gram = product(centred, centred.mT)

    def alignment(w: Tensor) -> Tensor:
        w = w.double()
        size = (product(w, gram) * w).sum(1).clamp(min=0).sqrt()
        return product(w, towards)[:, 0] / (size * direction.norm())

    return alignment


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of rows [n, d] with rows [n, d], or NaN where one is zero."""
    return (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))


def from_arrays(arrays: Mapping[str, Any]) -> FoldedWeights:
    """Folded weights from tensors that were processed elsewhere, by TransformerLens's names
    ("blocks.0.mlp.W_in" [d_model, d_mlp], "unembed.W_U", ...)."""
    given = {name: torch.as_tensor(value) for name, value in arrays.items()}
    n_layers = sum(name.endswith(".mlp.W_in") for name in given)

    def neurons(depth: int) -> NeuronWeights:
        w_in, b_in, w_out = (given[f"blocks.{depth}.mlp.{n}"] for n in ("W_in", "b_in", "W_out"))
        return NeuronWeights(w_in.mT, b_in, w_out)

    def heads(depth: int) -> HeadWeights:
        q, k, v, o = (given[f"blocks.{depth}.attn.W_{n}"] for n in "QKVO")
        return HeadWeights(q, k, v, o, q.shape[-1] ** -0.5)

    return FoldedWeights(n_layers, given["embed.W_E"], given["unembed.W_U"], neurons, heads)


def _stream_norms(model: Model) -> list[Norm]:
    blocks = [model.block(d) for d in range(model.plan.n_calls)]
    found = [model.final_norm, *(n for b in blocks for n in (b.attn_norm, b.mlp_norm))]
    return [norm for norm in found if norm is not None]


def _reading(weight: Tensor, bias: Tensor | None, norm: Norm | None) -> tuple[Tensor, Tensor]:
    """Matrix [d_model, n] and bias [n], float64, that read the normalised stream before the norm's weight."""
    w = weight.double()
    b = torch.zeros(w.shape[1], dtype=w.dtype, device=w.device) if bias is None else bias.double()
    if norm is None:
        return w, b
    if norm.bias is not None:
        b = b + (norm.bias.double()[:, None] * w).sum(0)
    if norm.weight is not None:
        w = (norm.weight.double() + norm.offset)[:, None] * w
    return (w - w.mean(0), b) if norm.center else (w, b)


def _neurons(block: Block, centred: bool, dtype: torch.dtype) -> NeuronWeights:
    mlp = block.neurons
    first = mlp.up if mlp.gate is None else mlp.gate
    read, bias = _reading(first.weight, first.bias, block.mlp_norm)
    write = _centred(_written(mlp.down.weight, block.mlp_post_norm), centred)
    if mlp.gate is None:
        return NeuronWeights(read.mT.to(dtype), bias.to(dtype), write.to(dtype))
    up, up_bias = _reading(mlp.up.weight, mlp.up.bias, block.mlp_norm)
    parts = (read.mT, bias, write, up.mT, up_bias)
    return NeuronWeights(*(part.to(dtype) for part in parts))


def _heads(block: Block, model: Model, centred: bool, dtype: torch.dtype) -> HeadWeights:
    attention, d = block.attention, model.spec.d_model
    identity = torch.eye(d, dtype=model.dtype, device=model.device)
    n_heads = model.spec.n_heads

    def by_head(part: Tensor) -> Tensor:  # [d_model, heads, d_head]
        w, _ = _reading(part.flatten(1), None, block.attn_norm)
        own = w.unflatten(1, part.shape[1:]).movedim(1, 0)
        return own.repeat_interleave(n_heads // len(own), 0).to(dtype)

    query, key, value = map(by_head, attention.qkv.push(identity))
    output = _centred(_written(attention.out.weight, block.attn_post_norm), centred)
    output = output.unflatten(0, (n_heads, -1)).to(dtype)
    return HeadWeights(query, key, value, output, attention.scale)


def _written(weight: Tensor, post_norm: Norm | None) -> Tensor:
    w = weight.double()
    if post_norm is None or post_norm.weight is None:
        return w
    return w * (post_norm.weight.double() + post_norm.offset)


def _centred(w: Tensor, centred: bool) -> Tensor:
    return w - w.mean(-1, keepdim=True) if centred else w
