"""Methods of the study by name: what each passes on, and its name in published tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interpcore.errors import Refused

PAPER_METHODS = ("eap", "eap-ig", "eap-ig-kl")


@dataclass(frozen=True)
class Method:
    """A way to score edges.

    Args:
        name: in commands, cells and file names.
        column: in published tables.
        metric: the metric it takes; None for the task's.
        options: what `attribute` gets.
        exact: whether it is exact patching.
    """

    name: str
    column: str
    metric: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False


_IG = {"method": "eap-ig-inputs", "steps": 5}
_METHODS = {
    method.name: method
    for method in (
        Method("eap", "EAP", options={"method": "eap"}),
        Method("eap-ig", "EAP-IG", options=_IG),
        Method("eap-ig-auto", "EAP-IG-auto", options=_IG | {"steps": "auto"}),
        Method("eap-ig-kl", "EAP-IG-KL", "kl", _IG),
        Method("eap-ig-js", "EAP-IG-JS", "js", _IG),
        Method("clean-corrupted", "clean-corrupted", options={"method": "clean-corrupted"}),
        Method("eap-ig-activations", "EAP-IG-activations", options={"method": "eap-ig-activations"}),
        Method("path-ig", "path-IG", options={"method": "path-ig"}),
        Method("relp", "RelP", options={"method": "eap", "rules": "relp"}),
        Method("qk-fix", "QK-fix", options={"method": "eap", "qk_fix": True}),
        Method("graddrop", "GradDrop", options={"method": "eap", "rules": "graddrop"}),
        Method("information-flow-routes", "IFR", options={"method": "information-flow-routes"}),
        Method("exact", "real", exact=True),
        Method("exact-kl", "real-KL", "kl", exact=True),
    )
}
METHODS = tuple(_METHODS)


def method_of(name: str) -> Method:
    """A method by name; "eap-ig-7" is EAP-IG with 7 steps.

    Raises: Refused for an unknown name.
    """
    if name in _METHODS:
        return _METHODS[name]
    steps = re.fullmatch(r"eap-ig-([1-9]\d*)", name)
    if steps:
        return Method(name, f"EAP-IG-{steps[1]}", options=_IG | {"steps": int(steps[1])})
    raise Refused(f"There is no method {name!r}; methods are {', '.join(METHODS)} and eap-ig-<steps>.")
