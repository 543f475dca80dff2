"""Execution plans: a model is weights plus an ordered list of calls.

A call names a module, the streams it reads and writes, and its key/value slot. Models without surgery run
`Plan.identity(n)`; skipping, repeating, swapping or permuting blocks gives another plan over the same
weights.
Plans are values: comparable, hashable and printable.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from interpcore.errors import Refused

RESID = "resid"
KINDS = ("block", "norm", "adapter")


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


@dataclass(frozen=True)
class Plan:
    """An ordered list of calls; block call d enters at residual depth d.

    Every block call gets a slot of its own, numbered in order, so that a repeated block keeps separate keys.
    """

    calls: tuple[Call, ...]

    def __post_init__(self) -> None:
        slots = iter(range(len(self.calls)))
        numbered = tuple(replace(c, slot=next(slots) if c.kind == "block" else None) for c in self.calls)
        object.__setattr__(self, "calls", numbered)

    @classmethod
    def identity(cls, n_blocks: int, group: str = "block") -> Plan:
        """The plan that calls `group.0` to `group.{n_blocks - 1}` once each, in order."""
        return cls(tuple(Call(f"{group}.{i}") for i in range(n_blocks)))

    @property
    def blocks(self) -> tuple[Call, ...]:
        """The block calls, in order; `blocks[d]` reads `resid[d]`."""
        return tuple(c for c in self.calls if c.kind == "block")

    @property
    def n_calls(self) -> int:
        """D, the number of block calls; residual depths run from 0 to D."""
        return len(self.blocks)

    @property
    def streams(self) -> frozenset[str]:
        """Every stream that a call reads or writes."""
        return frozenset(s for c in self.calls for s in (*c.reads, *c.writes)) | {RESID}

    def depth(self, address: int | tuple[str, int, int]) -> int:
        """Residual depth of an address.

        Args:
            address: a depth from -(D+1) to D, or (group, block, step): the step-th call (negative from the
                end) of block `group.block`.
        Returns: depth from 0 to D.
        Raises: IndexError when no such depth or call exists.
        """
        if not isinstance(address, int):
            group, block, step = address
            at = [d for d, call in enumerate(self.blocks) if call.module == f"{group}.{block}"]
            if not -len(at) <= step < len(at):
                raise IndexError(
                    f"Block {group}.{block} is called {len(at)} times in this plan; step {step} is not there."
                )
            return at[step]
        if not -(self.n_calls + 1) <= address <= self.n_calls:
            raise IndexError(
                f"Depth {address} is outside this plan: it has depths 0 to {self.n_calls} (or -1 to "
                f"-{self.n_calls + 1})."
            )
        return address % (self.n_calls + 1)

    def first_call(self, depth: int) -> int:
        """Index in `calls` of the block call that depth enters; the number of calls for depth D."""
        at = [i for i, call in enumerate(self.calls) if call.kind == "block"]
        return at[depth] if depth < len(at) else len(self.calls)

    def address(self, depth: int) -> tuple[str, int, int]:
        """(group, block, step) of the block call at `depth`; the inverse of `depth`."""
        module = self.blocks[depth].module
        group, _, block = module.rpartition(".")
        return group, int(block), sum(c.module == module for c in self.blocks[:depth])

    def skip(self, *depths: int) -> Plan:
        """Without the block calls at these depths."""
        drop = {self._call_depth(d) for d in depths}
        return self._with_blocks([[] if d in drop else [d] for d in range(self.n_calls)])

    def repeat(self, first: int, last: int | None = None, times: int = 2) -> Plan:
        """With the block calls from depth `first` through `last` (default: `first`) run `times` times in a
        row."""
        first = self._call_depth(first)
        last = first if last is None else self._call_depth(last)
        if times < 0 or last < first:
            raise Refused(
                f"Cannot repeat depths {first} to {last} {times} times; give first <= last and times >= 0."
            )
        order = [*range(first), *list(range(first, last + 1)) * times, *range(last + 1, self.n_calls)]
        return self.permute(order)

    def swap(self, a: int, b: int) -> Plan:
        """With the block calls at depths a and b exchanged."""
        order = list(range(self.n_calls))
        a, b = self._call_depth(a), self._call_depth(b)
        order[a], order[b] = order[b], order[a]
        return self.permute(order)

    def permute(self, order: Sequence[int]) -> Plan:
        """With the block calls in this order of depths; a depth may be left out or named several times.

        Only plans made of block calls alone can be reordered as a whole.
        """
        if len(self.blocks) != len(self.calls):
            raise Refused(
                "This plan has norm or adapter calls between its blocks; reorder its calls by hand with "
                "Plan(calls)."
            )
        return Plan(tuple(self.blocks[self._call_depth(d)] for d in order))

    def _with_blocks(self, replacement: Iterable[Sequence[int]]) -> Plan:
        by_depth = iter(replacement)
        calls: list[Call] = []
        for call in self.calls:
            calls += [call] if call.kind != "block" else [self.blocks[d] for d in next(by_depth)]
        return Plan(tuple(calls))

    def _call_depth(self, depth: int) -> int:
        if not -self.n_calls <= depth < self.n_calls:
            raise IndexError(f"There is no block call {depth}: this plan has calls 0 to {self.n_calls - 1}.")
        return depth % self.n_calls

    def __str__(self) -> str:
        runs: list[list[int | str]] = []
        for call in self.calls:
            group, _, index = call.module.rpartition(".")
            if call.kind == "block" and runs and runs[-1][0] == group and runs[-1][2] == int(index) - 1:
                runs[-1][2] = int(index)
            elif call.kind == "block":
                runs.append([group, int(index), int(index)])
            else:
                runs.append([call.module, "", ""])
        names = [str(g) if a == "" else f"{g} {a}" if a == b else f"{g} {a}-{b}" for g, a, b in runs]
        return f"{', '.join(names)} (D={self.n_calls})"
