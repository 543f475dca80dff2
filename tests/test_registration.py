"""Declarations of the ops in torch's library, and the choice of backend."""

from importlib import import_module
from pathlib import Path

import pytest
import torch

from interpcore import ops
from interpcore.ops import backend, reference
from interpcore.ops.column_arguments import cuda_arguments, cuda_lacks


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("full", [True, False])
def test_norm_vjp_opcheck(name: str, full: bool) -> None:
    make = torch.Generator().manual_seed(0)
    g = torch.randn(4, 3, 2, 9, generator=make)
    normed = torch.randn(4, 2, 9, generator=make)
    rstd = torch.rand(4, 2, generator=make)
    weight, residual = (torch.randn(9, generator=make), g.clone()) if full else (None, None)
    args = (g, normed, rstd, weight, residual, 2, full, 1.0 if full else 0.0, name)
    torch.library.opcheck(torch.ops.interpcore.norm_vjp, args)


def attention(seed: int = 0) -> dict:
    """Queries, keys, values and a pattern: 2 points, 3 queries, 4 heads on 2 groups, 5 keys."""
    make = torch.Generator().manual_seed(seed)
    return {
        "q": torch.randn(2, 3, 4, 8, generator=make),
        "k": torch.randn(2, 5, 2, 8, generator=make),
        "v": torch.randn(2, 5, 2, 8, generator=make),
        "pattern": torch.randn(2, 3, 4, 5, generator=make).softmax(-1),
    }


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("full", [True, False])
def test_attn_vjp_opcheck(name: str, full: bool) -> None:
    at = attention()
    factor = torch.rand(2, 3, 4, 5) if full else None
    kept = ops.key_value_covariance(at["k"], at["v"], at["pattern"], 0.3 if factor is None else factor)
    given = (kept, ops.mixed_values(at["v"], at["pattern"])) if full else (None, None)
    args = (torch.randn(2, 6, 3, 4, 8), *at.values(), 3, factor, 0.3, full, *given, name)
    torch.library.opcheck(torch.ops.interpcore.attn_vjp, args)


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("full", [True, False])
def test_attn_jvp_opcheck(name: str, full: bool) -> None:
    at = attention()
    factor = torch.rand(2, 3, 4, 5) if full else None
    kept = ops.key_value_covariance(at["k"], at["v"], at["pattern"], 0.3 if factor is None else factor)
    tangents = (torch.randn(2, 6, 3, 4, 8), torch.randn(2, 6, 3, 2, 8), torch.randn(2, 6, 3, 2, 8))
    given = (kept, ops.mixed_values(at["v"], at["pattern"])) if full else (None, None)
    args = (*tangents, *at.values(), factor, 0.3, *given, name)
    torch.library.opcheck(torch.ops.interpcore.attn_jvp, args)


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("full", [True, False])
def test_norm_jvp_opcheck(name: str, full: bool) -> None:
    make = torch.Generator().manual_seed(0)
    t, normed = torch.randn(4, 3, 2, 9, generator=make), torch.randn(4, 2, 9, generator=make)
    weight, residual = (torch.randn(9, generator=make), t.clone()) if full else (None, None)
    args = (t, normed, torch.rand(4, 2), weight, residual, 2, full, 1.0 if full else 0.0, name)
    torch.library.opcheck(torch.ops.interpcore.norm_jvp, args)


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_gate_opcheck(name: str) -> None:
    x, factor = torch.randn(2, 3, 4, 8), torch.randn(2, 4, 8)
    torch.library.opcheck(torch.ops.interpcore.gate, (x, factor, None, factor + 1, name))
    torch.library.opcheck(torch.ops.interpcore.gate, (x, factor, x + 1, factor + 1, name))
    torch.library.opcheck(torch.ops.interpcore.gate, (x, factor, None, None, name))
    torch.library.opcheck(torch.ops.interpcore.gate_, (x, factor, name))


