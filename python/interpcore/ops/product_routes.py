"""Which routine runs a float32 CPU product, by the weight's layout and the number of rows.

The choice is measured once per machine and kept in the user's cache folder. A run folder's card holds the
routes that its numbers came from, and going on with the run takes those: last bits depend on them.
"""

import functools
import hashlib
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from interpcore._kept import cache_folder
from interpcore.errors import Unavailable
from interpcore.ops.backend import isa, native_cpu

Routine = Callable[[Tensor, Tensor, Tensor | None], Tensor]
ROUTINES = ("matmul", "native", "onednn")
LAYOUTS = ("in-by-out", "out-by-in")
FEW = 32
"""Rows up to which reading the weight is what counts."""

# What the probe runs: rows, and weights [k, n] of a decoder block of d = 768. One row is at the rate of
# memory with any routine, so it has no route.
_PROBE: dict[str, tuple[int, tuple[tuple[int, int], ...]]] = {
    "few rows": (8, ((768, 768), (768, 3072), (3072, 768))),
    "many rows": (192, ((768, 768), (768, 3072))),
}
_PROBE_SECONDS, _PROBE_ROUNDS = 0.4, 4
_BETTER = 1.05
"""How much faster a routine must be than the one before it in `ROUTINES` that was best until then."""

_held: list[Mapping[str, str]] = []


class ProductProbe(NamedTuple):
    """GFLOP per CPU second of each routine on each route (routines that are missing here left out), and the
    routine chosen."""

    speeds: dict[str, dict[str, float]]
    chosen: dict[str, str]


def route_of(weight: Tensor, rows: int) -> str | None:
    """The route's name; None for one row, and for a weight [k, n] whose neither axis is contiguous."""
    if rows == 1:
        return None
    if weight.stride(1) == 1:
        layout = "in-by-out"
    elif weight.stride(0) == 1:
        layout = "out-by-in"
    else:
        return None
    return f"{layout}, {'few' if rows <= FEW else 'many'} rows"


def product_routes() -> dict[str, str]:
    """The routes in force: route -> routine, such as {"in-by-out, few rows": "native", ...}.

    They are those of the run that is open (`hold_routes`), else $INTERPCORE_PRODUCT, else the probe's.

    Raises:
        RuntimeError: $INTERPCORE_PRODUCT names a routine that is unknown or missing here.
    """
    return {route: routine_of(route) for route in routes()}


def routes() -> list[str]:
    """The names of all routes."""
    return [f"{layout}, {rows}" for layout in LAYOUTS for rows in _PROBE]


def routine_of(route: str) -> str:
    """The routine in force on a route; see `product_routes`."""
    for lent in reversed(_held):
        if lent.get(route) in available():
            return lent[route]
    wanted = os.environ.get("INTERPCORE_PRODUCT")
    if not wanted:
        return product_probe().chosen[route]
    if wanted not in available():
        raise Unavailable(
            f"INTERPCORE_PRODUCT={wanted} is not available here; unset it or choose from "
            f"{', '.join(available())}."
        )
    return wanted


def hold_routes(lent: Mapping[str, str]) -> Callable[[], None]:
    """Products take the routes of a run from now on, whatever this process would choose itself.

    Args:
        lent: what `product_routes` gave when the run began; {} for a run that did not record them. Where a
            routine is missing on this machine, its route keeps this process's choice.

    Returns:
        What ends it; runs need not end in the order in which they began.
    """
    entry = dict(lent)
    _held.append(entry)

    def release() -> None:
        _held[:] = [one for one in _held if one is not entry]

    return release


def product_probe() -> ProductProbe:
    """The routine that is fastest here on each route, measured once per machine (under half a second).

    The routines run in turn on a decoder block's weights, and medians of their CPU times are compared, so
    that other work hardly shows; `torch.matmul` stays unless another is more than 5% faster. The choice is
    kept in the user's cache folder ($XDG_CACHE_HOME, else ~/.cache), by processor, torch version, instruction
    set and number of threads; where there is none that can be written, each process measures anew. A file
    that is not whole is not believed: it is measured again and replaced.
    """
    return _probe(isa(), torch.get_num_threads())


@functools.cache
def available() -> dict[str, Routine]:
    """The routines that this installation has, in the order of `ROUTINES`."""
    found: dict[str, Routine] = {"matmul": matmul}
    if native_cpu() is not None:
        found["native"] = _native
    if torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        found["onednn"] = _onednn
    return found


