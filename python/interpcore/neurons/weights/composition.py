"""How strongly neurons and attention heads can talk to each other through the stream.

With scores = x_q W_Q W_K^T x_k and a head's output x W_V W_O, a neuron that writes the unit vector w acts on
a head's query side by |w W_Q W_K^T|, on its key side by |W_Q W_K^T w|, on its values by |w W_V W_O|, and a
head acts on a neuron that reads w by |W_V W_O w|; each over the Frobenius norm of the head's matrix. The
published files hold the first two under each other's name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.neurons.weights.cosines import unit_rows
from interpcore.neurons.weights.fold import FoldedWeights, HeadWeights, NeuronWeights

KINDS = ("q", "k", "v", "o")


def composition(neurons: NeuronWeights, heads: HeadWeights) -> dict[str, Tensor]:
    """Composition of one layer's neurons with one layer's heads; rotary positions are left out.

    Everything is done in d_head dimensions: |W_B W_A^T w| = sqrt(u^T (W_B^T W_B) u) with u = W_A^T w, so no
    d_model x d_model matrix is formed.

    Args:
        neurons: of one layer.
        heads: of one layer.
    Returns: "q", "k", "v", "o" -> [neuron, head] float64, between 0 and 1.
    """
    read, write = (unit_rows(w.double()) for w in (neurons.read, neurons.write))
    query, key, value = (w.double() for w in (heads.query, heads.key, heads.value))
    output = heads.output.double().mT  # [head, d_model, d_head]
    grams = {name: w.mT @ w for name, w in zip(KINDS, (query, key, value, output), strict=True)}
    qk = _inner(grams["q"], grams["k"])
    ov = _inner(grams["v"], grams["o"])
    return {
        "q": _through(write, query, grams["k"]) / qk,
        "k": _through(write, key, grams["q"]) / qk,
        "v": _through(write, value, grams["o"]) / ov,
        "o": _through(read, output, grams["v"]) / ov,
    }


@dataclass(frozen=True, eq=False)
class CompositionSummary(ShortRepr):
    """What is kept of one layer's composition with the heads that can be reached, per kind in `KINDS`.

    Args:
        largest: [d_mlp]; NaN where no head can be reached.
        mean: [d_mlp].
        layer, head: where the largest is [d_mlp] int64, -1 for none.
    """

    largest: dict[str, Tensor]
    mean: dict[str, Tensor]
    layer: dict[str, Tensor]
    head: dict[str, Tensor]


def composition_summary(folded: FoldedWeights, depth: int) -> CompositionSummary:
    """Summary of a layer's composition with every head that it can act on (q, k, v: later layers) or that can
    act on it (o: earlier layers, and its own where the MLP reads its attention's output).

    Args:
        depth: the neurons' layer.
    """
    neurons = folded.neurons(depth)
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    first = {"o": 0} | dict.fromkeys("qkv", depth + 1)
    for other in range(folded.n_layers):
        values = composition(neurons, folded.heads(other))
        for kind in KINDS:
            if reaches(folded, kind, depth, other):
                found[kind].append(values[kind])
    summary = CompositionSummary({}, {}, {}, {})
    for kind in KINDS:
        if not found[kind]:
            nothing = torch.full((len(neurons.write),), torch.nan, dtype=torch.float64)
            none = torch.full((len(neurons.write),), -1)
            parts = (nothing, nothing, none, none)
        else:
            stacked = torch.stack(found[kind], 1)  # [d_mlp, layer, head]
            best, at = stacked.flatten(1).max(1)
            n_heads = stacked.shape[2]
            parts = (best, stacked.flatten(1).mean(1), first[kind] + at // n_heads, at % n_heads)
        summary.largest[kind], summary.mean[kind], summary.layer[kind], summary.head[kind] = parts
    return summary


def reaches(folded: FoldedWeights, kind: str, depth: int, other: int) -> bool:
    """Whether neurons of layer `depth` and heads of layer `other` can compose in this way in one forward."""
    if kind != "o":
        return other > depth
    return other < depth or (other == depth and not folded.parallel(depth))


def _through(w: Tensor, first: Tensor, gram: Tensor) -> Tensor:
    """|B A^T w| [n, head] from A = first [head, d_model, d_head] and B's Gram matrix [head, d_head,
    d_head]."""
    u = torch.einsum("nd,hde->hne", w, first)
    return (u @ gram * u).sum(-1).clamp(min=0).sqrt().mT


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Frobenius norm [head] of A B^T from the Gram matrices of A and B [head, d_head, d_head]."""
    return (a * b).sum((-2, -1)).sqrt()
