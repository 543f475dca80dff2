"""edge_scores: every backend against the definition, and the definition against a plain loop."""

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference

SHAPES = [(1, 1, 1, 1, 1), (5, 7, 2, 3, 17), (70, 67, 3, 2, 33), (9, 130, 1, 5, 64)]


def arguments(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, segments: int = 0, device: str = "cpu"
) -> dict:
    """Random inputs for (S, D, B, P, d), with a prefix that grows; `segments` > 0 scatters positions."""
    s, t, b, p, d = shape
    make = torch.Generator().manual_seed(0)
    args: dict = {
        "difference": torch.randn(s, b, p, d, generator=make).to(device, dtype),
        "grad": torch.randn(t, b, p, d, generator=make).to(device, dtype),
        "prefix": torch.randint(s + 1, (t,), generator=make).sort().values.tolist(),
    }
    if segments:
        # -1 is for no segment at all.
        numbers = torch.randint(-1, segments, (b, p), generator=make)
        args |= {"segment": numbers.to(device), "segments": segments}
    return args


def relative_error(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).abs().max() / exact.abs().max().clamp(min=1e-30))


def test_definition_is_the_sum_over_legal_edges() -> None:
    args = arguments((4, 6, 2, 3, 5), torch.float64, segments=2)
    total, squares = reference.edge_scores(**args)
    for s in range(4):
        for t in range(6):
            for g in range(2):
                each = [
                    sum(
                        float(args["difference"][s, b, p] @ args["grad"][t, b, p])
                        for p in range(3)
                        if args["segment"][b, p] == g
                    )
                    * (s < args["prefix"][t])
                    for b in range(2)
                ]
                assert float(total[g, s, t]) == pytest.approx(sum(each), abs=1e-12)
                assert float(squares[g, s, t]) == pytest.approx(sum(e * e for e in each), abs=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("segments", [0, 1, 3])
@pytest.mark.parametrize("moments", [False, True])
def test_cpu(shape: tuple[int, ...], segments: int, moments: bool) -> None:
    args = arguments(shape, segments=segments)
    exact = reference.edge_scores(**args)
    total, squares = ops.edge_scores(**args, moments=moments, backend="cpu")
    assert total.shape == (max(segments, 1), shape[0], shape[1])
    assert relative_error(total, exact[0]) < 1e-5
    assert (squares is not None) == moments
    if squares is not None:
        assert relative_error(squares, exact[1]) < 1e-5
    illegal = torch.arange(shape[0])[:, None] >= torch.tensor(args["prefix"])
    assert not total[:, illegal].any()


def plain(args: dict) -> Tensor:
    """The same in torch in the inputs' own dtype: the yardstick for half-precision errors."""
    x, g = args["difference"], args["grad"]
    legal = torch.arange(len(x))[:, None] < torch.tensor(args["prefix"])
    return (x.flatten(1) @ g.flatten(1).T) * legal.to(x.device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:3])
def test_triton(shape: tuple[int, ...], dtype: torch.dtype, triton_device: str) -> None:
    for segments in (0, 3):
        args = arguments(shape, dtype, segments, triton_device)
        exact = reference.edge_scores(**args)
        error = relative_error(plain(args), reference.edge_scores(*list(args.values())[:3])[0][0])
        got = ops.edge_scores(**args, moments=True, backend="triton")
        for value, true in zip(got, exact, strict=True):
            assert value is not None
            assert value.dtype == torch.float32
            assert relative_error(value, true) <= 2 * error + 1e-5


def test_triton_adds_the_spans_of_a_long_inner_product(triton_device: str) -> None:
    from interpcore.kernels import _units

    shape = (5, 6, 2, 13, 250)
    assert _units.spans_of(1, 13 * 250) == 3  # the last of them shorter
    args = arguments(shape, segments=2, device=triton_device)
    got = ops.edge_scores(**args, moments=True, backend="triton")
    on_host = args | {"segment": args["segment"].cpu()}
    for value, same, true in zip(
        got,
        ops.edge_scores(**on_host, moments=True, backend="triton"),
        reference.edge_scores(**args),
        strict=True,
    ):
        assert value is not None and same is not None and torch.equal(value, same)
        assert relative_error(value, true) < 1e-5


@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_segments_add_up_to_the_whole(backend: str, request: pytest.FixtureRequest) -> None:
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    args = arguments((12, 9, 3, 4, 8), segments=4, device=device)
    args["segment"].clamp_(min=0)
    parts, _ = ops.edge_scores(**args, backend=backend)
    whole, _ = ops.edge_scores(*list(args.values())[:3], backend=backend)
    assert relative_error(parts.sum(0), whole[0].double()) < 1e-5


@pytest.mark.parametrize("backend", ["cpu", "triton"])
def test_long_units_and_examples_by_themselves(backend: str, request: pytest.FixtureRequest) -> None:
    device = request.getfixturevalue("triton_device") if backend == "triton" else "cpu"
    args = arguments((3, 4, 2, 130, 4), device=device)
    together = ops.edge_scores(**args, moments=True, backend=backend)
    single = [
        ops.edge_scores(args["difference"][:, [b]], args["grad"][:, [b]], args["prefix"], backend=backend)[0]
        for b in range(2)
    ]
    assert together[1] is not None
    assert relative_error(together[0], sum(single).double()) < 1e-5  # type: ignore[union-attr]
    assert relative_error(together[1], sum(x.double().square() for x in single)) < 1e-5  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty_and_strided(backend: str) -> None:
    nothing = ops.edge_scores(torch.zeros(3, 0, 2, 4), torch.zeros(5, 0, 2, 4), [3] * 5, backend=backend)[0]
    assert torch.equal(nothing, torch.zeros(1, 3, 5))
    args = arguments((6, 5, 3, 4, 8))
    expected = reference.edge_scores(**args)[0]
    args["difference"] = args["difference"].transpose(0, 1).contiguous().transpose(0, 1)
    args["grad"] = args["grad"].transpose(2, 3).contiguous().transpose(2, 3)
    assert relative_error(ops.edge_scores(**args, backend=backend)[0], expected) < 1e-5


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"difference": torch.zeros(3, 4, 8)}, "must be [S, B, P, d]"),
        ({"grad": torch.zeros(5, 2, 3, 7)}, "grad must be [5, 2, 4, 8]"),
        ({"prefix": [1, 2]}, "prefix must hold a number of sources from 0 to 3 for each of the 5"),
        ({"prefix": [4, 0, 0, 0, 0]}, "from 0 to 3"),
        ({"segment": torch.zeros(2, 3, dtype=torch.int64)}, "segment must be [2, 4]"),
        ({"segment": torch.full((2, 4), 2), "segments": 2}, "number 2, outside the 2 segments"),
        ({"backend": "numpy"}, "backend='numpy' is unknown"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.edge_scores(**(arguments((3, 5, 2, 4, 8)) | change))
    assert sentence in str(caught.value)


def test_gradients_are_refused() -> None:
    args = arguments((3, 5, 2, 4, 8))
    args["grad"].requires_grad_()
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.edge_scores(**args)


@pytest.mark.parametrize("segments", [0, 2])
def test_opcheck(segments: int) -> None:
    args = arguments((3, 5, 2, 4, 8), segments=segments)
    values = (args["difference"], args["grad"], args["prefix"], args.get("segment"), max(segments, 1))
    torch.library.opcheck(torch.ops.interpcore.edge_scores, (*values, True, None))
