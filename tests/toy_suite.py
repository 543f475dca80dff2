"""A suite of trials without a family: coins, for what trials do whatever they measure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from interpcore.generalize import Context, Measured, Suite, Trial, trial
from interpcore.runs.options import Options, option

SHUFFLED, OTHER = "shuffled labels", "other coin"
CALLS: list[tuple[str, str]] = []
"""Every call of a trial: its id and control."""


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """Rates of the coins."""

    rate: float = option(0.95, "Of the coin.")
    shuffled: float = option(0.1, "Under shuffled labels.")
    other: float = option(0.1, "Of the other coin.")
    units: int = option(40, "Coins thrown.")


class Coins(Context):
    """Throws coins."""

    controls: ClassVar[tuple[str, ...]] = (*Context.controls, SHUFFLED, OTHER)

    @classmethod
    def data(cls, setting: Any) -> Mapping[str, str]:
        return {"coins": "0123"}

    def throw(self) -> Measured:
        CALLS.append((self.trial.id, self.control))
        options = self.setting.options
        rate = {SHUFFLED: options.shuffled, OTHER: options.other}.get(self.control, options.rate)
        n = 0 if self.control == "untrained" else options.units
        hits = np.arange(n) < round(rate * n)
        return Measured(hits, [f"coin {i}" for i in range(n)], facts={"n_test": np.int64(n)})


ABOUT: dict[str, Any] = {"suite": "coins", "finding": "the coin falls on heads", "unit": "coin"}


@trial(
    **ABOUT,
    id="K1",
    criterion="GT1",
    threshold=0.6,
    least_units=19,
    controls=("untrained", SHUFFLED),
    beside=(OTHER,),
)
def heads(context: Coins) -> Measured:
    """Share of heads."""
    return context.throw()


@trial(**ABOUT, id="K2", criterion="GT2", threshold=0.6, least_units=19, controls=(SHUFFLED,))
def heads_again(context: Coins) -> Measured:
    """Share of heads on reserved coins."""
    context.mark_reserve("coins")
    return context.throw()


def suite(*trials: Trial) -> Suite:
    """The suite, of these trials."""
    given = trials or (heads, heads_again)
    return Suite(name="coins", finding="heads", trials=given, context=Coins, settings=Settings)


def made(measure: Any, **more: Any) -> Trial:
    """A trial of a function, GT2 and otherwise as `heads`."""
    said: dict[str, Any] = {"id": "X", "criterion": "GT2", "threshold": 0.6, "least_units": 5}
    return trial(**ABOUT, **(said | more))(measure)
