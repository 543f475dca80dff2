"""Every op under `torch.compile(fullgraph=True)`, and the declarations of those that write in place."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import backend
from interpcore.ops.bins import LinearBins, OctaveBins, as_numbers

Call = Callable[[str | None], list[Tensor]]


# A compiled function may not make a generator.
VALUES = torch.randn(3000, generator=torch.Generator().manual_seed(0))


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float32 values."""
    return VALUES[100 * seed :][: math.prod(shape)].view(shape).clone()


ROWS, GROUPS = normal(40, 9), torch.arange(40) % 4
NORM = (normal(2, 3, 4, 8), normal(2, 4, 8, seed=1), normal(2, 4, seed=2).abs() + 0.5)
QUERIES = normal(2, 3, 4, 8, seed=3)
KEYS = (normal(2, 5, 2, 8, seed=4), normal(2, 5, 2, 8, seed=5))
AT = (QUERIES, *KEYS, normal(2, 3, 4, 5, seed=6).softmax(-1))
TANGENTS = (normal(2, 6, 3, 4, 8), normal(2, 6, 3, 2, 8, seed=7), normal(2, 6, 3, 2, 8, seed=8))


def with_out(op: Callable[..., Tensor], *args: object, backend: str | None) -> list[Tensor]:
    """The op's result, and what it fills."""
    found = op(*args, backend=backend)
    out = torch.full_like(found, torch.nan)
    op(*args, backend=backend, out=out)
    return [found, out]


def activation_moments(name: str | None) -> list[Tensor]:
    pre, post = ops.RunningMoments(9, (0.0,)), ops.RunningMoments(9)
    both = [ops.activation_moments(ROWS, "silu", pre, post, backend=name) for _ in range(2)]
    return [*both, pre.counts, pre.moments, post.counts, post.moments]


def attn_vjp(name: str | None) -> list[Tensor]:
    found = ops.attn_vjp(TANGENTS[0], *AT, live=3, score_factor=0.3, backend=name)
    dq, dk, dv = (torch.full_like(x, torch.nan) for x in found)
    ops.attn_vjp(TANGENTS[0], *AT, live=3, score_factor=0.3, backend=name, out=(dq, dk, dv))
    return [*found, dq, dk, dv]


def batch_product(name: str | None) -> list[Tensor]:
    x, scale = normal(4, 7, seed=1), normal(3, 7, seed=2)
    weight = normal(3, 7, 5, seed=3)
    both = ops.batch_product(x, weight, scale, x + 1, scale + 1, backend=name)
    out = torch.full((3, 4, 5), torch.nan)
    ops.batch_product(x, weight, scale, backend=name, out=out)
    return [
        both,
        out,
        ops.batch_product(x, weight, backend=name),
        ops.batch_product(x, weight[0], backend=name),
    ]


def bin_counts(name: str | None) -> list[Tensor]:
    found = []
    for bins in (OctaveBins(-3, 2, 2), LinearBins(-2.0, 2.0, 16)):
        counts = torch.zeros(9, bins.edges.numel() + 1, dtype=torch.int64)
        nonfinite = torch.zeros(9, dtype=torch.int64)
        ops.bin_counts(ROWS, bins, counts, nonfinite, backend=name)
        ops.bin_counts(ROWS.log(), bins, counts, nonfinite, backend=name)
        found += [counts, nonfinite]
    return found


def column_moments(name: str | None) -> list[Tensor]:
    moments = ops.column_moments(ROWS, GROUPS > 0, thresholds=(0.0,), backend=name)
    return [moments.count, moments.kurtosis, moments.above]


def column_top(name: str | None) -> list[Tensor]:
    value, place = torch.full((3, 9), -torch.inf), torch.full((3, 9), -1)
    for start in (0, 40):
        ops.column_top(ROWS + start, torch.arange(start, start + 40), value, place, backend=name)
    return [value, place]


def comoments(name: str | None) -> list[Tensor]:
    found = ops.comoments(ROWS, ROWS[:, :4].square(), GROUPS > 0, backend=name)
    return [found.cross, found.x.m2, found.y.mean]


def edge_scores(name: str | None) -> list[Tensor]:
    difference, grad = normal(5, 2, 3, 8, seed=1), normal(4, 2, 3, 8, seed=2)
    segment = torch.tensor([[0, 0, 1], [1, -1, 0]])
    total, squares = ops.edge_scores(difference, grad, [1, 2, 4, 5], segment, 2, moments=True, backend=name)
    assert squares is not None
    return [total, squares, ops.edge_scores(difference, grad, [1, 2, 4, 5], backend=name)[0]]


def gate(name: str | None) -> list[Tensor]:
    x, factor = normal(2, 3, 4, 8), normal(2, 4, 8, seed=1)
    one = ops.gate(x, factor, backend=name)
    both = ops.gate(x, factor, None, factor + 1, backend=name)
    two = ops.gate(x, factor, one, factor, backend=name)
    return [*both, two, ops.gate(one, factor, backend=name, inplace=True)]