def matmul(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [..., k] @ weight [k, n] + bias [n] by torch."""
    if bias is None:
        return torch.matmul(x, weight)
    if x.dim() == 2:
        return torch.addmm(bias, x, weight)
    return torch.addmm(bias, x.reshape(-1, x.shape[-1]), weight).view(*x.shape[:-1], weight.shape[1])


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight.t(), bias, "none", [], "")


def _native(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    native = native_cpu()
    assert native is not None
    (depth, columns), rows = weight.shape, x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    bias = None if bias is None else bias.contiguous()
    out = x.new_empty(*x.shape[:-1], columns)
    out_by_in = weight.stride(1) != 1
    args = {
        "shape": (len(rows), depth, columns),
        "out_by_in": out_by_in,
        "x_stride": rows.stride(0),
        "weight_stride": weight.stride(1 if out_by_in else 0),
        "x": rows.data_ptr(),
        "weight": weight.data_ptr(),
        "bias": 0 if bias is None else bias.data_ptr(),
        "out": out.data_ptr(),
    }
    native.product(args, isa(), torch.get_num_threads())
    return out


@functools.cache
def _probe(instructions: str, threads: int) -> ProductProbe:
    key = {
        "cpu": cpu_name(),
        "torch": torch.__version__,
        "instructions": instructions,
        "threads": threads,
        "routines": sorted(available()),
        "probe": _PROBE,
    }
    name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:16]
    folder = cache_folder()
    if folder is None:
        return measure()
    path = folder / f"product-{name}.json"
    kept = _read(path)
    if kept is not None:
        return kept
    found = measure()
    with suppress(OSError):  # a disk that takes nothing costs a measurement per process
        found = _keep(path, key, found)
    return found


def measure() -> ProductProbe:
    """Times every routine on every route, in turn; see `product_probe`."""
    calls = {route: _calls(*route.split(", ")) for route in routes()}
    taken: dict[str, dict[str, list[float]]] = {route: {name: [] for name in available()} for route in calls}
    with torch.no_grad():
        begun, rounds = time.process_time(), 0
        # The first round sets up threads and compiles; it does not count.
        while rounds < _PROBE_ROUNDS or time.process_time() - begun < _PROBE_SECONDS:
            for route, operands in calls.items():
                for name, run in available().items():
                    start = time.process_time()
                    for x, weight in operands:
                        run(x, weight, None)
                    taken[route][name].append(time.process_time() - start)
            rounds += 1
    speeds, chosen = {}, {}
    for route, operands in calls.items():
        work = 2e-9 * sum(x.numel() * weight.shape[1] for x, weight in operands)
        speeds[route] = {name: work / statistics.median(spent[1:]) for name, spent in taken[route].items()}
        best, *others = speeds[route]
        for name in others:
            if speeds[route][name] > _BETTER * speeds[route][best]:
                best = name
        chosen[route] = best
    return ProductProbe(speeds, chosen)


def _calls(layout: str, rows: str) -> list[tuple[Tensor, Tensor]]:
    """x and weight of each product that the probe takes on a route."""
    n_rows, shapes = _PROBE[rows]
    make: Callable[[int, int], Tensor] = (
        torch.ones if layout == "in-by-out" else lambda k, n: torch.ones(n, k).t()
    )
    return [(torch.ones(n_rows, k), make(k, n)) for k, n in shapes]


def cpu_name() -> str:
    """The processor's name as the system gives it."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _read(path: Path) -> ProductProbe | None:
    """What was kept, or None where there is nothing, or not the whole of it."""
    try:
        said = json.loads(path.read_text())
        body = json.dumps([said["key"], said["speeds"], said["chosen"]], sort_keys=True)
        whole = said["sum"] == hashlib.sha256(body.encode()).hexdigest()
        chosen = {route: said["chosen"][route] for route in routes()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if not whole or not set(chosen.values()) <= set(available()):
        return None
    return ProductProbe(said["speeds"], chosen)


def _keep(path: Path, key: Mapping[str, object], found: ProductProbe) -> ProductProbe:
    """Writes the choice, whole or not at all; where another process was first, its choice holds for both."""
    body = json.dumps([key, found.speeds, found.chosen], sort_keys=True)
    said = {"key": key, **found._asdict(), "sum": hashlib.sha256(body.encode()).hexdigest()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
    try:
        with os.fdopen(handle, "w") as file:
            json.dump(said, file, indent=1)
        with suppress(FileExistsError):
            os.link(partial, path)
        kept = _read(path)
        if kept is None:
            os.replace(partial, path)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(partial)
    return found if kept is None else kept
