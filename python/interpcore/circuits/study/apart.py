"""Scores taken apart: of one edge more where some are corrupted already, and by position or pair."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.circuits.scores import Scores
from interpcore.circuits.study.cells import run_scores
from interpcore.circuits.study.scored import Scored
from interpcore.circuits.study.study import Study
from interpcore.circuits.study.tables import frame
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

LISTED = 20
"""Edges shown of a task and method."""
GIVEN = (
    "score: metric(clean) - metric(edge corrupted), mean over pairs; given: the same where {edges} "
    "corrupted already; together: given - score, what both do beyond the sum of their own. Edges in one path "
    "move towards 0, edges that stand in for each other away from it. The {listed} that move most; "
    "tables/given holds all."
)
SEGMENTS = (
    "A row is one {segment}: total, the sum of its edges' |score|, and its strongest edge{error}. The scores "
    "of all edges by {segment} are in the files of scores."
)
Found = tuple["pd.DataFrame", tuple[Path, ...], str]


def given_edges(study: Study, tasks: Sequence[str], methods: Sequence[str], given: Sequence[str]) -> Found:
    """Every edge's score beside its score where some edges are corrupted: the edges that move most, files,
    and what the columns are.

    Raises: GraphError for an edge that the model's graph does not have.
    """
    study.graph.mask(given)
    given = sorted(set(given))  # one file, whichever order they come in
    run_scores(study, tasks, methods)
    run_scores(study, tasks, methods, given=given)
    listed: list[dict[str, Any]] = []
    files: list[Path] = []
    for task in tasks:
        for method in methods:
            name = Scored(method, given=given).file
            table = _together(study.scores(task, method), study.scores(task, name))
            files += write_frame(study.artifacts.artifact(f"tables/given/{task}-{name}"), table)
            listed += [
                {"task": task, "method": method} | row for row in table.head(LISTED).to_dict("records")
            ]
    said = GIVEN.format(edges=f"{', '.join(given)} {'is' if len(given) == 1 else 'are'}", listed=LISTED)
    return frame(listed), tuple(files), said


def _together(alone: Scores, given: Scores) -> pd.DataFrame:
    """Edges with their score alone, where others are corrupted, and the difference, the largest first."""
    both = (alone.scored & given.scored).nonzero().tolist()
    rows = [
        {
            "edge": alone.graph.edge_name(source, destination),
            "score": float(alone.values[source, destination]),
            "given": float(given.values[source, destination]),
        }
        for source, destination in both
    ]
    table = frame(rows)
    table["together"] = table.given - table.score
    return table.sort_values("together", key=abs, ascending=False, kind="stable", ignore_index=True)


def by_segment(study: Study, tasks: Sequence[str], methods: Sequence[str], segment: str) -> Found:
    """Scores by position or pair: a row per segment, files, and what the columns are."""
    run_scores(study, tasks, methods, segment=segment)
    rows, files = [], []
    for task in tasks:
        for method in methods:
            name = Scored(method, segment=segment).file
            files.append(study.score_file(task, name))
            mine = _segments(study, task, study.scores(task, name), segment)
            rows += [{"task": task, "method": method} | row for row in mine]
    error = ", with its standard error over pairs" if segment == "position" else ""
    return frame(rows), tuple(files), SEGMENTS.format(segment=segment, error=error)


def _segments(study: Study, task: str, scores: Scores, segment: str) -> list[dict[str, Any]]:
    pairs, tokenizer = study.pairs(task)[0], study.model.tokenizer
    errors, rows = scores.segment_standard_errors, []
    assert scores.segments is not None
    for at, values in enumerate(scores.segments):
        row: dict[str, Any] = {segment: at}
        if tokenizer is not None:
            by_position = segment == "position"
            pair, tokens = (0, slice(at, at + 1)) if by_position else (at, slice(None))
            ids = pairs.clean[pair, : pairs.lengths[pair]][tokens]
            row["in pair 0" if by_position else "prompt"] = tokenizer.decode(ids.tolist())
        row["total"] = float(values.abs().nansum())
        source, destination = divmod(int(values.abs().nan_to_num(-1).argmax()), values.shape[1])
        if row["total"]:
            row["strongest"] = scores.graph.edge_name(source, destination)
            row["score"] = float(values[source, destination])
            row |= {} if errors is None else {"score_se": float(errors[at, source, destination])}
        rows.append(row)
    return rows
