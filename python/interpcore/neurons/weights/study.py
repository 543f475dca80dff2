"""Weight statistics of all neurons, layer by layer, in a run folder."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.neurons.weights.composition import KINDS, composition, composition_summary
from interpcore.neurons.weights.cosines import (
    NEURON_KINDS,
    VOCABULARY_KINDS,
    CosineSummary,
    nearest_neurons,
    neuron_cosines,
    vocabulary_cosines,
    vocabulary_moments,
)
from interpcore.neurons.weights.fold import (
    FoldedWeights,
    fold,
    neuron_columns,
    null_space_fraction,
)
from interpcore.runs import Artifacts, RunFolder, atomic_path, write_tensors
from interpcore.runs.experiment import Shared
from interpcore.runs.frames import read_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False)
class _Work(Shared):
    model: Model
    artifacts: Artifacts
    full: bool
    diagonal: str
    folded: FoldedWeights = field(init=False)
    rho: Any = field(init=False)

    def __post_init__(self) -> None:
        self.folded = fold(self.model)
        self.rho = null_space_fraction(self.folded)


def weight_study(
    model: Model,
    out: str | os.PathLike[str],
    *,
    full: bool = False,
    protocol: str = "default",
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> pd.DataFrame:
    """Weight statistics of every neuron. The same call goes on where it was stopped.

    Args:
        model: the decoder.
        out: the run folder.
        full: also keep, per layer, summaries of all cosines with neurons and tokens (moments, histogram,
            extremes) and all compositions with heads.
        protocol: "paper" counts a neuron's cosine with itself as 0 in those summaries.
        workers: processes that share the work; more than one load the model anew.
        progress: show it.
        command: what was typed, for the card.
    Returns: one row per neuron: layer, neuron; the columns of `neuron_columns` and `nearest_neurons`;
        vocab_mean, vocab_var, vocab_skew, vocab_kurt; null_space (rho); and per kind of
        composition its largest value with the head, such as q_composition, q_layer, q_head.
    """
    card = run_card(model, protocol=protocol, arguments={"full": full}, command=command)
    with RunFolder.open_or_create(out, card, shared=True) as folder:
        diagonal = "zero" if protocol == "paper" else "left out"
        work = _Work(model, folder.artifacts, full, diagonal)
        grid = [{"layer": layer} for layer in range(work.folded.n_layers)]
        how: dict[str, Any] = {"out": folder, "progress": progress, "on_error": "raise"}
        work.over(weight_layer, grid, workers=workers, **how)
    return read_weights(out)


def weight_layer(work: _Work, layer: int) -> dict[str, Any]:
    """Write one layer's table, and its summaries where they are asked for."""
    import pandas as pd

    neurons = work.folded.neurons(layer)
    columns = neuron_columns(neurons) | nearest_neurons(work.folded, layer)
    moments = vocabulary_moments(work.folded, layer)
    for ours, name in (("mean", "mean"), ("variance", "var"), ("skewness", "skew"), ("kurtosis", "kurt")):
        columns[f"vocab_{name}"] = getattr(moments, ours)
    columns["null_space"] = work.rho(neurons.write)
    reach = composition_summary(work.folded, layer)
    for kind in KINDS:
        columns[f"{kind}_composition"] = reach.largest[kind]
        columns[f"{kind}_layer"], columns[f"{kind}_head"] = reach.layer[kind], reach.head[kind]
    effects = vocabulary_cosines(work.folded, layer, "U_out", k=20)
    name = f"layers/{layer}.parquet"
    table = pd.DataFrame({key: value.cpu().numpy() for key, value in columns.items()})
    table.insert(0, "layer", layer)
    table.insert(1, "neuron", range(len(table)))
    write_tensors(work.artifacts.artifact(f"tokens/{layer}.safetensors"), _extremes(effects))
    if work.full:
        _write_full(work, layer)
    with atomic_path(work.artifacts.artifact(name)) as path:
        table.to_parquet(path, index=False)
    return {"file": name}


def read_weights(out: str | os.PathLike[str]) -> pd.DataFrame:
    """The table of a finished weight study."""
    import pandas as pd

    files = sorted((Path(out) / "artifacts" / "layers").glob("[0-9]*.parquet"), key=lambda p: int(p.stem))
    if not files:
        raise Refused(f"{out} holds no weight statistics; run `interpcore neurons weights` into it.")
    return pd.concat([read_frame(path) for path in files], ignore_index=True)


def _extremes(found: CosineSummary) -> dict[str, Tensor]:
    names = ("top", "top_index", "bottom", "bottom_index")
    return {name: getattr(found, name) for name in names}


def _write_full(work: _Work, layer: int) -> None:
    """Summaries of every kind of cosine, and all compositions, of one layer."""
    for kind in (*NEURON_KINDS, *VOCABULARY_KINDS):
        if kind in NEURON_KINDS:
            found = neuron_cosines(work.folded, layer, kind, diagonal=work.diagonal)
        else:
            found = vocabulary_cosines(work.folded, layer, kind)
        m = found.moments
        tensors = _extremes(found) | {"histogram": found.histogram}
        tensors |= {"mean": m.mean, "var": m.variance, "skew": m.skewness, "kurt": m.kurtosis}
        write_tensors(work.artifacts.artifact(f"cosines/{kind}/{layer}.safetensors"), tensors)
    neurons = work.folded.neurons(layer)
    by_layer = [composition(neurons, work.folded.heads(other)) for other in range(work.folded.n_layers)]
    stacked = {kind: torch.stack([c[kind] for c in by_layer], 1).float() for kind in KINDS}
    write_tensors(work.artifacts.artifact(f"compositions/{layer}.safetensors"), stacked)
