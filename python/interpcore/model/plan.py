"""Execution plans: a model is weights plus an ordered list of calls.

A call names a module, the streams it reads and writes, and its key/value slot. Models without surgery run
`Plan.identity(n)`; skipping, repeating, swapping or permuting blocks gives another plan over the same
weights.
Plans are values: comparable, hashable and printable.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from interpcore.errors import Refused
from interpcore.model.call import RESID, Address, Call, NoSuchCall, side_by_side
from interpcore.model.plan_text import read_calls, read_changes, write_calls


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
        written = {RESID}
        for call in numbered:
            if unknown := sorted(set(call.reads) - written):
                raise Refused(
                    f"The plan's call of {call.module} reads the stream {unknown[0]!r}, which no call before "
                    "it writes; keep the call that does (the prelude's last, if the model recurs)."
                )
            written.update(call.writes)

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

    def needs(self, depth: int) -> frozenset[str]:
        """Streams, but the residual one, that a run starting at block call `depth` must be given."""
        needed: set[str] = set()
        for call in reversed(self.calls[self.first_call(depth) :]):
            needed = (needed - set(call.writes)) | set(call.reads)
        return frozenset(needed - {RESID})

    def depth(self, address: int | tuple[str, int, int]) -> int:
        """Residual depth of an address.

        Args:
            address: a depth from -(D+1) to D, or (group, block, step): the step-th call (negative from the
                end) of block `group.block`.
        Returns: depth from 0 to D.
        Raises: NoSuchCall, a ValueError and IndexError, when no such depth or call exists.
        """
        if isinstance(address, tuple):
            group, block, step = address
            at = self._steps(group, block)
            if not -len(at) <= step < len(at):
                raise NoSuchCall(
                    f"Block {group}.{block} is called {len(at)} times in this plan; step {step} is not there."
                )
            return at[step]
        if not -(self.n_calls + 1) <= address <= self.n_calls:
            raise NoSuchCall(
                f"Depth {address} is outside this plan: it has depths 0 to {self.n_calls} (or -1 to "
                f"-{self.n_calls + 1})."
            )
        return address % (self.n_calls + 1)

    def depths(self, address: Address) -> list[int]:
        """Residual depths of an address whose step may be a range: `("core", 0, slice(None))` is every call
        of block core.0.

        Raises: NoSuchCall as `depth`, and for a range that holds no step.
        """
        if isinstance(address, int):
            return [self.depth(address)]
        if len(address) != 3:
            raise NoSuchCall(f"An address is a depth or (group, block, step); got {address!r}.")
        group, block, step = address
        if isinstance(step, int):
            return [self.depth((group, block, step))]
        at = self._steps(group, block)
        found = at[step] if isinstance(step, slice) else [self.depth((group, block, one)) for one in step]
        if not found:
            raise NoSuchCall(
                f"Block {group}.{block} is called {len(at)} times in this plan; it has no step in {step}."
            )
        return found

    def _steps(self, group: str, block: int) -> list[int]:
        """Depths of the calls of a block, in order."""
        return [d for d, call in enumerate(self.blocks) if call.module == f"{group}.{block}"]

    def first_call(self, depth: int) -> int:
        """Index in `calls` of the block call that depth enters; the number of calls for depth D."""
        at = [i for i, call in enumerate(self.calls) if call.kind == "block"]
        return at[depth] if depth < len(at) else len(self.calls)

    def address(self, depth: int) -> tuple[str, int, int]:
        """(group, block, step) of the block call at `depth`; the inverse of `depth`."""
        module = self.blocks[depth].module
        group, _, block = module.rpartition(".")
        return group, int(block), sum(c.module == module for c in self.blocks[:depth])

    def skip(self, *calls: int | tuple[str, int, int]) -> Plan:
        """Without these block calls, addressed by depth or (group, block, step); what stands between blocks
        stays."""
        drop = {self.call_depth(call) for call in calls}
        return self._in_places([None if d in drop else d for d in range(self.n_calls)])

    def repeat(
        self,
        first: int | tuple[str, int, int],
        last: int | tuple[str, int, int] | None = None,
        times: int = 2,
    ) -> Plan:
        """With the calls from block call `first` through `last` (default: `first`) run `times` times in a
        row; 0 cuts them out.

        What stands between them is repeated with them, and so are adapters directly before `first` that read
        the residual stream, as they make its input: (adapter, core.0) repeated is one more recurrent step.
        """
        start, stop = self.call_depth(first), self.call_depth(first if last is None else last)
        if times < 0 or stop < start:
            raise Refused(
                f"Cannot repeat depths {start} to {stop} {times} times; give first <= last and times >= 0."
            )
        begin, end = self.first_call(start), self.first_call(stop) + 1
        while begin and self.calls[begin - 1].kind == "adapter" and RESID in self.calls[begin - 1].reads:
            begin -= 1
        return Plan(self.calls[:begin] + self.calls[begin:end] * times + self.calls[end:])

    def swap(self, a: int | tuple[str, int, int], b: int | tuple[str, int, int]) -> Plan:
        """With the blocks of two block calls exchanged."""
        order = list(range(self.n_calls))
        a, b = self.call_depth(a), self.call_depth(b)
        order[a], order[b] = order[b], order[a]
        return self.permute(order)

    def permute(self, order: Sequence[int | tuple[str, int, int]]) -> Plan:
        """With the blocks in this order of block calls; one may be left out or named several times.

        In a plan with norms or adapters these stay where they are, and blocks take one another's places with
        the streams of the place; the order then has one entry for each place.
        """
        depths = [self.call_depth(d) for d in order]
        if len(self.blocks) == len(self.calls) and self.streams == {RESID}:
            return Plan(tuple(self.blocks[d] for d in depths))
        if len(depths) != self.n_calls:
            raise Refused(
                f"This plan has norms or adapters between its {self.n_calls} block calls, and an order of "
                f"{len(depths)} does not say where they go; use skip and repeat to change their number."
            )
        return self._in_places(depths)

    def keep_first(self, n: int) -> Plan:
        """Only the first `n` block calls."""
        return self.skip(*range(self._count(n), self.n_calls))

    def keep_last(self, n: int) -> Plan:
        """Only the last `n` block calls."""
        return self.skip(*range(self.n_calls - self._count(n)))

    def drop(self, first: int, last: int) -> Plan:
        """Without the block calls from `first` through `last`."""
        return self.skip(*self._span(first, last))

    def every(self, step: int, start: int = 0) -> Plan:
        """Only every `step`-th block call, from `start` on."""
        if step < 1:
            raise Refused(f"Every {step}th call cannot be kept; give a step of 1 or more.")
        return self.skip(*(d for d in range(self.n_calls) if d < start or (d - start) % step))

    def reverse(self, first: int = 0, last: int = -1) -> Plan:
        """With the blocks from `first` through `last` in reverse order."""
        return self._reordered(self._span(first, last), lambda order: order[::-1])

    def shuffle(self, first: int = 0, last: int = -1, *, seed: int) -> Plan:
        """With the blocks from `first` through `last` in a random order."""
        draw = random.Random(f"shuffle {seed}")
        return self._reordered(self._span(first, last), lambda order: draw.sample(order, len(order)))

    def random_subset(self, k: int, *, seed: int) -> Plan:
        """Only `k` of the block calls, drawn at random, in their order."""
        chosen = random.Random(f"subset {seed}").sample(range(self.n_calls), self._count(k))
        return self.skip(*(d for d in range(self.n_calls) if d not in chosen))

    def parallel(self, first: int, last: int, times: int = 1, *, combine: str = "mean") -> Plan:
        """With the blocks from `first` through `last` side by side on one input, `times` times in a row.

        Args:
            first, last: depths of the first and last block call, both held.
            times: how often; more than once is the looped parallel.
            combine: "mean", (1/k) sum block_i(x), or "sum", x + sum (block_i(x) - x).
        Raises: Refused for calls that do not read and write the residual stream alone.
        """
        if times < 1:
            raise Refused(f"A parallel range runs once or more; got {times} times.")
        span = self._span(first, last)
        begin, end = self.first_call(span[0]), self.first_call(span[-1]) + 1
        step = side_by_side(self.calls[begin:end], combine)
        return Plan(self.calls[:begin] + step * times + self.calls[end:])

    def _count(self, n: int) -> int:
        if not 0 <= n <= self.n_calls:
            raise Refused(f"This plan has {self.n_calls} block calls, of which 0 to all are kept or dropped.")
        return n

    def _span(self, first: int, last: int) -> range:
        start, stop = self.call_depth(first), self.call_depth(last)
        if stop < start:
            raise Refused(f"A range goes from its first call to its last; got {first} to {last}.")
        return range(start, stop + 1)

    def _reordered(self, span: range, order: Callable[[list[int]], list[int]]) -> Plan:
        depths = list(range(self.n_calls))
        depths[span.start : span.stop] = order(list(span))
        return self.permute(depths)

    def _in_places(self, depths: Sequence[int | None]) -> Plan:
        """For the place of each block call the depth whose block runs there, None for no call."""
        blocks, wanted = self.blocks, iter(depths)
        calls: list[Call] = []
        for call in self.calls:
            if call.kind != "block":
                calls.append(call)
            elif (depth := next(wanted)) is not None:
                calls.append(replace(call, module=blocks[depth].module))
        return Plan(tuple(calls))

    def call_depth(self, call: int | tuple[str, int, int]) -> int:
        """Depth of a block call, negative from the end or (group, block, step).

        Raises: NoSuchCall where there is no such call.
        """
        if isinstance(call, tuple):
            return self.depth(call)
        if not -self.n_calls <= call < self.n_calls:
            raise NoSuchCall(f"There is no block call {call}: this plan has calls 0 to {self.n_calls - 1}.")
        return call % self.n_calls

    @classmethod
    def parse(cls, text: str, intact: Plan) -> Plan:
        """The plan that a text means, such as `0-2, 1 x5, 3` or `skip 3`; see `plan_text`.

        Args:
            text: what `str` or `text` of a plan gives, or a change of the intact plan; case and spacing are
                free, and `(D=9)` at the end is checked where it stands.
            intact: the model's own plan, which changes begin with; a module is called with the streams that
                its first call there has.
        Raises: Refused for a text that is no plan of such a model.
        """
        changes = read_changes(text)
        if changes is not None:
            for change in changes:
                intact = change(intact)
            return intact
        calls, depth = read_calls(text, intact.calls)
        plan = cls(calls)
        if depth is not None and depth != plan.n_calls:
            raise Refused(f"The plan {text!r} says D={depth} and has {plan.n_calls} block calls.")
        return plan

    @property
    def text(self) -> str:
        """Its calls in short, `0-2, 1 x5, 3`; `parse` reads it."""
        return write_calls(self.calls)

    def __str__(self) -> str:
        return f"{write_calls(self.calls, groups=True)} (D={self.n_calls})"
