"""What a tool is: its arguments, said once as an `Options`, and a function of the lab."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from interpcore.agent.budget import Account
from interpcore.agent.lab import Lab
from interpcore.errors import Refused
from interpcore.runs.options import Option, Options, declared, schema

ALWAYS = ("note", "finish")  # obeyed when a limit is reached, too
Result = tuple[dict[str, Any], int]
"""What a tool says, and the forwards that it took."""


class OverBudget(Refused):
    """What was asked for does not fit into what is left.

    Attributes:
        forwards: that it took all the same, before it was stopped.
    """

    def __init__(self, said: str, forwards: int = 0) -> None:
        super().__init__(said)
        self.forwards = forwards


@dataclass(frozen=True)
class Tool:
    """A tool: its name, what it does, its arguments, and the function."""

    name: str
    sentence: str
    options: type[Options]
    function: Callable[[Lab, Account, Any], Result]

    @property
    def fields(self) -> tuple[Option, ...]:
        """Its arguments."""
        return declared(self.options)

    def parameters(self) -> dict[str, Any]:
        """JSON Schema of its arguments."""
        return schema(self.options)

    def described(self) -> dict[str, Any]:
        """As chat completions take it."""
        said = {"name": self.name, "description": self.sentence, "parameters": self.parameters()}
        return {"type": "function", "function": said}

    def obey(self, lab: Lab, account: Account, arguments: str) -> Result:
        """Do what a call asks for. Raises: Refused; OverBudget for what does not fit."""
        return self.function(lab, account, self.options.from_json(json_object(self.name, arguments)))


def told(error: Refused, kind: str, fields: Sequence[Option]) -> dict[str, Any]:
    """A refusal as the policy reads it, with the argument that it is about."""
    said: dict[str, Any] = {"type": kind, "message": str(error)}
    named = [each for each in fields if re.search(rf"(^|['\"]){each.name}\b", str(error))]
    if named:
        said["field"] = named[0].name
        if named[0].choices:
            said["allowed"] = list(named[0].choices)
    return {"error": said}


def unknown(name: str, tools: Sequence[str]) -> dict[str, Any]:
    """What a call of no tool is told."""
    message = f"There is no tool {name!r}."
    return {"error": {"type": "invalid", "message": message, "allowed": list(tools)}}


def json_object(tool: str, given: Any) -> Mapping[str, Any]:
    """The arguments of a call. Raises: Refused for what is no JSON object."""
    if isinstance(given, str):
        try:
            given = json.loads(given or "{}")
        except (ValueError, RecursionError) as error:
            raise Refused(f"The arguments of {tool} are no JSON: {error}.") from error
    if not isinstance(given, Mapping):
        raise Refused(f"The arguments of {tool} are no JSON object.")
    return given


def afford(account: Account, forwards: int, what: str = "It") -> None:
    """Raises: OverBudget where so many forwards do not fit into what is left."""
    over = account.over(forwards=forwards, seconds=forwards * account.pace)
    if over is not None:
        raise OverBudget(f"{what} does not fit the budget: {over}.")


def short(value: Any) -> Any:
    """A number with six significant digits, as results show it."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if abs(value) < float("inf") else str(value)
