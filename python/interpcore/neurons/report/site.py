"""All neurons of a study as one site that needs no server: an index, and a page per neuron drawn from its
data.

`index.html` lists, searches and sorts; `neuron.html#3.120` shows one; data lie in scripts beside them, so
that a browser reads them from a disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.token_text import token_texts
from interpcore.model.weights import model_hash
from interpcore.neurons.report.contexts import Context, Drawn, draw, top_tokens, windows
from interpcore.neurons.report.like import like_neurons
from interpcore.neurons.statistics.summary import Summary
from interpcore.neurons.weights.cosines import vocabulary_cosines
from interpcore.neurons.weights.fold import fold
from interpcore.runs import read_card, same_weights, write_bytes
from interpcore.runs.frames import read_frame
from interpcore.stats.histograms import rebinned

if TYPE_CHECKING:
    import pandas as pd

CHUNK = 128
"""Neurons of a data file."""
BARS = 48
MOVED = 10
COLUMNS = (
    "family",
    "frequency",
    "mean",
    "skew",
    "kurt",
    "in_out_sim",
    "vocab_var",
    "vocab_kurt",
    "excess_corr",
)
LIMITS = {"frequency": "of activation > 0", "excess_corr": "over rotated partners"}


@dataclass(frozen=True, eq=False)
class Facts(ShortRepr):
    """What is known of every neuron of a model, as a site and exports take it.

    Args:
        model, corpus: their names.
        tokens: tokens of the corpus.
        texts: of every token id.
        table: one row per neuron: layer, neuron and `COLUMNS` that there are.
        data: (layer, neuron) -> its page's data.
    """

    model: str
    corpus: str
    tokens: int
    texts: list[str]
    table: pd.DataFrame
    data: Mapping[tuple[int, int], dict[str, Any]]


def neuron_facts(
    study: str | os.PathLike[str],
    model: Model,
    shards: TokenShards,
    *,
    examples: int = 6,
    sample: int = 64,
) -> Facts:
    """Everything that a finished study knows of its neurons.

    Args:
        study: its folder, with the steps summary and dataframe; explanations and partners are read where
        they are. model: whose. shards: its corpus. examples: top contexts of a neuron, each of another
        sequence. sample: sequences that tokens of the intervals of activation are drawn from.
    Raises: Refused where a step is missing, or the corpus or the model is another.
    """
    folder = Path(study)
    table_file = folder / "dataframe" / "artifacts" / "neuron_df.parquet"
    if not table_file.is_file():
        raise Refused(
            f"{folder} has no table of neurons; run interpcore neurons dataframe --out {folder} first."
        )
    summary = Summary.open(folder / "summary")
    if summary.card.split != shards.identity:
        raise Refused(f"{folder} was made on another corpus than these tokens; give its own.")
    if not same_weights(str(summary.card.weights), model_hash(model)):
        raise Refused(
            f"{folder} is of neurons of {summary.card.model}, whose weights are not those of "
            f"{model.spec.short_name}; give its own model."
        )
    texts = token_texts(model.tokenizer, model.embedding.shape[0]) if model.tokenizer else []
    texts = texts or [f"[{i}]" for i in range(model.embedding.shape[0])]
    table = read_frame(table_file)
    largest = [summary.moments(d)[1].maximum.float() for d in range(summary.n_layers)]
    drawn = draw(model, shards, largest, sample)
    top = top_tokens(summary, shards.context, examples)
    both = [torch.cat((mine, one.index.flatten(0, 1))) for mine, one in zip(top, drawn, strict=True)]
    data: dict[tuple[int, int], dict[str, Any]] = {}
    for layer in range(summary.n_layers):
        data |= _of_layer(model, summary, layer, table, drawn[layer])
    for (d, n), found in _explained(folder).items():
        data[d, n]["explained"] = found
    for (d, n), more in like_neurons(folder, model).items():
        data[d, n] |= more
    for layer, neuron, example, context in windows(model, shards, both):
        mine = data[layer, neuron]
        if example < examples:
            mine["top"].append((example, _told(context)))
        else:
            interval = (example - examples) // (len(drawn[layer].index[0]))
            mine["intervals"][interval].append(_told(context))
    for mine in data.values():
        mine["top"] = _different([context for _, context in sorted(mine["top"], key=lambda t: t[0])])
    name = model.spec.short_name
    corpus = "in memory" if shards.folder is None else shards.folder.name
    columns = ["layer", "neuron", *(c for c in COLUMNS if c in table and table[c].notna().any())]
    return Facts(name, corpus, summary.n_tokens, texts, table[columns], data)


def _of_layer(
    model: Model, summary: Summary, layer: int, table: pd.DataFrame, drawn: Drawn
) -> dict[tuple[int, int], dict[str, Any]]:
    """Numbers, density, shares and logit effects of a layer's neurons."""
    pre, post = summary.moments(layer)
    counts = summary.histogram(layer)
    moved = vocabulary_cosines(fold(model), layer, "U_out", k=MOVED)
    rows = table[table.layer == layer].drop(columns=["layer", "neuron"]).to_dict("records")
    found = {}
    for n, row in enumerate(rows):
        low, high = float(pre.minimum[n]), float(pre.maximum[n])
        found[layer, n] = {
            "numbers": {name: _number(value) for name, value in row.items()},
            "density": [_number(x) for x in rebinned(counts.counts[n], counts.edges, low, high, BARS)],
            "range": [_number(low), _number(high)],
            "max": _number(float(post.maximum[n])),
            "raised": _pairs(moved.top_index[n], moved.top[n]),
            "lowered": _pairs(moved.bottom_index[n], moved.bottom[n]),
            "shares": [_number(float(x)) for x in drawn.share[:, n]],
            "top": [],
            "intervals": [[] for _ in drawn.share],
        }
    return found


