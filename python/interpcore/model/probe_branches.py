"""What a block's branches read and how their neurons act, found in the values that a forward gave."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from interpcore.model.hooks import FOR, HALVES
from interpcore.model.mlp import ACTIVATIONS, absent_sites
from interpcore.model.probe_run import (
    NORMED,
    PARTS,
    READERS,
    Found,
    Function,
    Run,
    children,
    is_norm,
    is_projection,
)

ENTERING = {"attn_normed": "attn_in", "mlp_normed": "mlp_in"}
BEFORE = ("mlp_pre", "mlp_gate_pre", "mlp_up")
Fits = Callable[[str, Sequence[int | None]], bool]


def read_inputs(run: Run, prefix: str, found: Found, fits: Fits, factor: float) -> None:
    """What attention and MLP read: a norm's output and the stream before it, or the stream itself; and
    whether both read the stream that enters the block. `factor` is that of what a branch adds."""
    blocks, depths = found.layers, range(len(found.layers))
    keys = [f"{prefix}.{c}" for c in children(blocks) if is_norm(getattr(blocks[0], c))]
    norms = [key for key in keys if fits(key, depths) and fits(f"{key}<", depths)]
    adding = prefix + found.boundaries["attn_out"][1].removeprefix(f"{prefix}.{{d}}")
    streams = {
        "parallel": [run.seen["resid", d] for d in depths],
        "serial": [run.seen["resid", d] + factor * run.seen[adding, d] for d in depths],
    }

    stands: dict[str, str] = {}
    for normed, part in NORMED.items():
        entering = ENTERING[normed]
        found.absent[normed] = found.absent[entering] = "no module of its blocks reads a norm's output alone."
        read = next((key for c in READERS[part] if fits(key := f"{prefix}.{c}<", depths)), None)
        if read is None:
            continue
        same = (n for n in norms if all(torch.equal(run.seen[read, d], run.seen[n, d]) for d in depths))
        key = f"{norm}<" if (norm := next(same, None)) else read
        if norm:
            found.keep(normed, "input", _path(prefix, read[:-1]))
        orders = [o for o, x in streams.items() if all(run.near(key, d, x[d]) for d in depths)]
        if not orders or (normed == "attn_normed" and orders == ["serial"]):
            found.absent[entering] = "what that branch reads was not found to be the stream, or its norm."
            continue
        if not norm:
            found.absent[normed] = f"that branch reads the stream without a norm; use {entering}."
        found.keep(entering, "input", _path(prefix, key[:-1]))
        found.parallel = orders[0] == "parallel"  # the MLP's, which comes last
        stands[entering] = key
    if len(stands) == 2 and len(set(stands.values())) == 1:  # one norm for both
        for normed, entering in ENTERING.items():
            reader = found.boundaries[normed][1].rsplit(".", 1)[-1]
            found.keep(entering, f"{FOR}{reader}", found.boundaries[entering][1])


def read_neurons(run: Run, prefix: str, found: Found) -> None:
    """What the MLP's last projection reads, where its output is the MLP's own; and how it comes about."""
    blocks, depths = found.layers, range(len(found.layers))

    def writes(path: str, module: str) -> bool:
        return all(run.in_order(key, depths) for key in (f"{path}<", path, module)) and all(
            run.seen[f"{path}<", d].dim() == 3 and torch.equal(run.seen[path, d], run.seen[module, d])
            for d in depths
        )

    found.drop(BEFORE, "no activation of its MLPs was found by which a projection's output becomes mlp_act.")
    for child in (c for c in PARTS["mlp_out"] if c in children(blocks)):
        parts = [getattr(block, child) for block in blocks]
        key = f"{prefix}.{child}"
        # The MLP is a child of its block, or lies in it open: the child is then its down projection.
        for inner in (*children(parts), ""):
            down = f"{key}.{inner}" if inner else key
            projections = [part.get_submodule(inner) for part in parts]
            if all(map(is_projection, projections)) and writes(down, key):
                found.widths = tuple(run.seen[f"{down}<", d].shape[-1] for d in depths)
                found.keep("mlp_act", "input", _path(prefix, down))
                mlps, where = (parts, key) if inner else (list(blocks), prefix)
                _read_activation(run, prefix, where, down, mlps, found)
                return
    found.absent["mlp_act"] = "no projection of its MLPs was found that writes what they write."


def _path(prefix: str, key: str) -> str:
    """Path of the modules that a key names, with {d} for the block."""
    return f"{prefix}.{{d}}{key.removeprefix(prefix)}"


def _read_activation(
    run: Run, prefix: str, key: str, down: str, mlps: Sequence[nn.Module], found: Found
) -> None:
    """By which function of which projections' outputs the neurons arise: f(pre), or f(gate) times up."""
    depths = range(len(mlps))
    acts = [run.seen[f"{down}<", d] for d in depths]
    given: dict[tuple[str, str], list[Tensor]] = {}  # side and key -> values by depth
    for inner in (f"{key}.{child}" for child in children(mlps)):
        modules = [mlp.get_submodule(inner.removeprefix(f"{key}.")) for mlp in mlps]
        if inner == down or not all(map(is_projection, modules)) or not run.in_order(inner, depths):
            continue
        outs = [run.seen[inner, d] for d in depths]
        if all(out.shape == act.shape for out, act in zip(outs, acts, strict=True)):
            given["output", inner] = outs
        elif all(out.shape[-1] == 2 * act.shape[-1] for out, act in zip(outs, acts, strict=True)):
            given |= {(side, inner): [out.chunk(2, -1)[i] for out in outs] for i, side in enumerate(HALVES)}
    for functions in _functions(mlps):
        for gate, pres in given.items():
            found_all = [_applied(f, pre) for f, pre in zip(functions, pres, strict=True)]
            made = [x for x in found_all if x is not None]
            if len(made) < len(mlps):
                continue
            sites = {"mlp_pre": gate} if all(map(run.same, made, acts)) else None
            for up, factors in given.items():
                product = (x * y for x, y in zip(made, factors, strict=True))
                if sites is None and up != gate and all(map(run.same, product, acts)):
                    sites = {"mlp_gate_pre": gate, "mlp_up": up}
            if sites is not None:
                for site, (side, inner) in sites.items():
                    found.keep(site, side, _path(prefix, inner))
                found.functions = tuple(functions)
                found.absent |= absent_sites("mlp_up" in sites)
                return


