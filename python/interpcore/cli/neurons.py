"""`interpcore neurons`: every neuron's statistics, partners in other models, explanations and effects.

The commands of one study share a folder, --out. Each does its own step there, and first what that step needs;
what is done already is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from interpcore.cli.study import Quiet, add
from interpcore.cli.tables import in_forms, show
from interpcore.neurons.experiments import EXPERIMENTS

app = typer.Typer()


@app.command()
@in_forms
def tokens(
    source: Annotated[
        str,
        typer.Argument(
            help="A file (.txt, .jsonl, .parquet; .gz, .zst), a folder of them, - (standard input), hf:NAME "
            "(a data set of the hub; behind commas config=, split=, revision=, documents=10000), or 'tiny'."
        ),
    ],
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

    Example: interpcore neurons tokens tiny --context 128 --out runs/tokens-tiny;
    or of your own text: cat *.txt | interpcore neurons tokens - --out runs/tokens-mine
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
    import pandas as pd

    names = ", ".join(shards.subset_names[:6]) + (" ..." if len(shards.subset_names) > 6 else "")
    facts = {"sequences": shards.n_sequences, "context": shards.context, "subsets": names}
    then = f"interpcore neurons report --model {model} --tokens {out} --out RUN"
    show(pd.DataFrame([facts]), then=[then], files=[out])


@app.command()
@in_forms
def site(
    run: Annotated[
        Path, typer.Argument(help="The folder of a study that has its table (neurons dataframe).")
    ],
    out: Annotated[Path | None, typer.Option(help="Where to; default: RUN/site.")] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the model is now; default: as the run says.")
    ] = None,
    tokens: Annotated[
        Path | None, typer.Option(help="Where the shards are now; default: as the run says.")
    ] = None,
    examples: Annotated[int, typer.Option(min=1, help="Top contexts of a neuron.")] = 6,
    sample: Annotated[
        int, typer.Option(min=1, help="Sequences that tokens of intervals are drawn from.")
    ] = 64,
    neuronpedia: Annotated[
        Path | None, typer.Option(help="Also write a folder in Neuronpedia's form, gzip JSON lines.")
    ] = None,
) -> None:
    """All neurons of a study as one site that needs no server: searched, sorted, linked.

    Example: interpcore neurons site runs/neurons-tiny
    """
    from interpcore.data.tokens import TokenShards
    from interpcore.errors import Refused
    from interpcore.neurons.report.neuronpedia import write_neuronpedia
    from interpcore.neurons.report.site import neuron_facts, site_corpus, write_site
    from interpcore.review.verify import find_model
    from interpcore.runs import read_card

    for folder in (out, neuronpedia):
        if folder is not None and folder.exists() and not folder.is_dir():
            raise Refused(f"{folder} is a file; give a folder to write into.")
    corpus = tokens or site_corpus(run)
    if corpus is None:
        raise Refused(f"The card of {run} does not say where its tokens were; give them with --tokens.")
    shards = TokenShards.open(corpus)
    loaded = find_model(read_card(run / "summary"), model)
    facts = neuron_facts(run, loaded, shards, examples=examples, sample=sample)
    files = [write_site(facts, out or run / "site")]
    files += write_neuronpedia(facts, neuronpedia) if neuronpedia is not None else []
    import pandas as pd

    table = (
        pd.DataFrame(list(facts.data), columns=["layer", "neuron"]).groupby("layer", as_index=False).count()
    )
    said = f"{facts.model} on {facts.corpus}, {facts.tokens:,} tokens. Open index.html in a browser."
    show(table.rename(columns={"neuron": "neurons"}), said, files=files, then=[f"interpcore show {run}"])


for experiment in EXPERIMENTS:
    add(app, experiment)
