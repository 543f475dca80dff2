"""Launches of many rows stay within a GPU's grid: 65535 programs on every axis but the first."""

import pytest
import torch

LONGEST_SIDE_AXIS = 65535


class Recorder:
    """Stands in for a kernel; keeps the grids that it was launched with."""

    def __init__(self) -> None:
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]):
        self.grids.append(grid)
        return lambda *arguments, **options: None


def expect_fits(recorder: Recorder, programs: int) -> None:
    """There was one launch, of at least so many programs, and a GPU takes it."""
    (grid,) = recorder.grids
    assert torch.tensor(grid).prod() >= programs
    assert max((*grid[1:], 1)) <= LONGEST_SIDE_AXIS and grid[0] < 2**31


def test_a_million_rows_of_comoments(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from interpcore.kernels import comoments

    kernel = Recorder()
    monkeypatch.setattr(comoments, "centered_kernel", kernel)
    x = torch.empty(1, 3).expand(1_000_000, 3)
    comoments.launch(x, None, torch.zeros(3), torch.ones(3), x)
    expect_fits(kernel, 1_000_000 // comoments.BLOCK_ROWS)


def test_a_segment_per_position_of_edge_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("triton")
    from interpcore.kernels import edge_scores

    products, sums = Recorder(), Recorder()
    monkeypatch.setattr(edge_scores, "edge_products_kernel", products)
    monkeypatch.setattr(edge_scores, "edge_sums_kernel", sums)
    segments = 70_000
    values = torch.empty(2, 1, segments, 1)
    total = torch.empty(segments, 2, 2)
    edge_scores.launch(values, values, [1, 2], torch.arange(segments)[None], total, total[:0])
    expect_fits(products, segments)
    expect_fits(sums, segments)


@pytest.mark.parametrize(
    ("rows", "columns"), [(1, 1), (2048, 4096), (65_536, 4096), (400_000, 768), (10**7, 50_000)]
)
def test_chunks_of_column_moments(rows: int, columns: int) -> None:
    pytest.importorskip("triton")
    from interpcore.kernels import _chunks as kernel

    chunk = kernel.chunk_rows(rows, columns)
    # A lane's float32 chain is short, and a byte holds its counts; the loop takes four tiles.
    assert chunk <= kernel.LONGEST_CHAIN * kernel.BLOCK_ROWS <= 255 * kernel.BLOCK_ROWS
    assert chunk % (4 * kernel.BLOCK_ROWS) == 0
    tiles, chunks = kernel.grid(rows, columns)
    assert (chunks - 1) * chunk < rows <= chunks * chunk and chunks <= LONGEST_SIDE_AXIS
    # As many programs as an H100 holds, two on each of 132 processors, unless chunks are at their shortest.
    assert tiles * chunks >= 264 or chunk == 8 * kernel.BLOCK_ROWS


@pytest.mark.parametrize(("points", "cotangents"), [(1, 1), (7, 768), (128, 256), (10_000, 3), (3, 10**6)])
def test_programs_that_walk_cotangents(points: int, cotangents: int) -> None:
    pytest.importorskip("triton")
    from interpcore.kernels import _grid as kernel

    rows = kernel.rows_of_program(points, cotangents)
    programs = points * -(-cotangents // rows)
    assert 1 <= rows <= cotangents
    # The GPU is full, unless there are fewer rows in all; and a point's row is not read more often than that.
    assert programs >= min(kernel.PROGRAMS / 2, points * cotangents)
    assert programs < 2 * max(kernel.PROGRAMS, points)


@pytest.mark.parametrize(("sources", "destinations"), [(1, 1), (145, 37), (1249, 76), (1300, 129), (70, 300)])
def test_tiles_of_edge_scores(sources: int, destinations: int) -> None:
    pytest.importorskip("triton")
    from interpcore.kernels import edge_scores as kernel

    half, single = (kernel.tiles_of(sources, destinations, size) for size in (2, 4))
    for side, size in ((half.sources, sources), (half.destinations, destinations)):
        padded, least = -(-size // side) * side, -(-size // 64) * 64
        assert side in (64, 128) and padded <= 1.25 * least
    assert single.destinations == 64 and (half.inner, single.inner) == (64, 32)


@pytest.mark.parametrize(("tiles", "length"), [(1, 17), (20, 25_600), (1, 10**6), (5000, 10**6)])
def test_spans_of_edge_scores(tiles: int, length: int) -> None:
    from interpcore.kernels import _units as kernel

    spans = kernel.spans_of(tiles, length)
    assert spans == 1 or (length / spans >= kernel.SHORTEST_SPAN and tiles * (spans - 1) < kernel.PROGRAMS)
    assert tiles * spans >= kernel.PROGRAMS or length / (spans + 1) < kernel.SHORTEST_SPAN


def test_layers_of_a_batch_share_their_units() -> None:
    from interpcore.kernels import _units as kernel

    segment, device = (0, 0, 1, -1, 2, 2), torch.device("cpu")
    units = kernel.units_of(segment, 3, 3, device)
    assert kernel.units_of(segment, 3, 3, device) is units
    assert [x.tolist() for x in units[:4]] == [[0, 2, 4], [2, 1, 2], [1, 1, 1], [0, 1, 2, 3]]
    assert units.longest == 2
