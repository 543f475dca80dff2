"""One module boundary watched: the tensor that enters or leaves it, read and written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

HALVES = (
    "first half of the output",
    "second half of the output",
)  # of a module that makes two things at once
STREAM = "hidden_states"  # how transformers names a block's input where it is passed by name


FOR = "input for "  # the reader of a norm that has several
TIMES = "output times "  # of a module whose output is added to the stream with a factor
See = Callable[[Tensor], Tensor]
Watch = Callable[[See], Callable[[], None]]


def watch(module: nn.Module, side: str, see: See) -> Callable[[], None]:
    """Call `see` with the tensor at a module's boundary whenever it runs; what it returns goes on instead.

    Args:
        module: any module; one that takes or gives several values is watched at the first of them.
        side: "input", "output" or one of `HALVES`.
        see: takes and returns a tensor; not called where the first value is no tensor.
    Returns: what ends the watch.
    """

    def before(
        _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if args and isinstance(args[0], Tensor):
            return (see(args[0]), *args[1:]), kwargs
        if not args and isinstance(kwargs.get(STREAM), Tensor):
            return args, kwargs | {STREAM: see(kwargs[STREAM])}
        return None

    def after(_: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return see(output)
        if type(output) in (tuple, list) and output and isinstance(output[0], Tensor):
            return type(output)([see(output[0]), *output[1:]])
        return None

    def half(_: nn.Module, args: Any, output: Tensor) -> Tensor:
        parts = list(output.chunk(2, -1))
        at = HALVES.index(side)
        parts[at] = see(parts[at])
        return torch.cat(parts, -1)

    if side == "input":
        return module.register_forward_pre_hook(before, with_kwargs=True).remove
    if side in HALVES:
        return module.register_forward_hook(half).remove
    return module.register_forward_hook(after).remove


def watch_times(module: nn.Module, factor: float, see: See) -> Callable[[], None]:
    """Call `see` with a module's output times a factor; what it returns, without the factor, goes on."""

    def scaled(value: Tensor) -> Tensor:
        given = value * factor
        written = see(given)
        return value if written is given else written / factor

    return watch(module, "output", scaled)


def watch_for(reader: nn.Module, norm: nn.Module, see: See) -> Callable[[], None]:
    """Call `see` with the tensor that enters a norm; what it returns goes on for one reader alone.

    Args:
        reader: a module that reads the norm's output.
        norm: which has other readers, too.
        see: as in `watch`.
    Returns: what ends the watch.
    """
    entered: list[Tensor] = []

    def keep(value: Tensor) -> Tensor:
        entered[:] = [value]
        return value

    def exchange(normed: Tensor) -> Tensor:
        value = entered.pop()
        written = see(value)
        return normed if written is value else norm.forward(written)  # without the norm's hooks

    ends = watch(norm, "input", keep), watch(reader, "input", exchange)

    def end() -> None:
        for each in ends:
            each()

    return end
