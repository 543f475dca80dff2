"""`interpcore neurons`, the commands about chosen neurons: what explains them, what they do, their pages."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from interpcore.cli.neurons_options import (
    Device,
    MaybeTokens,
    Memory,
    ModelName,
    Neurons,
    Out,
    Paper,
    Protocol,
    Quiet,
    Seed,
    Sequences,
    Tokens,
    open_study,
)
from interpcore.cli.tables import show
from interpcore.errors import Refused

EXPLAINED = (
    "variance_reduction: share of the activation's variance that the feature explains; mean_difference, "
    "welch_t: of the activation with and without it, - where undefined (a mean of 0, neither side varies)."
)
CHANGES = (
    "Means over tokens, intervened minus clean: loss and entropy in nats, rank of the true token; norm: the "
    "final norm's scale, as it comes (free) or as in the clean run (frozen)."
)
ABLATED = (
    "Each neuron's path to each later head cut. pattern_change: of the attention to the first token; "
    "norm_change: of the size of the head's output; pearson, spearman: of the activation with that change, "
    "over tokens."
)


def explain(
    out: Out,
    tokens: Tokens,
    model: ModelName = "tiny",
    features: Annotated[Path | None, typer.Option(help="A feature file of your own.")] = None,
    unigram_least: Annotated[int, typer.Option(min=1, help="Rarer words are no feature.")] = 3000,
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
    from interpcore.neurons.features import rule_features
    from interpcore.neurons.responses.study import Options

    rule_features((), features)  # a bad file is refused before the folder is this run's
    study = open_study(out, model, tokens, device=device, quiet=quiet, memory=memory)
    options = Options(
        features=None if features is None else str(features),
        unigram_least=unigram_least,
        spacy=spacy,
        limit=sequences,
    )
    found = study.explanations(options)
    best = found.best[found.best.place == 0].nlargest(15, "variance_reduction")
    show(found.families)
    show(best, EXPLAINED, f"All tables: {study.step('explain') / 'artifacts'}")


def intervene(
    out: Out,
    tokens: Tokens,
    model: ModelName = "tiny",
    neurons: Neurons = None,
    kind: Annotated[
        str, typer.Option(help="zero, threshold (from above), relu (from below), fixed or multiply.")
    ] = "fixed",
    site: Annotated[str, typer.Option(help="Of what: pre or post, before or after the activation.")] = "post",
    values: Annotated[str, typer.Option(help="Of threshold, fixed and multiply.")] = "-0.17,0,1,2,3,4,5,6",
    sequences: Sequences = 64,
    protocol: Paper = Protocol.default,
    seed: Seed = 0,
    device: Device = "cpu",
    quiet: Quiet = False,
) -> None:
    """Change neurons and measure loss, entropy, rank and the final norm's scale, which can also be frozen.
    Without --neurons: those that look most like entropy neurons, and random controls.

    Example: interpcore neurons intervene --tokens runs/tokens-tiny --neurons 3.120,3.7 --out
    runs/neurons-tiny
    """
    from interpcore.neurons.effects.interventions import parse_neurons
    from interpcore.neurons.study import intervention_step

    study = open_study(
        out, model, tokens, device=device, quiet=quiet, protocol=protocol, seed=seed, limit=sequences
    )
    chosen = None if neurons is None else parse_neurons(neurons, study.model)
    try:
        fixed = [float(value) for value in values.split(",")]
        if not all(map(math.isfinite, fixed)):
            raise Refused(values)
    except ValueError as error:
        raise Refused(f"--values {values!r} is no list of numbers, such as -0.17,0,1.") from error
    table, _ = study.interventions(chosen, fixed, kind, site)
    shown = ["layer", "neuron", "kind", "value", "norm", "loss_change", "entropy_change", "rank_change"]
    folder = study.step(intervention_step(kind, site))
    show(table[table.kind != "none"][shown].head(40), CHANGES, f"All rows: {folder / 'artifacts'}")


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
    from interpcore.neurons.effects.interventions import parse_neurons

    study = open_study(out, model, tokens, device=device, quiet=quiet, seed=seed, limit=sequences)
    chosen = None if neurons is None else parse_neurons(neurons, study.model)
    heads, scores, _ = study.deactivation(chosen, first)
    show(
        scores.nlargest(10, "bos_score"), f"{int(scores.deactivates.sum())} neurons above random directions."
    )
    strongest = heads.reindex(heads.pearson.abs().sort_values(ascending=False).index)
    show(strongest.head(10), ABLATED, f"All rows: {study.step('deactivation') / 'artifacts'}")


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

    Example: interpcore neurons cache --tokens runs/tokens-tiny --neurons 3.120,0.7 --out runs/neurons-tiny
    """
    import torch

    from interpcore.neurons.effects.interventions import parse_neurons
    from interpcore.neurons.effects.saved import cache as save

    if dtype not in ("float32", "float16"):
        raise Refused(f"--dtype is float32 or float16; got {dtype!r}.")
    study = open_study(out, model, tokens, device=device, quiet=quiet, protocol=protocol)
    found = save(
        study.model,
        study.tokens,
        parse_neurons(neurons, study.model),
        study.step("cache"),
        limit=sequences,
        dtype=getattr(torch, dtype),
        protocol=study.protocol,
        progress=study.progress,
        command=study.command,
    )
    n, context = found.tokens.shape
    files = study.step("cache") / "artifacts" / "activations"
    typer.echo(f"{len(found.neurons)} neurons at {n} x {context} tokens: {files}")


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
    from interpcore.neurons.report.neuron_page import neuron_page
    from interpcore.runs import write_bytes

    study = open_study(out, model, tokens, device=device, quiet=True)
    html = neuron_page(out, study.model, layer, neuron, study.shards, examples=examples)
    page = out / "view" / f"{layer}.{neuron}.html" if page is None else page
    page.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(page, html.encode())
    typer.echo(str(page))
