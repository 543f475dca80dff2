"""From a run folder to its tables, hyperparameters and figures; and two runs compared."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.data.relations import file_stem
from interpcore.lre import figures, tables
from interpcore.lre.rank_search import NOTE
from interpcore.lre.trial import run_trial
from interpcore.runs import RunCard, RunError, RunFolder, compare, read_card, write_json
from interpcore.runs.experiment import Report
from interpcore.runs.frames import read_frame, write_frame
from interpcore.runs.plots import save_figure
from interpcore.stats import Interval, correlation

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RELATIONS = "tables/relations.parquet"
PUBLISHED = "published"
SOURCE = (
    "Published: GPT-J, 24 trials, beta 2.25, both measures at the editing depth, hyperparameters chosen on "
    "the "
    "reported facts (Hernandez et al. 2023, the authors' stored results)."
)


SHORT_SOURCE = "Hernandez et al. 2024, GPT-J, 24 trials, both at the editing depth, beta 2.25"
LEGEND = (
    "obj: distinct objects; known: test facts that the model itself answers, of all.",
    "faithful: the operator's top token is the model's, on held-out known subjects; causal: the edited model "
    "says the target.",
    "all: over all test facts; control: the best of majority, b alone, other operator, shuffled (edits: "
    "none, random, other).",
    "depth: of the subject's state (emb: token embedding) for reading/editing; rank: of the inverse.",
    tables.INTERVALS,
)


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


def write_report(folder: RunFolder) -> Report:
    """Write the Parquet tables, the hparams files and the figures of a run's finished trials.

    Returns: the table has one row per relation, see `tables.relation_table`.
    Raises: RunError where the folder holds no finished trial.
    """
    rows = [row for row in folder.ledger if row.task == f"{run_trial.__module__}.{run_trial.__qualname__}"]
    results = sorted((row.result for row in rows if row.status == "done"), key=lambda r: r["trial"])
    broken = [f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed"]
    if not results:
        why = f"all {len(broken)} failed, the first: {broken[0]}" if broken else "run the study first"
        raise RunError(f"{folder.path} holds no finished LRE trial; {why}")
    done, table = tables.measured(results), tables.relation_table(results)
    files, model = list[Path](), folder.card.model or "model"
    chosen = "hash of hparams" not in folder.card.arguments  # else they are not this run's to say
    for relation in dict.fromkeys(result["relation"] for result in done if chosen):
        mine = [result for result in done if result["relation"] == relation]
        files.append(folder.artifact(f"hparams/{model}/{file_stem(relation)}.json"))
        write_json(files[-1], tables.published_hparams(model, mine))
    if done:  # a folder in which nothing was measured stays free for a corrected command
        curves = tables.curve_table(done)
        written = {"relations": table, "subjects": tables.subject_table(done), "curves": curves}
        for name, frame in written.items():
            files += write_frame(folder.artifact(f"tables/{name}"), frame)
        measured = table[table.trials > 0]
        for name, figure in _figures(measured, curves).items():
            said = figures.caption_of(measured, model, figures.NOTES[name])
            files += save_figure(folder.artifact(f"figures/{name}"), figure, said)
    refused = list(dict.fromkeys(r["reason"] for r in results if r["status"] == "refused"))
    problems = [*refused, *broken]
    if not done and not problems:
        problems = [f"{model} knows no such facts: no relation has enough known test facts to measure"]
    return Report(table, tuple(files), (*LEGEND, *_notes(table, done, folder.card)), tuple(problems))


def _notes(table: pd.DataFrame, done: list[tables.Result], card: RunCard) -> Iterator[str]:
    if whose := card.sources.get("hparams of"):
        yield f"Depths, beta and rank are read from files of {', '.join(whose)}, not chosen."
    for reason in table[table.status == "not known"].reason:
        yield f"Left out: {reason}"
    if any(result.get("rank_search") == "coarse to fine" for result in done):
        yield NOTE
    if done:
        yield f"Edits ran {tables.speedup(done):.0f} times as fast as one by one."


def compare_runs(first: str | os.PathLike[str], second: str | os.PathLike[str]) -> Comparison:
    """Correlation over relations of faithfulness and causality between two runs, such as of two models.

    Raises: RunError where a folder holds no report or the runs share fewer than four measured relations.
    """
    frames = []
    for out in (first, second):
        if str(out) == PUBLISHED and not Path(out).exists():
            frames.append(published_table().set_index("relation"))
            continue
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
    both_ran = all(str(out) != PUBLISHED or Path(out).exists() for out in (first, second))
    cards = compare(read_card(first), read_card(second)) if both_ran else []
    own = ("model", "revision", "weights", "tokenizer", "plan", "plan_hash")
    return Comparison(
        {m: correlation(*(f.loc[shared, m] for f in frames)) for m in ("faithfulness", "causality")},
        tuple(shared),
        tuple(str(difference) for difference in cards if difference.field not in own)
        + (() if both_ran else (SOURCE,)),
    )


def published_table() -> pd.DataFrame:
    """The published numbers: relation, relation_type, samples, objects, known test facts, faithfulness and
    causality of GPT-J, and the published hyperparameters of three models."""
    import pandas as pd

    table = pd.read_csv(Path(__file__).with_name("published.csv"), keep_default_na=True)
    return table.rename(columns={"faithfulness_gptj": "faithfulness", "causality_gptj": "causality"})


def published_rows(table: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Each measure over the relations that a run and the published table both have, then of each of them.

    Args:
        table: a run's, see `tables.relation_table`.
    Returns: what, published, ours, rows and source, as `runs.compared.Compared` takes them.
    """
    published = published_table().set_index("relation")
    ours = table[table.trials > 0].set_index("relation")
    both = [name for name in ours.index if name in published.index]
    for measure in ("faithfulness", "causality"):
        if both:
            means = [frame.loc[both, measure].mean() for frame in (published, ours)]
            line = {"published": float(means[0]), "ours": float(means[1]), "rows": len(both)}
            yield {"what": f"mean {measure} of the relations in both", **line, "source": SHORT_SOURCE}
    for measure in ("faithfulness", "causality"):
        for name in both:
            line = {n: float(f.loc[name, measure]) for n, f in (("published", published), ("ours", ours))}
            yield {"what": f"{measure} of {name}", **line, "rows": 1, "source": SHORT_SOURCE}


def _figures(table: pd.DataFrame, curves: pd.DataFrame) -> dict[str, Figure]:
    return {
        "faithfulness": figures.faithfulness_figure(table),
        "depths": figures.depth_figure(curves, table),
        "causality_by_rank": figures.rank_figure(curves),
        "agreement": figures.agreement_figure(table),
    }
