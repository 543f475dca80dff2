"""`interpcore neurons`: every neuron's statistics, partners in other models, explanations and effects.

The commands of one study share a folder, --out. Each does its own step there, and first what that step needs;
what is done already is read.
"""

from __future__ import annotations

import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.neurons.correlate import Settings
    from interpcore.neurons.neuron_study import NeuronStudy

app = typer.Typer(
    help="Neurons: statistics, universality, explanations, interventions.", no_args_is_help=True
)


class Protocol(StrEnum):
    """Which choices a study makes."""

    default = "default"
    paper = "paper"


class Rotation(StrEnum):
    """Of partners, for the baseline of correlations."""

    haar = "haar"
    published = "published"


Out = Annotated[Path, typer.Option(help="The study's folder; commands on the same study share it.")]
ModelName = Annotated[
    str, typer.Option("--model", help="A shipped model, a transformers folder or a hub id.")
]
Tokens = Annotated[Path, typer.Option("--tokens", help="Token shards that `neurons tokens` made.")]
MaybeTokens = Annotated[
    Path | None, typer.Option("--tokens", help="Token shards that `neurons tokens` made.")
]
Partners = Annotated[
    list[str] | None,
    typer.Option("--partner", help="A model trained apart from it, on the same tokens; again for more."),
]
Paper = Annotated[Protocol, typer.Option(help="'paper' makes the published choices.")]
Memory = Annotated[float, typer.Option(min=0.01, help="GB for what a token pass gathers; else more passes.")]
Budget = Annotated[float, typer.Option(min=0.01, help="GB for sums of correlations; else more passes.")]
Sequences = Annotated[int, typer.Option(min=1, help="Sequences read by this step at most.")]
Neurons = Annotated[
    str | None, typer.Option(help="layer.neuron,layer.neuron,... or a CSV file with layer and neuron.")
]
Seed = Annotated[int, typer.Option(help="Of every draw.")]
Device = Annotated[str, typer.Option(help="Where to run.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Universal = Annotated[
    float, typer.Option("--universal", help="Excess correlation above which a neuron is universal.")
]
Published = Annotated[
    list[Path] | None,
    typer.Option("--from", help="A published CSV file to summarise beside ours; again for more."),
]


@app.command()
def tokens(
    source: Annotated[str, typer.Argument(help="Text, JSON lines, Parquet, a folder, or 'tiny'.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; new.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer: a model, or a folder.")] = "tiny",
    context: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(help="Keep so many, at random.")] = None,
    text: Annotated[str, typer.Option(help="Field or column of the text.")] = "text",
    subset: Annotated[str | None, typer.Option(help="Field or column of the subset's name.")] = None,
    sample_by: Annotated[str, typer.Option(help="document, paragraph or line, of text files.")] = "document",
    mask: Annotated[str, typer.Option(help="Left out of statistics: of padding,bos,newline.")] = (
        "padding,bos,newline"
    ),
    documents: Annotated[int, typer.Option(min=1, help="Documents of the tiny world.")] = 6000,
    revision: Annotated[str | None, typer.Option(help="Of the tokenizer.")] = None,
    seed: Seed = 0,
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


@app.command()
def summarize(
    out: Out,
    tokens: Tokens,
    model: ModelName = "tiny",
    memory: Memory = 4.0,
    quadrants: Annotated[
        bool, typer.Option("--quadrants", help="Of gated neurons, also by the signs of gate and factor.")
    ] = False,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it will take, and stop.")] = False,
    part: Annotated[str | None, typer.Option(help="Only this part of the tokens, such as 1/2.")] = None,
    merge: Annotated[bool, typer.Option("--merge", help="Merge the parts that --part made.")] = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Moments, histograms, top examples, sums by position and token of every neuron, in one pass.

    Example: interpcore neurons summarize --model tiny --tokens runs/tokens-tiny --out runs/neurons-tiny
    """
    study = _study(out, model, tokens, device=device, quiet=quiet, memory=memory)
    if estimate:
        from interpcore.neurons.neuron_study import STATISTICS
        from interpcore.neurons.summarize import estimate as estimate_summary

        typer.echo(str(estimate_summary(study.model, study.tokens, STATISTICS, memory=study.memory)))
        return
    if part is not None:
        found = re.fullmatch(r"(\d+)/(\d+)", part)
        if found is None:
            raise ValueError(f"--part {part!r} is no part such as 1/2.")
        summary = study.summary_part(int(found[1]), int(found[2]))
    else:
        summary = study.merge_summary_parts() if merge else study.summary
    typer.echo(f"{summary.n_tokens} tokens, {summary.n_layers} layers: {summary.folder}")
    if quadrants:
        table = study.quadrants.groupby(["layer", "quadrant"])[["frequency", "mean"]].mean().reset_index()
        _show(table, f"Every neuron: {study.step('quadrants') / 'artifacts'}")
    for row in summary.defects()[:20]:
        typer.echo(f"Neuron {row['layer']}.{row['neuron']} is {row['defect']} ({row['tokens']} tokens).")


@app.command()
def correlate(
    out: Out,
    tokens: Tokens,
    partner: Partners,
    model: ModelName = "tiny",
    rotation: Annotated[Rotation, typer.Option(help="Of partners, for the baseline.")] = Rotation.haar,
    draws: Annotated[int, typer.Option(min=1, help="Rotations of every layer.")] = 1,
    budget: Budget = 8.0,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it will take, and stop.")] = False,
    universal: Universal = 0.5,
    protocol: Paper = Protocol.default,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Correlate every neuron with every neuron of other models, and with rotated ones.

    Example: interpcore neurons correlate --model tiny --partner tiny-s1 --partner tiny-s2
    --tokens runs/tokens-tiny --out runs/neurons-tiny
    """
    from interpcore.neurons.correlate import Settings
    from interpcore.neurons.correlate import estimate as estimate_correlations
    from interpcore.neurons.universal import universality

    kind = "published" if protocol is Protocol.paper else rotation.value
    settings = Settings(rotation=kind, draws=draws, seed=seed, budget=budget * 1e9)
    study = _study(
        out,
        model,
        tokens,
        partner,
        device=device,
        quiet=quiet,
        protocol=protocol,
        settings=settings,
        seed=seed,
    )
    if not study.partners:
        raise ValueError("correlate needs another model: --partner NAME.")
    if estimate:
        typer.echo(str(estimate_correlations([study.model, *study.partners], study.tokens, settings)))
        return
    assert study.correlations is not None
    found = universality(
        study.correlations, 0, threshold=universal, errors=study.jackknife, protocol=protocol.value
    )
    low, count, high = found.count_interval()
    n = len(found.excess)
    typer.echo(
        f"{count} of {n} neurons ({count / n:.2%}) are universal: excess correlation above "
        f"{found.threshold:g} "
        f"(95% interval of each neuron: {low} surely, {high} possibly). {study.step('correlation')}"
    )


@app.command()
def weights(
    out: Out,
    model: ModelName = "tiny",
    tokens: MaybeTokens = None,
    full: Annotated[
        bool, typer.Option("--full", help="Keep summaries of all cosines and all compositions too.")
    ] = False,
    protocol: Paper = Protocol.default,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Norms, biases, cosines, vocabulary moments and composition with heads, on folded weights.

    Example: interpcore neurons weights --model tiny --out runs/neurons-tiny
    """
    from interpcore.neurons.weight_study import weight_study

    study = _study(out, model, tokens, device=device, quiet=quiet, protocol=protocol)
    if full:
        table = weight_study(
            study.model,
            study.step("weights-full"),
            counts=study.token_counts,
            full=True,
            protocol=study.protocol,
            progress=study.progress,
            command=study.command,
        )
    else:
        table = study.weights
    columns = ["w_in_norm", "w_out_norm", "in_out_sim", "vocab_var", "vocab_skew", "vocab_kurt", "null_space"]
    _show(table.groupby("layer")[columns].median().reset_index(), "Median of each layer.")


@app.command()
def dataframe(
    out: Out,
    tokens: MaybeTokens = None,
    partner: Partners = None,
    model: ModelName = "tiny",
    published: Published = None,
    universal: Universal = 0.5,
    protocol: Paper = Protocol.default,
    memory: Memory = 4.0,
    budget: Budget = 8.0,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """The neuron table with the published columns, everything it needs included. With --from and no --tokens
    it only summarises published tables.

    Example: interpcore neurons dataframe --model tiny --partner tiny-s1 --partner tiny-s2
    --tokens runs/tokens-tiny --from universal.csv --out runs/neurons-tiny
    """
    from interpcore.neurons.dataframe import table_counts
    from interpcore.neurons.published import read_published, summarize_table

    if tokens is None:
        if not published:
            raise ValueError("dataframe needs --tokens, or a published table with --from.")
        import pandas as pd

        found = {path.stem: summarize_table(read_published(path)) for path in published}
        names = list(dict.fromkeys(name for column in found.values() for name in column))
        columns = {stem: [column.get(name) for name in names] for stem, column in found.items()}
        _show(pd.DataFrame({"quantity": names} | columns))
        return
    study = _study(
        out,
        model,
        tokens,
        partner,
        device=device,
        quiet=quiet,
        protocol=protocol,
        settings=_settings(protocol, seed, budget),
        memory=memory,
        seed=seed,
        published=published or (),
        universal=universal,
    )
    counts = table_counts(study.table)
    _show(study.comparison, *(f"{value} {name}" for name, value in counts.items()))
    typer.echo(str(study.step("dataframe") / "artifacts" / "neuron_df.csv"))


@app.command()
def explain(
    out: Out,
    tokens: Tokens,
    model: ModelName = "tiny",
    features: Annotated[Path | None, typer.Option(help="A feature file of your own.")] = None,
    unigram_least: Annotated[int, typer.Option(help="Rarer words are no feature.")] = 3000,
    spacy: Annotated[str | None, typer.Option(help="A spaCy pipeline for parts of speech.")] = None,
    sequences: Annotated[
        int | None, typer.Option(min=1, help="Sequences of the pass for labels in context; default: all.")
    ] = None,
    memory: Memory = 4.0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Which features of the token, the one before, its place and its subset explain each neuron.

    Example: interpcore neurons explain --tokens runs/tokens-tiny --unigram-least 100 --out runs/neurons-tiny
    """
    from interpcore.neurons.explanation_study import Options

    study = _study(out, model, tokens, device=device, quiet=quiet, memory=memory)
    options = Options(
        features=None if features is None else str(features),
        unigram_least=unigram_least,
        spacy=spacy,
        sequences=sequences,
    )
    found = study.explanations(options)
    best = found.best[found.best.place == 0].nlargest(15, "variance_reduction")
    _show(found.families)
    _show(best, f"All tables: {study.step('explain') / 'artifacts'}")


@app.command()
def intervene(
    out: Out,
    tokens: Tokens,
    model: ModelName = "tiny",
    neurons: Neurons = None,
    values: Annotated[str, typer.Option(help="Activations to fix neurons to.")] = "-0.17,0,1,2,3,4,5,6",
    sequences: Sequences = 64,
    protocol: Paper = Protocol.default,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Fix neurons and measure loss, entropy, rank and the final norm's scale, which can also be frozen.
    Without --neurons: those that look most like entropy neurons, and random controls.

    Example: interpcore neurons intervene --tokens runs/tokens-tiny --neurons 3.120,3.7 --out
    runs/neurons-tiny
    """
    from interpcore.neurons.interventions import parse_neurons

    study = _study(
        out, model, tokens, device=device, quiet=quiet, protocol=protocol, seed=seed, sequences=sequences
    )
    chosen = None if neurons is None else parse_neurons(neurons, study.model)
    try:
        fixed = [float(value) for value in values.split(",")]
    except ValueError as error:
        raise ValueError(f"--values {values!r} is no list of numbers, such as -0.17,0,1.") from error
    table, _ = study.interventions(chosen, fixed)
    shown = ["layer", "neuron", "kind", "value", "norm", "loss_change", "entropy_change", "rank_change"]
    _show(table[table.kind != "none"][shown].head(40), f"All rows: {study.step('intervene') / 'artifacts'}")


@app.command()
def deactivation(
    out: Out,
    tokens: Tokens,
    model: ModelName = "tiny",
    neurons: Neurons = None,
    first: Annotated[
        int | None, typer.Option(min=1, help="First position ablated; default: a quarter of the context.")
    ] = None,
    sequences: Sequences = 64,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Which neurons switch attention heads off by sending them to the first token.

    Example: interpcore neurons deactivation --tokens runs/tokens-tiny --out runs/neurons-tiny
    """
    from interpcore.neurons.interventions import parse_neurons

    study = _study(out, model, tokens, device=device, quiet=quiet, seed=seed, sequences=sequences)
    chosen = None if neurons is None else parse_neurons(neurons, study.model)
    heads, scores, _ = study.deactivation(chosen, first)
    _show(
        scores.nlargest(10, "bos_score"), f"{int(scores.deactivates.sum())} neurons above random directions."
    )
    strongest = heads.reindex(heads.pearson.abs().sort_values(ascending=False).index)
    _show(strongest.head(10), f"All rows: {study.step('deactivation') / 'artifacts'}")


@app.command()
def cache(
    out: Out,
    tokens: Tokens,
    neurons: Annotated[str, typer.Option(help="layer.neuron,... or a CSV file with layer and neuron.")],
    model: ModelName = "tiny",
    sequences: Annotated[int | None, typer.Option(min=1, help="The first so many; default: all.")] = None,
    dtype: Annotated[str, typer.Option(help="Of the activations on disk: float32 or float16.")] = "float32",
    protocol: Paper = Protocol.default,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Save neurons' activations at every token, with its loss, entropy and rank.

    Example: interpcore neurons cache --tokens runs/tokens-tiny --neurons 3.120,0.7 --out runs/neurons-cached
    """
    import torch

    from interpcore.neurons.cache import cache as save
    from interpcore.neurons.interventions import parse_neurons

    if dtype not in ("float32", "float16"):
        raise ValueError(f"--dtype is float32 or float16; got {dtype!r}.")
    study = _study(out, model, tokens, device=device, quiet=quiet, protocol=protocol)
    found = save(
        study.model,
        study.tokens,
        parse_neurons(neurons, study.model),
        out,
        sequences=sequences,
        dtype=getattr(torch, dtype),
        protocol=study.protocol,
        progress=study.progress,
        command=study.command,
    )
    n, context = found.tokens.shape
    typer.echo(f"{len(found.neurons)} neurons at {n} x {context} tokens: {out / 'artifacts' / 'activations'}")


@app.command()
def view(
    model: Annotated[str, typer.Argument(help="The study's model.")],
    layer: Annotated[int, typer.Argument(help="From 0.")],
    neuron: Annotated[int, typer.Argument(help="From 0.")],
    out: Out,
    tokens: MaybeTokens = None,
    page: Annotated[Path | None, typer.Option(help="Where to; default: OUT/view/LAYER.NEURON.html.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Contexts shown.")] = 12,
    device: Device = "cpu",
) -> None:
    """One neuron's page: distribution, contexts, effects on the vocabulary, partners.

    Example: interpcore neurons view tiny 3 120 --tokens runs/tokens-tiny --out runs/neurons-tiny
    """
    from interpcore.neurons.view import neuron_page
    from interpcore.runs import write_bytes

    study = _study(out, model, tokens, device=device, quiet=True)
    html = neuron_page(out, study.model, layer, neuron, study.shards, examples=examples)
    page = out / "view" / f"{layer}.{neuron}.html" if page is None else page
    page.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(page, html.encode())
    typer.echo(str(page))


@app.command()
def report(
    out: Out,
    tokens: Tokens,
    partner: Partners = None,
    model: ModelName = "tiny",
    published: Published = None,
    unigram_least: Annotated[int, typer.Option(help="Rarer words are no feature.")] = 3000,
    sequences: Sequences = 64,
    universal: Universal = 0.5,
    protocol: Paper = Protocol.default,
    memory: Memory = 4.0,
    budget: Budget = 8.0,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """The whole study: every step that is not done yet, every figure, one page.

    Example: interpcore neurons report --model tiny --partner tiny-s1 --partner tiny-s2
    --tokens runs/tokens-tiny --unigram-least 100 --out runs/neurons-tiny
    """
    from interpcore.neurons.explanation_study import Options
    from interpcore.neurons.report import write_report

    study = _study(
        out,
        model,
        tokens,
        partner,
        device=device,
        quiet=quiet,
        protocol=protocol,
        settings=_settings(protocol, seed, budget),
        memory=memory,
        seed=seed,
        sequences=sequences,
        published=published or (),
        universal=universal,
    )
    found = write_report(study, Options(unigram_least=unigram_least))
    _show(found.comparison, *(f"{value} {name}" for name, value in found.counts.items()))
    typer.echo(f"{len(found.figures)} figures: {found.page}")


def _settings(protocol: Protocol, seed: int, budget: float) -> Settings:
    """Of correlations, as `correlate` takes them without options of its own."""
    from interpcore.neurons.correlate import Settings

    rotation = "published" if protocol is Protocol.paper else "haar"
    return Settings(rotation=rotation, seed=seed, budget=budget * 1e9)


def _study(
    out: Path,
    model: str,
    tokens: Path | None,
    partner: list[str] | None = None,
    *,
    device: str,
    quiet: bool,
    protocol: Protocol = Protocol.default,
    memory: float = 4.0,
    **options: object,
) -> NeuronStudy:
    """The study that these options say."""
    import interpcore
    from interpcore.data.tokens import TokenShards
    from interpcore.neurons.neuron_study import NeuronStudy

    shards = None if tokens is None else TokenShards.open(tokens)
    names = list(dict.fromkeys(partner or ()))
    loaded = [interpcore.load(name, device=device) for name in (model, *names)]
    return NeuronStudy(
        out,
        loaded[0],  # type: ignore[arg-type]
        shards,
        loaded[1:],  # type: ignore[arg-type]
        protocol=protocol.value,
        memory=memory * 1e9,
        progress=not quiet,
        command=shlex.join(sys.argv),
        **options,  # type: ignore[arg-type]
    )


def _show(frame: pd.DataFrame, *notes: str) -> None:
    """Print a table and notes."""
    # Cells must stay whole where the output is no terminal, which Rich takes to be 80 columns wide.
    console = Console(width=max(150, Console().width))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in frame.columns:
        table.add_column(str(name), justify="left" if frame[name].dtype == object else "right", no_wrap=True)
    for row in frame.itertuples(index=False):
        table.add_row(*(_cell(value) for value in row))
    console.print(table)
    for note in notes:
        console.print(note, highlight=False, style="dim")


def _cell(value: object) -> str:
    if isinstance(value, float):
        return "" if value != value else f"{value:.4g}"
    return "" if value is None else str(value)
