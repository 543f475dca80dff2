"""Scores of edges: differences of sources' outputs against gradients at destinations' inputs."""

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from interpcore.ops import reference
from interpcore.ops.backend import choose, on
from interpcore.ops.checks import expect, expect_leading, expect_no_gradient
from interpcore.ops.edge_arguments import cuda_lacks, launch_cuda
from interpcore.ops.product import product

# Destinations of one product: all its sources up to the largest prefix are multiplied.
_COLUMNS = 64


def edge_scores(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None = None,
    segments: int = 1,
    *,
    moments: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sum of difference[source] . grad[destination] over all legal edges, per segment.

    With e[b, g, s, t] = sum over positions p with segment[b, p] = g of difference[s, b, p] . grad[t, b, p]
    where s < prefix[t], and 0 elsewhere: the sum over examples b, and the sum of e^2 where asked for. Tiles
    without legal edges are not computed; the order of summation depends on the shapes alone.

    On the CPU this is one `product` per example, fastest where each example's rows lie one behind the other
    (`[B, S, P, d]` transposed): nothing stands between products that native code could fuse.

    Args:
        difference: `[S, B, P, d]`, outputs of sources, corrupted - clean; any float dtype.
        grad: `[D, B, P, d]`, gradients at destinations, the dtype of `difference`.
        prefix: D numbers of legal sources: destination t is reached by the sources before prefix[t].
        segment: `[B, P]` int64, the segment of each position, negative for none; None for one segment. On the
            CPU or with `difference`; from a GPU it is read first, which waits for what runs there.
        segments: how many there are.
        moments: return the sum of squares over examples too.
        backend: "reference", "cpu", "triton", "cuda" (bfloat16, d a multiple of 8, H100 or H200) or None to
            choose by device and dtype.

    Returns:
        Sum and, with `moments`, sum of squares (else None), each `[segments, S, D]`, float32 or wider.

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
        RuntimeError: the backend named is missing, or a gradient is needed.
    """
    prefix = [int(p) for p in prefix]
    _check(difference, grad, prefix, segment, segments)
    expect_no_gradient("edge_scores", difference, grad)
    total, squares = torch.ops.interpcore.edge_scores(
        difference, grad, prefix, segment, segments, moments, backend
    )
    return total, squares if moments else None


def new_scores(difference: Tensor, grad: Tensor, segments: int, moments: bool) -> tuple[Tensor, Tensor]:
    """New tensors [segment, source, destination] for sum and sum of squares (without segments where not asked
    for)."""
    shape = (difference.shape[0], grad.shape[0])
    wide = torch.promote_types(difference.dtype, torch.float32)
    return (
        difference.new_empty((segments, *shape), dtype=wide),
        difference.new_empty((segments if moments else 0, *shape), dtype=wide),
    )


def launch_edge_scores(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None,
    segments: int,
    moments: bool,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """Choose the backend; the arguments are those of `edge_scores`, already checked."""
    _check_numbers(segment, segments)
    chosen = choose("edge_scores", difference, backend, cuda_lacks(difference))
    total, squares = new_scores(difference, grad, segments, moments)
    if chosen == "reference":
        segment = None if segment is None else segment.to(difference.device)
        exact = reference.edge_scores(difference, grad, prefix, segment, segments)
        total.copy_(exact[0])
        if moments:
            squares.copy_(exact[1])
    elif difference.numel() == 0 or grad.numel() == 0:
        total.zero_(), squares.zero_()
    elif chosen == "triton":
        from interpcore.kernels import edge_scores as kernel

        with on(difference):
            kernel.launch(difference.contiguous(), grad.contiguous(), prefix, segment, total, squares)
    elif chosen == "cuda":
        launch_cuda(difference, grad, prefix, segment, total, squares)
    else:
        _products(difference, grad, prefix, segment, total, squares)
    return total, squares


def _products(
    difference: Tensor,
    grad: Tensor,
    prefix: Sequence[int],
    segment: Tensor | None,
    total: Tensor,
    squares: Tensor,
) -> None:
    """Fill `total` and `squares` example by example, some destinations at a time."""
    total.zero_(), squares.zero_()
    numbers = [[0] * grad.shape[2]] * grad.shape[1] if segment is None else segment.tolist()
    for start in range(0, len(prefix), _COLUMNS):
        columns = slice(start, min(start + _COLUMNS, len(prefix)))
        reach = max(prefix[columns])
        for example, row in enumerate(numbers):
            each = _example(difference[:reach, example], grad[columns, example], row)
            for number, values in each.items():
                total[number, :reach, columns] += values
                if len(squares):
                    squares[number, :reach, columns] += values.square()
        illegal = torch.arange(reach)[:, None] >= torch.tensor(prefix[columns])
        for sums in (total, squares):
            sums[:, :reach, columns].masked_fill_(illegal, 0.0)


def _example(difference: Tensor, grad: Tensor, segment: Sequence[int]) -> dict[int, Tensor]:
    """One example's scores [S, D] by segment, of difference [S, P, d] and grad [D, P, d]."""
    each: dict[int, Tensor] = {}
    start = 0
    for number, run in itertools.groupby(segment):
        at = slice(start, start + len(list(run)))
        start = at.stop
        if number < 0:
            continue
        # This way round, oneDNN is almost twice as fast as the other.
        values = product(grad[:, at].flatten(1), difference[:, at].flatten(1).T).T
        each[number] = each[number] + values if number in each else values
    return each


def _check(
    difference: Tensor, grad: Tensor, prefix: Sequence[int], segment: Tensor | None, segments: int
) -> None:
    expect_leading("edge_scores", "difference", difference, "S, B, P, d")
    sources, *rest = difference.shape
    size = (grad.shape[0] if grad.dim() else 0, *rest)
    expect("edge_scores", "difference", difference, {"grad": (grad, size, difference.dtype)})
    on_host = segment is not None and segment.is_cpu
    like = torch.empty(()).expand(difference.shape) if on_host else difference
    expect("edge_scores", "difference", like, {"segment": (segment, rest[:2], torch.int64)})
    if len(prefix) != len(grad) or not all(0 <= p <= sources for p in prefix):
        raise ValueError(
            f"edge_scores: prefix must hold a number of sources from 0 to {sources} for each of the "
            f"{len(grad)} destinations, got {list(prefix)}."
        )
    if segments < 1:
        raise ValueError(f"edge_scores: segments must be at least 1, got {segments}.")


def _check_numbers(segment: Tensor | None, segments: int) -> None:
    """No position is of a segment that there is not. Raises: ValueError as `edge_scores`."""
    top = int(segment.max()) if segment is not None and segment.numel() else 0
    if top >= segments:
        raise ValueError(f"edge_scores: segment holds number {top}, outside the {segments} segments.")
