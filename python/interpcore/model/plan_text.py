"""Plans as text: what `str(plan)` writes and every command takes.

A plan is its calls in order, `0-2, 1 x5, 3`: block numbers and ranges (3-1 runs down), `x5` for five times in
a row, `(1-2) x3` for a range looped, `mean(1-3)` and `sum(1-3)` for blocks side by side, `none` for no block.
`core 0-3` names the group of blocks where a model has several, and other modules stand under their names. Or
it is what is done to the model's own plan: `skip 3`, `repeat 1 x5 then swap 0 2`, see `PHRASES`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

from interpcore.errors import Refused
from interpcore.model.call import Call, begins_side_by_side, side_by_side

LEAST_LOOP = 3
"""Repetitions from which several calls in a row are written as a loop."""
LONGEST = 10_000
"""Calls of a plan at most: a slip in a number should not fill the memory."""

_NUMBER = r"\d{1,6}"
_RANGE = rf"(-?{_NUMBER})(?: ?- ?({_NUMBER}))?"
_Change = Callable[..., Any]
_Unit = str | tuple[str, tuple[str, ...]]
"""A module, or a combiner with the blocks side by side that it combines."""
_Times = tuple[_Unit, int]


class Phrase(NamedTuple):
    """One way to change a plan: as it is written, its pattern, and the change, of a plan and the groups."""

    written: str
    pattern: str
    change: _Change


def _ends(first: str, last: str | None) -> tuple[int, int]:
    return int(first), int(first if last is None else last)


PHRASES = (
    Phrase("intact", r"intact|identity", lambda p: p),
    Phrase("keep first 2", rf"keep first ({_NUMBER})", lambda p, n: p.keep_first(int(n))),
    Phrase("keep last 2", rf"keep last ({_NUMBER})", lambda p, n: p.keep_last(int(n))),
    Phrase("drop first 2", rf"drop first ({_NUMBER})", lambda p, n: p.keep_last(p.n_calls - int(n))),
    Phrase("drop last 2", rf"drop last ({_NUMBER})", lambda p, n: p.keep_first(p.n_calls - int(n))),
    Phrase("skip 3, skip 1-2", rf"(?:skip|drop) {_RANGE}", lambda p, a, b: p.drop(*_ends(a, b))),
    Phrase("even", r"even", lambda p: p.every(2)),
    Phrase("odd", r"odd", lambda p: p.every(2, 1)),
    Phrase(
        "repeat 1 x5, loop 1-2 x3",
        rf"(?:repeat|loop) {_RANGE} x ?({_NUMBER})",
        lambda p, a, b, m: p.repeat(*_ends(a, b), _times(m)),
    ),
    Phrase("swap 0 1", rf"swap (-?{_NUMBER}) (-?{_NUMBER})", lambda p, a, b: p.swap(int(a), int(b))),
    Phrase("reverse 1-3", rf"reverse {_RANGE}", lambda p, a, b: p.reverse(*_ends(a, b))),
    Phrase(
        "shuffle 1-3 seed 0",
        rf"shuffle {_RANGE} seed ({_NUMBER})",
        lambda p, a, b, s: p.shuffle(*_ends(a, b), seed=int(s)),
    ),
    Phrase(
        "random 2 seed 0",
        rf"random ({_NUMBER}) seed ({_NUMBER})",
        lambda p, k, s: p.random_subset(int(k), seed=int(s)),
    ),
    Phrase(
        "parallel 1-3, parallel sum 1-3 x2",
        rf"parallel (?:(mean|sum) )?{_RANGE}(?: x ?({_NUMBER}))?",
        lambda p, c, a, b, m: p.parallel(*_ends(a, b), _times(m or "1"), combine=c or "mean"),
    ),
)
_WORDS = re.compile(
    "(intact|identity|keep|drop|skip|even|odd|repeat|loop|swap|reverse|shuffle|random|parallel)\\b", re.I
)


def read_changes(text: str) -> list[_Change] | None:
    """What a text does to a plan, change by change, each from a plan to a plan.

    Returns: None for a text that lists calls.
    Raises: Refused for a text that begins as a change and is none.
    """
    plain = " ".join(text.split()).lower()
    if not _WORDS.match(plain):
        return None
    return [_change(phrase.strip()) for phrase in re.split(r" then |; ?", plain)]


def _change(text: str) -> _Change:
    for phrase in PHRASES:
        if found := re.fullmatch(phrase.pattern, text):
            return partial(_changed, phrase.change, found.groups())
    written = ", ".join(phrase.written for phrase in PHRASES)
    raise Refused(f"{text!r} is no change of a plan; there are: {written}.")


def _changed(change: _Change, groups: tuple[str, ...], plan: Any) -> Any:
    return change(plan, *groups)


def read_calls(text: str, known: Sequence[Call]) -> tuple[tuple[Call, ...], int | None]:
    """The calls that a text lists.

    Args:
        text: see the module; case and spacing are free.
        known: the calls of the model's own plan, in order.
    Returns: the calls, and D where the text says `(D=9)` at its end.
    Raises: Refused for a text that is no list, and for blocks that the model does not have.
    """
    plain = " ".join(text.split())
    listed, _, depth = re.fullmatch(rf"(.*?)( ?\(D=({_NUMBER})\))?", plain).groups()  # type: ignore[union-attr]
    return tuple(_Reader(listed, known).calls()), None if depth is None else int(depth)


def _times(text: str) -> int:
    if int(text) > LONGEST:
        raise Refused(f"x{text} is more than a plan can hold; give at most x{LONGEST}.")
    return int(text)


class _Reader:
    """A list of calls, read from left to right."""

    def __init__(self, text: str, known: Sequence[Call]):
        self.text, self.at = text, 0
        self.known: dict[str, Call] = {}
        for call in known:
            self.known.setdefault(call.module, call)
        blocks = [c.module.rpartition(".")[0] for c in known if c.kind == "block"]
        self.groups = list(dict.fromkeys(blocks)) or ["block"]

    def calls(self) -> list[Call]:
        """Every call of the text."""
        if self.text.strip().lower() == "none":
            return []
        found = self._list()
        if self.at < len(self.text):
            self._refuse("a comma")
        return found

    def _list(self) -> list[Call]:
        found = self._item()
        while self._take(r" ?, ?"):
            found += self._item()
            self._check_length(len(found))
        return found

    def _item(self) -> list[Call]:
        if word := self._take(r"(mean|sum) ?\( ?"):
            unit = list(side_by_side(self._list(), word[1]))
            self._close()
        elif self._take(r"\( ?"):
            unit = self._list()
            self._close()
        else:
            unit = self._named()
        times = _times(found[1]) if (found := self._take(rf" ?x ?({_NUMBER})\b")) else 1
        self._check_length(len(unit) * times)
        return unit * times

    def _named(self) -> list[Call]:
        if found := self._take(rf"(?:([A-Za-z_][\w.]*) )?({_NUMBER})(?: ?- ?({_NUMBER}))?(?![\w.])"):
            group, first, last = found.groups()
            if group is None and len(self.groups) > 1:
                raise Refused(
                    f"This model has blocks of {', '.join(self.groups)}; say whose block {first} is, as in "
                    f"{self.groups[0]} {first}."
                )
            group = group or self.groups[0]
            a, b = int(first), int(first if last is None else last)
            self._check_length(abs(a - b))
            step = 1 if b >= a else -1
            return [self._call(f"{group}.{i}") for i in range(a, b + step, step)]
        if found := self._take(r"[A-Za-z_][\w.]*"):
            return [self._call(found[0])]
        return self._refuse("a block, a range or a module")

    def _call(self, module: str) -> Call:
        if module not in self.known:
            group, _, index = module.rpartition(".")
            count = sum(name.rpartition(".")[0] == group for name in self.known)
            has = f"{group} 0 to {count - 1}" if count and index.isdecimal() else ", ".join(self.known)
            raise Refused(f"This model has no {module.replace('.', ' ')}; it has {has}.")
        return self.known[module]

    def _close(self) -> None:
        if not self._take(r" ?\)"):
            self._refuse("a closing bracket")

    def _take(self, pattern: str) -> re.Match[str] | None:
        found = re.compile(pattern).match(self.text, self.at)
        if found:
            self.at = found.end()
        return found

    def _refuse(self, wanted: str) -> list[Call]:
        before, rest = self.text[: self.at], self.text[self.at :]
        where = f"after {before!r}" if before else "at its beginning"
        raise Refused(
            f"The plan {self.text!r} has {rest[:20]!r} {where}, where {wanted} should stand; a plan reads "
            "like 0-2, 1 x5, 3."
        )

    def _check_length(self, count: int) -> None:
        if count > LONGEST:
            raise Refused(f"The plan {self.text[:40]!r} has more than {LONGEST} calls.")


def write_calls(calls: Sequence[Call], *, groups: bool = False) -> str:
    """The calls of a plan as `read_calls` reads them.

    Args:
        calls: of a plan, in order.
        groups: name the group of every block; False leaves "block" out.
    """
    units: list[_Unit] = []
    rest = list(calls)
    while rest:
        beside = begins_side_by_side(rest)
        units.append(rest[0].module if beside is None else beside)
        del rest[: 1 if beside is None else len(beside[1]) + 1]
    return ", ".join(_written([(unit, len(list(same))) for unit, same in groupby(units)], groups)) or "none"


def _written(units: list[_Times], groups: bool) -> list[str]:
    """Units in order, runs of them compressed."""
    out: list[str] = []
    at = start = 0
    while at < len(units):
        period, times = _loop(units, at)
        if times < LEAST_LOOP:
            at += 1
            continue
        out += _runs(units[start:at], groups)
        out.append(f"({', '.join(_runs(units[at : at + period], groups))}) x{times}")
        at = start = at + period * times
    return out + _runs(units[start:], groups)


def _loop(units: list[_Times], at: int) -> tuple[int, int]:
    """The period, of two units or more, that repeats most often from `at` on, and how often."""
    best = 1, 1
    for period in range(2, (len(units) - at) // LEAST_LOOP + 1):
        unit, times = units[at : at + period], 1
        while units[at + period * times : at + period * (times + 1)] == unit:
            times += 1
        best = (period, times) if times > best[1] else best
    return best


def _runs(units: list[_Times], groups: bool) -> list[str]:
    """Ranges of blocks, and repeats as `x5`."""
    out: list[str] = []
    first: tuple[str, int] | None = None  # of the range that `out` ends with
    last = "", -1
    for unit, times in units:
        if not isinstance(unit, str):
            beside: list[_Times] = [(module, 1) for module in unit[1]]
            name, number = f"{unit[0]}({', '.join(_runs(beside, groups))})", None
        else:
            group, _, index = unit.rpartition(".")
            number = (group, int(index)) if group and index.isdecimal() else None
            shown = f"{group} " if groups or group != "block" else ""
            name = unit if number is None else f"{shown}{index}"
        if times == 1 and number is not None and first is not None and number == (last[0], last[1] + 1):
            out[-1] = f"{out[-1].partition('-')[0]}-{number[1]}"
        else:
            out.append(name if times == 1 else f"{name} x{times}")
            first = number if times == 1 else None
        last = number or ("", -1)
    return out
