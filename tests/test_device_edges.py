"""The bodies of edge_scores' CUDA threads on a grid that the CPU emulates, and what chooses their form."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from test_edge_scores import arguments, relative_error
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.edge_arguments import cuda_arguments, cuda_lacks, tile_of

HERE = Path(__file__).parent
POINTERS = (
    "difference",
    "grad",
    "prefix",
    "unit_first",
    "unit_rows",
    "ends",
    "segment_first",
    "partial",
    "total",
    "squares",
)


class EdgeScores(ctypes.Structure):
    """csrc/include/interpcore/edge_scores.h."""

    _fields_ = [
        ("shape", ctypes.c_int64 * 4),
        ("cuts", ctypes.c_int64 * 5),
        *((name, ctypes.c_void_p) for name in POINTERS),
    ]


@pytest.fixture(scope="module")
def bodies(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    compiler = shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    library = tmp_path_factory.mktemp("bodies") / "edges.so"
    include = HERE.parent / "csrc" / "include"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-w", "-I", str(include)]
    subprocess.run([compiler, *flags, str(HERE / "emulated_edges.cpp"), "-o", str(library)], check=True)
    return ctypes.CDLL(str(library))


def emulated(bodies: ctypes.CDLL, args: dict, moments: bool = True) -> tuple[Tensor, Tensor]:
    """Sum and sum of squares; what kernels fill starts as NaN."""
    shape = (args.get("segments", 1), len(args["difference"]), len(args["grad"]))
    total, squares = (torch.full(shape, torch.nan) for _ in range(2))
    squares = squares if moments else squares[:0]
    given = (args["difference"], args["grad"], args["prefix"], args.get("segment"), total, squares)
    read, held = cuda_arguments(*given)
    held[-1].fill_(torch.nan)
    struct = EdgeScores((ctypes.c_int64 * 4)(*read["shape"]), (ctypes.c_int64 * 5)(*read["cuts"]))
    for name in POINTERS:
        setattr(struct, name, read[name])
    bodies.edge_scores(ctypes.byref(struct))
    return total, squares


# Tiles of every width; two in each direction, one of them without legal edges; a row of one chunk.
SHAPES = [(33, 70, 3, 5, 120), (130, 83, 2, 3, 72), (5, 61, 1, 2, 64), (9, 50, 1, 3, 40), (1, 1, 1, 1, 8)]


def test_tiles_leave_little_empty() -> None:
    found = {d: tile_of(d) for d in (1, 37, 40, 49, 61, 76, 80, 112, 150, 160)}
    assert found == {1: 40, 37: 40, 40: 40, 49: 56, 61: 64, 76: 80, 80: 80, 112: 56, 150: 80, 160: 80}
    assert [tile_of(shape[1]) for shape in SHAPES] == [80, 56, 64, 56, 40]
    assert max(tile_of(3 * heads + 1) / (3 * heads + 1) for heads in (12, 16, 20, 25)) <= 8 / 7


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("segments", [0, 3])
def test_tiles(bodies: ctypes.CDLL, shape: tuple[int, ...], segments: int) -> None:
    args = arguments(shape, torch.bfloat16, segments)
    exact = reference.edge_scores(**args)
    for value, true in zip(emulated(bodies, args), exact, strict=True):
        assert relative_error(value, true) < 1e-5
    alone, none = emulated(bodies, args, moments=False)
    assert len(none) == 0 and relative_error(alone, exact[0]) < 1e-5


def test_spans_of_a_long_inner_product(bodies: ctypes.CDLL) -> None:
    """Four stages of shared memory come round several times; the last spans are shorter, and one is empty."""
    args = arguments((5, 6, 2, 20, 248), torch.bfloat16)
    # Of one example 17 rows and 3, of the other 1 and none.
    segment = torch.full((2, 20), -1)
    segment[0, :17], segment[0, 17:], segment[1, 9] = 1, 0, 1
    args |= {"segment": segment, "segments": 2}
    read, _ = cuda_arguments(*list(args.values())[:4], torch.zeros(2, 5, 6), torch.zeros(0, 5, 6))
    _, units, spans, span, _ = read["cuts"]
    assert (units, spans, span) == (3, 4, 1088) and 1088 > 4 * 4 * 64  # the short units' spans are empty
    for value, true in zip(emulated(bodies, args), reference.edge_scores(**args), strict=True):
        assert relative_error(value, true) < 1e-5


def test_values_of_other_rows_enter_no_sum(bodies: ctypes.CDLL) -> None:
    """Rows that are not there are read as the last one, which may hold anything."""
    args = arguments((7, 9, 2, 3, 16), torch.bfloat16)
    args["difference"][6], args["grad"][8] = torch.inf, torch.nan
    total, _ = emulated(bodies, args)
    clean = arguments((7, 9, 2, 3, 16), torch.bfloat16)
    clean["difference"][6], clean["grad"][8] = 0, 0
    exact = reference.edge_scores(**clean)[0]
    assert relative_error(total[:, :6, :8], exact[:, :6, :8]) < 1e-5


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (torch.zeros(2, 1, 1, 16), "the cuda form takes bfloat16, not float32; use triton."),
        (torch.zeros(2, 1, 1, 12).bfloat16(), "takes widths that are multiples of 8, not 12"),
    ],
)
def test_what_the_form_does_not_take(x: Tensor, sentence: str) -> None:
    assert cuda_lacks(x) is not None
    with pytest.raises(ValueError, match=sentence):
        cuda_arguments(x, x, [1, 1], None, torch.zeros(1, 2, 2), torch.zeros(0, 2, 2))
    assert cuda_lacks(torch.zeros(2, 1, 1, 16).bfloat16()) is None


def test_it_needs_a_gpu() -> None:
    args = arguments((3, 4, 1, 2, 8), torch.bfloat16)
    with pytest.raises(
        RuntimeError, match=r"backend 'cuda' cannot run: (it needs tensors on a GPU|the CUDA)"
    ):
        ops.edge_scores(**args, backend="cuda")
