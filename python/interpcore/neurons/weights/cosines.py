"""Cosines of every neuron with every other, and with every token: summaries of products that are never
stored whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.neurons.similarity_bins import EDGES
from interpcore.neurons.weights.fold import FoldedWeights, NeuronWeights
from interpcore.ops import column_moments, product, row_summary
from interpcore.ops.column_moments import ColumnMoments

NEURON_KINDS = ("in_in", "in_out", "out_in", "out_out")
VOCABULARY_KINDS = ("E_in", "U_in", "E_out", "U_out")


@dataclass(frozen=True, eq=False)
class CosineSummary(ShortRepr):
    """What is kept of the cosines of n rows with many columns.

    Args:
        moments: count, mean, variance, skewness, kurtosis, minimum and maximum of each row.
        histogram: counts per bin of `EDGES` [n, 101] int32.
        top, bottom: largest and smallest cosines, in order [n, k]; NaN where there are fewer.
        top_index, bottom_index: which columns those are [n, k] int64; the smaller among equals; -1 where
            there are fewer.
    """

    moments: ColumnMoments
    histogram: Tensor
    top: Tensor
    top_index: Tensor
    bottom: Tensor
    bottom_index: Tensor


def unit_rows(x: Tensor) -> Tensor:
    """Rows [n, d] of length one; a zero row becomes NaN, which every summary leaves out."""
    return x / x.norm(dim=1, keepdim=True)


def summarize_cosines(
    rows: Tensor,
    columns: Iterable[Tensor],
    *,
    k: int,
    own: int | None = None,
    diagonal: str = "left out",
    tile: int = 1 << 22,
) -> CosineSummary:
    """Summary of rows . columns over all columns.

    Args:
        rows: unit vectors [n, d].
        columns: unit vectors in pieces [m, d]; their numbers run on from piece to piece.
        k: how many extreme columns to keep per row, fewer where there are fewer columns.
        own: the column of row 0, then those of the next rows follow: a row's own column is special. None
            where rows and columns are different things.
        diagonal: "left out" of everything, or "zero", the published treatment.
        tile: products held at once.
    """
    n = len(rows)
    step = max(1, tile // max(1, n))
    moments: ColumnMoments | None = None
    histogram = torch.zeros(n, len(EDGES) + 1, dtype=torch.int64, device=rows.device)
    top, bottom = (rows.new_full((n, k), torch.nan) for _ in range(2))
    top_index, bottom_index = (torch.full((n, k), -1, device=rows.device) for _ in range(2))
    start = 0
    for piece in (part for whole in columns for part in whole.split(step)):
        values = product(piece, rows.mT.contiguous())  # [m, n]
        if own is not None:
            _blank_own(values, own - start, torch.nan if diagonal == "left out" else 0.0)
        found = column_moments(values)
        moments = found if moments is None else moments.merge(found)
        row_summary(values.mT, start, EDGES, histogram, top, top_index, bottom, bottom_index)
        start += len(piece)
    if moments is None:
        raise Refused("There are no columns to take cosines with.")
    kept = (x[:, :start] for x in (top, top_index, bottom, bottom_index))
    return CosineSummary(moments, histogram.int(), *kept)


def neuron_cosines(
    folded: FoldedWeights, depth: int, kind: str, *, k: int = 20, diagonal: str = "left out"
) -> CosineSummary:
    """Cosines of one layer's neurons with all neurons of the model; column = layer * d_mlp + neuron.

    Args:
        depth: the layer of the rows.
        kind: the row's vector, then the column's: "in_in", "in_out", "out_in", "out_out".
        k: extremes to keep.
        diagonal: what a neuron's cosine with itself counts as: "left out", or "zero" as published (for all
            four kinds).
    """
    of_row, of_column = _vectors(kind, NEURON_KINDS)
    rows = unit_rows(of_row(folded.neurons(depth)))
    columns = (unit_rows(of_column(folded.neurons(other))) for other in range(folded.n_layers))
    return summarize_cosines(rows, columns, k=k, own=depth * len(rows), diagonal=diagonal)


def vocabulary_cosines(folded: FoldedWeights, depth: int, kind: str, *, k: int = 100) -> CosineSummary:
    """Cosines of one layer's neurons with every token's embedding (E) or unembedding (U) vector.

    Args:
        depth: the layer.
        kind: "E_in", "U_in", "E_out" or "U_out"; "U_out" is how a neuron moves the logits.
        k: extreme tokens to keep.
    """
    if kind not in VOCABULARY_KINDS:
        raise Refused(f"A vocabulary cosine is one of {', '.join(VOCABULARY_KINDS)}; got {kind!r}.")
    neurons = folded.neurons(depth)
    rows = unit_rows(neurons.read if kind.endswith("in") else neurons.write)
    return summarize_cosines(rows, token_vectors(folded, kind[0]), k=k)


def vocabulary_moments(folded: FoldedWeights, depth: int, *, tile: int = 1 << 22) -> ColumnMoments:
    """Moments over the vocabulary of cos(W_U[:, v], w_out) of one layer's neurons: the published vocab_mean,
    vocab_var, vocab_skew and vocab_kurt. A high kurtosis says that few tokens are moved: upwards where the
    skewness is positive (prediction), downwards where it is negative (suppression).

    Args:
        depth: the layer.
        tile: products held at once.
    """
    rows = unit_rows(folded.neurons(depth).write).mT.contiguous()
    step = max(1, tile // rows.shape[1])
    moments: ColumnMoments | None = None
    for whole in token_vectors(folded, "U"):
        for piece in whole.split(step):
            found = column_moments(product(piece, rows))
            moments = found if moments is None else moments.merge(found)
    assert moments is not None
    return moments


def token_vectors(folded: FoldedWeights, which: str, step: int = 4096) -> Iterator[Tensor]:
    """Unit vectors of all tokens in pieces [tokens, d_model]: "E" embeddings, "U" unembeddings."""
    vectors = folded.embedding if which == "E" else folded.unembedding.mT
    for piece in vectors.split(step):
        yield unit_rows(piece)


def nearest_neurons(folded: FoldedWeights, depth: int) -> dict[str, Tensor]:
    """Largest, smallest and largest absolute cosine of each neuron's reading vector with the others', and of
    its writing vector: max_in_in, min_in_in, max_abs_in_in, and the same of out_out, each [d_mlp]."""
    columns = {}
    for kind in ("in_in", "out_out"):
        moments = neuron_cosines(folded, depth, kind, k=1).moments
        columns[f"max_{kind}"] = moments.maximum
        columns[f"min_{kind}"] = moments.minimum
        columns[f"max_abs_{kind}"] = torch.maximum(moments.maximum.abs(), moments.minimum.abs())
    return columns


def _vectors(kind: str, kinds: tuple[str, ...]) -> tuple[Callable[[NeuronWeights], Tensor], ...]:
    if kind not in kinds:
        raise Refused(f"A cosine between neurons is one of {', '.join(kinds)}; got {kind!r}.")
    take = {"in": lambda w: w.read, "out": lambda w: w.write}
    return tuple(take[word] for word in kind.split("_"))


def _blank_own(values: Tensor, first: int, value: float) -> None:
    """Overwrite entry [first + i, i] of values [m, n] for every i that has one."""
    at = torch.arange(values.shape[1], device=values.device)
    inside = (at + first >= 0) & (at + first < values.shape[0])
    values[at[inside] + first, at[inside]] = value
