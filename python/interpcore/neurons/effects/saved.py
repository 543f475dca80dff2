"""Chosen neurons' activations at every token, with what the model's prediction there was worth."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.readout import Readout, TokenMeasures
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.effects.interventions import Neuron, clean_run, measure_clean
from interpcore.runs import Artifacts, RunError, RunFolder, read_card, read_tensors, write_tensors
from interpcore.runs.experiment import Shared


@dataclass(frozen=True, eq=False)
class Cached(ShortRepr):
    """What `cache` saved.

    Args:
        neurons: (layer, neuron) of each column.
        tokens: [sequence, position] int64.
        mask: tokens that count [sequence, position] bool.
        pre, post: values before and after the activation function [sequence, position, neuron]; gated
            neurons: of the gate, and the product that the down projection reads.
        measures: loss, entropy and rank of every token [sequence, position].
    """

    neurons: tuple[Neuron, ...]
    tokens: Tensor
    mask: Tensor
    pre: Tensor
    post: Tensor
    measures: TokenMeasures


@dataclass(eq=False)
class _Work(Shared):
    model: Model
    shards: TokenShards
    neurons: tuple[Neuron, ...]
    artifacts: Artifacts
    batch: int
    dtype: torch.dtype
    published: bool
    readout: Readout = field(init=False)

    def __post_init__(self) -> None:
        self.readout = Readout(self.model, self.published)


def cache(
    model: Model,
    shards: TokenShards,
    neurons: Sequence[Neuron],
    out: str | os.PathLike[str],
    *,
    limit: int | None = None,
    block: int = 32,
    batch: int = 8,
    dtype: torch.dtype = torch.float32,
    protocol: str = "default",
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> Cached:
    """Save the activations of some neurons over a corpus, with each token's loss, entropy and rank. The same
    call goes on where it was stopped.

    Args:
        model: the decoder.
        shards: the corpus.
        neurons: which; named twice counts once.
        out: the run folder; one file per block of sequences.
        limit: only the first so many sequences.
        block: sequences of a file.
        batch: sequences in one forward.
        dtype: of the activations on disk.
        protocol: "paper" takes the published entropy.
        workers: processes that share the work; more than one load the model anew.
        progress: show it.
        command: what was typed, for the card.
    Returns: everything saved.
    """
    shards.check_model(model)
    chosen = tuple(dict.fromkeys((int(layer), int(number)) for layer, number in neurons))
    if not chosen:
        raise Refused("Name at least one neuron to cache.")
    card = corpus_card(
        model,
        shards,
        protocol,
        command,
        neurons=[f"{layer}.{number}" for layer, number in chosen],
        sequences=shards.count(limit),
        block=block,
        dtype=str(dtype).removeprefix("torch."),
    )
    with RunFolder.open_or_create(out, card, shared=True) as folder:
        work = _Work(model, shards, chosen, folder.artifacts, batch, dtype, protocol == "paper")
        how: dict[str, Any] = {"out": folder, "progress": progress, "on_error": "raise"}
        work.over(cache_block, shards.spans(block, limit), workers=workers, **how)
    return read_cache(out)


def cache_block(work: _Work, start: int, stop: int) -> dict[str, Any]:
    """Write the file of one block of sequences; returns its name."""
    parts = []
    for _, tokens, mask in work.shards.blocks(work.batch, start, stop, work.model.device):
        clean = clean_run(work.model, tokens, work.neurons)
        found = measure_clean(work.model, clean, work.readout)
        parts.append(
            {
                "tokens": tokens,
                "mask": mask,
                "pre": torch.stack([clean.pre[n] for n in work.neurons], -1).to(work.dtype),
                "post": torch.stack([clean.post[n] for n in work.neurons], -1).to(work.dtype),
                "loss": found.loss,
                "entropy": found.entropy,
                "rank": found.rank.int(),
                "scale": found.scale,
                "unigram_kl": found.unigram_kl,
            }
        )
    name = f"activations/{start:09d}.safetensors"
    whole = {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    write_tensors(work.artifacts.artifact(name), whole)
    return {"file": name}


def read_cache(out: str | os.PathLike[str]) -> Cached:
    """What a cache run saved.

    Raises: RunError for a folder without one, or one that is not finished.
    """
    card = read_card(out)
    if "neurons" not in card.arguments or "block" not in card.arguments:
        raise RunError(f"{out} is no run of `interpcore neurons cache`.")
    files = sorted((Path(out) / "artifacts" / "activations").glob("[0-9]*.safetensors"))
    n, block = int(card.arguments["sequences"]), int(card.arguments["block"])
    if len(files) < -(-n // block):
        raise RunError(f"{out} holds {len(files)} of {-(-n // block)} blocks; run the same command again.")
    blocks = [read_tensors(path)[0] for path in files]
    whole = {key: torch.cat([b[key] for b in blocks]) for key in blocks[0]}
    names = [tuple(map(int, name.split("."))) for name in card.arguments["neurons"]]
    names_of = ("loss", "entropy", "rank", "scale", "unigram_kl")
    measures = TokenMeasures(*(whole[n].long() if n == "rank" else whole[n] for n in names_of))
    return Cached(
        tuple((layer, number) for layer, number in names),
        whole["tokens"],
        whole["mask"],
        whole["pre"],
        whole["post"],
        measures,
    )
