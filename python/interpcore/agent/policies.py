"""Policies without a language model. Each is a coroutine that asks for tool calls and is sent their results,
so that it is the same whether it ran through or was killed and fed again from the ledger."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from interpcore.agent.instrument import Instrument, listed, without
from interpcore.agent.options import SessionOptions

Call = tuple[str, dict[str, Any]]
Asked = list[Call]
Steps = Generator[Asked, list[dict[str, Any]], Any]
MOST_PAIRS = 8  # blocks up to which all pairs are tried; else neighbours


@dataclass(frozen=True)
class View:
    """What an offline policy knows before it asks: what the card says.

    Attributes:
        depth: blocks of the intact plan.
        options: the session's.
    """

    depth: int
    options: SessionOptions

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """Pairs of blocks to try."""
        if self.depth <= MOST_PAIRS:
            return list(combinations(range(self.depth), 2))
        return [(i, i + 1) for i in range(self.depth - 1)]

    def swapped(self, i: int, j: int) -> str:
        """The plan with two blocks exchanged."""
        order = list(range(self.depth))
        order[i], order[j] = j, i
        return listed(order)


@dataclass(frozen=True)
class Seen:
    """What a run said: its id, the intact one's, and the metric's change with its interval."""

    run: str
    intact: str
    change: float
    low: float
    high: float

    def breaks(self, options: SessionOptions) -> bool:
        """Whether the task is broken, beyond chance."""
        return self.low > options.least

    def preserves(self, options: SessionOptions) -> bool:
        """Whether the metric rises by less than `within`, beyond chance."""
        return self.high < options.within

    def stays(self, options: SessionOptions) -> bool:
        """Whether the metric changes by less than `within` either way, beyond chance."""
        return self.preserves(options) and self.low > -options.within


def _measured(
    view: View, task: str, plans: Sequence[str], n: int | None = None, before: Sequence[Call] = ()
) -> Steps:
    """Call `before`, then run plans; gives what each said, None where it was refused."""
    options = view.options
    asked: Asked = [
        ("run", {"plan": plan, "task": task, "n": n or options.items, "seed": options.seed}) for plan in plans
    ]
    results = (yield [*before, *asked]) if asked else []
    found: list[Seen | None] = []
    for result in results[len(before) :]:
        if "error" in result:
            found.append(None)
            continue
        change = result["metrics"][options.metric]
        ids = result["ids"]
        found.append(Seen(ids["run"], ids["intact"], change["difference"], change["low"], change["high"]))
    return found


def _tasks(view: View) -> Steps:
    """Names of the tasks that the intact model does."""
    [result] = yield [("list_tasks", {})]
    return [task["task"] for task in result.get("tasks", ()) if task["done"]]


def _claim(kind: str, task: str, runs: Sequence[Seen | None], **about: Any) -> Call:
    cited = [seen.run for seen in runs if seen is not None]
    return "claim", {"type": kind, "task": task, "runs": cited, **about}


def _single_claims(view: View, task: str, singles: dict[int, Seen | None]) -> Asked:
    """What skipping single blocks shows of each."""
    claims: Asked = []
    for block, seen in singles.items():
        if seen is not None and seen.breaks(view.options):
            claims.append(_claim("matters", task, [seen], blocks=[block]))
        elif seen is not None and seen.stays(view.options):
            claims.append(_claim("does_not_matter", task, [seen], blocks=[block]))
    return claims


def _prefix_claims(view: View, task: str, prefixes: Mapping[int, Seen | None]) -> Asked:
    """Where the first n blocks preserve a task that the first n - 1 break."""
    claims: Asked = []
    for n in range(1, view.depth + 1):
        after, before = prefixes.get(n), prefixes.get(n - 1)
        if after and before and after.preserves(view.options) and before.breaks(view.options):
            claims.append(_claim("appears_at", task, [after, before], n=n))
    return claims


def _singles(view: View, task: str, blocks: Sequence[int]) -> Steps:
    """Skip blocks, and claim what each skip shows before the next runs, so that what confirming it takes is
    set aside first."""
    singles: dict[int, Seen | None] = {}
    claims: Asked = []
    for block in blocks:
        [seen] = yield from _measured(view, task, [without(view.depth, block)], before=claims)
        singles[block] = seen
        claims = _single_claims(view, task, {block: seen})
    if claims:
        yield claims
    return singles


def grid(view: View) -> Steps:
    """Every single skip, pair, swap and prefix of every task; claims what they show."""
    options, depth = view.options, view.depth
    for task in (yield from _tasks(view)):
        singles = yield from _singles(view, task, range(depth))
        prefixes = yield from _measured(view, task, [listed(range(n)) for n in range(depth + 1)])
        claims = _prefix_claims(view, task, dict(enumerate(prefixes)))
        both = yield from _measured(view, task, [without(depth, *p) for p in view.pairs], before=claims)
        claims = []
        for (i, j), pair in zip(view.pairs, both, strict=True):
            first, second = singles[i], singles[j]
            if first and second and pair and abs(pair.change - first.change - second.change) > options.least:
                claims.append(_claim("interacts", task, [first, second, pair], blocks=[i, j]))
        swaps = yield from _measured(view, task, [view.swapped(*p) for p in view.pairs], before=claims)
        intact, claims = listed(range(depth)), []
        for (i, j), swap in zip(view.pairs, swaps, strict=True):
            if swap and swap.breaks(options):
                claim = _claim("order", task, [swap], plans=[view.swapped(i, j), intact])
                claim[1]["runs"].append(swap.intact)
                claims.append(claim)
        if claims:
            yield claims


def greedy_delete(view: View) -> Steps:
    """Leave out the block whose skip raises the metric least, while the task is preserved; O(D^2) runs."""
    options = view.options
    for task in (yield from _tasks(view)):
        kept = list(range(view.depth))
        singles = yield from _singles(view, task, kept)
        whole: Seen | None = None
        drops = singles
        while kept and all(drops.values()):
            best = min(kept, key=lambda block: drops[block].change)
            if not drops[best].preserves(options):
                break
            whole = drops[best]
            kept.remove(best)
            plans = [listed([k for k in kept if k != block]) for block in kept]
            drops = dict(zip(kept, (yield from _measured(view, task, plans)), strict=True))
        yield from _needs(view, task, kept, whole, drops)


def greedy_keep(view: View) -> Steps:
    """Add the block that lowers the metric most until the task is there; then leave out what it can spare."""
    options = view.options
    for task in (yield from _tasks(view)):
        kept: list[int] = []
        whole: Seen | None = None
        while len(kept) < view.depth and not (whole and whole.preserves(options)):
            others = [block for block in range(view.depth) if block not in kept]
            plans = [listed(sorted([*kept, block])) for block in others]
            seen = dict(zip(others, (yield from _measured(view, task, plans)), strict=True))
            known = {block: each for block, each in seen.items() if each}
            if not known:
                break
            best = min(known, key=lambda block: known[block].change)
            whole = known[best]
            kept = sorted([*kept, best])
        if not (whole and whole.preserves(options)):
            continue
        drops: dict[int, Seen | None] = {}
        while kept:
            plans = [listed([k for k in kept if k != block]) for block in kept]
            drops = dict(zip(kept, (yield from _measured(view, task, plans)), strict=True))
            spare = [block for block in kept if (each := drops[block]) and each.preserves(options)]
            if not spare:
                break
            kept.remove(spare[0])
            whole = drops[spare[0]]
        yield from _needs(view, task, kept, whole, drops)


def _needs(
    view: View, task: str, kept: list[int], whole: Seen | None, drops: dict[int, Seen | None]
) -> Steps:
    """Claim that the kept blocks are what a task needs, where the runs show it."""
    last = [drops.get(block) for block in kept]
    if not kept or not all(each and each.breaks(view.options) for each in last):
        return
    cited = [each.run for each in last if each]
    first = next(each for each in last if each)
    cited.append(first.intact if whole is None else whole.run)
    yield [("claim", {"type": "needs", "task": task, "runs": cited, "blocks": kept})]


def bisect(view: View) -> Steps:
    """The shortest prefix that preserves a task, by halving; its neighbours are looked at, as the metric
    falls with depth only nearly."""
    options = view.options
    for task in (yield from _tasks(view)):
        known: dict[int, Seen | None] = {}

        def look(lengths: Sequence[int], task: str = task, known: dict[int, Seen | None] = known) -> Steps:
            new = [n for n in lengths if n not in known and 0 <= n <= view.depth]
            seen = yield from _measured(view, task, [listed(range(n)) for n in new])
            known.update(zip(new, seen, strict=True))

        low, high = 0, view.depth
        while high - low > 1:
            middle = (low + high) // 2
            yield from look([middle])
            each = known[middle]
            if each is None:
                break
            low, high = (low, middle) if each.preserves(options) else (middle, high)
        yield from look([high - 2, high - 1, high, high + 1])
        claims = _prefix_claims(view, task, known)
        if claims:
            yield claims


def halving(view: View) -> Steps:
    """Successive halving over single skips: items doubled, the worse half dropped; claims of what is left."""
    options = view.options
    for task in (yield from _tasks(view)):
        alive, n = list(range(view.depth)), max(options.items // 2, 2)
        seen: dict[int, Seen | None] = {}
        while alive:
            plans = [without(view.depth, block) for block in alive]
            seen = dict(zip(alive, (yield from _measured(view, task, plans, n)), strict=True))
            alive = [block for block in alive if seen[block] is not None]
            if n >= options.items or not alive:
                break
            alive.sort(key=lambda block: seen[block].change)  # type: ignore[union-attr]  # alive have run
            alive, n = alive[: (len(alive) + 1) // 2], 2 * n
        claims = _single_claims(view, task, {block: seen[block] for block in sorted(alive)})
        if claims:
            yield claims


def chance(view: View) -> Steps:
    """Skips and prefixes drawn at random, half as many as there are blocks; claims what they show."""
    draw = random.Random(f"policy {view.options.seed}")
    for task in (yield from _tasks(view)):
        blocks = sorted(draw.sample(range(view.depth), (view.depth + 1) // 2))
        yield from _singles(view, task, blocks)
        n = draw.randint(1, view.depth)
        seen = yield from _measured(view, task, [listed(range(n - 1)), listed(range(n))])
        claims = _prefix_claims(view, task, {n - 1: seen[0], n: seen[1]})
        if claims:
            yield claims


def guess(view: View) -> Steps:
    """Never looks at a result: the outer blocks matter, one in the middle does not, whatever the runs say."""
    depth, middle = view.depth, view.depth // 2
    for task in (yield from _tasks(view)):
        blocks = sorted({0, middle, depth - 1})
        plans = [without(depth, block) for block in blocks]
        singles = dict(zip(blocks, (yield from _measured(view, task, plans)), strict=True))
        kinds = {block: "does_not_matter" if block == middle else "matters" for block in blocks}
        yield [_claim(kinds[block], task, [seen], blocks=[block]) for block, seen in singles.items() if seen]


POLICIES: dict[str, Callable[[View], Steps]] = {
    "grid": grid,
    "greedy-delete": greedy_delete,
    "greedy-keep": greedy_keep,
    "halving": halving,
    "bisect": bisect,
    "random": chance,
    "guess": guess,
}


class Offline:
    """A coroutine in the place of a server: answers requests in the same form.

    Args:
        name: of the policy.
        instrument: what is measured with.
        options: the session's.
    """

    source = "policy"

    def __init__(self, name: str, instrument: Instrument, options: SessionOptions) -> None:
        self._steps = POLICIES[name](View(instrument.blocks, options))
        self._fed = -1

    def answer(self, transcript: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The next message, after the results of those before it."""
        turns: list[list[dict[str, Any]]] = []
        for message in transcript:
            if message["role"] == "assistant":
                turns.append([])
            elif message["role"] == "tool":
                turns[-1].append(json.loads(message["content"]))
        asked: Asked = []
        try:
            while self._fed < len(turns):
                asked = next(self._steps) if self._fed < 0 else self._steps.send(turns[self._fed])
                self._fed += 1
        except StopIteration:
            asked = [("finish", {"summary": "What the claims say.", "claims": []})]
        calls = [
            {"type": "function", "function": {"name": name, "arguments": json.dumps(arguments)}}
            for name, arguments in asked
        ]
        return {"choices": [{"message": {"role": "assistant", "content": None, "tool_calls": calls}}]}
