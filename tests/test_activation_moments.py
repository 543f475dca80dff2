"""activation_moments: the activation against torch's, the moments against those of input and output."""

import pytest
import torch
from torch import Tensor

from interpcore import ops
from interpcore.ops import RunningMoments
from interpcore.ops.backend import supported_isas
from interpcore.ops.reference.activation_moments import ACTIVATIONS

THRESHOLDS = (0.0, -0.098)
FUSED = ("relu", "silu", "gelu_tanh")


def values(shape: tuple[int, int], seed: int = 0) -> Tensor:
    """Columns of different means and scales."""
    make = torch.Generator().manual_seed(seed)
    scale = torch.linspace(0.8, 3, shape[1])
    return torch.randn(shape, generator=make) * scale + torch.linspace(-1, 1, shape[1])


def running(columns: int, device: str = "cpu") -> tuple[RunningMoments, RunningMoments]:
    return RunningMoments(columns, THRESHOLDS, device=device), RunningMoments(columns, device=device)


def expect_moments(total: RunningMoments, x: Tensor, mask: Tensor | None = None) -> None:
    """Counts and extremes equal to the definition's, sums within 1e-6, or 2e-6 where rows are few."""
    got = total.result()
    exact = ops.column_moments(x, mask, total.thresholds, backend="reference")
    for name in ("count", "nonfinite", "above", "minimum", "maximum"):
        assert torch.equal(getattr(got, name).cpu().nan_to_num(), getattr(exact, name).nan_to_num()), name
    for name in ("variance", "kurtosis"):
        mine, theirs = getattr(got, name).cpu(), getattr(exact, name)
        torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=1e-300, equal_nan=True)
    assert not ((got.mean.cpu() - exact.mean).abs() > 1e-6 * exact.variance.sqrt() + 1e-15).any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("isa", supported_isas())
def test_activation_is_torchs(isa: str, activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    make = torch.Generator().manual_seed(0)
    every = [torch.linspace(-12, 12, 200_000), torch.randn(100_000, generator=make)]
    every += [sign * torch.logspace(-40, 38, 10_000, dtype=torch.float64).float() for sign in (1, -1)]
    x = torch.cat(every).view(-1, 64)
    got = ops.activation_moments(x, activation, *running(64), backend="cpu")
    torchs = ACTIVATIONS[activation](x)
    if activation not in FUSED:
        assert torch.equal(got, torchs)
        return
    scale = torch.maximum(torchs.abs(), x.abs() / 2)
    unit = torch.nextafter(scale, torch.tensor(torch.inf)) - scale
    assert ((got.double() - torchs.double()).abs() <= 2 * unit.double()).all()


@pytest.mark.parametrize("activation", FUSED)
def test_values_without_end(activation: str) -> None:
    x = torch.tensor([torch.inf, -torch.inf, torch.nan, 3e38, -3e38, 0.0]).expand(9, 6).contiguous()
    got = ops.activation_moments(x, activation, *running(6), backend="cpu")
    torch.testing.assert_close(got, ACTIVATIONS[activation](x), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, 1), (7, 33), (300, 123), (40, 4200)])
@pytest.mark.parametrize("isa", supported_isas())
def test_cpu(isa: str, shape: tuple[int, int], activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERPCORE_ISA", isa)
    x, up = values(shape), values(shape, 1)
    mask = torch.rand(shape[0], generator=torch.Generator().manual_seed(2)) < 0.6
    for kept, factor in ((None, None), (mask, None), (mask, up)):
        pre, post = running(shape[1])
        got = ops.activation_moments(x, activation, pre, post, up=factor, mask=kept, backend="cpu")
        exact = ACTIVATIONS[activation](x.double()) * (1 if factor is None else factor)
        # torch's gelu by its erf, and products with up to 10.
        torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-5)
        expect_moments(pre, x, kept)
        expect_moments(post, got, kept)


@pytest.mark.parametrize("shift", [False, True])
def test_sums_are_those_of_column_moments(shift: bool) -> None:
    x = values((700, 50))
    post = ops.activation_moments(x, "silu", *running(50), backend="cpu")
    shifts = (x[:64].mean(0), post[:64].mean(0)) if shift else (None, None)
    totals = [RunningMoments(50, (), s) for s in shifts]
    ops.activation_moments(x, "silu", *totals, backend="cpu")
    for total, y, s in zip(totals, (x, post), shifts, strict=True):
        alone = ops.column_moments(y, shift=s, backend="cpu")
        assert torch.equal(total.result().m4, alone.m4)
        assert torch.equal(total.result().mean, alone.mean)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_batches_add_up(backend: str) -> None:
    x = values((1000, 20))
    x[4, 4], x[900, 4], x[:, 5] = torch.nan, torch.inf, torch.nan
    mask = torch.arange(1000) % 3 > 0
    pre, post = running(20)
    parts = []
    for first in range(0, 1000, 256):
        batch = slice(first, first + 256)
        parts.append(
            ops.activation_moments(x[batch], "gelu_tanh", pre, post, mask=mask[batch], backend=backend)
        )
    expect_moments(pre, x, mask)
    expect_moments(post, torch.cat(parts), mask)
    assert pre.result().nonfinite.tolist() == [0] * 4 + [1, 666] + [0] * 14


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_on_the_cpu(dtype: torch.dtype) -> None:
    x = values((300, 20)).to(dtype)
    pre, post = running(20)
    got = ops.activation_moments(x, "silu", pre, post)
    assert torch.equal(got, ACTIVATIONS["silu"](x))
    expect_moments(pre, x)
    expect_moments(post, got)


