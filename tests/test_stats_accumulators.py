"""Accumulators: each against the whole at once, in blocks, merged in any order, saved and loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.stats import (
    Accumulator,
    GroupSums,
    Histogram,
    LinearBins,
    MergeError,
    Moments,
    OctaveBins,
    Ranges,
    TokenBlock,
    TopExamples,
)

CONTEXT, SEQUENCES, COLUMNS, VOCABULARY = 8, 40, 9, 11
TOKENS = torch.randint(VOCABULARY, (SEQUENCES, CONTEXT), generator=torch.Generator().manual_seed(0))
MASK = TOKENS.flatten() != 3
SHIFT = torch.linspace(-1, 1, COLUMNS)


def values() -> Tensor:
    """[token, column]: rounded so that ties occur, with infinities, NaN, a constant and a dead column."""
    make = torch.Generator().manual_seed(1)
    x = torch.randn(SEQUENCES * CONTEXT, COLUMNS, generator=make) * torch.linspace(0.1, 5, COLUMNS) + SHIFT
    x = (x * 16).round() / 16
    x[50, 2], x[51, 2], x[200, 3], x[:, 4] = torch.nan, torch.inf, -torch.inf, torch.nan
    x[:, 5], x[:, 6] = 0.25, 0.0
    return x


VALUES = values()
MAKERS: dict[str, Callable[[], Accumulator]] = {
    "moments": lambda: Moments(SHIFT, (0.0,)),
    "octaves": lambda: Histogram(COLUMNS, OctaveBins()),
    "linear": lambda: Histogram(COLUMNS, LinearBins()),
    "top": lambda: TopExamples(COLUMNS, 5),
    "position": lambda: GroupSums("position", CONTEXT, SHIFT, active=True),
    "token": lambda: GroupSums("token", VOCABULARY, SHIFT, largest=True),
    "previous": lambda: GroupSums("previous", VOCABULARY, SHIFT),
}


def feed(accumulator: Accumulator, start: int, stop: int, step: int = 4) -> None:
    """Sequences from start up to stop, a few at a time."""
    for first in range(start, stop, step):
        last = min(first + step, stop)
        rows = slice(first * CONTEXT, last * CONTEXT)
        block = TokenBlock.of_sequences(TOKENS[first:last], first)
        accumulator.update(VALUES[rows], block, MASK[rows])


def tensors(result: Any) -> dict[str, Tensor]:
    return {name: x.to_dense() for name, x in vars(result).items() if isinstance(x, Tensor)}


def expect_equal(one: Any, two: Any, *, exact: bool) -> None:
    mine, other = tensors(one), tensors(two)
    assert mine.keys() == other.keys()
    for name in mine:
        if exact or not mine[name].is_floating_point():
            assert torch.equal(mine[name].nan_to_num(), other[name].nan_to_num()), name
        else:
            torch.testing.assert_close(mine[name], other[name], rtol=1e-12, atol=1e-12, equal_nan=True)


def whole(kind: str) -> Accumulator:
    accumulator = MAKERS[kind]()
    feed(accumulator, 0, SEQUENCES)
    return accumulator


@pytest.mark.parametrize("kind", MAKERS)
def test_merged_parts_are_the_whole(kind: str) -> None:
    for order in ((0, 1, 2), (2, 0, 1)):
        parts = [MAKERS[kind]() for _ in range(3)]
        for part, start, stop in zip(parts, (0, 12, 24), (12, 24, SEQUENCES), strict=True):
            feed(part, start, stop)
        for other in order[1:]:
            parts[order[0]].merge(parts[other])
        expect_equal(
            parts[order[0]].finalize(), whole(kind).finalize(), exact=kind in ("octaves", "linear", "top")
        )


@pytest.mark.parametrize("kind", MAKERS)
def test_a_loaded_state_goes_on_with_the_same_bits(kind: str) -> None:
    first, second = MAKERS[kind](), MAKERS[kind]()
    feed(first, 0, 20)
    second.load_state_dict({name: x.clone() for name, x in first.state_dict().items()})
    feed(second, 20, SEQUENCES)
    expect_equal(second.finalize(), whole(kind).finalize(), exact=True)


@pytest.mark.parametrize("kind", MAKERS)
def test_masked_batches_change_nothing(kind: str) -> None:
    accumulator = whole(kind)
    block = TokenBlock.of_sequences(TOKENS[:1], SEQUENCES)
    accumulator.update(VALUES[:CONTEXT], block, torch.zeros(CONTEXT, dtype=torch.bool))
    expect_equal(accumulator.finalize(), whole(kind).finalize(), exact=True)
    nothing = MAKERS[kind]()
    nothing.merge(accumulator)
    expect_equal(nothing.finalize(), whole(kind).finalize(), exact=kind not in ("moments",))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [kind for kind in MAKERS if kind != "moments"])
def test_values_are_left_as_they_are(kind: str, dtype: torch.dtype) -> None:
    given = VALUES.to(dtype)
    before = given.clone()
    MAKERS[kind]().update(given, TokenBlock.of_sequences(TOKENS, 0))
    torch.testing.assert_close(given, before, rtol=0, atol=0, equal_nan=True)


def test_moments() -> None:
    expected = ops.column_moments(VALUES, MASK, (0.0,), backend="reference")
    got = whole("moments").finalize()
    assert torch.equal(got.nonfinite, expected.nonfinite)
    assert torch.equal(got.above, expected.above)
    torch.testing.assert_close(got.kurtosis, expected.kurtosis, rtol=2e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("bins", [OctaveBins(), OctaveBins(-3, 2, 1), OctaveBins(-2, 3, 64), LinearBins()])
def test_bins_are_where_the_edges_say(bins: OctaveBins | LinearBins) -> None:
    edges = bins.edges.float()
    near = [edges, edges.nextafter(torch.tensor(torch.inf)), edges.nextafter(torch.tensor(-torch.inf))]
    make = torch.Generator().manual_seed(2)
    near += [torch.randn(5000, generator=make) * 20, torch.randn(5000, generator=make) * 1e-4, torch.zeros(2)]
    x = torch.cat([*near, torch.tensor([3e38, -3e38, 1e-40, -1e-40])])[:, None]
    # Left of an edge that belongs to the bin farther from 0: above it for x > 0, below it for x < 0.
    right = isinstance(bins, OctaveBins) & (x > 0)
    expected = torch.where(right, torch.bucketize(x, edges, right=True), torch.bucketize(x, edges))
    assert torch.equal(bins.index(x).long(), expected)
    for dtype in (torch.bfloat16, torch.float16):
        half = x.to(dtype)
        assert torch.equal(bins.index(half), bins.index(half.float()))


def test_histogram_is_numpys() -> None:
    got = whole("linear").finalize()
    edges = np.concatenate(([-np.inf], got.edges.numpy(), [np.inf]))
    for column in range(COLUMNS):
        x = VALUES[MASK, column]
        assert int(got.nonfinite[column]) == int((~x.isfinite()).sum())
        # NumPy's bins are closed on the left: mirrored, they are closed on the right.
        expected = np.histogram(-x[x.isfinite()].numpy().astype(np.float64), -edges[::-1])[0][::-1]
        assert got.counts[column].tolist() == expected.tolist()


def test_parity_with_the_published_histogram() -> None:
    peer = np.load(Path(__file__).parent / "data" / "parity_neurons.npz")
    bins = LinearBins(float(peer["moments/edges"][0]), float(peer["moments/edges"][-1]), 100)
    np.testing.assert_allclose(bins.edges.numpy(), peer["moments/edges"], rtol=1e-6)
    x = torch.from_numpy(peer["moments/x"]).T
    histogram = Histogram(4, bins)
    histogram.update(x, TokenBlock.of_sequences(torch.zeros(len(x), 1, dtype=torch.int64), 0))
    assert histogram.finalize().counts.tolist() == peer["moments/hist"].tolist()


def test_quantiles() -> None:
    x = torch.randn(20_000, 3, generator=torch.Generator().manual_seed(3)) * torch.tensor([0.1, 1, 10]) - 1
    x = torch.cat((x, torch.full((20_000, 1), 0.3), torch.full((20_000, 1), torch.nan)), 1)
    histogram = Histogram(5, OctaveBins())
    histogram.update(x, TokenBlock.of_sequences(torch.zeros(20_000, 1, dtype=torch.int64), 0))
    moments = ops.column_moments(x)
    q = (0.0, 0.01, 0.25, 0.5, 0.9, 1.0)
    got = histogram.finalize().quantile(q, moments.minimum, moments.maximum)
    exact = x[:, :4].double().quantile(torch.tensor(q, dtype=torch.float64), 0)
    # An eighth of an octave, and the bin around 0.
    assert ((got[:, :4] - exact).abs() <= exact.abs() / 8 + 2e-4).all()
    assert torch.equal(got[[0, -1], :4], exact[[0, -1]])
    assert got[:, 4].isnan().all()


def test_top_examples_are_the_sorted_ones() -> None:
    got = whole("top").finalize()
    rows = MASK.nonzero()[:, 0]
    for column in range(COLUMNS):
        x = VALUES[rows, column]
        expected = sorted(
            ((-float(v), int(i)) for v, i in zip(x, rows, strict=True) if v.isfinite()), key=lambda p: p
        )[:5]
        expected += [(torch.inf, -1)] * (5 - len(expected))
        assert (
            list(zip((-got.value[:, column]).tolist(), got.index[:, column].tolist(), strict=True))
            == expected
        )


def test_top_examples_that_few_columns_find() -> None:
    x = torch.randn(2 * len(MASK), 60, generator=torch.Generator().manual_seed(3))
    x[len(MASK) :] -= 10
    x[len(MASK) + 7, 5], x[len(MASK) + 9, 40], x[len(MASK) + 8, 40] = 9.0, 9.0, torch.nan
    top = TopExamples(60, 3)
    for first in (0, SEQUENCES):
        rows = slice(first * CONTEXT, (first + SEQUENCES) * CONTEXT)
        top.update(x[rows], TokenBlock.of_sequences(TOKENS, first))
    order = x.nan_to_num(nan=-torch.inf).sort(dim=0, descending=True, stable=True).indices[:3]
    assert torch.equal(top.finalize().index, order)


@pytest.mark.parametrize("kind", ["position", "token", "previous"])
def test_groups_of_the_ids_that_occur_are_those_of_all_ids(kind: str) -> None:
    rows = torch.isin(TOKENS, torch.tensor([2, 5, 10])).flatten() & MASK
    block = TokenBlock.of_sequences(TOKENS, 0)
    ids = getattr(block, {"token": "ids"}.get(kind, kind))[rows].unique()
    few, every = (GroupSums(kind, groups, SHIFT) for groups in (ids[ids >= 0], VOCABULARY))
    for sums in (few, every):
        sums.update(VALUES, block, rows)
    mine, other = few.finalize(), every.finalize()
    assert mine.ids.tolist() == ids[ids >= 0].tolist() and other.ids.tolist() == list(range(VOCABULARY))
    for name in ("count", "total", "square"):
        assert torch.equal(getattr(mine, name), getattr(other, name)[mine.ids])
    again = GroupSums(kind, few.ids, SHIFT)
    again.load_state_dict(few.state_dict())
    assert torch.equal(again.finalize().total, mine.total)
    with pytest.raises(MergeError, match="groups"):
        few.merge(GroupSums(kind, VOCABULARY + 1, SHIFT))
    with pytest.raises(ValueError, match="has no group"):
        GroupSums(kind, few.ids[:1], SHIFT).update(VALUES, block)


def test_top_examples_of_long_blocks_are_the_sorted_ones() -> None:
    """Of one long block, where thresholds come before the sort: ties, NaN, infinity, a constant column."""
    x = torch.randn(4096, 40, generator=torch.Generator().manual_seed(6))
    x[:, :10] = (x[:, :10] * 4).round()
    x[:, 10], x[1::2, 11], x[5, 12], x[6, 12], x[2:, 13] = 0.5, torch.nan, torch.inf, -torch.inf, torch.nan
    top = TopExamples(40, 7)
    top.update(x, TokenBlock.of_sequences(torch.zeros(8, 512, dtype=torch.int64), 0))
    clean = x.where(x.isfinite(), -torch.inf)
    value, order = (found[:7] for found in clean.sort(dim=0, descending=True, stable=True))
    got = top.finalize()
    assert torch.equal(got.value, value) and torch.equal(got.index, order.where(value.isfinite(), -1))


@pytest.mark.parametrize("kind", ["position", "token", "previous"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_group_sums_are_those_of_each_group(kind: str, dtype: torch.dtype) -> None:
    sums = MAKERS[kind]()
    sums.update(VALUES.to(dtype), TokenBlock.of_sequences(TOKENS, 0), MASK)
    got = sums.finalize()
    previous = torch.cat((torch.full((SEQUENCES, 1), -1), TOKENS[:, :-1]), 1).flatten()
    group = {"token": TOKENS.flatten(), "previous": previous, "position": torch.arange(len(MASK)) % CONTEXT}[
        kind
    ]
    for g in range(len(got.count)):
        x = VALUES[MASK & (group == g)].double()
        assert int(got.count[g]) == len(x)
        finite = x.isfinite()
        assert torch.equal(got.values[g], finite.sum(0))
        n, total = finite.sum(0), x.masked_fill(~finite, 0).sum(0)
        torch.testing.assert_close(got.mean[g], total / n, rtol=1e-12, atol=1e-12, equal_nan=True)
        spread = ((x - total / n).masked_fill(~finite, 0)).square().sum(0) / n
        torch.testing.assert_close(got.variance[g], spread, rtol=1e-10, atol=1e-10, equal_nan=True)
        if got.active is not None:
            assert torch.equal(got.active[g].long(), ((x > 0) & finite).sum(0))


def test_group_sums_of_squares_beyond_float32() -> None:
    x = torch.tensor([[1e25, 1.0], [-1e25, 3.0]])
    sums = GroupSums("position", 1, torch.zeros(2), active=True)
    sums.update(x, TokenBlock.of_sequences(torch.zeros(2, 1, dtype=torch.int64), 0))
    got = sums.finalize()
    expected = torch.tensor([[float(x[0, 0].double() ** 2), 1.0]], dtype=torch.float64)
    torch.testing.assert_close(got.variance, expected)
    assert got.mean.tolist() == [[0.0, 2.0]] and got.active.tolist() == [[1, 2]]


def test_unlike_accumulators_do_not_merge() -> None:
    for one, two, word in (
        (Moments(SHIFT), Moments(SHIFT + 1), "shift"),
        (Moments(SHIFT), Moments(SHIFT, (0.0,)), "thresholds"),
        (Histogram(3, OctaveBins()), Histogram(3, LinearBins()), "bins"),
        (Histogram(3, OctaveBins()), Histogram(4, OctaveBins()), "columns"),
        (TopExamples(3, 4), TopExamples(3, 5), "number of examples"),
        (GroupSums("token", 5, SHIFT), GroupSums("previous", 5, SHIFT), "grouping"),
        (GroupSums("token", 5, SHIFT), GroupSums("token", 5, SHIFT, active=True), "groups"),
        (GroupSums("token", 5, SHIFT), GroupSums("token", 5, SHIFT * 2), "shift"),
    ):
        with pytest.raises(MergeError, match=word):
            one.merge(two)
    with pytest.raises(ValueError, match="choose from position, token, previous"):
        GroupSums("line", 5, SHIFT)


def test_ranges() -> None:
    seen = Ranges([(0, 4), (8, 12)])
    seen.merge(Ranges([(4, 8)]))
    assert list(seen) == [(0, 12)]
    assert (len(seen), str(seen)) == (12, "0 to 12")
    with pytest.raises(MergeError, match="Sequences 10 to 12 are in both"):
        seen.merge(Ranges([(10, 20)]))
    assert str(Ranges()) == "none"
