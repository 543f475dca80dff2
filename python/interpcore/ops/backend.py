"""Which form of an op runs: `reference`, `cpu`, `triton` or `cuda`."""

import functools
import importlib
import importlib.util
import os
from contextlib import AbstractContextManager
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from interpcore.errors import Refused, Unavailable
from interpcore.ops.allocator import keep_freed

BACKENDS = ("reference", "cpu", "triton", "cuda")

# What each op has beside its definition: a CUDA form only where Triton cannot reach the roof.
# `product` is dispatched for "tf32" and "tf32x3" alone; the rest is torch's own on every device.
# `batch_product` off the CPU is torch's own, whatever is named.
FORMS: dict[str, tuple[str, ...]] = {
    "activation_moments": ("cpu", "triton", "cuda"),
    "attn_jvp": ("cpu", "triton"),
    "attn_vjp": ("cpu", "triton"),
    "batch_product": ("cpu",),
    "bin_counts": ("cpu", "triton"),
    "column_moments": ("cpu", "triton", "cuda"),
    "column_top": ("cpu", "triton"),
    "comoments": ("cpu", "triton"),
    "edge_scores": ("cpu", "triton", "cuda"),
    "gate": ("cpu", "triton"),
    "group_sums": ("cpu", "triton"),
    "norm_jvp": ("cpu", "triton"),
    "norm_vjp": ("cpu", "triton"),
    "product": ("cpu", "triton"),
    "row_summary": ("cpu", "triton"),
}

# Ops whose CUDA form a GPU has found right, and faster than Triton's. The other CUDA forms run where they are
# named, or where there is no Triton.
CONFIRMED: frozenset[str] = frozenset()

HOW_TO_BUILD = "reinstall from the repository root: pip install --no-build-isolation --no-deps ."


class BackendStatus(NamedTuple):
    """One row of `status()`: the backend's name, whether it can run here, and what it is or how to get it."""

    name: str
    present: bool
    detail: str


def native_cpu() -> ModuleType | None:
    """The compiled module `interpcore._C`, or None where it was not built."""
    native = _native("_C")
    if native is not None:
        keep_freed(native)
    return native


def native_cuda() -> ModuleType | None:
    """The compiled module `interpcore._C_cuda`, or None where it was not built."""
    return _native("_C_cuda")


@functools.cache
def _native(name: str) -> ModuleType | None:
    if importlib.util.find_spec(f"interpcore.{name}") is None:
        return None
    return importlib.import_module(f"interpcore.{name}")


def supported_isas() -> list[str]:
    """Instruction sets that the CPU kernels can use here, slowest first; empty without `_C`."""
    native = native_cpu()
    return [] if native is None else native.supported_isas()


def isa() -> str:
    """Instruction set that the CPU kernels use: $INTERPCORE_ISA, else the best one supported here.

    Raises:
        RuntimeError: $INTERPCORE_ISA names one that this build or processor does not have.
    """
    supported = supported_isas()
    wanted = os.environ.get("INTERPCORE_ISA")
    if not wanted:
        return supported[-1] if supported else "none"
    if wanted not in supported:
        choices = ", ".join(supported)
        raise Unavailable(
            f"INTERPCORE_ISA={wanted} is not available here; unset it or choose from {choices}."
        )
    return wanted


def named(op: str, backend: str | None) -> str | None:
    """The backend asked for: the argument, else $INTERPCORE_BACKEND, else None.

    Raises:
        ValueError: the name is not one of `BACKENDS`.
    """
    source = "backend"
    if backend is None:
        source, backend = "INTERPCORE_BACKEND", os.environ.get("INTERPCORE_BACKEND") or None
    if backend is not None and backend not in BACKENDS:
        raise Refused(f"{op}: {source}={backend!r} is unknown; choose from {', '.join(BACKENDS)}.")
    return backend


def named_form(op: str, backend: str | None) -> str | None:
    """As `named`, of an op in `FORMS`. Raises: ValueError as there; RuntimeError where it has none."""
    wanted = named(op, backend)
    if wanted is not None and wanted not in forms(op):
        raise Unavailable(f"{op}: there is no {wanted} form; choose from {', '.join(forms(op))}.")
    return wanted


