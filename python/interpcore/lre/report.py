"""From a run folder to its tables, hyperparameters and figures; and two runs compared."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.lre import figures, tables
from interpcore.runs import RunError, RunFolder, atomic_path, compare, read_card, write_json
from interpcore.runs.frames import read_frame
from interpcore.stats import Interval, correlation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RELATIONS = "tables/relations.parquet"


@dataclass(frozen=True, eq=False)
class Report:
    """What a study found.

    Args:
        table: one row per relation, see `tables.relation_table`.
        files: what was written.
        speedup: of the batched edits over the published way; None where nothing was measured.
        refused: relations whose input does not serve, and trials that broke off, one sentence each.
    """

    table: pd.DataFrame
    files: tuple[Path, ...]
    speedup: float | None
    refused: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Per-relation correlations between two runs.

    Args:
        correlations: measure -> correlation over the relations that both measured.
        relations: those relations.
        differences: in what the runs differ besides the model, one sentence each.
    """

    correlations: dict[str, Interval]
    relations: tuple[str, ...]
    differences: tuple[str, ...]


def write_report(out: str | os.PathLike[str]) -> Report:
    """Write the Parquet tables, the hparams files and the figures of a run's finished trials.

    Raises: RunError where the folder holds no finished trial.
    """
    with RunFolder.open(out, shared=True) as folder:
        rows = [row for row in folder.ledger if row.task.endswith("run_trial")]
        results = sorted((row.result for row in rows if row.status == "done"), key=lambda r: r["trial"])
        broken = [f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed"]
        if not results:
            why = f"all {len(broken)} failed, the first: {broken[0]}" if broken else "run the study first"
            raise RunError(f"{out} holds no finished LRE trial; {why}")
        table, files = tables.relation_table(results), []
        refused = dict.fromkeys(r["reason"] for r in results if r["status"] == "refused")
        done = tables.measured(results)
        written = {RELATIONS: table}
        if done:
            written |= {
                "tables/subjects.parquet": tables.subject_table(done),
                "tables/curves.parquet": tables.curve_table(done),
            }
        for name, frame in written.items():
            files.append(folder.artifact(name))
            with atomic_path(files[-1]) as path:
                frame.to_parquet(path, index=False)
        model = folder.card.model or "model"
        for relation in dict.fromkeys(result["relation"] for result in done):
            mine = [result for result in done if result["relation"] == relation]
            files.append(folder.artifact(f"hparams/{model}/{relation.replace(' ', '_')}.json"))
            write_json(files[-1], tables.published_hparams(model, mine))
        if done:
            drawn = _figures(table[table.trials > 0], written["tables/curves.parquet"])
            for name, figure in drawn.items():
                files.append(folder.artifact(f"figures/{name}.png"))
                with atomic_path(files[-1]) as path:
                    figure.savefig(path, dpi=150)
    return Report(table, tuple(files), tables.speedup(done) if done else None, (*refused, *broken))


def compare_runs(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Correlation over relations of faithfulness and causality between two runs, such as of two models.

    Raises: RunError where a folder holds no report or the runs share fewer than four measured relations.
    """
    frames = []
    for out in (first, second):
        path = Path(out) / "artifacts" / RELATIONS
        if not path.is_file():
            raise RunError(f"{out} holds no relation table; run `interpcore lre run` into it first")
        frame = read_frame(path)
        frames.append(frame[frame.trials > 0].set_index("relation"))
    shared = [name for name in frames[0].index if name in frames[1].index]
    if len(shared) < 4:
        raise RunError(
            f"{first} and {second} share {len(shared)} measured relations; a correlation needs four"
        )
    cards = compare(read_card(first), read_card(second))
    own = ("model", "revision", "weights", "tokenizer", "plan", "plan_hash")
    return Comparison(
        {m: correlation(*(f.loc[shared, m] for f in frames)) for m in ("faithfulness", "causality")},
        tuple(shared),
        tuple(str(difference) for difference in cards if difference.field not in own),
    )


def _figures(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    return {
        "faithfulness": figures.faithfulness_figure(table),
        "depths": figures.depth_figure(curves),
        "ranks": figures.rank_figure(curves),
        "agreement": figures.agreement_figure(table),
    }
