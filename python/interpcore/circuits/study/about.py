"""What is known of a circuit beside its edges: an example, and the faithfulness of the study's circuits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from interpcore._shown import ShortRepr
from interpcore.circuits.circuit import Circuit, nested
from interpcore.circuits.graph import Graph
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.cells import ENOUGH, enough
from interpcore.circuits.study.scored import at_level
from interpcore.runs import is_run, read_card
from interpcore.runs.frames import read_frame

NOT_MEASURED = "No circuit of these scores was measured: interpcore circuits pareto measures them."
MOST = 500, 2000
"""Arrows of a page, and how many there may be so that the smallest faithful circuit is among them."""
NONE_FAITHFUL = f"None of the circuits measured keeps {ENOUGH:g} of the metric."
KNOWN = ("kept", "faithfulness", "faithfulness_low", "faithfulness_high", "pairs", "metric")


WIDTHS = {
    "edge": "|score|",
    "node": "|score| of the node that an edge leaves",
    "neuron": "|sum of its neurons' scores| of the node that an edge leaves",
}
"""What lines are as wide as, by the level of the scores."""


def in_words(circuit: Circuit, edges: int | None = None) -> str:
    """How large a circuit is: "12 nodes, 143 edges".

    Args:
        circuit: what is counted.
        edges: how many edges are drawn of it; None for all.
    """
    counted = f"{circuit.n_edges if edges is None else edges:,} edges"
    return counted if circuit.level == "edge" else f"{circuit.size:,} {circuit.level}s, {counted}"


@dataclass(frozen=True, eq=False)
class About(ShortRepr):
    """What a picture or page of a circuit says beside its edges.

    Args:
        rows: of the study's circuits, by their size, the columns `KNOWN`; () where none was measured.
        circuits: the circuit of each row, each within the next.
    """

    rows: Sequence[Mapping[str, Any]] = ()
    circuits: Sequence[Circuit] = field(default=())

    @property
    def opens(self) -> int | None:
        """Place of the smallest faithful circuit; None where none is."""
        best = enough([dict(row) for row in self.rows])
        return None if best is None else [row["kept"] for row in self.rows].index(best["kept"])

    @property
    def most(self) -> int:
        """How many of the strongest edges a page of these circuits draws."""
        faithful = 0 if self.opens is None else self.circuits[self.opens].n_edges
        return max(MOST[0], min(faithful, MOST[1]))

    def drawn(self, graph: Graph, level: str) -> Circuit | None:
        """What a page of these circuits draws the strongest edges of: the whole graph; of nodes or neurons,
        whose edges have no order of their own, the largest circuit that can be drawn, None for none."""
        if level == "edge":
            return Circuit.full(graph)
        return next((each for each in reversed(self.circuits) if each.n_edges <= MOST[1]), None)

    @classmethod
    def of(
        cls,
        scores: Scores,
        rows: Sequence[Mapping[str, Any]],
        selection: str = "greedy",
        absolute: bool = True,
    ) -> About:
        """Out of the rows of a study's curve for these scores.

        Args:
            scores: of the edges, nodes or neurons.
            rows: with `requested` and the columns `KNOWN`.
            selection, absolute: how the study chose circuits.
        """
        by_size = {int(row["kept"]): row for row in rows if int(row["kept"])}
        listed = [by_size[kept] for kept in sorted(by_size)]
        requested = [int(row["requested"]) for row in listed]
        how: dict[str, Any] = {"absolute": absolute, "level": scores.level}
        circuits = nested(scores, requested, selection, **how) if requested else []
        return cls([{name: row[name] for name in KNOWN} for row in listed], circuits)

    @classmethod
    def beside(cls, file: str | Path, scores: Scores) -> About:
        """Out of the run that a file of scores lies in; empty where it lies in none, or nothing was measured.

        Args:
            file: `<run>/artifacts/scores/<task>/<method>.safetensors`.
            scores: what it holds.
        Raises: RunError for a damaged run.
        """
        path = Path(file).absolute()
        run = path.parents[3] if len(path.parents) > 3 else path.parent
        name = at_level("faithfulness", scores.level)
        table = run / "artifacts" / "tables" / f"{name}.parquet"
        if not is_run(run) or not table.is_file():
            return cls()
        frame = read_frame(table)
        method = path.stem.removesuffix(at_level("", scores.level))
        mine = frame[(frame.task == path.parent.name) & (frame.method == method)]
        how = read_card(run).arguments
        rows = mine.to_dict("records")
        return cls.of(scores, rows, how.get("selection", "greedy"), how.get("absolute", True))

    def said(self, at: int) -> str:
        """Faithfulness of the circuit of a row, in words."""
        row = self.rows[at]
        ends = f"[{row['faithfulness_low']:.2f}, {row['faithfulness_high']:.2f}]"
        return (
            f"faithfulness {row['faithfulness']:.2f} {ends} of {row['metric']}, {row['pairs']} held-out pairs"
        )
