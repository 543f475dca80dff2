"""The cases of statistics on a device: moments, co-moments, counts, sums by group and largest values.

A CUDA form is among them where there is one: its rows, beside Triton's of the same problems, are what
`gpu_check.py` confirms it by.
"""

import itertools
from collections.abc import Callable, Iterator

import gpu_kernels
import torch
from gpu_kernels import DTYPES, Case, Problem, Results, generator

from interpcore import ops
from interpcore.ops.bins import OctaveBins
from interpcore.ops.column_arguments import cuda_lacks

FIRST, BINS, GROUPS = 50, 101, 1024


def cases() -> Iterator[Case]:
    """Every case of these ops: odd shapes for correctness, large ones for speed."""
    matrices = ((257, 123), (65_536, 4096), (400_000, 768))
    for dtype, matrix in itertools.product(DTYPES, matrices):
        for op in ("column_moments", "activation_moments"):
            yield Case(op, "triton", dtype, matrix)
            if cuda_lacks(dtype, ()) is None:
                yield Case(op, "cuda", dtype, matrix)
    for dtype, sides in itertools.product(DTYPES, ((257, 123, 70), (65_536, 4096, 4096))):
        yield Case("comoments", "triton", dtype, sides)
    for op in ("column_top", "bin_counts", "group_sums"):
        for matrix in ((257, 123), (32_768, 4096)):
            yield Case(op, "triton", torch.float32, matrix)
    for matrix in ((123, 257), (4096, 8192)):
        yield Case("row_summary", "triton", torch.float32, matrix)


def _problem(
    case: Case,
    parts: Callable[[str | None], Results],
    plain: Callable[[], Results],
    size: int,
    flops: int,
) -> Problem:
    """The problem of a case: what is compared, by backend, and by plain torch."""
    return Problem(
        run=lambda: parts(case.backend),
        exact=lambda: parts("reference"),
        plain=plain,
        bytes=size,
        flops=flops,
    )


def column_moments_problem(case: Case) -> Problem:
    """x [T, N] with a threshold; the results compared are mean, variance, kurtosis and frequency."""
    x = generator(case)(*case.shape)

    def parts(backend: str | None) -> Results:
        m = ops.column_moments(x, thresholds=(0.0,), backend=backend)
        return m.mean, m.variance, m.kurtosis, m.frequency

    def plain() -> Results:
        mean = x.mean(0)
        d = x - mean
        variance = d.square().mean(0)
        kurtosis = d.pow(4).mean(0) / variance.square()
        return mean, variance, kurtosis, (x > 0).to(x.dtype).mean(0)[None]

    return _problem(case, parts, plain, x.nbytes, 9 * x.numel())


def comoments_problem(case: Case) -> Problem:
    """x [T, N] and y [T, N']; the result compared is the correlation."""
    rows, n, m = case.shape
    make = generator(case)
    x, y = make(rows, n), make(rows, m)
    pilot_x, pilot_y = ops.Pilot.of(x[:512]), ops.Pilot.of(y[:512])

    def ours() -> Results:
        found = ops.comoments(x, y, pilot_x=pilot_x, pilot_y=pilot_y, backend=case.backend)
        return found.correlation

    def plain() -> Results:
        a, b = x - x.mean(0), y - y.mean(0)
        return (a.t() @ b) / (a.norm(dim=0).float()[:, None] * b.norm(dim=0).float())

    return Problem(
        run=ours,
        exact=lambda: ops.comoments(x, y, backend="reference").correlation,
        plain=plain,
        bytes=x.nbytes + y.nbytes,
        flops=2 * rows * n * m,
    )


def activation_moments_problem(case: Case) -> Problem:
    """x [T, N] through a GELU; compared are the activation and both sides' mean and variance."""
    x = generator(case)(*case.shape)

    def parts(backend: str | None) -> Results:
        sides = [ops.RunningMoments(case.shape[1], device=gpu_kernels.DEVICE) for _ in range(2)]
        post = ops.activation_moments(x, "gelu_tanh", sides[0], sides[1], backend=backend)
        found = [side.result() for side in sides]
        return post, *(y for m in found for y in (m.mean, m.variance))

    def plain() -> Results:
        post = torch.nn.functional.gelu(x, approximate="tanh")
        return post, x.mean(0), x.var(0, correction=0), post.mean(0), post.var(0, correction=0)

    return _problem(case, parts, plain, 2 * x.nbytes, 30 * x.numel())