def _explained(folder: Path) -> dict[tuple[int, int], list[list[Any]]]:
    """The features that explain each neuron best, where the study has looked for them."""
    path = folder / "explain" / "artifacts" / "best.parquet"
    found: dict[tuple[int, int], list[list[Any]]] = {}
    for row in read_frame(path).itertuples() if path.is_file() else ():
        told = [row.feature, row.group, _number(row.variance_reduction)]
        found.setdefault((int(row.layer), int(row.neuron)), []).append(told)
    return found


def _told(context: Context) -> list[Any]:
    """A context: place of its token, ids, activations."""
    return [context.place, list(context.tokens), [_number(v) for v in context.values]]


def _hundredths(mine: dict[str, Any]) -> dict[str, Any]:
    """A neuron's data with activations in hundredths of its largest, which is what the page shows."""
    top = max(abs(mine["max"] or 0.0), 1e-30)

    def shown(contexts: list[Any]) -> list[Any]:
        return [[at, ids, [round(100 * (v or 0.0) / top) for v in values]] for at, ids, values in contexts]

    return mine | {"top": shown(mine["top"]), "intervals": [shown(drawn) for drawn in mine["intervals"]]}


def _different(contexts: list[list[Any]]) -> list[list[Any]]:
    """Contexts of different words up to their token: a sentence that the corpus repeats stands once."""
    kept: dict[tuple[int, ...], list[Any]] = {}
    for context in contexts:
        kept.setdefault(tuple(context[1][max(0, context[0] - 6) : context[0] + 1]), context)
    return list(kept.values())


def _pairs(index: torch.Tensor, values: torch.Tensor) -> list[list[Any]]:
    return [[i, _number(v)] for i, v in zip(index.tolist(), values.tolist(), strict=True) if i >= 0]


def _number(value: Any) -> Any:
    """A number with four digits; None where it is none. Anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.4g}") if value == value and abs(value) != float("inf") else None


def write_site(facts: Facts, out: str | os.PathLike[str]) -> Path:
    """Write a site.

    Args:
        facts: of the neurons.
        out: its folder.
    Returns: its `index.html`.
    """
    folder = Path(out)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for page in ("index", "neuron"):
        source = resources.files("interpcore.neurons.report").joinpath(f"site_{page}.html")
        write_bytes(folder / f"{page}.html", source.read_bytes())
    about = {"model": facts.model, "corpus": facts.corpus, "tokens": facts.tokens, "chunk": CHUNK}
    columns = [c for c in facts.table.columns if c not in ("layer", "neuron")]
    rows = []
    for row in facts.table.to_dict("records"):
        mine = facts.data[row["layer"], row["neuron"]]
        best = mine.get("explained") or [["", "", None]]
        raised = " ".join(facts.texts[i].strip() for i, _ in mine["raised"][:4])
        rows.append([row["layer"], row["neuron"], *(_number(row[c]) for c in columns), *best[0][::2], raised])
    names = ["layer", "neuron", *columns, "explained by", "share explained", "raises"]
    _script(folder / "data" / "index.js", "index", {"about": about, "columns": names, "rows": rows})
    _script(folder / "data" / "tokens.js", "tokens", facts.texts)
    chunks: dict[str, dict[str, Any]] = {}
    for (layer, neuron), mine in facts.data.items():
        chunks.setdefault(f"{layer}-{neuron // CHUNK}", {})[f"{layer}.{neuron}"] = _hundredths(mine)
    for name, chunk in chunks.items():
        _script(folder / "data" / f"{name}.js", "neurons", chunk)
    return folder / "index.html"


def _script(path: Path, name: str, value: Any) -> None:
    """Data as a script, which a page may read from a disk."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=int)
    write_bytes(path, f'SITE.take("{name}",{text});\n'.encode())


def site_corpus(folder: Path) -> str | None:
    """Where the tokens of a study were, as its card says."""
    found = read_card(folder / "summary").sources.get("tokens")
    return None if found is None else str(found)
