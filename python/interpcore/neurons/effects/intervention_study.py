"""Interventions over a corpus: mean loss, entropy, rank, reciprocal rank and norm scale, with errors."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.readout import MEASURES, Readout, TokenMeasures, log_unigram
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.effects.interventions import (
    Intervention,
    Neuron,
    check_neurons,
    clean_run,
    intervene,
    measure_clean,
)
from interpcore.runs import RunFolder, tensors_hash
from interpcore.runs.experiment import Shared
from interpcore.stats.jackknife import jackknife_ratio

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED_VALUES = (-0.17, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0)
"""Fixed activations of the published entropy-neuron interventions."""


@dataclass(eq=False)
class _Work(Shared):
    model: Model
    shards: TokenShards
    interventions: dict[Neuron, tuple[Intervention, ...]]
    frozen: bool
    batch: int
    published: bool
    counts: Tensor | None
    readout: Readout = field(init=False)

    def __post_init__(self) -> None:
        unigram = None if self.counts is None else log_unigram(self.counts)
        self.readout = Readout(self.model, self.published, unigram)


def intervention_study(
    model: Model,
    shards: TokenShards,
    neurons: Sequence[Neuron],
    interventions: Sequence[Intervention] | Mapping[Neuron, Sequence[Intervention]],
    out: str | os.PathLike[str] | None,
    *,
    frozen: bool = True,
    counts: Tensor | None = None,
    limit: int | None = None,
    block: int = 8,
    batch: int = 8,
    protocol: str = "default",
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
    about: Mapping[str, Any] | None = None,
) -> pd.DataFrame:
    """Every intervention on every neuron, over the tokens that count and have a next token that is no
    padding.

    Args:
        model: the decoder.
        shards: the corpus.
        neurons: which.
        interventions: what to do with every one of them, or with each its own, as many for each.
        out: the run folder, which the same call goes on with; None keeps nothing.
        frozen: also measure each with the final norm's scale frozen.
        counts: occurrences of each token id [vocabulary], for `unigram_kl`; None leaves it NaN.
        limit: only the first so many sequences.
        block: sequences of one ledger row, which is also one group of the standard errors.
        batch: sequences in one forward.
        protocol: "paper" takes the published entropy.
        workers: processes that share the work; more than one load the model anew.
        progress: show it.
        command: what was typed, for the card.
        about: further arguments of the card, that say what else the caller keeps in the run.
    Returns: one row per neuron, intervention and norm ("free" or "frozen"), and one of kind "none": tokens,
        the mean of every measure in `MEASURES`, its standard error `_se`, its change against the clean
        forward `_change`, and that change's error `_change_se` (delete-a-group jackknife over the blocks; NaN
        for fewer than two).
    """
    shards.check_model(model)
    check_neurons(model, neurons)
    chosen = tuple(dict.fromkeys((int(layer), int(number)) for layer, number in neurons))
    work = _Work(
        model,
        shards,
        _of_each(chosen, interventions),
        frozen,
        batch,
        protocol == "paper",
        counts,
    )
    check_predicting(shards, limit)
    grid = shards.spans(block, limit)
    if out is None:
        return _table(work, [intervention_block(work, **cell) for cell in grid])
    card = corpus_card(
        model,
        shards,
        protocol,
        command,
        neurons=[f"{layer}.{number}" for layer, number in chosen],
        interventions=[[asdict(i) for i in done] for done in work.interventions.values()],
        frozen=frozen,
        counts=None if counts is None else tensors_hash({"counts": counts}),
        sequences=shards.count(limit),
        block=block,
        **(about or {}),
    )
    with RunFolder.open_or_create(out, card, shared=True) as folder:
        how: dict[str, Any] = {"out": folder, "progress": progress, "on_error": "raise"}
        rows = work.over(intervention_block, grid, workers=workers, **how)
    return _table(work, [row.result for row in rows])


def intervention_block(work: _Work, start: int, stop: int) -> dict[str, Any]:
    """Sums of every measure over one block's tokens: tokens, clean [measure], and free and frozen [neuron,
    intervention, measure]."""
    clean_sums = torch.zeros(len(MEASURES), dtype=torch.float64)
    shape = (len(work.interventions), len(next(iter(work.interventions.values()))), len(MEASURES))
    sums = {"free": torch.zeros(shape, dtype=torch.float64)}
    if work.frozen:
        sums["frozen"] = torch.zeros(shape, dtype=torch.float64)
    tokens_seen = 0
    for _, tokens, _ in work.shards.blocks(work.batch, start, stop, work.model.device):
        valid = predicting(work.shards, tokens)
        tokens_seen += int(valid.sum())
        clean = clean_run(work.model, tokens, list(work.interventions))
        clean_sums += _sums(measure_clean(work.model, clean, work.readout), valid)
        for i, (neuron, interventions) in enumerate(work.interventions.items()):
            measured = intervene(
                work.model, clean, neuron, interventions, readout=work.readout, norms=tuple(sums)
            )
            for name, into in sums.items():
                into[i] += _sums(measured[name], valid)
    return {
        "tokens": tokens_seen,
        "clean": clean_sums.tolist(),
        **{name: into.tolist() for name, into in sums.items()},
    }


def check_predicting(shards: TokenShards, limit: int | None = None) -> None:
    """Raises: Refused where no token that counts has a next token to predict in the first `limit`
    sequences."""
    n, counting = shards.count(limit), False
    for _, tokens, mask in shards.blocks(256, 0, n):
        if bool(predicting(shards, tokens).any()):
            return
        counting |= bool(mask.any())
    if counting:
        raise Refused(
            f"No token that counts in the first {n} sequences has a next token to predict: only last "
            "positions count, or what follows is padding."
        )
    raise Refused(f"No token counts: the masks leave nothing of the first {n} sequences.")


def predicting(shards: TokenShards, tokens: Tensor) -> Tensor:
    """Tokens that count, are not the last of their sequence, and whose next token is no padding.

    Args:
        tokens: [batch, position].
    Returns: the same shape, bool.
    """
    kinds = shards.manifest["masks"]
    padding = [i for i in kinds.get("padding", ()) if i not in kinds.get("bos", ())]
    valid = shards.mask(tokens).clone()
    valid[:, -1] = False
    if padding:
        valid[:, :-1] &= ~torch.isin(tokens[:, 1:], torch.tensor(padding, device=tokens.device))
    return valid


def _of_each(
    neurons: Sequence[Neuron], interventions: Sequence[Intervention] | Mapping[Neuron, Sequence[Intervention]]
) -> dict[Neuron, tuple[Intervention, ...]]:
    if not isinstance(interventions, Mapping):
        interventions = dict.fromkeys(neurons, interventions)
    found = {neuron: tuple(interventions[neuron]) for neuron in neurons}
    if not found or len({len(done) for done in found.values()}) != 1 or not next(iter(found.values())):
        raise Refused("Every neuron needs as many interventions as the others, and at least one.")
    return found


def _sums(measured: TokenMeasures, valid: Tensor) -> Tensor:
    """Sum of each measure over the valid tokens [..., measure] float64."""
    parts = [getattr(measured, name).double().where(valid, 0).sum((-2, -1)) for name in MEASURES]
    return torch.stack(parts, -1).cpu()


def _table(work: _Work, blocks: Sequence[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    blocks = [block for block in blocks if block["tokens"]]
    counts = torch.tensor([b["tokens"] for b in blocks], dtype=torch.float64)
    clean = torch.tensor([b["clean"] for b in blocks], dtype=torch.float64)

    def row(about: dict[str, Any], sums: Tensor) -> dict[str, Any]:
        pairs = (*jackknife_ratio(sums, counts), *jackknife_ratio(sums - clean, counts))
        mean, error, change, change_error = (values.tolist() for values in pairs)
        values = {"tokens": int(counts.sum())}
        for m, name in enumerate(MEASURES):
            values |= {name: mean[m], f"{name}_se": error[m]}
            values |= {f"{name}_change": change[m], f"{name}_change_se": change_error[m]}
        return about | values

    rows = [
        row({"layer": -1, "neuron": -1, "kind": "none", "value": np.nan, "site": "", "norm": "free"}, clean)
    ]
    for norm in ("free", "frozen") if work.frozen else ("free",):
        # [group, neuron, intervention, measure]
        sums = torch.tensor([b[norm] for b in blocks], dtype=torch.float64)
        for i, ((layer, number), of_neuron) in enumerate(work.interventions.items()):
            for j, done in enumerate(of_neuron):
                about = {
                    "layer": layer,
                    "neuron": number,
                    "kind": done.name or done.kind,
                    "value": done.value,
                }
                rows.append(row(about | {"site": done.site, "norm": norm}, sums[:, i, j]))
    return pd.DataFrame(rows)
