"""Which neurons are like each: by what they read and write, and their partners in other models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from interpcore.model import Model
from interpcore.neurons.correlation.reader import NeuronSet
from interpcore.neurons.weights.cosines import neuron_cosines
from interpcore.neurons.weights.fold import fold
from interpcore.runs import read_card, read_tensors

NEAREST = 5
KINDS = {"in_in": "reads alike", "out_out": "writes alike"}


def like_neurons(study: Path, model: Model) -> dict[tuple[int, int], dict[str, Any]]:
    """For every neuron those of its model whose reading and writing vectors lie closest, [layer, neuron,
    cosine] each, and its partners in other models where the study has them, [model, layer, neuron,
    correlation]."""
    folded, width = fold(model), model.spec.d_mlp
    found: dict[tuple[int, int], dict[str, Any]] = {}
    for layer in range(folded.n_layers):
        for kind, name in KINDS.items():
            near = neuron_cosines(folded, layer, kind, k=NEAREST)
            for n, (at, values) in enumerate(zip(near.top_index.tolist(), near.top.tolist(), strict=True)):
                listed = [
                    [i // width, i % width, round(v, 4)] for i, v in zip(at, values, strict=True) if i >= 0
                ]
                found.setdefault((layer, n), {})[name] = listed
    for name, sets, kept in partner_files(study):
        layers, numbers = sets.address(kept["top_index"][:, :NEAREST].flatten())
        addresses = zip(
            layers.tolist(), numbers.tolist(), kept["top"][:, :NEAREST].flatten().tolist(), strict=True
        )
        for place, (d, n, r) in enumerate(addresses):
            own = place // min(NEAREST, kept["top"].shape[1])
            if d >= 0:
                mine = found[own // width, own % width].setdefault("partners", [])
                mine.append([name, d, n, round(r, 4)])
    return found


def partner_files(study: Path) -> list[tuple[str, NeuronSet, dict[str, Tensor]]]:
    """Each partner model's name, neurons, and what was kept of its correlations; [] without partners."""
    folder = study / "correlation"
    if not (folder / "card.json").is_file():
        return []
    found = []
    for place, name in enumerate(read_card(folder).arguments["models"][1:], 1):
        path = folder / "artifacts" / "partners" / f"0-{place}.safetensors"
        if path.is_file():
            kept, header = read_tensors(path)
            found.append((name, NeuronSet(name, tuple(map(int, header["widths"].split()))), kept))
    return found
