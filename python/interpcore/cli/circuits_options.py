"""What the commands of `interpcore circuits` share: their options and the study that these say."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console


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


class ScoreLevel(StrEnum):
    """What is scored."""

    edge = "edge"
    node = "node"
    neuron = "neuron"


Out = Annotated[
    Path, typer.Option(help="The run folder; commands on the same study share it and go on in it.")
]
ModelName = Annotated[str, typer.Option(help="A shipped model, a transformers folder or a hub id.")]
Tasks = Annotated[
    list[str] | None,
    typer.Option(
        "--task",
        help="ioi, greater-than, sva, gender-bias, fact-retrieval-comma, hypernymy-comma; again for more. "
        "Default: these six. Also greater-than-price and greater-than-sequence.",
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(help="Folder of published CSV files, <task>/<table>.csv; default: generated pairs."),
]
DataTable = Annotated[str, typer.Option("--table", help="Name of those files: gpt2, pythia.")]
Head = Annotated[int, typer.Option(min=2, help="Pairs per task at most.")]
MetricName = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="For all tasks: logit_diff, prob_diff, kl, js or accuracy; default: each task's own.",
    ),
]
Intervene = Annotated[
    str, typer.Option("--intervention", help="Corrupted edges: patching, zero, mean or mean-positional.")
]
Choose = Annotated[Selection, typer.Option("--selection", help="How circuits are chosen from scores.")]
Paper = Annotated[Protocol, typer.Option(help="'paper' makes the published choices.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Device = Annotated[str, typer.Option(help="The torch device: cpu, cuda.")]
Batch = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="Pairs per pass of attribution; default: what fits memory."),
]
EvalBatch = Annotated[int, typer.Option("--eval-batch-size", min=1, help="Pairs per pass of patched runs.")]
Sizes = Annotated[
    list[str] | None,
    typer.Option(
        "--size", help="Edges, as a count (200), share (0.05) or 5%; again for more. Default: the study's."
    ),
]
Methods = Annotated[
    list[str] | None,
    typer.Option(
        "--method",
        help="eap, eap-ig, eap-ig-<steps>, eap-ig-auto, eap-ig-kl, relp, exact, ...; again for more. "
        "Default: eap and eap-ig (pareto: eap-ig-kl too).",
    ),
]
Level = Annotated[
    ScoreLevel,
    typer.Option(help="Score edges, nodes (a source's whole output) or neurons (its single entries)."),
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
def opened_study(
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
    from interpcore.cli.extras import require

    require("circuits")
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


def on_a_study(command: Callable[..., None]) -> Callable[..., None]:
    """A command with the options of `opened_study` beside its own, which gets the opened study first.

    An option that the command names itself replaces the study's; without a folder its study is None.
    """
    shared = inspect.signature(opened_study, eval_str=True).parameters
    own = inspect.signature(command, eval_str=True).parameters
    joined = {name: p for name, p in (shared | own).items() if name != "study"}

    @functools.wraps(command)
    def run(**given: Any) -> None:
        options = {name: given[name] if name in own else given.pop(name) for name in shared}
        mine = {name: given[name] for name in own if name != "study"}
        if options["out"] is None:
            command(None, **mine)
            return
        with opened_study(**options) as study:
            command(study, **mine)

    keyword = inspect.Parameter.KEYWORD_ONLY
    run.__signature__ = inspect.Signature([p.replace(kind=keyword) for p in joined.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {name: p.annotation for name, p in joined.items()}
    del run.__wrapped__
    return run
