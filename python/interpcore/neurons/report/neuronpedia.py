"""A study's neurons in Neuronpedia's form: a folder per source, with gzip JSON lines of features and
activations."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interpcore.neurons.report.contexts import INTERVALS
from interpcore.neurons.report.site import Facts
from interpcore.runs import write_bytes

SET = "mlp"
BATCH = 1024
"""Neurons of a batch file."""


def write_neuronpedia(facts: Facts, out: str | os.PathLike[str]) -> list[Path]:
    """Write `<out>/<model>/<layer>-mlp/` for every layer, as Neuronpedia's bulk import reads it: model,
    source set and source, and batches of features and activations. Creators' ids are the importer's and
    left empty.

    Args:
        facts: of the neurons.
        out: the folder.
    Returns: the layers' folders.
    """
    base, layers = Path(out) / facts.model, sorted({layer for layer, _ in facts.data})
    folders = []
    for layer in layers:
        source = f"{layer}-{SET}"
        folder = base / source
        for part in ("features", "activations"):
            (folder / part).mkdir(parents=True, exist_ok=True)
        own = {"modelId": facts.model, "creatorId": ""}
        model = {"id": facts.model, "instruct": False, "creatorId": "", "displayName": facts.model}
        model |= {"displayNameShort": facts.model, "layers": len(layers)}
        source_set = own | {"name": SET, "type": "neurons", "description": f"MLP neurons on {facts.corpus}"}
        what = own | {"id": source, "setName": SET, "dataset": facts.corpus, "num_tokens": facts.tokens}
        for name, row in (("model", model), ("sourceset", source_set), ("source", what)):
            write_bytes(folder / f"{name}.jsonl", _lines([row]))
        mine = {n: data for (d, n), data in facts.data.items() if d == layer}
        for number, start in enumerate(range(0, len(mine), BATCH)):
            some = dict(list(mine.items())[start : start + BATCH])
            for part, rows in (("features", _features), ("activations", _activations)):
                packed = gzip.compress(_lines(rows(facts, source, some)), mtime=0)
                write_bytes(folder / part / f"batch-{number}.jsonl.gz", packed)
        folders.append(folder)
    return folders


def _features(facts: Facts, source: str, neurons: Mapping[int, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for number, mine in neurons.items():
        low, high = (end if end is not None else 0.0 for end in mine["range"])
        width = (high - low) / max(len(mine["density"]), 1)
        yield {
            "modelId": facts.model,
            "layer": source,
            "index": str(number),
            "creatorId": "",
            "maxActApprox": mine["max"],
            "hasVector": False,
            "frac_nonzero": mine["numbers"].get("frequency"),
            "pos_str": [facts.texts[i] for i, _ in mine["raised"]],
            "pos_values": [value for _, value in mine["raised"]],
            "neg_str": [facts.texts[i] for i, _ in mine["lowered"]],
            "neg_values": [value for _, value in mine["lowered"]],
            "freq_hist_data_bar_heights": mine["density"],
            "freq_hist_data_bar_values": [low + (i + 0.5) * width for i in range(len(mine["density"]))],
            "correlated_neurons_indices": [n for d, n, _ in mine["reads alike"] if f"{d}-{SET}" == source],
            "sourceSetName": SET,
        }


def _activations(
    facts: Facts, source: str, neurons: Mapping[int, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    for number, mine in neurons.items():
        top = mine["max"] or 0.0
        binned = [(i, one) for i, drawn in enumerate(mine["intervals"]) for one in drawn]
        for at, (interval, (place, ids, values)) in enumerate(
            [*((None, one) for one in mine["top"]), *binned]
        ):
            row: dict[str, Any] = {
                "id": f"{source}-{number}-{at}",
                "modelId": facts.model,
                "layer": source,
                "index": str(number),
                "creatorId": "",
                "tokens": [facts.texts[i] for i in ids],
                "values": values,
                "maxValue": max(values),
                "minValue": min(values),
                "maxValueTokenIndex": values.index(max(values)),
                "dataSource": facts.corpus,
            }
            if interval is not None:
                row |= {"binMin": top * interval / INTERVALS, "binMax": top * (interval + 1) / INTERVALS}
                row |= {"binContains": mine["shares"][interval], "qualifyingTokenIndex": place}
            yield row


def _lines(rows: Any) -> bytes:
    return "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
