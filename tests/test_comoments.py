"""comoments: every backend against the definition, hard columns, merging, the peer's overflow."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import Pilot, reference
from interpcore.ops.comoments import block_sums, by_column
from interpcore.ops.meter import metered
from interpcore.ops.reference.comoments import centered as centered_definition

SHAPES = [(1, 1, 1), (40, 3, 5), (257, 33, 16), (1500, 70, 130), (9000, 4, 3)]
CASES = [(backend, shape) for backend in ("reference", "cpu") for shape in SHAPES]
CASES += [("triton", shape) for shape in SHAPES if shape[0] < 1000]  # the rest is slow in the interpreter
PARITY = Path(__file__).parent / "data" / "parity_neurons.npz"


def related(rows: int, n: int, m: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two sets of columns that correlate, with means and scales of their own."""
    make = torch.Generator().manual_seed(seed)
    common = torch.randn(rows, 8, generator=make)
    sides = []
    for columns in (n, m):
        noise = torch.randn(rows, columns, generator=make)
        mixed = common @ torch.randn(8, columns, generator=make) + noise
        sides.append(mixed * torch.linspace(0.1, 3, columns) + torch.linspace(-5, 5, columns))
    return sides[0], sides[1]


def exact_correlation(x: Tensor, y: Tensor) -> Tensor:
    x, y = ((v.double() - v.double().mean(0)) for v in (x, y))
    return (x.t() @ y) / (x.norm(dim=0)[:, None] * y.norm(dim=0))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("backend", "shape"), CASES, ids=str)
def test_against_the_definition(
    backend: str, shape: tuple[int, int, int], masked: bool, request: pytest.FixtureRequest
) -> None:
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    x, y = (v.to(device) for v in related(*shape))
    mask = (torch.arange(shape[0], device=device) % 3 != 1) if masked else None
    got = ops.comoments(x, y, mask, backend=backend)
    exact = reference.comoments(x, y, mask)
    assert got.comoment.dtype == torch.float64
    spread = got.x.m2.sqrt()[:, None] * got.y.m2.sqrt()
    assert ((got.comoment - exact).abs() <= 2e-6 * spread + 1e-12).all()


