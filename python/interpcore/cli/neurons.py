"""`interpcore neurons`: every neuron's statistics, partners in other models, explanations and effects.

The commands of one study share a folder, --out. Each does its own step there, and first what that step needs;
what is done already is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from interpcore.cli import neurons_chosen
from interpcore.cli.neurons_options import (
    Budget,
    Device,
    MaybeTokens,
    Memory,
    Merge,
    ModelName,
    Out,
    Paper,
    Part,
    Partners,
    Protocol,
    Published,
    Quiet,
    Rotation,
    Seed,
    Sequences,
    Tokens,
    Universal,
    open_study,
    part_numbers,
    study_settings,
)
from interpcore.cli.tables import show
from interpcore.errors import Refused

WEIGHTS = (
    "Medians of each layer. w_in, w_out: a neuron's reading and writing vector, their norms and cosine "
    "(sim); vocab_: variance, skewness and kurtosis (normal: 3) of its effects on the logits; null_space: "
    "share of w_out where the unembedding hardly reads."
)
app = typer.Typer(help="Neurons: statistics, universality, explanations, effects.", no_args_is_help=True)


@app.command()
def tokens(
    source: Annotated[str, typer.Argument(help="Text, JSON lines, Parquet, a folder, or 'tiny'.")],
    out: Annotated[Path, typer.Option(help="Folder of the shards; new.")],
    model: Annotated[str, typer.Option("--model", help="Whose tokenizer: a model, or a folder.")] = "tiny",
    context: Annotated[int, typer.Option(min=2, help="Tokens of a sequence.")] = 512,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Keep so many, at random.")] = None,
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
    part: Part = None,
    merge: Merge = False,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Moments, histograms, top examples, sums by position and token of every neuron, in one pass.

    Example: interpcore neurons summarize --model tiny --tokens runs/tokens-tiny --out runs/neurons-tiny
    """
    study = open_study(out, model, tokens, device=device, quiet=quiet, memory=memory)
    if estimate:
        from interpcore.neurons.statistics.summarize import estimate as estimate_summary

        typer.echo(str(estimate_summary(study.model, study.tokens, study.statistics, memory=study.memory)))
        return
    if part is not None:
        summary = study.summary_part(*part_numbers(part))
    else:
        summary = study.merge_summary_parts() if merge else study.summary
    typer.echo(f"{summary.n_tokens} tokens, {summary.n_layers} layers: {summary.folder}")
    if quadrants:
        table = study.quadrants.groupby(["layer", "quadrant"])[["frequency", "mean"]].mean().reset_index()
        show(table, f"Every neuron: {study.step('quadrants') / 'artifacts'}")
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
    sketch: Annotated[
        int | None,
        typer.Option(min=1, help="Estimate from so many buckets of tokens; exact where it decides."),
    ] = None,
    part: Part = None,
    merge: Merge = False,
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
    from interpcore.neurons.correlation.correlate import Settings
    from interpcore.neurons.correlation.correlate import estimate as estimate_correlations
    from interpcore.neurons.correlation.universal import SIMILAR, universality

    kind = "published" if protocol is Protocol.paper else rotation.value
    settings = Settings(rotation=kind, draws=draws, seed=seed, budget=budget * 1e9)
    study = open_study(
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
    comparing = study.comparing
    if comparing is None:
        raise Refused("correlate needs another model: --partner NAME.")
    if estimate:
        typer.echo(str(estimate_correlations([study.model, *study.partners], study.tokens, settings)))
        return
    if part is not None:
        typer.echo(f"Sums of part {part}: {comparing.part(*part_numbers(part))}")
        return
    errors, step = None, "correlation"
    if sketch is not None:
        sketched = comparing.sketched(sketch, universal)
        correlations, step = sketched.found, "sketch"
    else:
        correlations = comparing.merge() if merge else comparing.correlations
        errors = comparing.jackknife
    found = universality(correlations, 0, threshold=universal, errors=errors, protocol=protocol.value)
    n, count = len(found.excess), int(found.universal.sum())
    low, _, high = found.count_interval()
    sure = f" (95% interval of each neuron: {low} surely, {high} possibly)" if errors is not None else ""
    typer.echo(
        f"{count} of {n} neurons ({count / n:.2%}) are universal: excess correlation above "
        f"{found.threshold:g}{sure}. {study.step(step)}"
    )
    if sketch is not None:
        typer.echo(
            f"Correlations that do not decide this are estimates within {sketched.error:.2g}; products took "
            f"{sketched.work / sketched.dense_work:.0%} of the exact ones' multiplications."
        )
    else:
        show(comparing.similar, SIMILAR)


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
    study = open_study(out, model, tokens, device=device, quiet=quiet, protocol=protocol)
    table = study.weight_table("weights-full", full=True) if full else study.weights
    columns = ["w_in_norm", "w_out_norm", "in_out_sim", "vocab_var", "vocab_skew", "vocab_kurt", "null_space"]
    show(table.groupby("layer")[columns].median().reset_index(), WEIGHTS)


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
            raise Refused("dataframe needs --tokens, or a published table with --from.")
        import pandas as pd

        found = {path.stem: summarize_table(read_published(path)) for path in published}
        names = list(dict.fromkeys(name for column in found.values() for name in column))
        columns = {stem: [column.get(name) for name in names] for stem, column in found.items()}
        show(pd.DataFrame({"quantity": names} | columns))
        return
    study = open_study(
        out,
        model,
        tokens,
        partner,
        device=device,
        quiet=quiet,
        protocol=protocol,
        settings=study_settings(protocol, seed, budget),
        memory=memory,
        seed=seed,
        published=published or (),
        universal=universal,
    )
    counts = table_counts(study.table)
    show(study.comparison, *(f"{value} {name}" for name, value in counts.items()))
    typer.echo(str(study.step("dataframe") / "artifacts" / "neuron_df.csv"))


@app.command()
def report(
    out: Out,
    tokens: Tokens,
    partner: Partners = None,
    model: ModelName = "tiny",
    published: Published = None,
    unigram_least: Annotated[int, typer.Option(min=1, help="Rarer words are no feature.")] = 3000,
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
    from interpcore.neurons.report.report import write_report
    from interpcore.neurons.responses.study import Options

    study = open_study(
        out,
        model,
        tokens,
        partner,
        device=device,
        quiet=quiet,
        protocol=protocol,
        settings=study_settings(protocol, seed, budget),
        memory=memory,
        seed=seed,
        limit=sequences,
        published=published or (),
        universal=universal,
    )
    found = write_report(study, Options(unigram_least=unigram_least))
    show(found.comparison, *(f"{value} {name}" for name, value in found.counts.items()))
    typer.echo(f"{len(found.figures)} figures: {found.page}")


for verb in ("explain", "intervene", "deactivation", "cache", "view"):
    app.command()(getattr(neurons_chosen, verb))
