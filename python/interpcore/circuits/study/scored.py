"""What the scores of one file are of and how they are made: what a cell says, and the file's name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from interpcore.circuits.attribution.whole import METHODS as THROUGH_ADAPTER
from interpcore.circuits.graph import GraphError
from interpcore.circuits.methods import Method, method_of
from interpcore.circuits.patching.exact import check_level
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.rounded import check_precision
from interpcore.runs.options import PRECISIONS

FULL = PRECISIONS[0]
"""The model's own precision."""


@dataclass(frozen=True)
class Scored:
    """What is scored, and how.

    Args:
        method: by name.
        level: "edge", "node" or "neuron".
        precision: of the products of exact patching.
        given: edges corrupted already, by name.
        segment: "position" or "example", for scores of each apart; None for the whole alone.
    """

    method: str
    level: str = "edge"
    precision: str = FULL
    given: Sequence[str] = ()
    segment: str | None = None

    @property
    def by(self) -> Method:
        """The method."""
        return method_of(self.method)

    @property
    def plain(self) -> bool:
        """Whether these are whole scores of edges in the model's own precision, with no edge given."""
        return set(self.cell) == {"method"}

    @property
    def cell(self) -> dict[str, Any]:
        """The parameters of the cell that makes them: the method, and what is not as it is by default."""
        said = {each.name: getattr(self, each.name) for each in fields(self)}
        usual = {each.name: each.default for each in fields(self)}
        return {name: value for name, value in said.items() if value != usual[name]}

    @property
    def shown(self) -> str:
        """Name in tables: "eap", "eap-node", "exact-neuron-bfloat16"."""
        return in_precision(at_level(self.method, self.level), self.precision)

    @property
    def file(self) -> str:
        """Name of their file: as in tables, with a hash of the edges that were given, and the segments."""
        name = self.shown
        if self.given:
            name += f"-given-{hashlib.sha256(' '.join(self.given).encode()).hexdigest()[:8]}"
        return name if self.segment is None else f"{name}-by-{self.segment}"


def at_level(name: str, level: str) -> str:
    """Name of what is of a level: "eap", "eap-node"."""
    return name if level == "edge" else f"{name}-{level}"


def in_precision(name: str, precision: str) -> str:
    """Name of exact scores with products in a precision: "exact", "exact-bfloat16"."""
    return name if precision == FULL else f"{name}-{precision}"


def check_scored(model: Model | GenericModel, asked: Scored) -> None:
    """Refuse, before anything runs, what a model cannot be scored by.

    Raises: Refused, or GraphError, with the reason.
    """
    check_precision(model, asked.precision, GraphError)
    if not isinstance(model, GenericModel):
        return
    if asked.by.exact:
        check_level(model, asked.level)
        return
    beyond = asked.given or asked.segment or asked.by.own_rules
    if beyond or asked.by.options["method"] not in THROUGH_ADAPTER:
        what = "--given" if asked.given else "--segment" if asked.segment else f"--method {asked.method}"
        raise Refused(
            f"{what} needs a model with hand-written blocks; {model.spec.name} runs through the generic "
            "adapter, which takes eap, eap-ig in any number of steps, clean-corrupted and exact."
        )