# The interpreter cuts bfloat16 off where a GPU rounds.
@pytest.mark.parametrize(
    ("activation", "dtype"), [*((a, torch.float32) for a in ACTIVATIONS), ("silu", torch.float16)], ids=str
)
def test_triton(activation: str, dtype: torch.dtype, triton_device: str) -> None:
    x, up = values((70, 70)).to(dtype), values((70, 70), 1).to(dtype)
    x[40, 3] = torch.nan
    mask = torch.rand(70, generator=torch.Generator().manual_seed(2)) < 0.7
    for kept, factor in ((None, None), (mask, up)):
        pre, post = running(70, triton_device)
        there = [None if y is None else y.to(triton_device) for y in (kept, factor)]
        args = (x.to(triton_device), activation, pre, post)
        for _ in range(2):
            got = ops.activation_moments(*args, mask=there[0], up=there[1], backend="triton").cpu()
        exact = ACTIVATIONS[activation](x.double()) * (1 if factor is None else factor)
        tolerance = 1e-6 if dtype == torch.float32 else 2**-10
        torch.testing.assert_close(got.double(), exact, rtol=tolerance, atol=1e-6, equal_nan=True)
        twice = None if kept is None else torch.cat((kept, kept))
        expect_moments(pre, torch.cat((x, x)), twice)
        expect_moments(post, torch.cat((got, got)), twice)


def test_threads_and_strides_do_not_change_the_bits() -> None:
    x = values((300, 5000))
    wide = torch.cat((x, x), 1)
    before, found = torch.get_num_threads(), []
    try:
        for threads, view in ((1, x), (3, wide[:, :5000]), (1, x.t().contiguous().t())):
            torch.set_num_threads(threads)
            totals = running(5000)
            post = ops.activation_moments(view, "gelu_tanh", *totals, backend="cpu")
            found.append((post, *(y for t in totals for y in (t.counts, t.moments))))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(mine, same) for mine, same in zip(found[0], other, strict=True))


def test_operator_check() -> None:
    totals = running(9)
    raw = [y for t in totals for y in (t.counts, t.moments)]
    args = (values((40, 9)), None, "silu", None, list(THRESHOLDS), None, None, *raw, False, "cpu")
    torch.library.opcheck(torch.ops.interpcore.activation_moments, args)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"pre": torch.zeros(2, 3, 4)}, "pre must be [T, N]"),
        ({"activation": "tanh"}, "activation 'tanh' is unknown; choose from relu"),
        ({"up": torch.zeros(6, 3)}, "up must be [6, 4] torch.float32"),
        ({"mask": torch.zeros(5, dtype=torch.bool)}, "mask must be [6] torch.bool"),
        ({"pre_moments": RunningMoments(5)}, "pre_moments must be [4] torch.int64"),
        ({"post_moments": RunningMoments(4, (0.0,))}, "post_moments must have none"),
        ({"post_moments": RunningMoments(4, shift=torch.zeros(3))}, "shift of post_moments must be [4]"),
        ({"backend": "numpy"}, "backend='numpy' is unknown"),
    ],
)
def test_bad_input_is_refused(change: dict, sentence: str) -> None:
    good = {
        "pre": values((6, 4)),
        "activation": "relu",
        "pre_moments": RunningMoments(4),
        "post_moments": RunningMoments(4),
    }
    with pytest.raises(ValueError) as caught:
        ops.activation_moments(**(good | change))
    assert sentence in str(caught.value)
    with pytest.raises(ValueError, match="one of pre_moments and post_moments"):
        started = RunningMoments(4)
        started.add(values((3, 4)))
        ops.activation_moments(**(good | {"pre_moments": started}))


def test_gradients_are_refused() -> None:
    x = values((6, 4)).requires_grad_()
    with pytest.raises(RuntimeError, match="records no gradient"):
        ops.activation_moments(x, "relu", *running(4))
    with torch.no_grad():
        ops.activation_moments(x, "relu", *running(4))
