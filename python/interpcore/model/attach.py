"""A forward's taps, edits and activation hook on the modules of a transformers model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.context import Context
from interpcore.model.probe_branches import BEFORE
from interpcore.model.probe_run import Function, Place, Watched
from interpcore.model.spec import ModelSpec


class Hooked(Protocol):
    """What is hooked: a `GenericModel`."""

    @property
    def spec(self) -> ModelSpec: ...
    @property
    def places(self) -> Sequence[Watched]: ...
    @property
    def functions(self) -> Sequence[Function]: ...


@contextmanager
def attached(model: Hooked, ctx: Context) -> Iterator[None]:
    """The model's modules with this forward's taps and edits attached.

    Raises: ValueError where one of them did not run, or ran several times.
    """
    ran: dict[Place, int] = {}
    before: dict[Place, Tensor] = {}  # of the activations, where a study wants them
    studied = ctx.activation_hook is not None

    def seeing(site: str, depth: int | None) -> Callable[[Tensor], Tensor]:
        def see(value: Tensor) -> Tensor:
            ran[site, depth] += 1
            # What is read is a copy: blocks may go on to write into the tensors that they pass.
            given = value.clone()
            if studied and site == "mlp_act":
                value = given = _activated(model, ctx, depth, before)
            written = ctx.site(site, depth, given)
            if studied and site in BEFORE:
                before[site, depth] = written
            return value if written is given else written.clone()

        return see

    with ExitStack() as stack:
        for (site, depth), watching in model.places:
            if ctx.wants(site, depth) or (studied and site in (*BEFORE, "mlp_act")):
                ran[site, depth] = 0
                stack.callback(watching(seeing(site, depth)))
        yield
    for (site, depth), times in ran.items():
        if times != 1:
            at = site if depth is None else f"{site}.{depth}"
            raise Refused(
                f"{at} cannot be read or edited in this forward of {model.spec.name}: its module ran "
                f"{times} times."
            )


def _activated(model: Hooked, ctx: Context, depth: int | None, before: dict[Place, Tensor]) -> Tensor:
    """What a study's hook makes of a block's neurons [batch, position, d_mlp]."""
    assert depth is not None
    pre = before["mlp_gate_pre" if model.spec.gated else "mlp_pre", depth]
    return ctx.activation(model.functions[depth], pre, depth, before.get(("mlp_up", depth)))
