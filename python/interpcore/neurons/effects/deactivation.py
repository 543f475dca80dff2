"""Neurons that switch attention heads off by sending their queries to the first token.

Scores: h = w_out^T W_Q k_BOS / sqrt(d_head), folded weights, says whether a neuron's output raises a later
head's score for the beginning-of-text token (whose value most heads keep near zero). Path ablation: take
act * w_out out of what the head's queries read, leave keys and values as they were, and see how the pattern
on that token and the size of the head's output change.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Add, Edit, Model, Plan, Replace, Tap
from interpcore.model.block import Block
from interpcore.neurons.effects.interventions import Neuron, check_neurons
from interpcore.neurons.weights.cosines import unit_rows
from interpcore.neurons.weights.fold import FoldedWeights
from interpcore.ops import product
from interpcore.stats.association import pearson, spearman


def first_keys(model: Model, bos: int) -> Tensor:
    """Key of the beginning-of-text token at position 0 of every head, as queries meet it.

    With rotary positions a query meets the key turned back by its own position; the mean over positions 1 to
    the longest prompt (at most 512) stands for all of them.

    Args:
        model: the decoder.
        bos: token id.
    Returns: [layer, head, d_head] float64; shared keys are repeated for their query heads.
    """
    depths = range(model.plan.n_calls)
    taps = [Tap("k", d) for d in depths]
    with torch.no_grad():
        out = model.forward(torch.tensor([[bos]], device=model.device), taps=taps, logits_at=None)
    keys = []
    for depth, tap in zip(depths, taps, strict=True):
        key = out.taps[tap][0, 0].double()  # [kv_head, d_head]; position 0 turns nothing
        rotary = model.block(depth).attention.rotary
        if rotary is not None:
            longest = min(model.spec.max_positions or 512, 512)
            positions = -torch.arange(1, longest, device=key.device)[None]
            cos, sin = rotary.tables(positions, torch.float64)
            turned = rotary(key.expand(1, longest - 1, -1, -1).contiguous(), cos, sin)
            key = turned[0].mean(0)
        keys.append(key.repeat_interleave(model.spec.n_heads // model.spec.n_kv_heads, 0))
    return torch.stack(keys)


def deactivation_scores(folded: FoldedWeights, keys: Tensor, write: Tensor, other: int) -> Tensor:
    """w^T W_Q k_BOS * scale of every vector and every head of one layer.

    Args:
        folded: folded weights.
        keys: what `first_keys` gave.
        write: [n, d_model]; unit vectors as in the paper, raw ones as in its script.
        other: the heads' layer.
    Returns: [n, head] float64.
    """
    heads = folded.heads(other)
    towards = torch.einsum("hde,he->dh", heads.query.double(), keys[other]) * heads.scale
    return product(write.double(), towards)


@dataclass(frozen=True, eq=False)
class LayerScores(ShortRepr):
    """One layer's neurons against the heads of all later layers.

    Args:
        scores: of unit writing vectors [d_mlp, later layer, head]; no later layers in the last.
        random: of random unit vectors, the baseline [draw, later layer, head].
    """

    scores: Tensor
    random: Tensor


def layer_scores(
    folded: FoldedWeights, keys: Tensor, depth: int, *, draws: int = 1000, seed: int = 0
) -> LayerScores:
    """Deactivation scores of one layer's neurons and of random directions, for later layers' heads.

    Args:
        folded, keys: as in `deactivation_scores`.
        depth: the neurons' layer.
        draws: random unit directions (with no mean over d_model where weights have none).
        seed: fixes them.
    """
    write = unit_rows(folded.neurons(depth).write.double())
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(draws, write.shape[1], dtype=torch.float64, generator=generator).to(write.device)
    directions = unit_rows(noise - noise.mean(1, keepdim=True) if folded.centred else noise)
    later = range(depth + 1, folded.n_layers)
    heads = keys.shape[1]
    found = [
        torch.stack([deactivation_scores(folded, keys, w, other) for other in later], 1)
        if later
        else torch.empty(len(w), 0, heads, dtype=torch.float64)
        for w in (write, directions)
    ]
    return LayerScores(*found)


def first_value_norms(model: Model, tokens: Tensor, mask: Tensor) -> Tensor:
    """How much smaller what a head would move from the first token is than from the others: the median over
    tokens of |v W_O|, over |v W_O| at position 0. Attention to the first token switches a head off where this
    is large.

    Args:
        model: the decoder.
        tokens: [batch, position] int64, beginning-of-text first.
        mask: tokens that count [batch, position] bool; position 0 is never among the others.
    Returns: [layer, head] float64.
    """
    depths = range(model.plan.n_calls)
    taps = [Tap("v", d) for d in depths]
    with torch.no_grad():
        out = model.forward(tokens, taps=taps, logits_at=None)
    others = mask.clone()
    others[:, 0] = False
    ratios = []
    for depth, tap in zip(depths, taps, strict=True):
        value = out.taps[tap].repeat_interleave(model.spec.n_heads // model.spec.n_kv_heads, 2)
        norm = model.block(depth).attention.head_outputs(value).double().norm(dim=-1)
        ratios.append(norm[others].median(0).values / norm[:, 0].median(0).values)
    return torch.stack(ratios)


@dataclass(frozen=True, eq=False)
class PathAblation(ShortRepr):
    """What taking a neuron's output from one layer's queries does, at the positions looked at.

    Args:
        activation: of the neuron [batch, position].
        pattern: change of each head's attention to position 0 [batch, position, head].
        norm: change of the size of each head's mixed values z [batch, position, head].
    """

    activation: Tensor
    pattern: Tensor
    norm: Tensor


def path_ablation(
    model: Model, tokens: Tensor, neurons: Sequence[Neuron], other: int, *, first: int = 64
) -> dict[Neuron, PathAblation]:
    """Ablate each neuron's path into the queries of one later layer.

    Args:
        model: the decoder, with additive blocks.
        tokens: [batch, position] int64, beginning-of-text first.
        neurons: of layers before `other`.
        other: the attention layer.
        first: positions before this one stay as they are (published: 64 of 256).
    Returns: per neuron its activation and the changes, ablated minus clean, at positions from `first` on.
    Raises: ValueError for neurons that cannot act on that layer, or blocks that are not additive.
    """
    check_neurons(model, neurons)
    _check_path(model, neurons, other, tokens.shape[1], first)
    upto = model.with_plan(Plan(model.plan.calls[: model.plan.first_call(other) + 1]))
    acts = {layer: Tap("mlp_act", layer) for layer, _ in neurons}
    own = {name: Tap(name, other) for name in ("resid", "k", "v", "pattern", "z")}
    with torch.no_grad():
        clean = upto.forward(tokens, taps=[*acts.values(), *own.values()], logits_at=None)
        start = clean.taps[own["resid"]]
        keep = [Edit(name, other, None, Replace(clean.taps[own[name]])) for name in ("k", "v")]
        before = _heads_at(clean.taps[own["pattern"]], clean.taps[own["z"]], first)
        found = {}
        for layer, number in neurons:
            act = clean.taps[acts[layer]][..., number]
            write = model.block(layer).neurons.down.weight[number]
            taken = (act[:, first:, None] * write).to(start.dtype)
            path = Edit("attn_in", other, slice(first, None), Add(taken, -1.0))
            after = upto.run_from(
                other, start, edits=[path, *keep], taps=[own["pattern"], own["z"]], logits_at=None
            ).taps
            pattern, norm = _heads_at(after[own["pattern"]], after[own["z"]], first)
            found[layer, number] = PathAblation(act[:, first:], pattern - before[0], norm - before[1])
    return found


@dataclass(frozen=True, eq=False)
class Association(ShortRepr):
    """Pearson's and Spearman's correlation of a neuron's activation with a change, per head, each [head]
    float64; NaN where either never varies."""

    pearson: Tensor
    spearman: Tensor


def association(activation: Tensor, change: Tensor) -> Association:
    """Correlations over all tokens of all batches (the published script keeps its last batch alone).

    Args:
        activation: [n].
        change: [n, head].
    """
    x, y = activation.double()[:, None], change.double()
    return Association(pearson(x, y), spearman(x, y))


def _heads_at(pattern: Tensor, z: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Attention to position 0 and |z| of every head [batch, position, head], at positions from `first` on."""
    return pattern[:, first:, :, 0], z[:, first:].norm(dim=-1)


def _check_path(model: Model, neurons: Sequence[Neuron], other: int, width: int, first: int) -> None:
    if not 0 <= other < model.plan.n_calls or any(layer >= other for layer, _ in neurons):
        raise Refused(f"Neurons act on the attention of later layers only; layer {other} is not later.")
    check_paths(model)
    if not 0 < first < width:
        raise Refused(f"Positions from {first} on are ablated; the sequences have {width} tokens.")


def check_paths(model: Model) -> None:
    """Raises: Refused for a model in which no neuron's path to a later attention can be cut."""
    if model.plan.n_calls < 2:
        raise Refused(f"{model.spec.name} has one block, and no attention follows its neurons.")
    if model.plan.streams != {"resid"}:
        raise Refused("Path ablation needs a plan whose only stream is the residual one.")
    blocks: list[Block] = [model.block(depth) for depth in range(model.plan.n_calls)]
    if not all(block.additive for block in blocks):
        raise Refused(
            f"{model.spec.name} norms its MLPs' outputs, so a neuron's share of the stream is not act * "
            "w_out."
        )
