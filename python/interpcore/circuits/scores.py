"""Scores of edges, nodes and neurons, with what they mean: score = metric(clean) - metric(edge corrupted)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.circuits.graph import Graph, GraphError
from interpcore.model.made_on import MadeOn
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

SIGN = "metric(clean) - metric(edge corrupted); positive = the edge helps"


@dataclass(frozen=True, eq=False)
class Scores(AsTable):
    """Scores of a graph's edges; NaN where an edge does not exist or was not scored.

    Args:
        graph: whose edges.
        values: mean effect per example [n_sources, n_destinations] float32.
        method: "eap", "eap-ig-inputs", "exact", ...
        metric: its name.
        intervention: "patching", "zero", "mean" or "mean-positional".
        model: name of the model.
        task: name of the pairs.
        split: which pairs were used: "all", "discovery" or "held-out".
        direction: what the sign means; all methods here share `SIGN`.
        examples: number of pairs.
        squares: sum over examples of each edge's squared score [n_sources, n_destinations] float32, or None.
        nodes: node scores [n_sources] float32, or None.
        neurons: neuron scores [n_sources, d_model] float32, or None.
        segments: scores per segment [segments, n_sources, n_destinations] float32, or None.
        segment_squares: sum over examples of each segment's squared score, of the same shape, or None.
        segment_names: what each segment is.
        made_on: the model's weights and plan; None where they are not recorded.
        notes: further facts: steps, nodes of the integral, completeness gap, frozen scales, rules.
    """

    graph: Graph
    values: Tensor
    method: str
    metric: str
    intervention: str = "patching"
    model: str = ""
    task: str = ""
    split: str = "all"
    direction: str = SIGN
    examples: int = 0
    squares: Tensor | None = None
    nodes: Tensor | None = None
    neurons: Tensor | None = None
    segments: Tensor | None = None
    segment_squares: Tensor | None = None
    segment_names: tuple[str, ...] = ()
    made_on: MadeOn | None = None
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = (self.graph.n_sources, self.graph.n_destinations)
        for name, value in (("values", self.values), ("squares", self.squares)):
            if value is not None and tuple(value.shape) != shape:
                raise GraphError(f"{name} has shape {tuple(value.shape)}; this graph needs {shape}.")
        for name in ("nodes", "neurons"):
            value = getattr(self, name)
            if value is not None and len(value) != shape[0]:
                raise GraphError(f"{name} has {len(value)} rows; this graph has {shape[0]} sources.")
        for name in ("segments", "segment_squares"):
            value = getattr(self, name)
            if value is not None and tuple(value.shape) != (len(self.segment_names), *shape):
                raise GraphError(
                    f"{name} has shape {tuple(value.shape)} for {len(self.segment_names)} names of {shape}."
                )
        if self.direction != SIGN:
            raise GraphError(f"The direction is {SIGN!r}; got {self.direction!r}.")
        values = self.values.detach().to("cpu", torch.float32).masked_fill(~self.graph.legal, torch.nan)
        object.__setattr__(self, "values", values)

    def __repr__(self) -> str:
        said = [f"{self.method} of {self.task}" if self.task else self.method]
        said += [f"on {self.model}"] if self.model else []
        return f"Scores({' '.join(said)}: {self.size:,} {self.level}s, {self.metric}, n = {self.examples})"

    def to_pandas(self) -> pd.DataFrame:
        """What is scored, the largest |score| first: source, destination (of an edge), node, or node and
        dimension (of a neuron); score; standard_error where it is known."""
        import pandas as pd

        where = (~self.scores.isnan()).nonzero()
        columns = where.unbind(1)
        names = [self.graph.source_names[i] for i in columns[0].tolist()]
        table: dict[str, Any] = {"node": names}
        if self.level == "edge":
            ends = [self.graph.destination_names[i] for i in columns[1].tolist()]
            table = {"source": names, "destination": ends}
        elif self.level == "neuron":
            table["dimension"] = columns[1].numpy()
        table["score"] = self.scores[*columns].numpy()
        if self.level == "edge" and (errors := self.standard_errors) is not None:
            table["standard_error"] = errors[*columns].numpy()
        frame = pd.DataFrame(table)
        return frame.sort_values("score", key=abs, ascending=False, kind="stable", ignore_index=True)

    @property
    def scored(self) -> Tensor:
        """Edges that have a score [n_sources, n_destinations] bool."""
        return ~self.values.isnan()

    @property
    def level(self) -> str:
        """What is scored: "edge", "node" or "neuron"."""
        if (self.neurons is None and self.nodes is None) or bool(self.scored.any()):
            return "edge"
        return "node" if self.neurons is None else "neuron"

    @property
    def scores(self) -> Tensor:
        """The scores at that level: of edges [n_sources, n_destinations], nodes [n_sources] or neurons
        [n_sources, d_model]."""
        found = {"edge": self.values, "node": self.nodes, "neuron": self.neurons}[self.level]
        assert found is not None
        return found

    @property
    def of_edges(self) -> Tensor:
        """What a picture gives each edge [n_sources, n_destinations]: its score, or, where nodes or neurons
        are scored, that of the node that it leaves (of its neurons the sum)."""
        if self.level == "edge":
            return self.values
        node = self.scores if self.level == "node" else self.scores.nansum(1)
        return node[:, None].expand(self.graph.legal.shape).masked_fill(~self.graph.legal, torch.nan)

    @property
    def size(self) -> int:
        """Number of edges, nodes or neurons, as `level` says."""
        return self.graph.n_edges if self.level == "edge" else self.scores.numel()

    @property
    def standard_errors(self) -> Tensor | None:
        """Standard error of each edge's mean over examples [n_sources, n_destinations] float32; None where
        the run kept no squares or had one example."""
        return self._standard_errors(self.values, self.squares)

    @property
    def segment_standard_errors(self) -> Tensor | None:
        """The same per segment [segments, n_sources, n_destinations] float32; None for segments that are
        single examples."""
        return self._standard_errors(self.segments, self.segment_squares)

    def _standard_errors(self, means: Tensor | None, squares: Tensor | None) -> Tensor | None:
        if means is None or squares is None or self.examples < 2:
            return None
        mean, n = means.double(), self.examples
        variance = (squares.double() / n - mean.square()).clamp(min=0) / (n - 1)
        return variance.sqrt().float()

    def negated(self) -> Scores:
        """With every sign turned; for imports whose scores count the other way."""

        def turned(value: Tensor | None) -> Tensor | None:
            return None if value is None else -value

        return replace(
            self,
            values=-self.values,
            nodes=turned(self.nodes),
            neurons=turned(self.neurons),
            segments=turned(self.segments),
        )

    def describe(self) -> dict[str, Any]:
        """What files and run cards say of these scores."""
        return {
            "model": self.model,
            "task": self.task,
            "method": self.method,
            "metric": self.metric,
            "direction": self.direction,
            "intervention": self.intervention,
            "split": self.split,
            "examples": self.examples,
            **({} if self.made_on is None else self.made_on.to_json()),
            "graph": {
                "blocks": self.graph.blocks,
                "heads": self.graph.heads,
                "kv_heads": self.graph.kv_heads,
                "parallel": self.graph.parallel,
                **({"whole": True} if self.graph.whole else {}),
                **(
                    {"beside": [f"{a} {b} {how}" for a, b, how in self.graph.beside]}
                    if self.graph.beside
                    else {}
                ),
            },
            "notes": self.notes,
        }
