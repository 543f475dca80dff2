"""One neuron's page: what it responds to, what it writes, how it is spread, and who is like it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.model.token_text import token_texts
from interpcore.neurons.effects.interventions import check_neurons, clean_run
from interpcore.neurons.report.behaviour import histogram_figure, subset_figure
from interpcore.neurons.report.contexts import one_of_a_sequence
from interpcore.neurons.report.figures import composition_figure
from interpcore.neurons.report.like import partner_files
from interpcore.neurons.statistics.summary import Summary
from interpcore.neurons.weights.composition import KINDS, composition
from interpcore.neurons.weights.cosines import summarize_cosines, token_vectors, unit_rows
from interpcore.neurons.weights.fold import FoldedWeights, NeuronWeights, fold
from interpcore.runs.frames import read_frame
from interpcore.runs.pages import highlighted, joined, note, page, picture, side_by_side, table

if TYPE_CHECKING:
    import pandas as pd

LEGEND = "Red: active (above 0), blue: below 0, as dark as the activation is large; underlined: the token."
WINDOW = 24
"""Tokens shown on either side of an example."""


@dataclass(frozen=True, eq=False)
class _Neuron:
    """What a page's sections are made from."""

    study: Path
    model: Model
    shards: TokenShards | None
    folded: FoldedWeights
    layer: int
    number: int
    texts: Sequence[str]
    summary: Summary | None

    @property
    def name(self) -> str:
        return f"{self.layer}.{self.number}"


def neuron_page(
    study: str | os.PathLike[str],
    model: Model,
    layer: int,
    neuron: int,
    shards: TokenShards | None = None,
    *,
    examples: int = 12,
    sample: int = 32,
) -> str:
    """The page of one neuron, from what a study's folder holds; what it lacks is left out.

    Args:
        study: the study's folder.
        model: the decoder.
        layer, neuron: which.
        shards: the corpus of the study; None leaves contexts out.
        examples: contexts shown.
        sample: sequences for the spread by subset.
    Returns: HTML.
    Raises: ValueError for a neuron that is not there.
    """
    check_neurons(model, [(layer, neuron)])
    if model.tokenizer is None:
        texts = [f"[{i}]" for i in range(model.embedding.shape[0])]
    else:
        texts = token_texts(model.tokenizer, model.embedding.shape[0])
    folder = Path(study)
    there = (folder / "summary" / "card.json").is_file()
    summary = Summary.open(folder / "summary") if there else None
    one = _Neuron(folder, model, shards, fold(model), layer, neuron, texts, summary)
    sections = [
        ("What it does to the next token", _effects(one)),
        ("Distribution", _distribution(one)),
        ("By subset", _subsets(one, sample)),
        ("Where it is most active", _contexts(one, examples)),
        ("Tokens at which it is most active", _tokens(one)),
        ("Explained by", _explained(one)),
        ("Its partners in other models", _partners(one)),
        ("Its neighbours", _neighbours(one)),
        ("Attention heads", _heads(one)),
        ("In numbers", _numbers(one)),
    ]
    return page(f"{model.spec.name.rstrip('/').rsplit('/', 1)[-1]}, neuron {one.name}", sections)


