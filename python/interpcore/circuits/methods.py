"""Methods of the study by name: what each passes on, and its name in published tables."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from interpcore.errors import Refused, did_you_mean

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
        sentence: what it does.
    """

    name: str
    column: str
    metric: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    exact: bool = False
    sentence: str = ""

    @property
    def takes_given(self) -> bool:
        """Whether its scores can be taken where some edges are corrupted already."""
        plain = self.options.get("method") in ("eap", "eap-ig-inputs", "clean-corrupted")
        return plain and self.takes_segments and self.options.get("steps") != "auto"

    @property
    def takes_segments(self) -> bool:
        """Whether its scores are sums over positions, which may be kept apart."""
        by_gradients = not self.exact and self.options["method"] != "information-flow-routes"
        return by_gradients and not self.own_rules

    @property
    def edges_alone(self) -> bool:
        """Whether it scores edges, and neither nodes nor neurons."""
        return "qk_fix" in self.options or self.options.get("method") == "information-flow-routes"

    @property
    def own_rules(self) -> bool:
        """Whether its backward walk is not that of plain gradients (RelP, GradDrop, QK-fix)."""
        return bool({"rules", "qk_fix"} & set(self.options))


_IG = {"method": "eap-ig-inputs", "steps": 5}
_METHODS = {
    method.name: method
    for method in (
        Method(
            "eap",
            "EAP",
            options={"method": "eap"},
            sentence="gradient at the clean prompt times the change of what the edge carries",
        ),
        Method(
            "eap-ig",
            "EAP-IG",
            options=_IG,
            sentence="gradients averaged over 5 steps from the corrupted to the clean input",
        ),
        Method(
            "eap-ig-auto",
            "EAP-IG-auto",
            options=_IG | {"steps": "auto"},
            sentence="EAP-IG with as many steps as its completeness gap asks for",
        ),
        Method(
            "eap-ig-kl", "EAP-IG-KL", "kl", _IG, sentence="EAP-IG of the KL divergence from the clean run"
        ),
        Method("eap-ig-js", "EAP-IG-JS", "js", _IG, sentence="EAP-IG of the Jensen-Shannon divergence"),
        Method(
            "clean-corrupted",
            "clean-corrupted",
            options={"method": "clean-corrupted"},
            sentence="mean of the gradients at the clean and the corrupted prompt",
        ),
        Method(
            "eap-ig-activations",
            "EAP-IG-activations",
            options={"method": "eap-ig-activations"},
            sentence="the path runs over each layer's activations",
        ),
        Method(
            "path-ig",
            "path-IG",
            options={"method": "path-ig"},
            sentence="the path runs over all activations at once",
        ),
        Method(
            "relp",
            "RelP",
            options={"method": "eap", "rules": "relp"},
            sentence="EAP with the rules of relevance propagation in nonlinear parts",
        ),
        Method(
            "qk-fix",
            "QK-fix",
            options={"method": "eap", "qk_fix": True},
            sentence="EAP with exact attention patterns for queries and keys",
        ),
        Method(
            "graddrop",
            "GradDrop",
            options={"method": "eap", "rules": "graddrop"},
            sentence="EAP with magnitudes averaged over walks that leave out one layer each",
        ),
        Method(
            "information-flow-routes",
            "IFR",
            options={"method": "information-flow-routes"},
            sentence="each source's share of a stream by the L1 norm; no corrupted prompt",
        ),
        Method("exact", "real", exact=True, sentence="patches every edge and measures"),
        Method(
            "exact-kl",
            "real-KL",
            "kl",
            exact=True,
            sentence="patches every edge and measures the KL divergence",
        ),
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
    raise Refused(
        f"There is no method {name!r}; methods are {', '.join(METHODS)} and eap-ig-<steps>."
        f"{did_you_mean(name, METHODS)}"
    )
