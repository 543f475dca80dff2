"""What an attribution is asked for, refused in a sentence where it does not go together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from interpcore.circuits.attribution.paths import METHODS, ROUTES, Plan
from interpcore.circuits.attribution.qk_fix import check_separate
from interpcore.circuits.attribution.quadrature import path_points
from interpcore.circuits.attribution.scoring import Segments
from interpcore.circuits.graph import Graph, GraphError
from interpcore.circuits.metrics import Metric
from interpcore.circuits.options import LEVELS
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.interventions import Intervention
from interpcore.circuits.patching.patched import check_over_heads
from interpcore.circuits.patching.sources import check_blocks, notes
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.linearize import EXACT, Rules
from interpcore.runs.hashes import tensors_hash


@dataclass(frozen=True, eq=False)
class Request:
    """What is asked for.

    Args:
        model, pairs, graph: as in `attribute`.
        plan: how gradients are taken.
        level: in `LEVELS`.
        segments: positions whose scores are wanted apart.
        drops: walks that leave out one layer each (GradDrop).
        qk_fix: edges into queries and keys through the attention they give.
        nodes: of the integral.
    """

    model: Model
    pairs: Pairs
    graph: Graph
    plan: Plan
    level: str
    segments: Segments | None
    drops: bool
    qk_fix: bool
    nodes: str

    def with_points(self, points: tuple[list[float], list[float]]) -> Request:
        """With other points of the path and their weights."""
        return replace(self, plan=replace(self.plan, points=points))

    def notes(self) -> dict[str, Any]:
        """What a file of scores says of it."""
        said: dict[str, Any] = {**notes(self.model), **self.plan.intervention.notes()}
        if self.plan.method in ("eap-ig-inputs", "eap-ig-activations", "path-ig"):
            said |= {"steps": len(self.plan.points[0]), "nodes": self.nodes}
        if self.drops:
            said["rules"] = "graddrop"
        elif not self.plan.rules.exact:
            said["rules"] = str(self.plan.rules)
        return said | ({"qk_fix": True} if self.qk_fix else {})

    def fingerprint(self) -> str:
        """A hash of everything that the sums of a run depend on, but for the last bits."""
        plan, pairs, means = self.plan, self.pairs, self.plan.intervention.means
        tensors = {name: getattr(pairs, name) for name in ("clean", "corrupted", "lengths", "good", "bad")}
        tensors |= {} if means is None else {f"mean {name}": x for name, x in means.named().items()}
        tensors |= {} if self.segments is None else {"segments": self.segments.numbers}
        said = {
            "method": plan.method,
            "metric": repr(plan.metric),
            "points": plan.points,
            "intervention": plan.intervention.name,
            "rules": repr(plan.rules),
            "logits_by": pairs.logits_by,
            "graph": repr(self.graph),
            "level": self.level,
            "drops": self.drops,
            "qk_fix": self.qk_fix,
        }
        return run_card(self.model, split=tensors_hash(tensors), arguments=said).key


def points_of(method: str, steps: int, nodes: str) -> tuple[list[float], list[float]]:
    """Points of a method's path from corrupted (0) to clean (1), and their weights."""
    if method in ("eap", ROUTES):
        return [1.0], [1.0]
    if method == "clean-corrupted":
        return [0.0, 1.0], [0.5, 0.5]
    return path_points(steps, nodes)


def checked(
    model: Model,
    pairs: Pairs,
    metric: Metric | str,
    method: str,
    *,
    graph: Graph | None,
    nodes: str,
    intervention: str | Intervention,
    level: str,
    rules: Rules | str | None,
    qk_fix: bool,
    segment: str | Segments | None,
) -> Request:
    """Read the arguments of `attribute`.

    Raises: GraphError for what does not go together.
    """
    graph = Graph.of(model) if graph is None else graph
    graph.check_model(model)
    check_blocks(model)
    check_over_heads(model, graph)
    metric = Metric(metric) if isinstance(metric, str) else metric
    _check_choices(method, level, rules)
    if method == ROUTES:
        if level != "edge" or segment is not None or rules is not None or qk_fix:
            raise GraphError(f"{ROUTES} scores edges alone, without segments and rules of gradients.")
        plan = Plan(method, metric, points_of(method, 1, nodes), Intervention("zero"), EXACT)
        return Request(model, pairs, graph, plan, level, None, False, False, nodes)
    refusal = metric.clean_refusal if method == "eap" else metric.gradient_refusal
    if refusal is not None:
        raise GraphError(f"{method} cannot use {metric}: {refusal}")
    filled = Intervention.of(intervention, model, pairs)
    if method in ("eap-ig-inputs", "clean-corrupted") and filled.name != "patching":
        raise GraphError(
            f"{method} follows the input from the corrupted prompt to the clean one, so its intervention is "
            f"patching; got {filled.name}. eap and eap-ig-activations take it."
        )
    if segment is not None and level != "edge":
        raise GraphError(f"Scores by segment are scores of edges; got level={level!r}.")
    segments = Segments.of(segment, pairs) if isinstance(segment, str) else segment
    if segments is not None:
        segments.check(pairs)
    drops = rules == "graddrop"
    if drops and (graph.blocks < 2 or (segments is not None and not segments.by_example)):
        raise GraphError(
            "graddrop averages magnitudes of whole edges over walks that leave out one layer each: it needs "
            "two layers or more, and no segments of prompts."
        )
    plan = Plan(method, metric, points_of(method, 1, nodes), filled, _rules(rules))
    if qk_fix:
        _check_qk_fix(model, plan, level, segments)
    return Request(model, pairs, graph, plan, level, segments, drops, qk_fix, nodes)


def check_auto(request: Request) -> None:
    """Refuse to look for a number of steps where the gap does not close with more of them.

    Raises: GraphError.
    """
    plan = request.plan
    closes = plan.method in ("eap-ig-inputs", "path-ig") and plan.intervention.skips
    if not closes or request.drops or not plan.rules.exact:
        raise GraphError(
            "steps='auto' adds steps until the scores that leave the input add up to the whole change, which "
            "is so in the limit of eap-ig-inputs and path-ig with patching and exact gradients alone; give "
            "a number."
        )


def _check_choices(method: str, level: str, rules: Rules | str | None) -> None:
    if method not in METHODS:
        raise GraphError(f"A method is one of {', '.join(METHODS)}; got {method!r}.")
    if level not in LEVELS:
        raise GraphError(f"A level is one of {', '.join(LEVELS)}; got {level!r}.")
    if isinstance(rules, str) and rules not in ("relp", "graddrop"):
        raise GraphError(f"Rules are None, 'relp', 'graddrop' or Rules(...); got {rules!r}.")


def _check_qk_fix(model: Model, plan: Plan, level: str, segments: Segments | None) -> None:
    check_separate(model)
    whole = segments is None or segments.by_example
    along_inputs = plan.method in ("eap", "eap-ig-inputs", "clean-corrupted")
    if not along_inputs or level != "edge" or not whole or not plan.rules.exact:
        raise GraphError(
            "The QK fix replaces the gradient through attention probabilities by the probabilities that an "
            "edge gives: it goes with eap, eap-ig-inputs and clean-corrupted, level='edge', no segments of "
            "prompts and exact rules (or graddrop)."
        )


def _rules(rules: Rules | str | None) -> Rules:
    if isinstance(rules, Rules):
        return rules
    return Rules.relp() if rules == "relp" else EXACT