def _numbers(one: _Neuron) -> str:
    row = _row(one.study / "dataframe" / "artifacts" / "neuron_df.parquet", one)
    if row is None:
        return ""
    import pandas as pd

    missing = {name for name, value in row.items() if name.endswith(("_layer", "_head")) and value == -1}
    facts = [
        (name, value)
        for name, value in row.items()
        if name not in ("layer", "neuron", *missing) and not pd.isna(value)
    ]
    third = -(-len(facts) // 3)
    parts = [facts[i : i + third] for i in range(0, len(facts), third)]
    return side_by_side([table(pd.DataFrame(part, columns=["", "value"])) for part in parts])


def _explained(one: _Neuron) -> str:
    path = one.study / "explain" / "artifacts" / "best.parquet"
    if not path.is_file():
        return ""
    best = read_frame(path)
    return table(best[(best.layer == one.layer) & (best.neuron == one.number)].iloc[:, 2:])


def _distribution(one: _Neuron) -> str:
    if one.summary is None:
        return ""
    pre, _ = one.summary.moments(one.layer)
    counts = one.summary.histogram(one.layer)
    figure = histogram_figure(
        counts.counts[one.number],
        counts.edges,
        float(pre.minimum[one.number]),
        float(pre.maximum[one.number]),
    )
    where = "" if one.shards is None else f"Corpus {_corpus(one.shards)}, "
    said = f"{where}n = {int(pre.count[one.number]):,} tokens; the dotted line is 0."
    return joined([picture(figure, "histogram of pre-activations"), note(said)])


def _subsets(one: _Neuron, sample: int) -> str:
    if one.shards is None or len(one.shards.subset_names) < 2:
        return ""
    tokens = one.shards.sequences(0, min(sample, one.shards.n_sequences))
    pre = _pre(one, tokens)
    mask = one.shards.mask(tokens)
    values = {
        name: pre[rows][mask[rows]].numpy()
        for number, name in enumerate(one.shards.subset_names)
        if len(rows := np.flatnonzero(one.shards.subset[: len(tokens)] == number)) and mask[rows].any()
    }
    if not values:
        return ""
    said = f"{len(tokens)} sequences of corpus {_corpus(one.shards)}. Boxes: the middle half of the tokens."
    return joined([picture(subset_figure(values), "pre-activations by subset"), note(said)])


def _contexts(one: _Neuron, examples: int) -> str:
    if one.summary is None or one.shards is None or not one.summary.statistics.top:
        return ""
    context = one.shards.context
    index = one_of_a_sequence(one.summary.examples(one.layer), context, examples)[:, one.number]
    index = index[index >= 0]
    if not len(index):
        return note("No token.")
    rows = torch.cat([one.shards.sequences(int(i) // context, int(i) // context + 1) for i in index])
    acts = clean_run(one.model, rows, [(one.layer, one.number)]).post[one.layer, one.number].float()
    value = [float(act[i % context]) for act, i in zip(acts, index.tolist(), strict=True)]
    lines = [note(f"{LEGEND} Corpus {_corpus(one.shards)}, one context of a sequence.")]
    for row, act, i, v in zip(rows, acts, index.tolist(), value, strict=True):
        place = i % context
        window = slice(max(0, place - WINDOW), min(context, place + WINDOW // 2))
        shown = [one.texts[t] for t in row[window].tolist()]
        text = highlighted(shown, act[window].tolist(), value[0], place - window.start)
        lines += [note(f"{v:.3f}, token {i}"), text]
    return joined(lines)


def _corpus(shards: TokenShards) -> str:
    return "in memory" if shards.folder is None else shards.folder.name


def _tokens(one: _Neuron) -> str:
    """Token ids by mean activation, those seen five times or more."""
    import pandas as pd

    if one.summary is None or "token" not in one.summary.statistics.by_token:
        return ""
    groups = one.summary.groups("token", one.layer)
    seen = groups.values[:, one.number]
    mean = groups.mean[:, one.number].where(seen >= 5, -torch.inf)
    top, which = mean.topk(min(15, int((seen >= 5).sum())))
    names, counts = [repr(one.texts[i]) for i in groups.ids[which].tolist()], seen[which].tolist()
    columns = {"token": names, "mean activation": top.tolist(), "seen": counts}
    if groups.largest is not None:
        columns["largest"] = groups.largest[which, one.number].tolist()
    return table(pd.DataFrame(columns))


def _effects(one: _Neuron) -> str:
    import pandas as pd

    write = unit_rows(one.folded.neurons(one.layer).write[one.number : one.number + 1])
    found = summarize_cosines(write, token_vectors(one.folded, "U"), k=15)
    parts = []
    for head, values, index in (
        ("raised", found.top, found.top_index),
        ("lowered", found.bottom, found.bottom_index),
    ):
        there = index[0] >= 0
        names = [repr(one.texts[i]) for i in index[0][there].tolist()]
        parts.append(table(pd.DataFrame({head: names, "cos(W_U, w_out)": values[0][there].tolist()})))
    return side_by_side(parts)


def _partners(one: _Neuron) -> str:
    import pandas as pd

    row = one.layer * one.model.spec.d_mlp + one.number
    rows: list[dict[str, Any]] = []
    for name, neurons, kept in partner_files(one.study):
        layer, number = neurons.address(kept["top_index"][row, :5])
        rows += [
            {"model": name, "neuron": f"{int(d)}.{int(n)}", "correlation": float(r)}
            for r, d, n in zip(kept["top"][row, :5], layer, number, strict=True)
            if d >= 0
        ]
    return table(pd.DataFrame(rows)) if rows else ""


def _neighbours(one: _Neuron) -> str:
    import pandas as pd

    own = one.layer * one.model.spec.d_mlp + one.number
    weights = one.folded.neurons(one.layer)
    parts = []
    for head, pick in (("reads alike", lambda w: w.read), ("writes alike", lambda w: w.write)):
        row = unit_rows(pick(weights)[one.number : one.number + 1])
        columns = (unit_rows(pick(one.folded.neurons(d))) for d in range(one.folded.n_layers))
        found = summarize_cosines(row, columns, k=5, own=own)
        values = torch.cat((found.top[0], found.bottom[0].flip(0)))
        index = torch.cat((found.top_index[0], found.bottom_index[0].flip(0)))
        width, there = one.model.spec.d_mlp, index >= 0
        names = [f"{i // width}.{i % width}" for i in index[there].tolist()]
        parts.append(table(pd.DataFrame({head: names, "cosine": values[there].tolist()})))
    return side_by_side(parts)


def _heads(one: _Neuron) -> str:
    w = one.folded.neurons(one.layer)
    row = slice(one.number, one.number + 1)
    mine = NeuronWeights(w.read[row], w.bias[row], w.write[row])
    layers = [composition(mine, one.folded.heads(d)) for d in range(one.folded.n_layers)]
    values = {kind: torch.cat([of_layer[kind] for of_layer in layers]).numpy() for kind in KINDS}
    return picture(composition_figure(values, "composition with every head"), "composition with heads")


def _row(path: Path, one: _Neuron) -> pd.Series | None:
    if not path.is_file():
        return None
    frame = read_frame(path)
    return frame[(frame.layer == one.layer) & (frame.neuron == one.number)].iloc[0]


def _pre(one: _Neuron, tokens: Tensor) -> Tensor:
    """The neuron's pre-activations [sequence, position]."""
    found = [
        clean_run(one.model, part, [(one.layer, one.number)]).pre[one.layer, one.number].float()
        for part in tokens.split(8)
    ]
    return torch.cat(found)
