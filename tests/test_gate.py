"""gate: every backend against the definition, in its four forms."""

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import reference
from interpcore.ops.backend import supported_isas

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 123), (4, 1, 2, 77), (1, 2, 3, 2050)]
FORMS = ["one", "inplace", "both", "sum"]


def arguments(shape: tuple[int, ...], form: str, dtype: torch.dtype = torch.float32) -> dict:
    """Random inputs of gate for shape (B, C, P, m)."""
    make = torch.Generator().manual_seed(0)
    b, _, p, m = shape
    sizes = {"x": shape, "factor": (b, p, m)}
    if form in ("both", "sum"):
        sizes["factor2"] = (b, p, m)
    if form == "sum":
        sizes["x2"] = shape
    return {name: torch.randn(size, generator=make).to(dtype) for name, size in sizes.items()}


def run(args: dict, form: str, backend: str | None) -> list[Tensor]:
    """The results of one form; in place, on a copy of x."""
    if form == "inplace":
        x = args["x"].clone(memory_format=torch.preserve_format)
        assert ops.gate(x, args["factor"], backend=backend, inplace=True) is x
        return [x]
    got = ops.gate(**args, backend=backend)
    return [got] if isinstance(got, Tensor) else list(got)


def assert_close(got: list[Tensor], args: dict) -> None:
    """Within the rounding of one operation in the result's dtype; the interpreter cuts bfloat16 off."""
    exact = reference.gate(**args)
    size = max(float(x.abs().max()) for x in args.values())
    for value, expected in zip(got, [exact] if isinstance(exact, Tensor) else exact, strict=True):
        assert value.dtype == args["x"].dtype
        error = (value.double() - expected).abs()
        assert (error <= torch.finfo(value.dtype).eps * (expected.abs() + size)).all()
        assert not value.isnan().any()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(shape: tuple[int, ...], form: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    args = arguments(shape, form)
    got = run(args, form, "cpu")
    assert_close(got, args)
    for x, y in zip(run(args, form, None), got, strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_triton(form: str, dtype: torch.dtype, triton_device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new_empty = Tensor.new_empty
    monkeypatch.setattr(
        Tensor, "new_empty", lambda x, *size, **kw: new_empty(x, *size, **kw).fill_(float("nan"))
    )
    for shape in SHAPES:
        args = {n: x.to(triton_device) for n, x in arguments(shape, form, dtype).items()}
        assert_close(run(args, form, "triton"), args)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["reference", "cpu", "triton"])
def test_any_strides(backend: str, form: str, request: pytest.FixtureRequest) -> None:
    if backend == "triton" and request.getfixturevalue("triton_device") != "cpu":
        pytest.skip("the GPU run is in test_triton")
    args = arguments((2, 3, 4, 40), form)
    views = {n: x.transpose(0, -1).contiguous().transpose(0, -1) for n, x in args.items()}
    assert_close(run(views, form, backend), args)
    longer = {n: torch.cat([x, x], -2)[..., x.shape[-2] :, :] for n, x in args.items()}
    assert_close(run(longer, form, backend), args)


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_on_the_cpu(form: str) -> None:
    args = arguments((2, 3, 4, 8), form, torch.bfloat16)
    assert_close(run(args, form, None), args)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_empty(form: str, backend: str) -> None:
    assert run(arguments((2, 0, 3, 8), form), form, backend)[0].shape == (2, 0, 3, 8)


def test_threads_do_not_change_the_bits() -> None:
    args = arguments((2, 8, 64, 768), "sum")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.gate(**args, backend="cpu")
        torch.set_num_threads(3)
        three = ops.gate(**args, backend="cpu")
    finally:
        torch.set_num_threads(before)
    assert torch.equal(one, three)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"x": torch.zeros(2, 3, 8)}, "x must be [B, C, P, m]"),
        ({"factor": torch.zeros(2, 4, 9)}, "factor must be [2, 4, 8]"),
        ({"factor": torch.zeros(2, 4, 8).half()}, "factor must be [2, 4, 8] torch.float32"),
        ({"x2": torch.zeros(2, 3, 4, 8)}, "x2 needs a factor2"),
        ({"factor2": torch.zeros(2, 4, 8), "x2": torch.zeros(2, 3, 4, 7)}, "x2 must be [2, 3, 4, 8]"),
        ({"factor2": torch.zeros(2, 4, 8), "inplace": True}, "inplace=True takes one factor"),
        ({"backend": "numpy"}, "backend='numpy' is unknown; choose from reference, cpu, triton, cuda"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        ops.gate(**(arguments((2, 3, 4, 8), "one") | change))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_gradients_are_refused(form: str) -> None:
    args = arguments((2, 3, 4, 8), form)
    args["x"].requires_grad_()
    with pytest.raises(RuntimeError, match=r"records no gradient|no gradient of its own"):
        sum(x.sum() for x in run(args, form, None)).backward()
