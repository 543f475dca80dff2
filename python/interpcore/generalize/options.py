"""What a run of trials is told."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from typing import Any

from interpcore.errors import Refused
from interpcore.runs.options import Option, declared, option
from interpcore.runs.options import Options as Base


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """Which trials, on what."""

    suite: str = option(
        ..., "relations, neurons or circuits, or a file (.py) with trials of one of them.", positional=True
    )
    on: tuple[str, ...] = option(
        (), "The model to try the finding of --model on; for neurons the models trained apart from it."
    )
    trials: tuple[str, ...] = option((), "Only these trials; default: all.", flag="trial")
    set: tuple[str, ...] = option(
        (), "A setting of the suite, NAME=VALUE; again for more. `generalize list SUITE` shows them."
    )
    registry: str | None = option(
        None,
        "File of registrations and attempts; default: registrations.sqlite beside the run folder.",
        circumstance=True,
    )
    notebook: bool = option(False, "Also write the run as an executed notebook.", circumstance=True)

    def check_data(self) -> None:
        """See `Options.check_data`: what a notebook needs."""
        from importlib.util import find_spec

        missing = [name for name in ("nbformat", "nbclient", "ipykernel") if find_spec(name) is None]
        if self.notebook and missing:
            raise Refused(f"A notebook needs {', '.join(missing)}; pip install {' '.join(missing)}.")


def settings_of(cls: type[Base], given: tuple[str, ...]) -> Base:
    """A suite's settings out of NAME=VALUE.

    Raises: Refused for a name that it has not or is given two values, or a value that does not fit.
    """
    known = {each.name: each for each in declared(cls)}
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in known:
            raise Refused(
                f"{text!r} is no setting here; there are {', '.join(known) or 'none'}, as NAME=VALUE."
            )
        if name in found and not known[name].many:
            raise Refused(f"{name} is given twice, as {found[name]!r} and in {text!r}; give it once.")
        read = _read(known[name], value)
        found[name] = (*found.get(name, ()), *read) if known[name].many else read
    return cls(**found)


def _read(each: Option, value: str) -> Any:
    if each.kind is bool and not each.many:
        return {"true": True, "false": False}.get(value.lower(), value)
    try:
        if each.many:
            return tuple(each.kind(one) for one in value.split("+"))
        return None if each.optional and value.lower() == "none" else each.kind(value)
    except ValueError as error:
        told = "numbers, such as 1+2" if each.many else "a number"
        raise Refused(f"{each.name} is {value!r}; give {told}.") from error


def shown_default(each: Option) -> str:
    """A setting's default as a list of settings shows it."""
    return "" if each.default is MISSING else str(each.default)
