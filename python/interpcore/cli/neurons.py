"""`interpcore neurons`: every neuron's statistics, partners in other models, explanations and effects.

The commands of one study share a folder, --out. Each does its own step there, and first what that step needs;
what is done already is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from interpcore.cli.study import Quiet, add
from interpcore.neurons.experiments import EXPERIMENTS

app = typer.Typer()


@app.command()
def tokens(
    source: Annotated[str, typer.Argument(help="Text, JSON lines, Parquet, a folder, or 'tiny'.")],
    out: Annotated[Path, typer.Option(help="The shards' folder; the same command again reads it.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer: a model, or a folder.")] = "tiny",
    context: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Keep so many, at random.")] = None,
    text: Annotated[str, typer.Option(help="Field or column of the text.")] = "text",
    subset: Annotated[str | None, typer.Option(help="Field or column of the subset's name.")] = None,
    sample_by: Annotated[
        Literal["document", "paragraph", "line"], typer.Option(help="What is drawn, of text files.")
    ] = "document",
    mask: Annotated[str, typer.Option(help="Left out of statistics: of padding,bos,newline.")] = (
        "padding,bos,newline"
    ),
    documents: Annotated[int, typer.Option(min=1, help="Documents of the tiny world.")] = 6000,
    revision: Annotated[str | None, typer.Option(help="Of the tokenizer.")] = None,
    seed: Annotated[int, typer.Option(help="Of every random draw.")] = 0,
    quiet: Quiet = False,
) -> None:
    """Turn text into token shards.

    Example: interpcore neurons tokens tiny --context 128 --out runs/tokens-tiny
    """
    from interpcore.cli.neurons_corpus import make_shards

    shards = make_shards(
        source,
        out,
        model,
        documents=documents,
        context=context,
        max_tokens=max_tokens,
        seed=seed,
        text=text,
        subset=subset,
        sample_by=sample_by,
        masked=[kind for kind in mask.split(",") if kind],
        revision=revision,
        progress=not quiet,
    )
    names = ", ".join(shards.subset_names[:6]) + (" ..." if len(shards.subset_names) > 6 else "")
    typer.echo(f"{shards.n_sequences} sequences of {shards.context} tokens in {out} ({names}).")


for experiment in EXPERIMENTS:
    add(app, experiment)
