"""The tiny world's commands: train a model, examine one, print the corpus."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.table import Table

from interpcore.data.tinyworld import exam as exams
from interpcore.data.tinyworld import heldout, training, world
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tinyworld.models import ARCHITECTURES
from interpcore.errors import exit_on_error

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Train, examine and print the tiny world.")


@app.command(epilog="Example: python -m interpcore.data.tinyworld train --seed 1 --arch gpt2")
def train(
    seed: Annotated[
        int, typer.Option(help="Seed of the initial weights and of the order of the corpus.")
    ] = 0,
    arch: Annotated[str, typer.Option(help="gpt2, llama or loop.")] = "gpt2",
    out: Annotated[
        Path | None, typer.Option(help="Model folder to write; default: runs/tiny-ARCH-sSEED.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = training.Recipe.steps,
    seconds: Annotated[
        float | None, typer.Option(min=0, help="Stop after this long; run again to go on.")
    ] = None,
    keep: Annotated[
        list[int] | None, typer.Option(min=1, help="Also write the model after this step; again for more.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads.")] = 1,
) -> None:
    """Train a model on the tiny world. An interrupted run goes on where it stopped when started again."""
    if arch not in ARCHITECTURES:
        raise typer.BadParameter(f"{arch!r} is not one of {', '.join(ARCHITECTURES)}.", param_hint="--arch")
    torch.set_num_threads(threads)
    out = out or Path("runs") / f"tiny-{arch}-s{seed}"
    try:
        finished = training.train(
            training.Recipe(arch, seed, steps),
            out,
            limit_seconds=seconds,
            keep=tuple(keep or ()),
            report=typer.echo,
        )
    except training.TrainingError as error:
        raise typer.BadParameter(str(error), param_hint="--out") from error
    if not finished:
        raise typer.Exit(0 if seconds is not None else 130)
    typer.echo(f"wrote {out}")


@app.command(epilog="Example: python -m interpcore.data.tinyworld exam tiny-llama")
def exam(
    model: Annotated[str, typer.Argument(help="A model folder, or the short name of a shipped model.")],
    seed: Annotated[int, typer.Option(help="Fixes the examples and prompts.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Also write the numbers to this JSON file.")] = None,
) -> None:
    """Examine a model: facts, tasks, sums, questions, loss. Exits with 1 where it misses the bar."""
    if output is not None and not output.parent.is_dir():
        raise typer.BadParameter(f"There is no folder {output.parent}; make it first.", param_hint="--output")
    try:
        result = exams.examine(model, seed)
    except FileNotFoundError as error:
        raise typer.BadParameter(str(error), param_hint="MODEL") from error
    _show(result, Console())
    if output is not None:
        temporary = output.with_name(output.name + ".part")
        temporary.write_text(json.dumps(result.to_json(), indent=2) + "\n", encoding="utf-8")
        temporary.replace(output)
    raise typer.Exit(0 if result.passed else 1)


@app.command(epilog="Example: python -m interpcore.data.tinyworld corpus --count 5 --kind news")
def corpus(
    count: Annotated[int, typer.Option(min=1, help="Documents to print.")] = 10,
    seed: Annotated[int, typer.Option(help="Fixes the draw.")] = 0,
    kind: Annotated[str, typer.Option(help="world, or a held-out kind: news, code, language.")] = "world",
    relations: Annotated[
        Path | None, typer.Option(help="Instead, write the relation files to this folder.")
    ] = None,
) -> None:
    """Print documents of the corpus, or write the relation files."""
    if relations is not None:
        world.write_files(relations)
        return
    if kind not in ("world", *heldout.KINDS):
        raise typer.BadParameter(
            f"{kind!r} is not one of world, {', '.join(heldout.KINDS)}.", param_hint="--kind"
        )
    texts = documents(seed, count) if kind == "world" else heldout.heldout_texts(kind, count, seed)
    typer.echo("\n\n".join(texts))


def _show(result: exams.Exam, console: Console) -> None:
    facts = Table(title="facts known, and what the embedding alone gives")
    for column in ("relation", "kind", "facts", "few-shot", "direct", "zero-shot", "embedding", "majority"):
        facts.add_column(column, justify="left" if column in ("relation", "kind") else "right")
    for name, row in result.relations.items():
        shares = (row.few_shot, row.direct, row.zero_shot, row.embedding, row.majority)
        facts.add_row(name, row.kind, str(row.facts), *(f"{share:.2f}" for share in shares))
    console.print(facts)
    tasks = Table(title="circuit tasks")
    for column in ("task", "rows", "accuracy", "logit diff", "prob diff", "corrupted logit diff"):
        tasks.add_column(column, justify="left" if column == "task" else "right")
    for name, task in result.tasks.items():
        tasks.add_row(
            name,
            str(task.rows),
            f"{task.accuracy:.3f}",
            f"{task.logit_difference:.2f}",
            f"{task.probability_difference:.3f}",
            f"{task.corrupted_logit_difference:.2f}",
        )
    console.print(tasks)
    console.print(
        f"sums {result.sums:.3f}   recall questions {result.recall_questions:.3f}   "
        f"reasoning questions {result.reasoning_questions:.3f}"
    )
    console.print("loss (nats per token): " + "   ".join(f"{k} {v:.2f}" for k, v in result.loss.items()))
    console.print(
        f"{result.parameters:,} parameters, {result.facts:.1%} of the facts, {result.tasks_passed} of "
        f"{len(result.tasks)} tasks: {'passed' if result.passed else 'not passed'}"
    )


def main() -> None:
    """Run a command; an expected failure prints its sentence and exits with 1."""
    with exit_on_error("tinyworld"):
        app()


if __name__ == "__main__":
    main()