def forms(op: str) -> tuple[str, ...]:
    """The backends that have a form of `op`, in the order of `BACKENDS`."""
    return ("reference", *FORMS[op])


def choose(op: str, x: Tensor, backend: str | None, cuda_lacks: str | None = None) -> str:
    """The backend that runs `op` on a tensor like `x`.

    Unless one is named: float64, and on the CPU every dtype but float32, run on the reference; float32 on
    the CPU runs on `cpu`, or on the reference where `_C` was not built; on a GPU `triton`, or `cuda` if the
    op is in `CONFIRMED`, or has that form where Triton is not installed. A backend named here or in
    $INTERPCORE_BACKEND runs or is refused.

    Args:
        op: a key of `FORMS`.
        x: any tensor of the op's dtype and device.
        backend: the name given to the op.
        cuda_lacks: why the op's CUDA form does not take these arguments, which Triton's does; None where it
            does. No one is given it then unasked.

    Raises:
        ValueError: an unknown backend is named.
        RuntimeError: the op has no such form, the named backend cannot run here, or no backend can.
    """
    wanted = named_form(op, backend)
    if wanted is not None:
        problem = _problem(wanted, x)
        if problem:
            raise Unavailable(f"{op}: backend {wanted!r} cannot run: {problem}.")
        return wanted
    if x.dtype == torch.float64:
        return "reference"
    if x.device.type == "cpu":
        return "cpu" if _problem("cpu", x) is None else "reference"
    for candidate in ("cuda", "triton") if op in CONFIRMED else ("triton", "cuda"):
        if candidate == "cuda" and cuda_lacks:
            continue
        if candidate in FORMS[op] and _problem(candidate, x) is None:
            return candidate
    raise Unavailable(f"{op}: no backend runs on {x.device.type} here: {_problem('triton', x)}.")


def on(x: Tensor) -> AbstractContextManager[None]:
    """The device of x as the current one, for a launch."""
    return torch.cuda.device(x.device if x.is_cuda else -1)


def _problem(backend: str, x: Tensor) -> str | None:
    """Why `backend` cannot run on a tensor like `x`, and what to do; None where it can."""
    if backend == "reference":
        return None
    if backend == "cpu":
        if native_cpu() is None:
            return f"the native module is not built; {HOW_TO_BUILD}"
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return f"it takes float32 tensors on the CPU, not {x.dtype} on {x.device.type}"
        return None
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"it takes float32, float16 and bfloat16, not {x.dtype}; use backend='reference'"
    if backend == "cuda":
        if native_cuda() is None:
            return f"the CUDA module is not built; with nvcc on the PATH, {HOW_TO_BUILD}"
    elif importlib.util.find_spec("triton") is None:
        return "Triton is not installed; pip install triton"
    elif x.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if x.device.type != "cuda":
        return f"it needs tensors on a GPU, these are on {x.device.type}; move the model there"
    return None


def status() -> list[BackendStatus]:
    """What each backend is and whether it can run here, in the order of `BACKENDS`."""
    gpu = torch.cuda.is_available()
    no_gpu = "no GPU is visible to torch; install a CUDA build of torch on a machine with one"
    has_triton = importlib.util.find_spec("triton") is not None
    built_cpu, built_cuda = native_cpu() is not None, native_cuda() is not None
    triton_detail = no_gpu if has_triton else "Triton is not installed; pip install triton"
    cuda_detail = no_gpu if built_cuda else f"not built; with nvcc on the PATH, {HOW_TO_BUILD}"
    return [
        BackendStatus("reference", True, "float64 torch; runs float64 models, and half precision on the CPU"),
        BackendStatus("cpu", built_cpu, "float32 C++" if built_cpu else f"not built; {HOW_TO_BUILD}"),
        BackendStatus("triton", gpu and has_triton, "GPU" if gpu and has_triton else triton_detail),
        BackendStatus("cuda", gpu and built_cuda, "GPU" if gpu and built_cuda else cuda_detail),
    ]
