"""Cells of a study of neurons recomputed in float64: sequences run one at a time, moments from plain sums."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.model.plain import check_plain, plain_model, plain_run
from interpcore.neurons.cards import corpus_hash
from interpcore.neurons.statistics.summary import Summary
from interpcore.neurons.study import Study
from interpcore.ops import ColumnMoments
from interpcore.runs import RunError, read_card
from interpcore.runs.checks import Cell, Checks, Table
from interpcore.runs.frames import read_frame

MOMENTS = ("count", "mean", "variance", "skewness", "kurtosis", "minimum", "maximum", "frequency")
COLUMNS = {
    "mean": "mean",
    "var": "variance",
    "skew": "skewness",
    "kurt": "kurtosis",
    "frequency": "frequency",
}
MOST_TOKENS = 65536
"""Tokens up to which a whole corpus is read again."""
LEFT_OUT = (
    "Not recomputed: histograms, sums by token and label, weight statistics, correlations, standard errors."
)


@dataclass(eq=False)
class _Corpus(ShortRepr):
    """A corpus read again, a sequence at a time.

    Attributes:
        model: in float64.
        shards: the tokens.
        summary: what the run has of them.
    """

    model: Model
    shards: TokenShards
    summary: Summary
    _at: tuple[int, dict[int, Tensor]] = (-1, {})
    _moments: dict[int, tuple[ColumnMoments, ColumnMoments]] = field(default_factory=dict)

    def tokens(self, sequence: int) -> Tensor:
        """Its token ids [position]."""
        return self.shards.sequences(sequence, sequence + 1)[0]

    def act(self, sequence: int) -> dict[int, Tensor]:
        """What the down projections read [position, d_mlp], by depth."""
        if self._at[0] != sequence:
            with torch.no_grad():
                self._at = sequence, plain_run(self.model, self.tokens(sequence)).act
        return self._at[1]

    def stored(self, depth: int) -> ColumnMoments:
        """Moments before the activation, as the run has them."""
        if depth not in self._moments:
            self._moments[depth] = self.summary.moments(depth)
        return self._moments[depth][0]

    @cached_property
    def sums(self) -> list[dict[str, Tensor]]:
        """Per depth, sums over the tokens that count of powers of pre - (the run's mean), with the number of
        tokens, extremes, and how many are above 0, each [d_mlp]."""
        left_out = {i for kind in self.shards.masked for i in self.shards.manifest["masks"][kind]}
        places = set(self.shards.positions or range(self.shards.context))
        around = [self.stored(depth).mean for depth in range(self.summary.n_layers)]
        total: list[dict[str, Tensor]] = [{} for _ in around]
        for sequence in self._sequences():
            ids = self.tokens(sequence)
            counts = torch.tensor([int(i) not in left_out and at in places for at, i in enumerate(ids)])
            with torch.no_grad():
                pre = plain_run(self.model, ids).pre
            for depth, mean in enumerate(around):
                _add(total[depth], pre[depth][counts], mean)
        return total

    def _sequences(self) -> Iterator[int]:
        for start, stop in self.summary.ranges:
            yield from range(start, stop)

    def again(self, depth: int, neuron: int) -> dict[str, float]:
        """A neuron's moments by their definition."""
        one = {name: float(values[neuron]) for name, values in self.sums[depth].items()}
        n, off = one["count"], one["s1"] / one["count"]
        # Moments about the mean from those about the run's, which differs from it by rounding alone.
        m2, m3 = one["s2"] - n * off**2, one["s3"] - 3 * off * one["s2"] + 2 * n * off**3
        m4 = one["s4"] - 4 * off * one["s3"] + 6 * off**2 * one["s2"] - 3 * n * off**4
        return {
            "count": n,
            "mean": float(self.stored(depth).mean[neuron]) + off,
            "variance": m2 / n,
            "skewness": math.sqrt(n) * m3 / m2**1.5 if m2 > 0 else math.nan,
            "kurtosis": n * m4 / m2**2 if m2 > 0 else math.nan,
            "minimum": one["minimum"],
            "maximum": one["maximum"],
            "frequency": one["above"] / n,
        }


def _add(total: dict[str, Tensor], pre: Tensor, mean: Tensor) -> None:
    off = pre - mean
    new = {f"s{k}": off.pow(k).sum(0) for k in (1, 2, 3, 4)}
    new |= {"count": torch.full_like(mean, len(pre)), "above": (pre > 0).double().sum(0)}
    for name, value in new.items():
        total[name] = total[name] + value if name in total else value
    if len(pre):
        for name, pick, value in (
            ("minimum", torch.minimum, pre.amin(0)),
            ("maximum", torch.maximum, pre.amax(0)),
        ):
            total[name] = pick(total[name], value) if name in total else value


def checks(study: Study) -> Checks:
    """What can be recomputed of a study's steps; see `runs.checks`."""
    folder = study.step("summary")
    card = read_card(folder)
    if card.arguments["corpus"] != corpus_hash(study.tokens):
        raise RunError(f"the tokens in {study.tokens.folder} are not those of {folder}; give its own")
    corpus = _Corpus(plain_model(study.model), study.tokens, Summary.open(folder))
    gap = check_plain(corpus.model, corpus.tokens(0).tolist())
    notes = [] if gap is None else [f"Written out, the model's logits are transformers' within {gap:.0e}."]
    tables = [_examples(corpus)] if corpus.summary.statistics.top else []
    size = len(list(corpus._sequences())) * study.tokens.context
    if size <= MOST_TOKENS:
        tables += [_moments(corpus), *_framed(study, corpus)]
    else:
        notes.append(f"Moments are sums over {size} tokens; at most {MOST_TOKENS} are read again.")
    return Checks(tables, study.rounding, (*notes, LEFT_OUT))


def _examples(corpus: _Corpus) -> Table:
    """Activations of the top examples."""
    widths, top = corpus.summary.sizes.widths, corpus.summary.statistics.top
    context, kept = corpus.shards.context, {d: corpus.summary.examples(d) for d in range(len(widths))}
    places = [(d, n) for d, width in enumerate(widths) for n in range(width)]

    def cell(number: int) -> Cell:
        (depth, neuron), rank = places[number // top], number % top
        index, stored = int(kept[depth].index[rank, neuron]), float(kept[depth].value[rank, neuron])
        where = f"example {rank} of neuron {depth}.{neuron}, token {index},"
        if index < 0:
            return Cell(where, stored, -math.inf)
        act = corpus.act(index // context)[depth][index % context]
        return Cell(where, stored, float(act[neuron]), float(act.norm()))

    return Table("top examples", len(places) * top, cell, "the sequence alone")


def _moments(corpus: _Corpus) -> Table:
    """Moments before the activation, from every token."""
    widths = corpus.summary.sizes.widths
    places = [(d, n) for d, width in enumerate(widths) for n in range(width)]

    def cell(number: int) -> Cell:
        (depth, neuron), name = places[number // len(MOMENTS)], MOMENTS[number % len(MOMENTS)]
        stored, again = corpus.stored(depth), corpus.again(depth, neuron)
        theirs = (
            stored.frequency[stored.thresholds.index(0.0)] if name == "frequency" else getattr(stored, name)
        )
        return _moment(f"{name} of neuron {depth}.{neuron}", name, float(theirs[neuron]), again)

    return Table("moments", len(places) * len(MOMENTS), cell, "plain sums over all sequences, one at a time")


def _framed(study: Study, corpus: _Corpus) -> list[Table]:
    """Moments in the neuron table, where there is one."""
    file = study.step("dataframe") / "artifacts" / "neuron_df.parquet"
    if not file.is_file():
        return []
    rows: Sequence[dict[str, Any]] = read_frame(file).to_dict("records")
    suffix = "" if study.options.protocol == "default" else "_exact"
    names = list(COLUMNS)

    def cell(number: int) -> Cell:
        row, name = rows[number // len(names)], names[number % len(names)]
        column = name if name == "frequency" else name + suffix
        again = corpus.again(row["layer"], row["neuron"])
        where = f"{column} of neuron {row['layer']}.{row['neuron']} in {file.name}"
        return _moment(where, COLUMNS[name], float(row[column]), again)

    return [Table("neuron table", len(rows) * len(names), cell, "plain sums over all sequences")]


def _moment(where: str, name: str, stored: float, again: dict[str, float]) -> Cell:
    """A moment with the scale that its rounding has: of the activation's own size, or of the moment's."""
    size = math.sqrt(again["variance"] + again["mean"] ** 2)
    value, n = again[name], again["count"]
    if name == "count":
        return Cell(where, stored, value)
    if name == "frequency":  # a token may lie on either side of 0 by rounding
        return Cell(where, stored, value, open=0 < abs(stored - value) * n < 2)
    scale = {"mean": size, "minimum": size, "maximum": size, "variance": size**2}.get(name)
    # Standardised moments feel rounding by the share that it has of the deviations, to their power.
    power = {"skewness": 3, "kurtosis": 4}.get(name, 1)
    spread = math.sqrt(again["variance"]) or 1.0
    scale = scale or power * max(abs(value), 1.0) * max(size / spread, 1.0)
    extreme = max(abs(again["minimum"]), abs(again["maximum"]))
    return Cell(where, stored, value, max(scale, extreme if name in ("minimum", "maximum") else 0.0))
