"""column_moments: every backend against the definition, the definition against SciPy and the peer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dtypes import every_shape_and_dtype
from torch import Tensor

from interpcore import ops
from interpcore.ops import ColumnMoments, reference
from interpcore.ops.backend import supported_isas

SHAPES = [(1, 1), (2, 33), (255, 16), (257, 123), (1500, 300), (40, 4200)]
HALVES = [torch.bfloat16, torch.float16]
THRESHOLDS = (0.0, -0.098, 0.1)


def normal(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    """Columns of different means and scales."""
    make = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=make) * torch.linspace(0.5, 2, shape[1]) + torch.linspace(
        -1, 1, shape[1]
    )


def hard_columns(rows: int = 20_000) -> Tensor:
    """The distributions on which streaming moments fail, one per column."""
    make = torch.Generator().manual_seed(1)

    def z() -> Tensor:
        return torch.randn(rows, generator=make, dtype=torch.float64)

    pre = -1.3 + 0.6 * z()
    spikes = z() + 30 * (torch.rand(rows, generator=make) < 0.002)
    late = torch.cat((z()[: rows // 2], 1e4 + z()[: rows - rows // 2]))
    first_wild = z()
    first_wild[0] = 1e7
    columns = [pre, torch.nn.functional.gelu(pre), spikes, 50 + z(), 1000 + z(), -3000 + z()]
    columns += [z().mul(1.5).exp(), 1e-12 * z(), 1e-25 * z(), 1e12 * z(), 1e30 * z() + 1e33, z() * 1e-2 - 700]
    columns += [late, first_wild, torch.full((rows,), 0.1, dtype=torch.float64), pre * 0]
    return torch.stack(columns, 1).float()


def raw(m: ColumnMoments) -> tuple[Tensor, Tensor]:
    """Integers and floats of a result."""
    return torch.stack((m.count, m.nonfinite, *m.above)), torch.stack((m.mean, m.minimum, m.maximum))


def on_cpu(m: ColumnMoments) -> ColumnMoments:
    """A copy of the result in the computer's memory."""
    tensors = {name: y.cpu() for name, y in vars(m).items() if isinstance(y, Tensor)}
    return replace(m, **tensors)


def expect_close(got: ColumnMoments, exact: ColumnMoments, tolerance: float = 1e-6) -> None:
    """Counts and extremes equal; variance and kurtosis relative, mean and skewness by the spread."""
    for part, wanted in zip(raw(got), raw(exact), strict=True):
        assert torch.equal(part.isnan(), wanted.isnan())
    assert torch.equal(raw(got)[0], raw(exact)[0])
    assert torch.equal(raw(got)[1][1:].nan_to_num(), raw(exact)[1][1:].nan_to_num())
    varied = exact.m2 > 0
    assert torch.equal(got.m2[~varied], exact.m2[~varied])
    for name in ("variance", "kurtosis"):
        mine, theirs = getattr(got, name)[varied], getattr(exact, name)[varied]
        torch.testing.assert_close(
            mine, theirs, rtol=tolerance, atol=0, msg=lambda text, n=name: f"{n}: {text}"
        )
    spread = exact.variance.sqrt()
    assert not ((got.mean - exact.mean).abs() > tolerance * spread + 1e-15 * exact.mean.abs()).any()
    gap = (got.skewness - exact.skewness)[varied].abs()
    assert (gap <= tolerance * exact.kurtosis[varied]).all()


