"""The bodies of CUDA threads on a grid that the CPU emulates: moments, plain and with an activation."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor

from interpcore.ops import reference

HERE = Path(__file__).parent
STORED = {torch.float32: 0, torch.bfloat16: 1}
ACTIVATIONS = {"silu": 1, "gelu_tanh": 2}
LONG, POINTER = ctypes.c_int64, ctypes.c_void_p


class ColumnChunks(ctypes.Structure):
    """csrc/include/interpcore/column_chunks.h."""

    _fields_ = [
        *((name, LONG) for name in ("rows", "columns", "thresholds", "row_stride")),
        ("stored", ctypes.c_int),
        ("go_on", ctypes.c_bool),
        *((name, POINTER) for name in ("x", "mask", "threshold", "shift", "counts", "moments")),
        ("chunk_rows", LONG),
        *((name, POINTER) for name in ("part_counts", "part_sums")),
    ]


class ActivationChunks(ctypes.Structure):
    """The same header's."""

    _fields_ = [
        ("pre", ColumnChunks),
        ("post", ColumnChunks),
        ("up", POINTER),
        ("up_stride", LONG),
        ("out", POINTER),
    ]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("bodies") / "bodies.so"
    include = HERE.parent / "csrc" / "include"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-w", "-I", str(include)]
    subprocess.run([compiler, *flags, str(HERE / "emulated_grid.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def chunks(
    x: Tensor, mask: Tensor | None, threshold: Tensor, raw: tuple[Tensor, Tensor], rows: int, go_on: bool
) -> tuple[ColumnChunks, list[Tensor]]:
    """The struct, and tensors that must outlive it; what kernels keep between them starts as garbage."""
    parts = -(-len(x) // rows)
    counts = torch.full((parts, 2 + len(threshold), x.shape[1]), -7, dtype=torch.int32)
    sums = torch.full((parts, 7, x.shape[1]), torch.nan, dtype=torch.float64)
    pointers = [v.data_ptr() for v in (x, threshold, *raw, counts, sums)]
    kept = 0 if mask is None else mask.data_ptr()
    at_x, at_threshold, at_counts, at_moments, at_parts, at_sums = pointers
    struct = ColumnChunks(
        len(x), x.shape[1], len(threshold), x.stride(0), STORED[x.dtype], go_on,
        at_x, kept, at_threshold, 0, at_counts, at_moments, rows, at_parts, at_sums,
    )  # fmt: skip
    return struct, [counts, sums, x, threshold, *raw]


def new_raw(columns: int, thresholds: int) -> tuple[Tensor, Tensor]:
    counts = torch.full((2 + thresholds, columns), -7, dtype=torch.int64)
    return counts, torch.full((6, columns), torch.nan, dtype=torch.float64)


def expect_moments(raw: tuple[Tensor, Tensor], exact: tuple[Tensor, Tensor]) -> None:
    """The bounds of `column_moments`: counts and extremes exact, variance and kurtosis to 1e-6."""
    (counts, got), (exact_counts, true) = raw, exact
    assert torch.equal(counts, exact_counts)
    n, some = exact_counts[0].double(), exact_counts[0] > 0
    assert torch.equal(got[4:][:, some], true[4:][:, some])
    deviation = (true[1] / n.clamp(min=1)).sqrt()
    assert ((got[0] - true[0]).abs() <= 1e-6 * deviation + 1e-7 * true[0].abs())[some].all()
    assert ((got[1] - true[1]).abs() <= 1e-6 * true[1])[some].all()
    assert ((got[2] - true[2]).abs() <= 1e-6 * n * deviation**3 + 1e-6 * true[2].abs())[some].all()
    assert ((got[3] - true[3]).abs() <= 2e-6 * true[3])[some].all()


def hard_columns(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Columns of many kinds: means, scales, constants, rare large values, and some that are not finite."""
    make = torch.Generator().manual_seed(rows + columns)
    x = torch.randn(rows, columns, generator=make)
    x[:, 1::7] = x[:, 1::7] * 0.1 + 50
    x[:, 2::7] = 3.25
    x[:, 3::7] = torch.nn.functional.gelu(3 * x[:, 3::7])
    x[:, 4::7] *= 1e18
    x[:, 5::7] *= 1e-20
    x[rows // 2, 6::7] = torch.inf
    x[rows - 1, 6::14] = torch.nan
    return x.to(dtype)


@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize(
    ("rows", "columns", "chunk"), [(1, 1, 256), (300, 72, 256), (2500, 67, 2048), (257, 130, 64)]
)
@pytest.mark.parametrize("masked", [False, True])
def test_column_moments(
    bodies: ctypes.CDLL, dtype: torch.dtype, rows: int, columns: int, chunk: int, masked: bool
) -> None:
    x = hard_columns(rows, columns, dtype)
    mask = torch.arange(rows) % 3 != 1 if masked else None
    limits = [0.3, -0.098] if masked else []
    raw = new_raw(columns, len(limits))
    struct, held = chunks(x, mask, torch.tensor(limits), raw, chunk, False)
    bodies.column_moments(ctypes.byref(struct))
    assert not held[0].eq(-7).any()
    limits = torch.tensor(limits).tolist()
    expect_moments(raw, reference.column_moments(x, mask, limits))
    again, held_too = chunks(x, mask, torch.tensor(limits), raw, chunk, True)
    bodies.column_moments(ctypes.byref(again))
    assert held_too
    twice = torch.cat([x, x])
    expect_moments(raw, reference.column_moments(twice, mask if mask is None else mask.repeat(2), limits))


def test_rows_of_a_wider_matrix_that_is_not_aligned(bodies: ctypes.CDLL) -> None:
    x = hard_columns(500, 203, torch.bfloat16)[:, 3:200]
    raw = new_raw(197, 0)
    struct, held = chunks(x, None, torch.tensor([]), raw, 128, False)
    bodies.column_moments(ctypes.byref(struct))
    assert held
    expect_moments(raw, reference.column_moments(x, None, ()))


@pytest.mark.parametrize("dtype", STORED, ids=str)
def test_a_threshold_between_two_stored_numbers(bodies: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Counting compares stored numbers, so that the threshold must be rounded down and never up."""
    near = torch.tensor([-0.098, 0.1, 1.0, 0.0, -1e-9, 1e-9, 3e4, -3e4])
    x = torch.cat([near.to(dtype).nextafter(torch.tensor(to, dtype=dtype)) for to in (-60000.0, 60000.0)])
    x = torch.cat([x, near.to(dtype)])[:, None].contiguous()
    for limit in near.tolist():
        raw = new_raw(1, 1)
        struct, held = chunks(x, None, torch.tensor([limit]), raw, 64, False)
        bodies.column_moments(ctypes.byref(struct))
        assert held and raw[0][2, 0] == (x.float() > torch.tensor(limit)).sum(), limit


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", STORED, ids=str)
@pytest.mark.parametrize("gated", [False, True])
def test_activation_moments(bodies: ctypes.CDLL, activation: str, dtype: torch.dtype, gated: bool) -> None:
    rows, columns, chunk = (300, 72, 128) if gated else (197, 67, 64)
    x = hard_columns(rows, columns, dtype)
    up = torch.randn(rows, columns, generator=torch.Generator().manual_seed(1)).to(dtype) if gated else None
    mask = torch.arange(rows) % 4 != 2 if gated else None
    limit = torch.tensor([0.0])
    out = torch.full_like(x, torch.nan)
    pre, post = new_raw(columns, 1), new_raw(columns, 0)
    of_pre, held = chunks(x, mask, limit, pre, chunk, False)
    of_post, held_too = chunks(out, mask, limit[:0], post, chunk, False)
    struct = ActivationChunks(of_pre, of_post, 0 if up is None else up.data_ptr(), columns, out.data_ptr())
    bodies.activation_moments(ctypes.byref(struct), ACTIVATIONS[activation])
    assert held and held_too
    exact, of_x, _ = reference.activation_moments(x, activation, up, mask, limit.tolist())
    good = exact.isfinite()
    unit = {torch.float32: 2.0**-21, torch.bfloat16: 2.0**-8}[dtype]
    near = (out.double() - exact.double()).abs() <= unit * exact.double().abs() + 1e-7
    assert near[good].all()
    expect_moments(pre, of_x)
    expect_moments(post, reference.column_moments(out, mask, ()))
