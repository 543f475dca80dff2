"""`interpcore circuits`: which edges carry a behaviour, by attribution, exact patching and faithfulness."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

app = typer.Typer(help="Circuits: edge attribution, exact patching, faithfulness.", no_args_is_help=True)


class Protocol(StrEnum):
    """Which choices a study makes."""

    default = "default"
    paper = "paper"


class Selection(StrEnum):
    """How circuits are chosen."""

    greedy = "greedy"
    topn = "topn"


class Direction(StrEnum):
    """What a positive score of a foreign file means."""

    helps = "helps"
    hurts = "hurts"


Out = Annotated[
    Path, typer.Option(help="The run folder; commands on the same study share it and go on in it.")
]
ModelName = Annotated[str, typer.Option(help="A shipped model, a transformers folder or a hub id.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option("--task", help="A published task id; again for more. Default: the six main ones."),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of published CSV files, <task>/<table>.csv; default: generated pairs."),
]
DataTable = Annotated[str, typer.Option("--table", help="Name of those files: gpt2, pythia.")]
Head = Annotated[int, typer.Option(min=2, help="Pairs per task at most.")]
MetricName = Annotated[str | None, typer.Option("--metric", help="Of all tasks; default: each task's own.")]
Intervene = Annotated[str, typer.Option("--intervention", help="patching, zero, mean or mean-positional.")]
Choose = Annotated[Selection, typer.Option("--selection", help="How circuits are chosen from scores.")]
Paper = Annotated[Protocol, typer.Option(help="'paper' makes the published choices.")]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
Device = Annotated[str, typer.Option(help="Where to run.")]
Batch = Annotated[int | None, typer.Option("--batch-size", min=1, help="Pairs per pass of attribution.")]
EvalBatch = Annotated[int, typer.Option("--eval-batch-size", min=1, help="Pairs per pass of patched runs.")]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", help="Edges, as a count (200), share (0.05) or 5%; again for more. Default: the study's."
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option("--method", help="eap, eap-ig, eap-ig-auto, eap-ig-kl, exact, ...; again for more."),
]
Unequal = Annotated[
    str, typer.Option("--unequal", help="Pairs of different token length: skip, align or refuse.")
]
Verbs = Annotated[Path | None, typer.Option(help="A published verb list for sva; default: our own.")]
Also = Annotated[
    list[Path] | None, typer.Option(help="Run folders of other models for figure 11; again for more.")
]
Ungroup = Annotated[
    bool, typer.Option("--ungroup", help="Every query head gets a key and value input of its own.")
]


@contextmanager
def _study(
    out: Out,
    model: ModelName = "tiny",
    data: Data = None,
    table: DataTable = "gpt2",
    head: Head = 200,
    metric: MetricName = None,
    intervention: Intervene = "patching",
    selection: Choose = Selection.greedy,
    protocol: Paper = Protocol.default,
    seed: Seed = 0,
    device: Device = "cpu",
    batch_size: Batch = None,
    eval_batch_size: EvalBatch = 16,
    ungroup: Ungroup = False,
    unequal: Unequal = "skip",
    verbs: Verbs = None,
) -> Iterator[Any]:
    """A study opened as these options say."""
    import interpcore
    from interpcore.circuits.study import Options, open_study

    options = Options(
        data=None if data is None else str(data),
        table=table,
        head=head,
        metric=metric,
        intervention=intervention,
        selection=selection.value,
        group_kv=not ungroup,
        protocol=None if protocol is Protocol.default else "paper",
        unequal=unequal,
        verbs=None if verbs is None else str(verbs),
        seed=seed,
    )
    loaded = interpcore.load(model, device=device)
    batches = {"batch_size": batch_size, "eval_batch_size": eval_batch_size}
    study = open_study(loaded, out, options, shlex.join(sys.argv), **batches)
    with study.folder:
        yield study
        for sentence in study.left_out:
            Console().print(f"Note: {sentence}", highlight=False, soft_wrap=True)


def _on_a_study(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `_study` beside its own, which gets the opened study first.

    An option that the command names itself replaces the study's; without a folder its study is None.
    """
    shared = inspect.signature(_study, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters
    joined = {name: p for name, p in (shared | own).items() if name != "study"}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = {name: given[name] if name in own else given.pop(name) for name in shared}
        mine = {name: given[name] for name in own if name != "study"}
        if options["out"] is None:
            command(None, **mine)
            return
        with _study(**options) as study:
            command(study, **mine)

    keyword = inspect.Parameter.KEYWORD_ONLY
    run.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in joined.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {name: p.annotation for name, p in joined.items()}
    del run.__wrapped__
    return run


@app.command()
@_on_a_study
def attribute(
    study: Any,
    task: Tasks = None,
    method: Methods = None,
) -> None:
    """Score every edge by gradients (EAP, EAP-IG, ...), with each integral's completeness gap.

    Example: interpcore circuits attribute --task ioi --method eap --method eap-ig-auto --out runs/c-tiny
    """
    from interpcore.circuits.cells import run_scores

    rows = run_scores(study, _tasks(task), method or ["eap", "eap-ig"])
    _show(_frame(rows), "Scores are in " + str(study.folder.path / "artifacts" / "scores"))


@app.command()
@_on_a_study
def exact(
    study: Any,
    task: Tasks = None,
    top: Annotated[
        str | None, typer.Option(help="Only this many best edges of --verify: 200, 0.05 or 5%.")
    ] = None,
    verify: Annotated[str, typer.Option(help="The method whose best edges --top takes.")] = "eap",
) -> None:
    """Score edges by patching each one, under the task's metric and KL at once; all edges, or the best few.

    Example: interpcore circuits exact --task ioi --top 100 --verify eap --out runs/c-tiny
    """
    from interpcore.circuits.cells import run_scores, run_verified

    if top is None:
        rows = run_scores(study, _tasks(task), ["exact"])
    else:
        rows = run_verified(study, _tasks(task), verify, study.sizes([top])[0])
    _show(_frame(rows), "Scores are in " + str(study.folder.path / "artifacts" / "scores"))


@app.command()
@_on_a_study
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

    Example: interpcore circuits evaluate scores.json --model gpt2 --task ioi --size 5% --out runs/c-gpt2
    """
    from interpcore.circuits.cells import run_file, run_mib

    if mib:
        _show(_frame([run_mib(study, task, scores, direction.value)]))
        return
    sizes = [] if whole else study.sizes(size or ())
    rows = run_file(study, task, scores, sizes, direction.value)
    _show(_frame(rows)[list(SHOWN)])


@app.command()
@_on_a_study
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
    _show(found.table, *map(str, found.files))


@app.command()
@_on_a_study
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

    tasks, edges = _tasks(task), study.sizes([size])[0]
    found = report.overlap(study, tasks, method, dict.fromkeys(tasks, edges))
    _show(_labelled(found.table, "edge IoU"), *map(str, found.files))


@app.command(name="cross-task")
@_on_a_study
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

    tasks, edges = _tasks(task), study.sizes([size])[0]
    found = report.cross_task(study, tasks, method, dict.fromkeys(tasks, edges))
    _show(_labelled(found.table, "measured on"), *map(str, found.files))


@app.command(name="ig-steps")
@_on_a_study
def ig_steps(
    study: Any,
    task: Tasks = None,
    steps: Annotated[list[int] | None, typer.Option(help="Steps of EAP-IG; again for more.")] = None,
    size: Sizes = None,
) -> None:
    """Faithfulness and completeness gap by the number of steps of EAP-IG.

    Example: interpcore circuits ig-steps --task ioi --steps 2 --steps 5 --out runs/c-tiny
    """
    from interpcore.circuits import report
    from interpcore.circuits.methods import IG_STEPS

    found = report.ig_steps(study, _tasks(task), study.sizes(size or ()), steps or IG_STEPS)
    shown = ["task", "method", "requested", "kept", "faithfulness", "completeness_gap"]
    _show(found.table[shown], *map(str, found.files))


@app.command()
@_on_a_study
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
        raise ValueError("compare needs a run folder (--out) or two files of scores.")
    _show(report.compare(study, _tasks(task), method or ["eap", "eap-ig"]).table)


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
        circuit = select(loaded, sizes_of(loaded.graph, [size])[0], selection.value)
    name = title or " ".join(part for part in (loaded.model, loaded.task, loaded.method) if part)
    drawn = draw_circuit(circuit, picture, loaded, title=name, most=most)
    Console().print(f"{len(drawn)} of {circuit.n_edges} edges: {picture}", highlight=False, soft_wrap=True)


@app.command()
@_on_a_study
def figures(
    study: Any,
    paper: Annotated[
        bool, typer.Option("--paper", help="Run what is missing and make figures 1 and 3 to 11.")
    ] = False,
    task: Tasks = None,
    size: Sizes = None,
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps of EAP-IG in figure 7; again for more.")
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
        raise ValueError("figures makes the paper's: say --paper.")
    made = report.paper_figures(
        study,
        task or TASKS,
        study.sizes(size or ()),
        steps or IG_STEPS,
        exact=not no_exact,
        others=also or (),
    )
    Console().print("\n".join(map(str, made)), highlight=False, soft_wrap=True)


SHOWN = ("requested", "kept", "metric", "value", "clean", "ablated", "faithfulness", "low", "high", "refused")


def _tasks(tasks: Sequence[str] | None) -> list[str]:
    from interpcore.circuits.tasks import MAIN_TASKS

    return list(tasks or MAIN_TASKS)


def _compare_files(files: Sequence[Path]) -> None:
    from dataclasses import asdict

    from interpcore.circuits import load_scores
    from interpcore.circuits.agreement import agreement

    if len(files) != 2:
        raise ValueError(f"compare takes two files of scores; got {len(files)}.")
    first, second = (load_scores(file)[0] for file in files)
    for name in ("model", "task", "metric", "intervention", "split"):
        said = [getattr(scores, name) for scores in (first, second)]
        if said[0] != said[1]:
            Console().print(f"Note: the {name} differs: {said[0]} and {said[1]}.", highlight=False)
    _show(_frame([asdict(agreement(first, second))]))


def _frame(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows)


def _labelled(table: pd.DataFrame, corner: str) -> pd.DataFrame:
    """A square table with its columns' names in front of the rows."""
    table = table.copy()
    table.insert(0, corner, list(table.columns))
    return table


def _show(table: pd.DataFrame, *lines: str) -> None:
    """Print a table whole, empty columns left out, and lines below."""
    table = table.dropna(axis=1, how="all")
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for name in table.columns:
        number = table[name].dtype.kind in "if"
        shown.add_column(str(name), justify="right" if number else "left", no_wrap=True)
    for row in table.itertuples(index=False):
        shown.add_row(*(_cell(value) for value in row))
    # Cells must stay whole where the output is no terminal, which Rich takes to be 80 columns wide.
    console = Console(width=max(200, Console().width))
    console.print(shown)
    for line in lines:
        console.print(line, highlight=False, soft_wrap=True)


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return "-" if value != value else f"{value:.4g}"
    return "" if value is None else str(value)