def _functions(mlps: Sequence[nn.Module]) -> Iterator[list[Function]]:
    """What may be the MLPs' activation functions: modules and functions that all of them hold, and torch's
    own, which their code may call by name."""
    for name, value in [*mlps[0].named_children(), *vars(mlps[0]).items()]:
        held: list[Any] = [getattr(mlp, name, None) for mlp in mlps]
        if (
            callable(value)
            and not isinstance(value, nn.Linear)
            and not is_norm(value)
            and all(map(callable, held))
        ):
            yield held
    yield from ([function] * len(mlps) for function in dict.fromkeys(ACTIVATIONS.values()))


def _applied(function: Function, pre: Tensor) -> Tensor | None:
    """A function of each entry alone; None for what is no such function."""
    module: Any = function
    place = next(module.parameters(), None) if isinstance(module, nn.Module) else None
    x = pre if place is None else pre.to(place.device)
    try:
        with torch.no_grad():
            y, turned = function(x), function(x.flip(-1))
    except Exception:  # whatever a module that takes something else says
        return None
    if (
        not isinstance(y, Tensor)
        or y.shape != x.shape
        or not torch.allclose(turned.flip(-1), y, rtol=1e-3, atol=1e-6)
    ):
        return None
    return y.to(pre.device)


def check_neurons(edited: Run, found: Found) -> None:
    """Drop the sites before the activation where an edit there does not act as they say."""
    if not found.functions:
        return
    first = "mlp_gate_pre" if "mlp_up" in found.boundaries else "mlp_pre"
    for d, function in enumerate(found.functions):
        made = _applied(function, edited.seen[first, d])
        made = made if made is None or first == "mlp_pre" else made * edited.seen["mlp_up", d]
        if made is None or not edited.same(made, edited.came["mlp_act", d]):
            found.drop(BEFORE, "an edit there does not change mlp_act as its activation says.")
            found.functions = ()
            return