def group_sums(name: str | None) -> list[Tensor]:
    total, square = torch.zeros(2, 4, 9, dtype=torch.float64).unbind()
    total, square = total.clone(), square.clone()
    active, largest = torch.zeros(4, 9, dtype=torch.int32), torch.full((4, 9), -torch.inf)
    shift = ROWS[0].clone()
    good = ops.group_sums(ROWS, GROUPS, shift, total, square, active, largest, backend=name)
    bad = ops.group_sums(ROWS.log(), GROUPS, shift, total, square, backend=name)
    return [good, bad, total, square, active, largest]


def row_summary(name: str | None) -> list[Tensor]:
    histogram = torch.zeros(9, 6, dtype=torch.int64)
    top, bottom = torch.full((2, 9, 3), torch.nan).unbind()
    numbers = [torch.full((9, 3), -1) for _ in range(2)]
    powers, count = torch.zeros(4, 9, dtype=torch.float64), torch.zeros(9, dtype=torch.int64)
    top, bottom = top.clone(), bottom.clone()
    kept = (histogram, top, numbers[0], bottom, numbers[1])
    for start in (0, 40):
        ops.row_summary(ROWS.T, start, torch.linspace(-1, 1, 5), *kept, powers, count, backend=name)
    return [*kept, powers, count]


def product(name: str | None) -> list[Tensor]:
    weight = normal(9, 5, seed=1)
    return [ops.product(ROWS, weight, precision=p, backend=name) for p in ("float32", "tf32", "bf16x3")]


CALLS: dict[str, Call] = {
    "activation_moments": activation_moments,
    "attn_jvp": lambda name: with_out(ops.attn_jvp, *TANGENTS, *AT, 0.3, backend=name),
    "attn_vjp": attn_vjp,
    "batch_product": batch_product,
    "bin_counts": bin_counts,
    "column_moments": column_moments,
    "column_top": column_top,
    "comoments": comoments,
    "edge_scores": edge_scores,
    "gate": gate,
    "group_sums": group_sums,
    "norm_jvp": lambda name: with_out(ops.norm_jvp, *NORM, backend=name),
    "norm_vjp": lambda name: with_out(ops.norm_vjp, *NORM, backend=name),
    "product": product,
    "row_summary": row_summary,
}


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("op", backend.FORMS)
def test_every_op_compiles_whole(op: str, name: str) -> None:
    expected = CALLS[op](name)
    torch.compiler.reset()
    # "aot_eager" turns writes in place into functions, as torch's own compiler does.
    got = torch.compile(CALLS[op], fullgraph=True, backend="aot_eager")(name)
    for mine, eager in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, eager, rtol=0, atol=0, equal_nan=True)


def of_tallies() -> dict[str, tuple]:
    """Arguments of the declared ops that write tallies, but for the backend."""
    counts, none = torch.zeros(9, 17, dtype=torch.int64), torch.zeros(9, dtype=torch.int64)
    sums = torch.zeros(4, 9, dtype=torch.float64)
    numbers = torch.full((9, 3), -1)
    kept = (
        torch.zeros(9, 6, dtype=torch.int64),
        ROWS[:3].sort(0, descending=True).values.T.contiguous(),
        numbers,
    )
    lows = (ROWS[:3].sort(0).values.T.contiguous(), numbers.clone())
    edges, powers = torch.linspace(-1, 1, 5), torch.zeros(4, 9, dtype=torch.float64)
    return {
        "bin_counts": (ROWS, *as_numbers(LinearBins(-2.0, 2.0, 16)), counts, none),
        "column_top": (ROWS, torch.arange(40), torch.full((3, 9), -torch.inf), torch.full((3, 9), -1)),
        "group_sums": (
            ROWS,
            GROUPS,
            ROWS[0].clone(),
            sums,
            sums.clone(),
            torch.zeros(4, 9, dtype=torch.int32),
            torch.full((4, 9), -torch.inf),
        ),
        "row_summary": (ROWS.T.contiguous(), 3, edges, *kept, *lows, powers, none.clone()),
    }


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("op", of_tallies())
def test_tally_opcheck(op: str, name: str) -> None:
    args = of_tallies()[op]
    torch.library.opcheck(getattr(torch.ops.interpcore, op), (*args, name))
    if op in ("group_sums", "row_summary"):
        short = tuple(x for x in args if x is not args[-1] and x is not args[-2])
        torch.library.opcheck(getattr(torch.ops.interpcore, op), (*short, None, None, name))


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_batch_product_opcheck(name: str) -> None:
    x, scale, weight = normal(4, 7), normal(3, 7, seed=1), normal(3, 7, 5, seed=2)
    declared = torch.ops.interpcore.batch_product
    torch.library.opcheck(declared, (x, weight, scale, x + 1, scale + 1, name))
    torch.library.opcheck(declared, (x, weight[0], None, None, None, name))


def test_bins_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="must be OctaveBins or LinearBins, not object"):
        as_numbers(object())  # type: ignore[arg-type]
