"""One step of a plan: a module, the streams it reads and writes, and its key/value slot."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from interpcore.errors import Refused
from interpcore.model.combine import BRANCH, COMBINERS

RESID = "resid"
KINDS = ("block", "norm", "adapter")

Address = int | tuple[str, int, int | slice | range]
_STEPS = r"(?::|,?\s+steps?\s+)(-?\d{1,6})(?:\s*(?:-|to)\s*(\d{1,6}))?"
_ADDRESS = re.compile(rf"([A-Za-z_]\w*)[. ](\d{{1,6}})(?:{_STEPS})?")


def read_address(text: str) -> Address:
    """An address in words: `core.1:8-15`, or "core 1, steps 8 to 15", is block 1 of the core at those steps
    (from 0, both included), `core.1:-1` its last call, `core.1` every call, and `3` depth 3.

    Raises: Refused for a text that is none.
    """
    if re.fullmatch(r"-?\d{1,6}", text.strip()):
        return int(text)
    found = _ADDRESS.fullmatch(text.strip())
    if found is None:
        raise Refused(f"{text!r} is no block call; write core.1:8-15, core.1:-1, core.1, or a depth.")
    group, block, first, last = found.groups()
    if first is None:
        return group, int(block), slice(None)
    if last is None:
        return group, int(block), int(first)
    if int(last) < int(first):
        raise Refused(f"The steps of {text!r} run down; write the lower one first.")
    return group, int(block), range(int(first), int(last) + 1)


"""A residual depth, or (group, block, step) of block calls."""


class NoSuchCall(Refused, IndexError):
    """An address that a plan does not have."""


@dataclass(frozen=True)
class Call:
    """One step of a plan.

    Args:
        module: name of the module among the model's modules, `group.index` for blocks ("block.3", "core.0").
        kind: "block", "norm" or "adapter".
        reads: streams passed to the module, in order.
        writes: streams that receive its output.
        slot: key/value slot of a block call; None for modules that keep no keys.
    """

    module: str
    kind: str = "block"
    reads: tuple[str, ...] = (RESID,)
    writes: tuple[str, ...] = (RESID,)
    slot: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise Refused(f"A call's kind is one of {', '.join(KINDS)}; got {self.kind!r}.")
        if self.kind == "block" and not re.fullmatch(r".+\.\d+", self.module):
            raise Refused(f"A block's name is `group.index`, such as core.0; got {self.module!r}.")
        for name in ("reads", "writes"):
            streams = getattr(self, name)
            if isinstance(streams, str) or not streams:
                raise Refused(f"The streams that {self.module} {name} are a tuple of names; got {streams!r}.")
            object.__setattr__(self, name, tuple(streams))


def side_by_side(calls: Sequence[Call], combine: str) -> tuple[Call, ...]:
    """Block calls on one input, each with a branch of its own, and the call that combines the branches.

    Args:
        calls: block calls that read and write the residual stream alone.
        combine: "mean", (1/k) sum block_i(x), or "sum", x + sum (block_i(x) - x).
    Raises: Refused for other calls, and for another way to combine them.
    """
    if combine not in COMBINERS:
        raise Refused(f"Blocks side by side are combined by {' or '.join(COMBINERS)}; got {combine!r}.")
    if other := [c for c in calls if c.kind != "block" or (c.reads, c.writes) != ((RESID,), (RESID,))]:
        raise Refused(
            f"{other[0].module} is more than a block on the residual stream, and cannot stand side by side "
            "with others; give a range of plain block calls."
        )
    branches = tuple(f"{BRANCH}{i}" for i in range(len(calls)))
    beside = [Call(c.module, writes=(name,)) for c, name in zip(calls, branches, strict=True)]
    reads = branches if COMBINERS[combine].mean else (RESID, *branches)
    return *beside, Call(combine, "adapter", reads=reads)


def begins_side_by_side(calls: Sequence[Call]) -> tuple[str, tuple[str, ...]] | None:
    """How blocks side by side are combined, and their modules, where calls begin with such a range; else
    None."""
    k = 0
    while k < len(calls) and calls[k].writes == (f"{BRANCH}{k}",) and calls[k].reads == (RESID,):
        k += 1
    if not k or k == len(calls) or calls[k].module not in COMBINERS:
        return None
    return calls[k].module, tuple(call.module for call in calls[:k])