def column_top_problem(case: Case) -> Problem:
    """x [T, N]; compared are the largest values of every column and their rows."""
    x = generator(case)(*case.shape)
    index = torch.arange(len(x), device=x.device)

    def parts(backend: str | None) -> Results:
        value = x.new_full((FIRST, x.shape[1]), -torch.inf)
        place = index.new_full(value.shape, -1)
        ops.column_top(x, index, value, place, backend=backend)
        return value, place

    return _problem(case, parts, lambda: tuple(torch.topk(x, FIRST, 0)), x.nbytes, x.numel())


def bin_counts_problem(case: Case) -> Problem:
    """x [T, N] into octaves of both signs; plain torch looks the bins up and counts them."""
    x, bins = generator(case)(*case.shape), OctaveBins()
    edges = torch.as_tensor(bins.edges, dtype=torch.float32, device=x.device)
    width = len(edges) + 1

    def parts(backend: str | None) -> Results:
        counts = torch.zeros(x.shape[1], width, dtype=torch.int64, device=x.device)
        ops.bin_counts(x, bins, counts, counts.new_zeros(x.shape[1]), backend=backend)
        return counts

    def plain() -> Results:
        place = torch.searchsorted(edges, x, right=True) + width * torch.arange(x.shape[1], device=x.device)
        return torch.bincount(place.flatten(), minlength=x.shape[1] * width).view(-1, width)

    return _problem(case, parts, plain, x.nbytes, x.numel())


def group_sums_problem(case: Case) -> Problem:
    """x [T, N] by position; compared are sums and squares of every group."""
    x = generator(case)(*case.shape)
    group = torch.arange(len(x), device=x.device) % GROUPS
    shift = x.new_zeros(x.shape[1])

    def parts(backend: str | None) -> Results:
        total, square = (shift.new_zeros(GROUPS, len(shift), dtype=torch.float64) for _ in range(2))
        ops.group_sums(x, group, shift, total, square, backend=backend)
        return total, square

    def plain() -> Results:
        zero = x.new_zeros(GROUPS, len(shift))
        return zero.index_add(0, group, x), zero.index_add(0, group, x.square())

    return _problem(case, parts, plain, x.nbytes, 4 * x.numel())


def row_summary_problem(case: Case) -> Problem:
    """r [n, m], correlations; compared are the histogram, the largest and smallest values, and power sums."""
    r = generator(case)(*case.shape).mul(0.1).clamp(-1, 1)
    rows, edges = len(r), torch.linspace(-1, 1, BINS - 1, device=r.device)

    def parts(backend: str | None) -> Results:
        top, bottom = (r.new_full((rows, FIRST), torch.nan) for _ in range(2))
        above, below = (torch.full((rows, FIRST), -1, device=r.device) for _ in range(2))
        histogram = above.new_zeros(rows, BINS)
        powers = r.new_zeros(4, rows, dtype=torch.float64)
        kept = (histogram, top, above, bottom, below, powers, above.new_zeros(rows))
        ops.row_summary(r, 0, edges, *kept, backend=backend)
        return histogram, top, bottom, powers

    def plain() -> Results:
        place = torch.searchsorted(edges, r) + BINS * torch.arange(rows, device=r.device)[:, None]
        histogram = torch.bincount(place.flatten(), minlength=rows * BINS).view(-1, BINS)
        top, bottom = (r.topk(FIRST, 1, largest=largest).values for largest in (True, False))
        return histogram, top, bottom, torch.stack([r.pow(n).sum(1) for n in range(1, 5)])

    return _problem(case, parts, plain, r.nbytes, 8 * r.numel())


PROBLEMS: dict[str, Callable[[Case], Problem]] = {
    "column_moments": column_moments_problem,
    "activation_moments": activation_moments_problem,
    "comoments": comoments_problem,
    "column_top": column_top_problem,
    "bin_counts": bin_counts_problem,
    "group_sums": group_sums_problem,
    "row_summary": row_summary_problem,
}
