"""The plans that layer surgery runs: parts kept or dropped, and blocks moved, mixed up or put side by side.

`Plan` has these as methods. Ranges hold both of their ends, depths may be negative from the end.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

from interpcore.errors import Refused
from interpcore.model.combine import BRANCH, COMBINERS

if TYPE_CHECKING:
    from interpcore.model.plan import Plan


def keep_first(plan: Plan, n: int) -> Plan:
    """Only the first `n` block calls."""
    return plan.skip(*range(_count(plan, n), plan.n_calls))


def keep_last(plan: Plan, n: int) -> Plan:
    """Only the last `n` block calls."""
    return plan.skip(*range(plan.n_calls - _count(plan, n)))


def drop(plan: Plan, first: int, last: int) -> Plan:
    """Without the block calls from `first` through `last`."""
    return plan.skip(*_span(plan, first, last))


def every(plan: Plan, step: int, start: int = 0) -> Plan:
    """Only every `step`-th block call, from `start` on."""
    if step < 1:
        raise Refused(f"Every {step}th call cannot be kept; give a step of 1 or more.")
    return plan.skip(*(d for d in range(plan.n_calls) if d < start or (d - start) % step))


def reverse(plan: Plan, first: int = 0, last: int = -1) -> Plan:
    """With the blocks from `first` through `last` in reverse order."""
    return _reordered(plan, _span(plan, first, last), lambda order: order[::-1])


def shuffle(plan: Plan, first: int = 0, last: int = -1, *, seed: int) -> Plan:
    """With the blocks from `first` through `last` in a random order."""
    draw = random.Random(f"shuffle {seed}")
    return _reordered(plan, _span(plan, first, last), lambda order: draw.sample(order, len(order)))


def random_subset(plan: Plan, k: int, *, seed: int) -> Plan:
    """Only `k` of the block calls, drawn at random, in their order."""
    chosen = random.Random(f"subset {seed}").sample(range(plan.n_calls), _count(plan, k))
    return plan.skip(*(d for d in range(plan.n_calls) if d not in chosen))


def parallel(plan: Plan, first: int, last: int, times: int = 1, *, combine: str = "mean") -> Plan:
    """With the blocks from `first` through `last` side by side on one input, `times` times in a row.

    Args:
        first, last: depths of the first and last block call.
        times: how often; more than once is the looped parallel.
        combine: "mean", (1/k) sum block_i(x), or "sum", x + sum (block_i(x) - x).
    Raises: Refused for calls that do not read and write the residual stream alone.
    """
    from interpcore.model.plan import RESID, Call, Plan

    if combine not in COMBINERS:
        raise Refused(f"Blocks side by side are combined by {' or '.join(COMBINERS)}; got {combine!r}.")
    if times < 1:
        raise Refused(f"A parallel range runs once or more; got {times} times.")
    span = _span(plan, first, last)
    begin, end = plan.first_call(span[0]), plan.first_call(span[-1]) + 1
    calls = plan.calls[begin:end]
    if any(c.kind != "block" or (c.reads, c.writes) != ((RESID,), (RESID,)) for c in calls):
        raise Refused(
            f"Depths {span[0]} to {span[-1]} hold more than blocks on the residual stream, which cannot "
            "stand side by side; give a range of plain block calls."
        )
    branches = tuple(f"{BRANCH}{i}" for i in range(len(calls)))
    beside = [Call(c.module, writes=(name,)) for c, name in zip(calls, branches, strict=True)]
    reads = branches if COMBINERS[combine].mean else (RESID, *branches)
    step = (*beside, Call(combine, "adapter", reads=reads))
    return Plan(plan.calls[:begin] + step * times + plan.calls[end:])


def _count(plan: Plan, n: int) -> int:
    if not 0 <= n <= plan.n_calls:
        raise Refused(f"This plan has {plan.n_calls} block calls, of which 0 to all are kept or dropped.")
    return n


def _span(plan: Plan, first: int, last: int) -> range:
    start, stop = plan.call_depth(first), plan.call_depth(last)
    if stop < start:
        raise Refused(f"A range goes from its first call to its last; got {first} to {last}.")
    return range(start, stop + 1)


def _reordered(plan: Plan, span: range, order: Callable[[list[int]], list[int]]) -> Plan:
    depths = list(range(plan.n_calls))
    depths[span.start : span.stop] = order(list(span))
    return plan.permute(depths)
