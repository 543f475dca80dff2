"""What a session means: all of it stands in the card before the first call."""

from __future__ import annotations

from dataclasses import dataclass, fields

from interpcore.errors import Refused
from interpcore.runs.options import Options, option

OFFLINE = ("grid", "greedy-delete", "greedy-keep", "halving", "bisect", "random", "guess")
LIMITS = ("calls", "prompt_tokens", "completion_tokens", "money", "seconds", "forwards")
OPTIONAL_FIELDS = ("parallel_tool_calls", "seed", "temperature", "tool_choice")


@dataclass(frozen=True)
class Budget:
    """What a session may spend; None sets no limit.

    Attributes:
        calls: requests to the policy, retries included.
        prompt_tokens, completion_tokens: of a language model.
        money: in the currency of the price table.
        seconds: of wall time.
        forwards: tokens times block calls of the model under study.
    """

    calls: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    money: float | None = None
    seconds: float | None = None
    forwards: int | None = None

    @classmethod
    def read(cls, texts: tuple[str, ...]) -> Budget:
        """A budget out of texts such as "forwards=2000000". Raises: Refused."""
        given: dict[str, float | int] = {}
        for text in texts:
            name, _, value = text.partition("=")
            name = name.strip()
            if name not in LIMITS or name in given:
                raise Refused(
                    f"A budget is given as name=limit, each name once, of {', '.join(LIMITS)}; got {text!r}."
                )
            try:
                number = float(value)
            except ValueError:
                number = -1.0
            if not 0 < number < float("inf"):
                raise Refused(f"The budget {text!r} has no limit above 0; write {name}=1000.")
            whole = name not in ("money", "seconds")
            if whole and number != int(number):
                raise Refused(f"The budget {text!r} counts whole {name.replace('_', ' ')}.")
            given[name] = int(number) if whole else number
        return cls(**given)  # type: ignore[arg-type]  # whole where the field is

    def items(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True, kw_only=True)
class SessionOptions(Options):
    """A session: its goal, its measure, what it may spend, and who decides."""

    goal: str = option(
        "Which blocks does each task need?", "What the session is to find out, as the policy is told it."
    )
    policy: str = option(
        "greedy-delete", "Who decides what to run; llm asks a server.", choices=(*OFFLINE, "llm")
    )
    tasks: tuple[str, ...] = option(
        (), "Tasks to study; unless given, all of a file, or the eleven published kinds.", flag="task"
    )
    tasks_file: str = option(
        "generated", "A file of tasks, as published or with scorers; or 'generated'.", circumstance=True
    )
    experiments: tuple[str, ...] = option(
        (),
        "Experiments that it may run too, such as 'surgery map' or 'lre run'; 'all' for all that serve.",
        flag="experiment",
    )
    data: tuple[str, ...] = option(
        (),
        "Files that experiments read, as option=path, such as tokens=runs/tokens-tiny; a policy names none.",
        circumstance=True,
        commas=False,
    )
    metric: str = option("loss", "What claims are about, fixed before the first run.")
    least: float = option(0.5, "A rise of the metric from which on a plan breaks a task.", above=0)
    within: float = option(0.25, "A change of the metric up to which a plan preserves a task.", above=0)
    level: float = option(0.05, "Chance of any confirmed claim being false (Holm).", above=0, below=0.5)
    seed: int = option(0, "Of the draws of items and of the policy.")
    items: int = option(24, "Items of a run unless the policy asks otherwise.", least=1)
    confirm_items: int = option(100, "Items of a confirmation run at most; 20 or more.", least=20)
    budget: tuple[str, ...] = option(
        ("forwards=2000000",),
        f"What may be spent, such as forwards=2000000; again for more, of {', '.join(LIMITS)}.",
    )
    price_in: float | None = option(None, "Price of a million prompt tokens.", least=0)
    price_out: float | None = option(None, "Price of a million completion tokens.", least=0)
    llm: str | None = option(None, "The language model's name; else INTERPCORE_LLM_MODEL.")
    max_tokens: int = option(1024, "Completion tokens of an answer at most.", least=1)
    temperature: float | None = option(None, "Of the language model; left out unless given.", least=0)
    tokens_field: str = option(
        "max_tokens",
        "What the server calls the limit of an answer.",
        choices=("max_tokens", "max_completion_tokens"),
    )
    leave_out: tuple[str, ...] = option(
        (), "Fields that the server refuses, left out of requests.", choices=OPTIONAL_FIELDS
    )
    timeout: float = option(120.0, "Seconds to wait for an answer.", above=0, circumstance=True)
    retries: int = option(4, "How often a request is tried again.", least=0, circumstance=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.goal.strip():
            raise Refused("The goal is empty; say what the session is to find out.")
        if self.within >= self.least:
            raise Refused(
                f"within is {self.within:g} and least {self.least:g}; what preserves a task must change it "
                "less than what breaks it."
            )
        limits = self.limits
        if limits.money is not None and None in (self.price_in, self.price_out):
            raise Refused("A limit of money needs prices; give price_in and price_out per million tokens.")

    @property
    def limits(self) -> Budget:
        """The budget, read."""
        return Budget.read(self.budget)