def test_definition_is_scipys() -> None:
    stats = pytest.importorskip("scipy.stats")
    x = normal((300, 7)).double()
    got = ops.column_moments(x, thresholds=(0.25,))
    v = x.numpy()
    for mine, theirs in (
        (got.mean, v.mean(0)),
        (got.variance, v.var(0)),
        (got.skewness, stats.skew(v)),
        (got.kurtosis, stats.kurtosis(v, fisher=False)),
        (got.excess_kurtosis, stats.kurtosis(v)),
        (got.frequency[0], (v > 0.25).mean(0)),
    ):
        np.testing.assert_allclose(mine.numpy(), theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_parity_with_the_published_analysis(backend: str) -> None:
    peer = np.load(Path(__file__).parent / "data" / "parity_neurons.npz")
    got = ops.column_moments(torch.from_numpy(peer["moments/x"].astype(np.float32)).T, backend=backend)
    for name, theirs in (("mean", "mean"), ("variance", "var"), ("kurtosis", "kurt")):
        np.testing.assert_allclose(getattr(got, name).numpy(), peer[f"moments/{theirs}"], rtol=1e-6)
    skew = peer["moments/skew"]
    for column, (rtol, atol) in enumerate([(1e-6, 0), (0, 3e-4), (1e-6, 0), (1e-6, 0)]):
        np.testing.assert_allclose(got.skewness[column].numpy(), skew[column], rtol=rtol, atol=atol)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("shape", SHAPES)
def test_cpu(shape: tuple[int, int], isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x = normal(shape)
    mask = torch.rand(shape[0], generator=torch.Generator().manual_seed(2)) < 0.7
    for kept, thresholds in ((None, ()), (mask, THRESHOLDS), (~mask, THRESHOLDS[:1])):
        got = ops.column_moments(x, kept, thresholds, backend="cpu")
        expect_close(got, ops.column_moments(x, kept, thresholds, backend="reference"))
        rows = x if kept is None else x[kept]
        for mine, same in zip(raw(got), raw(ops.column_moments(rows, None, thresholds)), strict=True):
            assert torch.equal(mine.nan_to_num(), same.nan_to_num())


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu_widens_half_precision_exactly(
    isa: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    every = torch.arange(1 << 16, dtype=torch.int32).to(torch.uint16).view(dtype).view(-1, 64)
    got = ops.column_moments(every, thresholds=THRESHOLDS, backend="cpu")
    wide = ops.column_moments(every.float(), thresholds=THRESHOLDS, backend="cpu")
    for name in ("count", "nonfinite", "mean", "m2", "m3", "m4", "minimum", "maximum", "above"):
        assert torch.equal(getattr(got, name), getattr(wide, name))
    expect_close(got, ops.column_moments(every, thresholds=THRESHOLDS, backend="reference"))
    some, mask = normal((300, 4133)).to(dtype), torch.arange(300) % 5 > 0
    got, wide = (ops.column_moments(x, mask, THRESHOLDS, backend="cpu") for x in (some, some.float()))
    assert torch.equal(got.m4, wide.m4) and torch.equal(got.above, wide.above)


@pytest.mark.parametrize("isa", supported_isas())
def test_hard_distributions(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x = hard_columns()
    exact = ops.column_moments(x, backend="reference")
    expect_close(ops.column_moments(x, backend="cpu"), exact)
    for shift in (x.mean(0), x[0], torch.zeros_like(x[0]), torch.full_like(x[0], torch.nan)):
        expect_close(ops.column_moments(x, shift=shift, backend="cpu"), exact)


@pytest.mark.parametrize("isa", supported_isas())
@pytest.mark.parametrize("rows", [64, 256, 4096])
def test_columns_that_are_mostly_zero(rows: int, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    make = torch.Generator().manual_seed(4)
    x = torch.randn(rows, 500, generator=make) - 3 * torch.rand(500, generator=make)
    x = torch.cat((torch.relu(x) * 30, torch.nn.functional.silu(3 * x)), 1)
    for shift in (None, x[:64].mean(0)):
        got = ops.column_moments(x, shift=shift, backend="cpu")
        expect_close(got, ops.column_moments(x, backend="reference"))


@every_shape_and_dtype([(1, 1), (257, 123), (1500, 65)])
def test_triton(shape: tuple[int, int], dtype: torch.dtype, triton_device: str) -> None:
    x = normal(shape).to(dtype)
    x[shape[0] // 2, shape[1] // 3] = torch.nan
    mask = torch.rand(shape[0], generator=torch.Generator().manual_seed(2)) < 0.7
    for kept, thresholds in ((None, ()), (mask, THRESHOLDS)):
        exact = ops.column_moments(x, kept, thresholds, backend="reference")
        there = None if kept is None else kept.to(triton_device)
        got = ops.column_moments(x.to(triton_device), there, thresholds, backend="triton")
        expect_close(on_cpu(got), exact)


def test_triton_hard_distributions(triton_device: str) -> None:
    # Without the column of one value 1e7 among ones: the interpreter adds a block's rows one by one,
    # so that the others are rounded all to one side.
    x = hard_columns(5000)[:, [c for c in range(16) if c != 13]]
    got = on_cpu(ops.column_moments(x.to(triton_device), thresholds=THRESHOLDS, backend="triton"))
    expect_close(got, ops.column_moments(x, thresholds=THRESHOLDS, backend="reference"))


def awkward_columns(rows: int) -> Tensor:
    """Ten columns each of what is hard for float32 sums about a shift: far means, repeated values, tails."""
    make = torch.Generator().manual_seed(7)
    z, u = torch.randn(rows, 10, generator=make), torch.rand(rows, 10, generator=make)
    tailed = z / torch.randn(rows, 10, 3, generator=make).square().mean(-1).sqrt()
    columns = [z, z + 1000, torch.where(u < 0.99, 4.95, 4.95 + z), torch.where(u < 0.5, 4.95, -1.3)]
    return torch.cat([*columns, torch.relu(30 * z - 20), torch.nn.functional.gelu(0.6 * z - 2.2), tailed], 1)


def test_triton_sums_whole_chunks_in_float32(triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from interpcore.kernels import _chunks, column_moments

    def refuse(*_: object) -> None:
        raise AssertionError("a chunk was taken for a hard one")

    for module in (_chunks, column_moments):
        longest = _chunks.LONGEST_CHAIN * _chunks.BLOCK_ROWS
        monkeypatch.setattr(module, "chunk_rows", lambda T, N, rows=longest: rows)
    monkeypatch.setattr(_chunks, "_add_block", refuse)
    x = awkward_columns(2500)
    got = ops.column_moments(x.to(triton_device), thresholds=THRESHOLDS, backend="triton")
    expect_close(on_cpu(got), ops.column_moments(x, thresholds=THRESHOLDS, backend="reference"))
    x[7, 3] = torch.nan
    if triton_device == "cpu":
        with pytest.raises(Exception, match="taken for a hard one"):
            ops.column_moments(x, backend="triton")


def test_triton_goes_on_from_totals(triton_device: str) -> None:
    x, mask = normal((300, 9)).to(triton_device), torch.arange(300, device=triton_device) % 3 > 0
    x[280, 2] = torch.inf
    running = ops.RunningMoments(9, THRESHOLDS, device=triton_device)
    for part in (slice(0, 100), slice(100, 100), slice(100, 300)):
        running.add(x[part], mask[part], backend="triton")
    first = on_cpu(running.result())
    expect_close(first, ops.column_moments(x.cpu(), mask.cpu(), THRESHOLDS, backend="reference"), 2e-6)
    with pytest.raises(RuntimeError, match="records no gradient"):
        running.add(x.clone().requires_grad_(), backend="triton")
    assert torch.equal(on_cpu(running.result()).m4, first.m4)


def test_triton_fills_its_outputs(triton_device: str) -> None:
    from interpcore.kernels import column_moments as kernel

    x = normal((700, 70)).to(triton_device)
    counts = torch.full((3, 70), -1, device=triton_device)
    moments = torch.full((6, 70), torch.nan, dtype=torch.float64, device=triton_device)
    kernel.launch(x, None, torch.zeros(1, device=triton_device), counts, moments)
    exact_counts, exact = reference.column_moments(x, None, (0.0,))
    assert torch.equal(counts, exact_counts)
    torch.testing.assert_close(moments, exact, rtol=1e-6, atol=1e-6 * float(exact[3].max()))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_non_finite_values_are_counted_and_left_out(backend: str) -> None:
    x = normal((600, 20))
    clean = ops.column_moments(x, thresholds=THRESHOLDS, backend=backend)
    bad = x.clone()
    bad[0, 3], bad[300, 3], bad[599, 4] = torch.inf, torch.nan, -torch.inf
    bad[:, 5] = torch.nan
    got = ops.column_moments(bad, thresholds=THRESHOLDS, backend=backend)
    assert got.nonfinite.tolist() == [0, 0, 0, 2, 1, 600] + [0] * 14
    untouched = torch.tensor([c not in (3, 4, 5) for c in range(20)])
    assert torch.equal(got.m4[untouched], clean.m4[untouched])
    for column in (3, 4):
        alone = bad[bad[:, column].isfinite()][:, column : column + 1]
        expected = ops.column_moments(alone, thresholds=THRESHOLDS, backend="reference")
        assert int(got.count[column]) == len(alone)
        assert torch.equal(got.above[:, column], expected.above[:, 0])
        torch.testing.assert_close(got.kurtosis[column], expected.kurtosis[0], rtol=1e-6, atol=0)
    assert int(got.count[5]) == 0
    assert all(v[5].isnan() for v in (got.mean, got.minimum, got.maximum, got.variance, got.frequency[0]))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_few_rows(backend: str) -> None:
    for x, mask in ((normal((0, 5)), None), (normal((9, 5)), torch.zeros(9, dtype=torch.bool))):
        none = ops.column_moments(x, mask, (0.0,), backend=backend)
        assert none.count.tolist() == [0] * 5
        assert none.mean.isnan().all()
        assert none.frequency.isnan().all()
    one = ops.column_moments(normal((1, 5)), backend=backend)
    assert torch.equal(one.mean, normal((1, 5))[0].double())
    assert torch.equal(one.minimum, one.maximum)
    assert one.variance.tolist() == [0] * 5
    assert one.kurtosis.isnan().all()


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_merged_parts_are_the_whole(backend: str) -> None:
    x, cut = hard_columns(4000), 256 * 5
    shift = ops.column_moments(x[:64], backend="reference").mean.float()
    options = {"thresholds": THRESHOLDS, "shift": shift, "backend": backend}
    whole = ops.column_moments(x, **options)
    merged = ops.column_moments(x[:cut], **options).merge(ops.column_moments(x[cut:], **options))
    for mine, same in zip(raw(merged), raw(whole), strict=True):
        assert torch.equal(mine[1:], same[1:])
    for name in ("mean", "variance", "kurtosis"):
        torch.testing.assert_close(
            getattr(merged, name), getattr(whole, name), rtol=1e-12, atol=0, equal_nan=True
        )
    varied = whole.m2 > 0
    assert ((merged.m3 - whole.m3).abs()[varied] <= 1e-12 * whole.m2[varied] ** 1.5).all()
    empty = ops.column_moments(x[:0], **options)
    for both in (empty.merge(whole), whole.merge(empty)):
        assert torch.equal(both.m4, whole.m4)
        assert torch.equal(both.minimum, whole.minimum)
    with pytest.raises(ValueError, match="thresholds"):
        whole.merge(ops.column_moments(x, backend=backend))
    with pytest.raises(ValueError, match="columns on"):
        whole.merge(ops.column_moments(x[:, 1:], thresholds=THRESHOLDS, backend=backend))


def test_threads_and_tiling_do_not_change_the_bits() -> None:
    x = normal((300, 5000))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.column_moments(x, thresholds=(0.0,), backend="cpu")
        torch.set_num_threads(3)
        three = ops.column_moments(x, thresholds=(0.0,), backend="cpu")
    finally:
        torch.set_num_threads(before)
    alone = ops.column_moments(x[:, 4321:4322], thresholds=(0.0,), backend="cpu")
    for name in ("count", "mean", "m2", "m3", "m4", "minimum", "maximum", "above"):
        assert torch.equal(getattr(one, name), getattr(three, name))
        assert torch.equal(getattr(one, name)[..., 4321], getattr(alone, name)[..., 0])


def test_any_strides() -> None:
    x = normal((400, 40))
    expected = ops.column_moments(x, backend="cpu")
    for view in (x.t().contiguous().t(), torch.cat((x, x), 1)[:, :40], torch.stack([x] * 2, 2)[..., 1]):
        assert torch.equal(ops.column_moments(view, backend="cpu").m4, expected.m4)
    mask = torch.arange(400) % 3 > 0
    got = ops.column_moments(x, torch.stack((mask, mask), 1)[:, 0], backend="cpu")
    assert torch.equal(got.m4, ops.column_moments(x[mask], backend="cpu").m4)


def test_thresholds_are_compared_exactly() -> None:
    x = torch.tensor([[0.1], [-0.1], [1.0]]).repeat(8, 1)
    below, above = (float(torch.tensor(0.1).nextafter(torch.tensor(v))) for v in (-1.0, 1.0))
    limits = (0.1, float(torch.tensor(0.1)), below, above, -0.1, 1.0, 1e300, -1e300)
    got = ops.column_moments(x, thresholds=limits, backend="cpu")
    assert torch.equal(got.above, reference.column_moments(x, None, limits)[0][2:])


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(2, 3, 4)}, "x must be [T, N]"),
        ({"x": torch.zeros(2, 4, dtype=torch.int32)}, "x must be float32, float64"),
        ({"mask": torch.zeros(3, dtype=torch.bool)}, "mask must be [6] torch.bool"),
        ({"mask": torch.zeros(6)}, "mask must be [6] torch.bool"),
        ({"shift": torch.zeros(4, dtype=torch.float64)}, "shift must be [4] torch.float32"),
        ({"thresholds": range(9)}, "at most 8 finite numbers"),
        ({"thresholds": (float("nan"),)}, "at most 8 finite numbers"),
        ({"backend": "numpy"}, "backend='numpy' is unknown"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.column_moments(**({"x": normal((6, 4))} | change))
    assert sentence in str(caught.value)


def test_gradients_are_refused() -> None:
    with pytest.raises(RuntimeError, match="no gradient of its own"):
        ops.column_moments(normal((6, 4)).requires_grad_()).variance.sum().backward()
