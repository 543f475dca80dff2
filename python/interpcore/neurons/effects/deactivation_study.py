"""Attention deactivation over a corpus: all heads of all later layers, all batches."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.effects.deactivation import (
    association,
    first_keys,
    first_value_norms,
    layer_scores,
    path_ablation,
)
from interpcore.neurons.effects.interventions import Neuron, check_neurons
from interpcore.neurons.weights.fold import FoldedWeights
from interpcore.runs import Artifacts, RunFolder, read_tensors, write_tensors
from interpcore.runs.experiment import Shared

if TYPE_CHECKING:
    import pandas as pd


def score_table(
    folded: FoldedWeights, model: Model, bos: int, *, draws: int = 1000, seed: int = 0
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Every neuron's strongest deactivation score over the heads of later layers, against random directions.

    Args:
        folded: the model's folded weights.
        model: the decoder.
        bos: id of the beginning-of-text token.
        draws: random directions per layer.
        seed: fixes them.
    Returns: layer, neuron, bos_score (unit writing vector, signed: the largest in size), bos_layer, bos_head,
        random_level (99.9th percentile of a random direction's largest size over the same heads), deactivates
        (score above that level); and the raw scores for figures: "scores" and "random", flat.
    """
    import pandas as pd

    keys = first_keys(model, bos)
    frames, flat, noise = [], [], []
    for depth in range(folded.n_layers - 1):
        found = layer_scores(folded, keys, depth, draws=draws, seed=seed + depth)
        heads = found.scores.shape[2]
        scores = found.scores.flatten(1).cpu()
        best, at = scores.abs().nan_to_num(nan=-1).max(1)
        signed = scores.gather(1, at[:, None])[:, 0]
        level = float(found.random.flatten(1).abs().amax(1).quantile(0.999))
        frames.append(
            pd.DataFrame(
                {
                    "layer": depth,
                    "neuron": range(len(best)),
                    "bos_score": signed.numpy(),
                    "bos_layer": (depth + 1 + at // heads).numpy(),
                    "bos_head": (at % heads).numpy(),
                    "random_level": level,
                    "deactivates": (signed > level).numpy(),
                }
            )
        )
        flat.append(scores.flatten())
        noise.append(found.random.flatten().cpu())
    if not frames:
        raise Refused("A model of one layer has no later heads to deactivate.")
    return pd.concat(frames, ignore_index=True), {"scores": torch.cat(flat), "random": torch.cat(noise)}


def first_value_table(model: Model, shards: TokenShards, limit: int = 16) -> pd.DataFrame:
    """What `first_value_norms` gives of every head over the first sequences: layer, head,
    others_over_first."""
    import pandas as pd

    ((_, tokens, mask),) = shards.blocks(limit, 0, shards.count(limit), model.device)
    ratio = first_value_norms(model, tokens, mask).cpu()
    layer, head = torch.meshgrid(*map(torch.arange, ratio.shape), indexing="ij")
    columns = {"layer": layer, "head": head, "others_over_first": ratio}
    return pd.DataFrame({name: x.flatten().numpy() for name, x in columns.items()})


@dataclass(eq=False)
class _Work(Shared):
    model: Model
    shards: TokenShards
    neurons: tuple[Neuron, ...]
    artifacts: Artifacts
    first: int
    batch: int


def deactivation_study(
    model: Model,
    shards: TokenShards,
    neurons: Sequence[Neuron],
    out: str | os.PathLike[str],
    *,
    first: int = 64,
    limit: int | None = None,
    block: int = 8,
    batch: int = 8,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Ablate every neuron's path into the queries of every later layer, over a corpus.

    Args:
        model: the decoder, with additive blocks.
        shards: the corpus.
        neurons: which; those of the last layer have no later heads and are left out.
        out: the run folder, which the same call goes on with.
        first: positions before this one stay as they are.
        limit: only the first so many sequences.
        block: sequences of one file.
        batch: sequences in one forward.
        workers: processes that share the work; more than one load the model anew.
        progress: show it.
        command: what was typed, for the card.
        about: further arguments of the card, that say what else the caller keeps in the run.
    Returns: one row per neuron, later layer and head: tokens, mean activation, mean change of the attention
    to
        position 0 and of the size of the head's output (ablated minus clean), and Pearson's and Spearman's
        correlation of the activation with the latter over all tokens that count.
    """
    shards.check_model(model)
    check_neurons(model, neurons)
    last = model.plan.n_calls - 1
    chosen = tuple(dict.fromkeys((int(a), int(b)) for a, b in neurons if a < last))
    if not chosen:
        raise Refused("All these neurons are in the last layer, which no attention follows.")
    card = corpus_card(
        model,
        shards,
        "default",
        command,
        neurons=[f"{layer}.{number}" for layer, number in chosen],
        first=first,
        sequences=shards.count(limit),
        block=block,
        **(about or {}),
    )
    with RunFolder.open_or_create(out, card, shared=True) as folder:
        work = _Work(model, shards, chosen, folder.artifacts, first, batch)
        blocks = shards.spans(block, limit)
        layers = range(min(layer for layer, _ in chosen) + 1, last + 1)
        grid = [{"other": other, **b} for other in layers for b in blocks]
        how: dict[str, Any] = {"out": folder, "progress": progress, "on_error": "raise"}
        work.over(deactivation_block, grid, workers=workers, **how)
        return _table(work, layers, blocks)


def deactivation_block(work: _Work, other: int, start: int, stop: int) -> dict[str, Any]:
    """Write one block's activations and changes at one attention layer; returns the file's name."""
    earlier = [neuron for neuron in work.neurons if neuron[0] < other]
    parts: dict[str, list[torch.Tensor]] = {}
    for _, tokens, mask in work.shards.blocks(work.batch, start, stop, work.model.device):
        keep = mask[:, work.first :]
        found = path_ablation(work.model, tokens, earlier, other, first=work.first)
        for (layer, number), ablated in found.items():
            for name in ("activation", "pattern", "norm"):
                parts.setdefault(f"{layer}.{number}.{name}", []).append(getattr(ablated, name)[keep])
    name = _file(other, start)
    write_tensors(work.artifacts.artifact(name), {key: torch.cat(values) for key, values in parts.items()})
    return {"file": name}


def _file(other: int, start: int) -> str:
    return f"paths/{other}/{start:09d}.safetensors"


def _table(work: _Work, layers: Sequence[int], blocks: Sequence[dict[str, int]]) -> pd.DataFrame:
    import pandas as pd

    rows = []
    for other in layers:
        kept = [read_tensors(work.artifacts.artifact(_file(other, b["start"])))[0] for b in blocks]
        for layer, number in (neuron for neuron in work.neurons if neuron[0] < other):
            activation, pattern, norm = (
                torch.cat([k[f"{layer}.{number}.{name}"] for k in kept])
                for name in ("activation", "pattern", "norm")
            )
            found = association(activation, norm)
            rows += [
                {
                    "layer": layer,
                    "neuron": number,
                    "attention_layer": other,
                    "head": head,
                    "tokens": len(activation),
                    "activation": float(activation.double().mean()),
                    "pattern_change": float(pattern[:, head].double().mean()),
                    "norm_change": float(norm[:, head].double().mean()),
                    "pearson": float(found.pearson[head]),
                    "spearman": float(found.spearman[head]),
                }
                for head in range(norm.shape[1])
            ]
    return pd.DataFrame(rows)
