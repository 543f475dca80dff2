"""What a session has spent, and what it may still spend."""

from __future__ import annotations

import math
from dataclasses import dataclass

from interpcore.agent.options import Budget, SessionOptions

NEARLY = 0.8  # of a limit: the policy is told


@dataclass(frozen=True)
class Spend:
    """Work done, in the budget's units. Tokens are held where a server may have been paid for an answer that
    nobody saw, or did not say how many there were: as many as there can be.

    Attributes:
        calls: requests sent.
        tokens_in, tokens_out: prompt and completion tokens that servers reported.
        held_in, held_out: tokens at most of requests whose number is unknown.
        forwards: tokens times block calls of the model under study.
    """

    calls: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    held_in: int = 0
    held_out: int = 0
    forwards: int = 0

    def __add__(self, other: Spend) -> Spend:
        return Spend(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


@dataclass(frozen=True)
class Account:
    """A budget against what was spent and what is set aside.

    Attributes:
        limits: what may be spent.
        prices: of a prompt and of a completion token; None where there are none.
        spent: what was spent.
        seconds: wall time so far.
        reserved: forwards set aside for confirming claims, with the time that they take at that pace.
        pace: seconds that a forward has taken so far.
    """

    limits: Budget
    prices: tuple[float, float] | None
    spent: Spend = Spend()
    seconds: float = 0.0
    reserved: int = 0
    pace: float = 0.0

    @classmethod
    def of(cls, options: SessionOptions) -> Account:
        """The account of a session that has spent nothing."""
        if options.price_in is None or options.price_out is None:
            return cls(options.limits, None)
        return cls(options.limits, (options.price_in / 1e6, options.price_out / 1e6))

    def money(self, tokens_in: int, tokens_out: int) -> float:
        """What tokens cost; 0 where there are no prices."""
        return 0.0 if self.prices is None else tokens_in * self.prices[0] + tokens_out * self.prices[1]

    def used(self) -> dict[str, float]:
        """What counts against each limit, by its name."""
        spent = self.spent
        tokens_in, tokens_out = spent.tokens_in + spent.held_in, spent.tokens_out + spent.held_out
        return {
            "calls": spent.calls,
            "prompt_tokens": tokens_in,
            "completion_tokens": tokens_out,
            "money": self.money(tokens_in, tokens_out),
            "seconds": self.seconds + self.reserved * self.pace,
            "forwards": spent.forwards + self.reserved,
        }

    def left(self, name: str) -> float:
        """What is left below a limit; infinity where there is none."""
        limit = getattr(self.limits, name)
        return math.inf if limit is None else limit - self.used()[name]

    def over(self, **asked: float) -> str | None:
        """The limit that asking for so much more would overshoot, in a sentence; None where it fits."""
        for name, amount in asked.items():
            if amount > self.left(name):
                limit = getattr(self.limits, name)
                words = name.replace("_", " ")
                return (
                    f"this may take {amount:.6g} {words}; of {limit:.6g}, {max(self.left(name), 0):.6g} are "
                    "left"
                )
        return None

    def exhausted(self) -> str | None:
        """The name of a limit that is reached; None where all have something left."""
        used = self.used()
        return next((name for name, limit in self.limits.items().items() if used[name] >= limit), None)

    def nearly(self) -> list[str]:
        """Names of the limits of which four fifths are used."""
        used = self.used()
        return [name for name, limit in self.limits.items().items() if used[name] >= NEARLY * limit]