def test_hard_columns_have_their_correlation() -> None:
    make = torch.Generator().manual_seed(1)
    z = torch.randn(20_000, 1, generator=make, dtype=torch.float64)
    noise = torch.randn(20_000, 8, generator=make, dtype=torch.float64)
    base = z + noise
    scales = torch.tensor([1, 1, 1e-12, 1e12, 1e-25, 1e30, 1e3, 1], dtype=torch.float64)
    means = torch.tensor([0, 1000, 0, -3e15, 0, 3e33, 0, -70], dtype=torch.float64)
    x = (base * scales + means).float()
    got = ops.comoments(x, z.float()).correlation
    assert (got - exact_correlation(x, z)).abs().max() < 2e-6
    both = ops.comoments(x, x).correlation
    assert (both - exact_correlation(x, x)).abs().max() < 2e-6
    assert (both.diagonal() - 1).abs().max() < 2e-6


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_a_column_that_is_not_finite_spoils_no_other(backend: str, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    x, y = (v.to(device) for v in related(300, 6, 5))
    clean = ops.comoments(x, y, backend=backend)
    x[7, 2], x[9, 2], y[250, 4] = torch.inf, torch.nan, -torch.inf
    got = ops.comoments(x, y, backend=backend, pilot_x=clean.pilot_x, pilot_y=clean.pilot_y)
    good_x, good_y = [0, 1, 3, 4, 5], [0, 1, 2, 3]
    assert torch.equal(got.correlation[good_x][:, good_y], clean.correlation[good_x][:, good_y])
    assert got.correlation[2].isnan().all() and got.correlation[:, 4].isnan().all()
    assert got.x.nonfinite.tolist() == [0, 0, 2, 0, 0, 0] and got.y.nonfinite.tolist() == [0, 0, 0, 0, 1]
    assert reference.comoments(x, y).isnan().equal(got.comoment.isnan())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtypes(dtype: torch.dtype) -> None:
    x, y = (v.to(dtype) for v in related(700, 20, 30))
    error = (ops.comoments(x, y).correlation - exact_correlation(x, y)).abs().max()
    assert error < (1e-12 if dtype == torch.float64 else 2e-6)


def test_bfloat16_products_are_of_shifted_values() -> None:
    x, y = related(4000, 20, 30)
    x += 1000
    got = ops.comoments(x, y, precision="bfloat16").correlation
    error = (got - exact_correlation(x, y)).abs().max()
    assert 1e-7 < error < 1e-3


@pytest.mark.parametrize("columns", [5, 256, 600])
def test_columns_with_themselves_take_half_the_products(columns: int) -> None:
    x = related(700, columns, columns)[0].to(torch.float32)
    a = ops.centered(x, None, Pilot.of(x[:64]))
    whole, half = (torch.zeros(columns, columns, dtype=torch.float64) for _ in range(2))
    for rows in (slice(0, 400), slice(400, None)):
        ops.add_products(whole, a[rows], a[rows])
        with metered() as meter:
            ops.add_products(half, by_column(a[rows]), a[rows], same=True)
        assert meter.done <= (0.75 if columns > 512 else 1) * len(a[rows]) * columns**2
    spread = a.double().norm(dim=0)[:, None] * a.double().norm(dim=0)
    assert ((half - a.double().t() @ a.double()).abs() <= 2e-6 * spread).all()
    assert ((half - whole).abs() <= 2e-6 * spread).all()
    assert torch.allclose(half, half.t(), rtol=0, atol=float(2e-6 * spread.max()))


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_blocks_summed_in_float32_first_keep_the_error_of_the_products(precision: str) -> None:
    """33,000 rows, as a device takes them: against float64 products of the same rounded operands."""
    rows = 33_000
    x, y = related(rows, 5, 6)
    a, b = (ops.centered(v, None, Pilot.of(v[:64]), precision=precision) for v in (x, y))
    exact = a.double().t() @ b.double()
    spread = a.double().norm(dim=0)[:, None] * b.double().norm(dim=0)
    for blocks, sums in ((4, 2), (8, 1), (1, 5)):
        parts = [part.clone() for part in block_sums(a, b, blocks)]
        assert len(parts) == sums and all(part.dtype == torch.float32 for part in parts)
        total = torch.stack(parts).double().sum(0)
        assert ((total - exact).abs() <= 2e-6 * spread).all(), blocks
    true = exact_correlation(x, y)
    got = ops.comoments(x, y, precision=precision).correlation
    assert (got - true).abs().max() < (2e-4 if precision == "bfloat16" else 2e-6)


@pytest.mark.parametrize(("precision", "most"), [("tf32", 2e-4), ("tf32x3", 2e-6), ("bf16x3", 2e-6)])
def test_products_in_parts(precision: str, most: float) -> None:
    x, y = related(3000, 20, 30)
    got = ops.comoments(x + 1000, y, precision=precision).correlation
    assert (got - exact_correlation(x + 1000, y)).abs().max() < most
    half = ops.comoments(x.bfloat16(), y.bfloat16(), precision=precision).correlation
    assert (half - exact_correlation(x.bfloat16(), y.bfloat16())).abs().max() < most


def test_constant_and_masked_out_columns() -> None:
    x, y = related(50, 4, 4)
    x[:, 1] = 3.25
    got = ops.comoments(x, y)
    assert got.correlation[1].isnan().all() and got.correlation[[0, 2, 3]].isfinite().all()
    none = ops.comoments(x, y, torch.zeros(50, dtype=torch.bool))
    assert none.correlation.isnan().all() and (none.cross == 0).all()


def test_merge() -> None:
    x, y = related(30_000, 12, 9)
    pilots = {"pilot_x": Pilot.of(x[:64]), "pilot_y": Pilot.of(y[:64])}
    whole = ops.comoments(x, y, **pilots)
    cut = ops.comoments.__globals__["BLOCK_ROWS"]
    parts = [ops.comoments(x[s : s + cut], y[s : s + cut], **pilots) for s in range(0, len(x), cut)]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    assert (merged.cross - whole.cross).abs().max() <= 1e-12 * whole.cross.abs().max()
    assert (merged.correlation - whole.correlation).abs().max() < 1e-12
    odd = ops.comoments(x[:777], y[:777], **pilots).merge(ops.comoments(x[777:], y[777:], **pilots))
    assert (odd.correlation - whole.correlation).abs().max() < 4e-6  # other float32 sums
    with pytest.raises(ValueError, match="other shifts or scales"):
        merged.merge(ops.comoments(x, y))


def test_cosine() -> None:
    x, y = related(900, 6, 7)
    x64, y64 = x.double(), y.double()
    exact = (x64.t() @ y64) / (x64.norm(dim=0)[:, None] * y64.norm(dim=0))
    assert (ops.comoments(x, y).cosine - exact).abs().max() < 2e-6


def test_the_column_that_overflows_in_the_peer() -> None:
    data = np.load(PARITY)
    x = torch.from_numpy(data["correlation/overflow_column"])[:, None]
    y = torch.from_numpy(data["correlation/b"].T.copy())
    true = torch.from_numpy(data["correlation/overflow_true"])
    assert (torch.from_numpy(data["correlation/peer_overflow"]) == 0).all() and true.abs().max() > 0.01
    assert (ops.comoments(x, y).correlation[0] - true).abs().max() < 1e-6
    assert (ops.comoments(x.double(), y.double()).correlation[0] - true).abs().max() < 1e-10


@pytest.mark.parametrize("backend", ["cpu", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_centered(backend: str, dtype: torch.dtype, triton_device: str) -> None:
    device = triton_device if backend == "triton" else "cpu"
    x = related(257, 123, 1)[0].to(device, dtype)
    x[3, 5] = torch.nan
    mask = torch.arange(257, device=device) % 5 > 0
    pilot = Pilot.of(x, mask)
    # Rows apart in memory, as in a view of a wider tensor.
    wide = torch.cat((x, x), 1)[:, :123]
    for precision, tolerance in (("float32", 2e-7), ("bfloat16", 4e-3)):
        got = ops.centered(wide, mask, pilot, precision=precision, backend=backend)
        exact = centered_definition(x, mask, pilot.shift, pilot.scale)
        assert (got.double() - exact).abs().max() <= tolerance * max(float(exact.abs().max()), 1)
        assert (got[~mask] == 0).all() and got[3, 5] == 0
        # Into some columns of a wider tensor.
        buffer = torch.full((257, 200), 7.0, dtype=got.dtype, device=device)
        ops.centered(wide, mask, pilot, precision=precision, backend=backend, out=buffer[:, 30:153])
        assert torch.equal(buffer[:, 30:153], got)
        assert (buffer[:, :30] == 7).all() and (buffer[:, 153:] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("masked", [False, True])
def test_a_device_reads_rows_once_to_centre_and_to_sum(
    dtype: torch.dtype, masked: bool, triton_device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same values and moments as of both ops, into a part of a buffer, going on, with hard columns."""
    kernels = pytest.importorskip("interpcore.kernels.comoments")
    x = related(300, 70, 1)[0].to(triton_device, dtype)
    x[5, 3], x[200, 3], x[:, 4] = torch.inf, torch.nan, 2.5
    mask = (torch.arange(300, device=triton_device) % 5 != 2) if masked else None
    pilot = Pilot.of(x[:64])
    apart = ops.centered(x, mask, pilot, backend="triton")
    monkeypatch.setattr(kernels, "centered_kernel", None)
    moments = ops.RunningMoments(70, device=triton_device)
    buffer = torch.full((300, 75), torch.nan, device=triton_device)
    for rows in (slice(0, 131), slice(131, 300)):
        kept = None if mask is None else mask[rows]
        ops.centered_moments(x[rows], kept, pilot, moments, backend="triton", out=buffer[rows, 2:72])
    assert torch.equal(buffer[:, 2:72], apart)
    assert buffer[:, :2].isnan().all() and buffer[:, 72:].isnan().all()
    found, exact = moments.result(), ops.column_moments(x, mask, backend="reference")
    assert torch.equal(found.count, exact.count) and torch.equal(found.nonfinite, exact.nonfinite)
    assert torch.equal(found.minimum, exact.minimum) and torch.equal(found.maximum, exact.maximum)
    assert ((found.mean - exact.mean).abs() <= 1e-6 * exact.variance.sqrt() + 1e-7 * exact.mean.abs()).all()
    assert ((found.m2 - exact.m2).abs() <= 1e-6 * exact.m2).all()


def test_refusals() -> None:
    x, y = related(20, 3, 4)
    with pytest.raises(ValueError, match=r"y must be \[20, 4\]"):
        ops.comoments(x, y.double())
    with pytest.raises(ValueError, match=r"mask must be \[20\]"):
        ops.comoments(x, y, torch.ones(19, dtype=torch.bool))
    with pytest.raises(ValueError, match="precision='int8' is unknown"):
        ops.comoments(x, y, precision="int8")
    with pytest.raises(RuntimeError, match="no gradient"):
        ops.comoments(x.requires_grad_(), y)
    with pytest.raises(RuntimeError, match="there is no cuda form"):
        ops.comoments(x.detach(), y, backend="cuda")


def test_opcheck() -> None:
    x, _ = related(40, 9, 3)
    pilot = Pilot.of(x)
    for precision, name in (("float32", "cpu"), ("bfloat16", "cpu"), ("float32", "reference")):
        args = (x, torch.arange(40) % 3 > 0, pilot.shift, pilot.scale, precision, name)
        torch.library.opcheck(torch.ops.interpcore.centered, args)
