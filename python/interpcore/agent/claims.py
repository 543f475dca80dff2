"""Typed claims: what each says, which runs it needs, and the test that decides it. The harness decides."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpcore.agent.instrument import Instrument, listed, task_named, without
from interpcore.errors import Refused
from interpcore.runs.options import Options, option
from interpcore.stats.paired_mean import PairedMean

TYPES = ("matters", "does_not_matter", "needs", "appears_at", "interacts", "order")
Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Claim(Options):
    """A claim, as a policy states it. Effects are changes of the session's metric against the intact plan on
    the same items."""

    type: str = option(
        ...,
        "matters: skipping the block raises the metric by at least `least`; does_not_matter: skipping it "
        "changes the metric by less than `within`; needs: keeping only these blocks preserves the task and "
        "leaving out any one of them breaks it; appears_at: the first n blocks preserve the task and the "
        "first n - 1 break it; interacts: skipping both blocks differs from the sum of skipping each by at "
        "least `least`; order: the first plan raises the metric more than the second.",
        choices=TYPES,
    )
    task: str = option(..., "The task that it is about.")
    runs: tuple[str, ...] = option(..., "Ids of the runs that show it.")
    blocks: tuple[int, ...] = option(
        (), "One block for matters and does_not_matter, two for interacts, all of them for needs."
    )
    n: int | None = option(None, "For appears_at: how many first blocks.", least=1)
    plans: tuple[str, ...] = option((), "For order: the worse plan, then the better one.")

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = {"matters": 1, "does_not_matter": 1, "interacts": 2}.get(self.type)
        many = len(set(self.blocks))
        if many != len(self.blocks):
            raise Refused(f"blocks is {list(self.blocks)}; name each block once.")
        if wanted is not None and many != wanted:
            raise Refused(f"blocks is {list(self.blocks)}; {self.type} is about {wanted}.")
        if self.type == "needs" and not many:
            raise Refused("blocks is empty; needs is about at least one.")
        if self.type == "appears_at" and self.n is None:
            raise Refused("n is needed for appears_at: how many first blocks.")
        if self.type == "order" and len(self.plans) != 2:
            raise Refused("plans is needed for order: the worse plan, then the better one.")

    @property
    def about(self) -> dict[str, Any]:
        """What it says, without the runs that it cites."""
        said = {"type": self.type, "task": self.task, "blocks": list(self.blocks), "n": self.n}
        if self.type == "needs" or self.type == "interacts":
            said["blocks"] = sorted(self.blocks)
        return {**said, "plans": list(self.plans)}

    def needed(self, instrument: Instrument) -> tuple[str, ...]:
        """The plans whose effects decide it, in the order that `effects` and `decide` take them.

        Raises: Refused for a task, block or plan that is not there.
        """
        task_named(instrument, self.task)
        depth = instrument.blocks
        outside = [block for block in self.blocks if not 0 <= block < depth]
        if outside or (self.n or 0) > depth:
            said = f"n is {self.n}" if not outside else f"blocks names {outside[0]}"
            raise Refused(f"{said}; this model has blocks 0 to {depth - 1}.")
        if self.type == "needs":
            kept = sorted(self.blocks)
            plans = [listed(kept), *(listed([k for k in kept if k != block]) for block in kept)]
        elif self.type == "appears_at":
            assert self.n is not None
            plans = [listed(range(self.n)), listed(range(self.n - 1))]
        elif self.type == "interacts":
            first, second = self.blocks
            plans = [without(depth, first), without(depth, second), without(depth, first, second)]
        elif self.type == "order":
            plans = list(self.plans)
        else:
            plans = [without(depth, self.blocks[0])]
        return tuple(instrument.plan(plan) for plan in plans)


@dataclass(frozen=True)
class Finding:
    """What the items say of a claim.

    Attributes:
        p: of the claim being false, from one-sided tests; for a claim of several parts the largest.
        against: of the claim being true.
        estimate, low, high: the effect that decides it (of several parts the weakest), with its 95% interval.
        n: items.
    """

    p: float
    against: float
    estimate: float
    low: float
    high: float
    n: int

    def verdict(self, level: float) -> str:
        """At a level and for this claim alone: "supported", "refuted" or "undecided"."""
        if self.p <= level:
            return "supported"
        return "refuted" if self.against <= level else "undecided"


def decide(claim: Claim, effects: Sequence[Array], *, least: float, within: float) -> Finding:
    """Test a claim on the effects of its plans.

    A claim of several parts is true where all are, so that its p-value is the largest of theirs
    (intersection-union); equivalence is two one-sided tests.

    Args:
        claim: what is tested.
        effects: for each plan of `claim.needed`, the change of the metric per item [items].
        least: what breaks a task.
        within: what preserves it.
    """
    if claim.type == "matters":
        parts = [_rises(effects[0], least)]
    elif claim.type == "does_not_matter":
        parts = [_stays(effects[0], within)]
    elif claim.type in ("needs", "appears_at"):
        parts = [_preserves(effects[0], within), *(_rises(each, least) for each in effects[1:])]
    elif claim.type == "interacts":
        parts = [_apart(effects[2] - effects[0] - effects[1], least)]
    else:
        parts = [_rises(effects[0] - effects[1], 0.0)]
    weakest, p, _ = max(parts, key=lambda part: part[1])
    against = min(1.0, len(parts) * min(part[2] for part in parts))  # one false part refutes the whole
    return Finding(p, against, weakest.value, *weakest.interval(), weakest.n)


Part = tuple[PairedMean, float, float]  # a mean, and the p-values of the part being false and true


def _rises(values: Array, bound: float) -> Part:
    mean = PairedMean(values)
    return mean, mean.above(bound), mean.below(bound)


def _preserves(values: Array, within: float) -> Part:
    mean = PairedMean(values)
    return mean, mean.below(within), mean.above(within)


def _stays(values: Array, within: float) -> Part:
    mean = PairedMean(values)
    inside = max(mean.below(within), mean.above(-within))
    return mean, inside, min(1.0, 2 * min(mean.above(within), mean.below(-within)))


def _apart(values: Array, least: float) -> Part:
    mean = PairedMean(values)
    beyond = min(1.0, 2 * min(mean.above(least), mean.below(-least)))
    return mean, beyond, max(mean.below(least), mean.above(-least))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values (1979), in the order given: reject those at most the level, and the chance of
    any false rejection is at most that."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    adjusted, so_far = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = so_far
    return adjusted