@pytest.mark.parametrize("name", ["reference", "cpu"])
@pytest.mark.parametrize("full", [True, False])
def test_column_moments_opcheck(name: str, full: bool) -> None:
    x = torch.randn(40, 9, generator=torch.Generator().manual_seed(0))
    mask, shift = (torch.arange(40) % 3 > 0, x[0].clone()) if full else (None, None)
    args = (x, mask, [0.0, -0.098] if full else [], shift, name)
    torch.library.opcheck(torch.ops.interpcore.column_moments, args)


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(torch.float32, "cpu"), (torch.float64, "reference"), (torch.bfloat16, "reference")],
)
def test_choice_on_the_cpu(dtype: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERPCORE_BACKEND", raising=False)
    assert backend.choose("norm_vjp", torch.zeros(1, dtype=dtype), None) == expected


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERPCORE_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_native", lambda name: None)
    x = torch.zeros(1)
    assert backend.choose("norm_vjp", x, None) == "reference"
    with pytest.raises(RuntimeError, match=r"not built; reinstall .* pip install"):
        backend.choose("norm_vjp", x, "cpu")
    assert [(row.name, row.present) for row in backend.status()][:2] == [("reference", True), ("cpu", False)]


def test_named_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.zeros(1)
    monkeypatch.setenv("INTERPCORE_BACKEND", "reference")
    assert backend.choose("norm_vjp", x, None) == "reference"
    assert backend.choose("norm_vjp", x, "cpu") == "cpu"
    monkeypatch.setenv("INTERPCORE_BACKEND", "fast")
    with pytest.raises(ValueError, match="INTERPCORE_BACKEND='fast' is unknown"):
        backend.choose("norm_vjp", x, None)
    with pytest.raises(RuntimeError, match="takes float32 tensors on the CPU"):
        backend.choose("norm_vjp", x.double(), "cpu")
    with pytest.raises(RuntimeError, match="cannot run"):
        backend.choose("column_moments", x, "cuda")
    with pytest.raises(RuntimeError, match="there is no cuda form; choose from reference, cpu, triton"):
        backend.choose("norm_vjp", x, "cuda")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(RuntimeError, match="cannot run"):
        backend.choose("norm_vjp", x, "triton")


def test_isa_override(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERPCORE_ISA", raising=False)
    assert backend.isa() == backend.supported_isas()[-1]
    monkeypatch.setenv("INTERPCORE_ISA", "baseline")
    assert backend.isa() == "baseline"
    monkeypatch.setenv("INTERPCORE_ISA", "avx1024")
    with pytest.raises(RuntimeError, match=r"INTERPCORE_ISA=avx1024 .* choose from baseline"):
        backend.isa()


@pytest.mark.parametrize("op", backend.FORMS)
def test_an_op_has_the_forms_that_the_table_says(op: str) -> None:
    kernels = Path(__file__).resolve().parents[1] / "kernels"
    assert ("triton" in backend.FORMS[op]) == (kernels / f"{op}.py").exists()
    assert ("cuda" in backend.FORMS[op]) == (kernels / f"{op}.cu").exists()
    for name in set(backend.BACKENDS) - set(backend.forms(op)):
        with pytest.raises(RuntimeError, match=f"^{op}: there is no {name} form; choose from reference, "):
            backend.choose(op, torch.zeros(1), name)


def test_every_declared_op_is_in_the_table() -> None:
    assert set(reference.__all__) == set(backend.FORMS)


def test_a_gpu_takes_cuda_only_where_confirmed_or_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INTERPCORE_BACKEND", raising=False)
    without = {"triton": "Triton is not installed"}
    monkeypatch.setattr(backend, "_problem", lambda name, x: without.get(name))
    x = torch.zeros(1, device="meta")
    assert backend.choose("column_moments", x, None) == "cuda"
    with pytest.raises(RuntimeError, match="gate: no backend runs on meta here: Triton is not installed"):
        backend.choose("gate", x, None)
    without.clear()
    assert not backend.CONFIRMED and backend.choose("column_moments", x, None) == "triton"
    monkeypatch.setattr(backend, "CONFIRMED", {"column_moments"})
    assert backend.choose("column_moments", x, None) == "cuda"
    assert backend.choose("column_moments", x, None, "takes no such values") == "triton"
    assert backend.choose("edge_scores", x, None) == "triton"
    monkeypatch.setenv("INTERPCORE_BACKEND", "cuda")
    with pytest.raises(RuntimeError, match="gate: there is no cuda form; choose from reference, cpu, triton"):
        backend.choose("gate", x, None)


class Chosen(Exception):
    """What a launch has chosen."""


@pytest.mark.parametrize("op", ["column_moments", "activation_moments"])
def test_a_confirmed_cuda_form_is_given_nothing_unasked_that_it_refuses(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: object) -> str:
        raise Chosen(backend.choose(*args))  # type: ignore[arg-type]

    monkeypatch.delenv("INTERPCORE_BACKEND", raising=False)
    monkeypatch.setattr(backend, "_problem", lambda name, x: None)
    monkeypatch.setattr(backend, "CONFIRMED", {op})
    module = import_module(f"interpcore.ops.{op}")
    monkeypatch.setattr(module, "choose", stop)
    x = torch.zeros(2, 3, device="meta")

    def chosen(dtype: torch.dtype, thresholds: list[float], named: str | None = None) -> str:
        with pytest.raises(Chosen) as found:
            if op == "column_moments":
                module.launch_column_moments(x.to(dtype), None, thresholds, None, named)
            else:
                totals = (x, x, x, x)
                module.launch_activation_moments(
                    x.to(dtype), None, "silu", None, thresholds, (None, None), totals, False, named
                )
        return str(found.value)

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for thresholds in ([], [0.0, 1.0], [0.0, 1.0, 2.0]):
            refused = cuda_lacks(dtype, thresholds) is not None
            assert refused == (dtype == torch.float16 or len(thresholds) > 2)
            assert chosen(dtype, thresholds) == ("triton" if refused else "cuda")
            assert chosen(dtype, thresholds, "cuda") == "cuda"
            if refused:
                with pytest.raises(ValueError, match=r"the cuda form takes .* use triton"):
                    cuda_arguments(x.to(dtype), None, thresholds, x, x, go_on=False)
