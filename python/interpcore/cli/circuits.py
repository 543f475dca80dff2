"""`interpcore circuits`: which edges carry a behaviour, by attribution, exact patching and faithfulness."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from interpcore.cli.circuits_options import (
    Also,
    Choose,
    Direction,
    Level,
    Methods,
    ScoreLevel,
    Selection,
    Sizes,
    Tasks,
    on_a_study,
)
from interpcore.cli.tables import show
from interpcore.errors import Refused

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(help="Circuits: edge attribution, exact patching, faithfulness.", no_args_is_help=True)


@app.command()
@on_a_study
def attribute(
    study: Any,
    task: Tasks = None,
    method: Methods = None,
    level: Level = ScoreLevel.edge,
) -> None:
    """Score every edge by gradients (EAP, EAP-IG, ...), with each integral's completeness gap.

    Example: interpcore circuits attribute --task ioi --method eap --method eap-ig-auto --out runs/c-tiny
    """
    from interpcore.circuits.cells import run_scores

    rows = run_scores(study, _tasks(task), method or ["eap", "eap-ig"], level=level.value)
    show(_frame(rows), SCORED, "Scores are in " + str(study.folder.path / "artifacts" / "scores"))


@app.command()
@on_a_study
def exact(
    study: Any,
    task: Tasks = None,
    top: Annotated[
        str | None, typer.Option(help="Only so many best edges of --verify: 200, 0.05 or 5%; default: all.")
    ] = None,
    verify: Annotated[str, typer.Option(help="The method whose best edges --top takes.")] = "eap",
    level: Level = ScoreLevel.edge,
) -> None:
    """Score edges by patching each one, under the task's metric and KL at once; all edges, or the best few.

    Example: interpcore circuits exact --task ioi --top 100 --verify eap --out runs/c-tiny
    """
    from interpcore.circuits.cells import run_scores, run_verified

    if top is None:
        rows = run_scores(study, _tasks(task), ["exact"], level=level.value)
    elif level is not ScoreLevel.edge:
        raise Refused("--top verifies edges; leave it out, or --level.")
    else:
        rows = run_verified(study, _tasks(task), verify, _edges(study, "--top", top))
    show(_frame(rows), "Scores are in " + str(study.folder.path / "artifacts" / "scores"))


@app.command()
@on_a_study
def evaluate(
    study: Any,
    scores: Annotated[Path, typer.Argument(help="A file of scores: .safetensors, .json, .pt.")],
    task: Annotated[str, typer.Option(help="The task to measure on.")] = "ioi",
    size: Sizes = None,
    direction: Annotated[
        Direction, typer.Option(help="What a positive score of a foreign file means.")
    ] = Direction.helps,
    whole: Annotated[
        bool, typer.Option("--circuit", help="Measure the file's own circuit, not chosen ones.")
    ] = False,
    mib: Annotated[bool, typer.Option("--mib", help="MIB's CPR and CMD instead.")] = False,
) -> None:
    """Faithfulness of the circuits that a file of scores chooses, or of its own circuit, on held-out pairs.

    Example: interpcore circuits evaluate runs/c-tiny/artifacts/scores/ioi/eap.safetensors
    --size 5% --out runs/c-tiny
    """
    from interpcore.circuits import load_scores
    from interpcore.circuits.cells import run_file, run_mib

    loaded = load_scores(scores, direction.value)[0] if scores.is_file() else None
    if loaded is not None:
        made_for, own = loaded.model, study.model.spec.name
        if made_for and Path(made_for).name != Path(own).name:
            Console().print(f"Note: these are scores of {made_for}, measured on {own}.", highlight=False)
    if mib:
        show(_frame([run_mib(study, task, scores, direction.value)]))
        return
    sizes = [] if whole else study.sizes(size or (), loaded)
    rows = run_file(study, task, scores, sizes, direction.value)
    show(_frame(rows)[list(SHOWN)], FAITHFUL)


@app.command()
@on_a_study
def pareto(
    study: Any,
    task: Tasks = None,
    method: Methods = None,
    size: Sizes = None,
    random: Annotated[
        int, typer.Option(min=0, help="Random connected circuits per task to compare with.")
    ] = 100,
) -> None:
    """Faithfulness over circuit sizes, the smallest circuit that keeps 85%, and random circuits of its size.

    Example: interpcore circuits pareto --task ioi --task sva --method eap --method eap-ig --out runs/c-tiny
    """
    from interpcore.circuits import report

    methods = method or ["eap", "eap-ig", "eap-ig-kl"]
    found = report.pareto(study, _tasks(task), methods, study.sizes(size or ()), random)
    show(found.table, FAITHFUL, BESIDE, *map(str, found.files))


@app.command()
@on_a_study
def overlap(
    study: Any,
    task: Tasks = None,
    method: Annotated[str, typer.Option(help="The method that chooses the circuits.")] = "eap-ig",
    size: Annotated[str, typer.Option(help="Edges of each circuit: 200, 0.05 or 5%.")] = "10%",
) -> None:
    """How much the tasks' circuits share: IoU and recall of nodes and edges, and the chance of as much.

    Example: interpcore circuits overlap --method eap-ig --size 10% --out runs/c-tiny
    """
    from interpcore.circuits import report

    tasks, edges = _tasks(task), _edges(study, "--size", size)
    found = report.overlap(study, tasks, method, dict.fromkeys(tasks, edges))
    show(_labelled(found.table, "edge IoU"), *map(str, found.files))


@app.command(name="cross-task")
@on_a_study
def cross_task(
    study: Any,
    task: Tasks = None,
    method: Annotated[str, typer.Option(help="The method that chooses the circuits.")] = "eap-ig",
    size: Annotated[str, typer.Option(help="Edges of each circuit: 200, 0.05 or 5%.")] = "10%",
) -> None:
    """Every task's circuit (columns) measured on every task's pairs (rows).

    Example: interpcore circuits cross-task --method eap-ig --size 10% --out runs/c-tiny
    """
    from interpcore.circuits import report

    tasks, edges = _tasks(task), _edges(study, "--size", size)
    found = report.cross_task(study, tasks, method, dict.fromkeys(tasks, edges))
    show(_labelled(found.table, "measured on"), *map(str, found.files))


@app.command(name="ig-steps")
@on_a_study
def ig_steps(
    study: Any,
    task: Tasks = None,
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps of EAP-IG; again for more. Default: nine from 2 to 50.")
    ] = None,
    size: Sizes = None,
) -> None:
    """Faithfulness and completeness gap by the number of steps of EAP-IG.

    Example: interpcore circuits ig-steps --task ioi --steps 2 --steps 5 --out runs/c-tiny
    """
    from interpcore.circuits import report
    from interpcore.circuits.methods import IG_STEPS

    found = report.ig_steps(study, _tasks(task), study.sizes(size or ()), steps or IG_STEPS)
    shown = ["task", "method", "requested", "kept", "faithfulness", "completeness_gap"]
    show(found.table[shown], *map(str, found.files))


@app.command()
@on_a_study
def compare(
    study: Any,
    out: Annotated[
        Path | None, typer.Option(help="The run folder, to compare methods with exact scores.")
    ] = None,
    files: Annotated[
        list[Path] | None, typer.Argument(help="Instead: two files of scores, the second one the reference.")
    ] = None,
    task: Tasks = None,
    method: Methods = None,
) -> None:
    """How estimated scores agree with exact ones: Pearson, Kendall, mean difference, sign.

    Example: interpcore circuits compare --task ioi --method eap --method eap-ig --out runs/c-tiny
    """
    from interpcore.circuits import report

    if files:
        _compare_files(files)
        return
    if study is None:
        raise Refused("compare needs a run folder (--out) or two files of scores.")
    show(report.compare(study, _tasks(task), method or ["eap", "eap-ig"]).table)


@app.command()
def draw(
    scores: Annotated[Path, typer.Argument(help="A file of scores: .safetensors, .json, .pt.")],
    picture: Annotated[Path, typer.Argument(help="Where to: .svg, .png, .pdf or .html (interactive).")],
    size: Annotated[
        str | None, typer.Option(help="Edges to choose: 200, 0.05 or 5%; default: the file's own circuit.")
    ] = None,
    selection: Choose = Selection.greedy,
    most: Annotated[int, typer.Option(min=1, help="Draw the strongest edges alone.")] = 400,
    title: Annotated[str | None, typer.Option(help="Above the picture.")] = None,
    direction: Annotated[
        Direction, typer.Option(help="What a positive score of a foreign file means.")
    ] = Direction.helps,
) -> None:
    """Draw a circuit: a row per layer, width by score, blue helps and red hurts, heads with q, k and v.

    Example: interpcore circuits draw runs/c-tiny/artifacts/scores/ioi/eap.safetensors ioi.svg --size 10%
    """
    from interpcore.circuits import load_scores, select, sizes_of
    from interpcore.circuits.draw import draw as draw_circuit

    loaded, circuit = load_scores(scores, direction.value)
    if size is not None:
        count = sizes_of(loaded.graph, [size], loaded.size, loaded.level)[0]
        circuit = select(loaded, count, selection.value, level=loaded.level)
    name = title or " ".join(part for part in (loaded.model, loaded.task, loaded.method) if part)
    drawn = draw_circuit(circuit, picture, loaded, title=name, most=most)
    Console().print(f"{len(drawn)} of {circuit.n_edges} edges: {picture}", highlight=False, soft_wrap=True)


@app.command()
@on_a_study
def figures(
    study: Any,
    paper: Annotated[
        bool, typer.Option("--paper", help="Run what is missing and make figures 1 and 3 to 11.")
    ] = False,
    task: Tasks = None,
    size: Sizes = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(help="Steps of EAP-IG in figure 7; again for more. Default: nine from 2 to 50."),
    ] = None,
    also: Also = None,
    no_exact: Annotated[
        bool, typer.Option("--no-exact", help="Without exact patching (and figures 4, 8, 9).")
    ] = False,
) -> None:
    """Make the paper's figures from runs on any model, as SVG and PNG, with their tables as CSV and Parquet.

    Example: interpcore circuits figures --paper --model tiny --out runs/c-tiny
    """
    from interpcore.circuits import report
    from interpcore.circuits.methods import IG_STEPS
    from interpcore.circuits.tasks import TASKS

    if not paper:
        raise Refused("figures makes the paper's: say --paper.")
    made = report.paper_figures(
        study,
        task or TASKS,
        study.sizes(size or ()),
        steps or IG_STEPS,
        exact=not no_exact,
        others=also or (),
    )
    Console().print("\n".join(map(str, made)), highlight=False, soft_wrap=True)


SCORED = (
    "pairs: that scores are made from; completeness_gap: scores of the edges that leave the input, over "
    "metric(clean) - metric(corrupted), minus 1."
)
FAITHFUL = (
    "requested, kept: size asked for, edges once dangling ones are cut; faithfulness: (value - ablated) / "
    "(clean - ablated) of the metric on held-out pairs, _low to _high its 95% interval (Fieller's, "
    "over pairs)."
)
BESIDE = (
    "One row per task: its smallest circuit that keeps 85%, share: of all edges; gap_<method>: completeness "
    "gap of the scores; random_: faithfulness of random connected circuits of its size."
)
SHOWN = (
    "requested",
    "kept",
    "nodes",
    "metric",
    "value",
    "clean",
    "ablated",
    "faithfulness",
    "faithfulness_low",
    "faithfulness_high",
    "refused",
)


def _tasks(tasks: Sequence[str] | None) -> list[str]:
    from interpcore.circuits.tasks import MAIN_TASKS

    return list(tasks or MAIN_TASKS)


def _edges(study: Any, option: str, size: str) -> int:
    edges: int = study.sizes([size])[0]
    if edges < 1:
        raise Refused(f"{option} {size} asks for no edge; give a larger one.")
    return edges


def _compare_files(files: Sequence[Path]) -> None:
    from dataclasses import asdict

    from interpcore.circuits import load_scores
    from interpcore.circuits.agreement import agreement

    if len(files) != 2:
        raise Refused(f"compare takes two files of scores; got {len(files)}.")
    first, second = (load_scores(file)[0] for file in files)
    for name in ("model", "task", "metric", "intervention", "split"):
        said = [getattr(scores, name) for scores in (first, second)]
        if said[0] != said[1]:
            Console().print(f"Note: the {name} differs: {said[0]} and {said[1]}.", highlight=False)
    show(_frame([asdict(agreement(first, second))]))


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _labelled(table: pd.DataFrame, corner: str) -> pd.DataFrame:
    """A square table with its columns' names in front of the rows."""
    table = table.copy()
    table.insert(0, corner, list(table.columns))
    return table
