"""`interpcore info`: what is installed, what runs here and how fast the dense products are."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from interpcore._version import __version__

if TYPE_CHECKING:
    from interpcore.ops.backend import BackendStatus

PACKAGES = ("torch", "transformers", "triton", "numpy", "safetensors")

# Every environment variable that interpcore reads, and what it does.
ENVIRONMENT = {
    "INTERPCORE_BACKEND": "backend of every op, which refuses one that it lacks; unset: by device and dtype",
    "INTERPCORE_ISA": "instruction set of the CPU kernels: baseline, avx2 or avx512; unset: the best one",
    "INTERPCORE_PRODUCT": "routine of float32 CPU products: matmul, native or onednn; unset: by the probe",
    "INTERPCORE_ALLOCATOR": "system gives freed memory back at once; unset: some stays for the next arrays",
    "INTERPCORE_SHARED": "folder of shared test material; unset: ../shared beside the repository",
    "INTERPCORE_LLM_MODEL": "language model that agent run asks, where --llm names none",
    "TRITON_INTERPRET": "1 runs Triton kernels on the CPU, slowly, to test them",
}


def info() -> None:
    """Show versions, instruction sets, backends, product speed and environment variables.

    Example: interpcore info
    """
    console = Console()
    facts = gather()
    console.print(_table("Versions", [(k, v or "not installed") for k, v in facts["versions"].items()]))
    console.print(_table("Processor", list(facts["cpu"].items())))
    rows = [(row.name, "yes" if row.present else "no", row.detail) for row in facts["backends"]]
    console.print(_table("Backends", rows))
    of_ops = [(op, ", ".join(forms)) for op, forms in facts["forms"].items()]
    console.print(_table("Forms of each op", of_ops))
    console.print(_table("float32 products on the CPU", list(facts["product"].items())))
    console.print(_table("Precisions of float32 products", list(facts["precisions"].items())))
    rows = [(name, value or "unset", ENVIRONMENT[name]) for name, value in facts["env"].items()]
    console.print(_table("Environment", rows))


def gather() -> dict[str, Any]:
    """What `interpcore info` shows.

    Returns:
        versions: package -> version or None; cpu: name -> text; backends: list of `BackendStatus`;
        forms: op -> names of its backends; product: the probe as name -> text; precisions: name -> error;
        env: variable -> value or None.

    Raises:
        RuntimeError: $INTERPCORE_ISA or $INTERPCORE_PRODUCT names something that is not available here.
        ValueError: $INTERPCORE_ALLOCATOR says anything but system.
    """
    from interpcore.ops.backend import CONFIRMED, FORMS, forms, status

    backends: list[BackendStatus] = status()
    own = {"python": platform.python_version(), "interpcore": __version__}
    return {
        "versions": own | {name: _version(name) for name in PACKAGES},
        "cpu": _processor(),
        "backends": backends,
        "forms": {op: [_form(name, op in CONFIRMED) for name in forms(op)] for op in FORMS},
        "product": _product(),
        "precisions": _precisions(),
        "env": {name: os.environ.get(name) for name in ENVIRONMENT},
    }


def _form(name: str, confirmed: bool) -> str:
    return f"{name} (no GPU has checked it: triton runs)" if name == "cuda" and not confirmed else name


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> dict[str, str]:
    import torch

    from interpcore.ops.allocator import described, keep_freed
    from interpcore.ops.backend import isa, native_cpu, supported_isas

    native = native_cpu()
    threads = str(torch.get_num_threads())
    if native is not None and not native.openmp:
        threads += "; the CPU kernels use 1 (built without OpenMP)"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "machine": f"{platform.system()} {platform.machine()}",
        "instruction sets": ", ".join(supported_isas()) or "none: the native module is not built",
        "instruction set used": isa(),
        "threads": threads,
        "freed memory": described(native is not None and keep_freed(native)),
        "GPUs": ", ".join(gpus) or "none",
    }


def _product() -> dict[str, str]:
    from interpcore.ops import product_probe, product_routes

    routes, speeds = product_routes(), product_probe().speeds
    unit = "GFLOP per CPU second"
    rates = {
        route: ", ".join(f"{name} {speed:.0f}" for name, speed in by_routine.items())
        for route, by_routine in speeds.items()
    }
    return {route: f"{used} ({unit}: {rates[route]})" for route, used in routes.items()}


def _precisions() -> dict[str, str]:
    from interpcore.ops import product_error
    from interpcore.ops.product import PRECISIONS

    return {name: f"operands cost at most {product_error(name):.1g} of |x| @ |weight|" for name in PRECISIONS}


def _table(title: str, rows: Sequence[tuple[str, ...]]) -> Table:
    table = Table(title=title, title_justify="left", show_header=False, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    return table
