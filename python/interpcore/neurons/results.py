"""What each experiment on a study of neurons runs, and what it shows of the result."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from interpcore.errors import Refused
from interpcore.model.latents import LatentModel
from interpcore.neurons import options as asked_for
from interpcore.neurons.correlation.correlate import estimate as estimate_correlations
from interpcore.neurons.correlation.rounding import rounding_note as correlation_note
from interpcore.neurons.correlation.universal import SIMILAR, universality
from interpcore.neurons.dataframe import table_counts
from interpcore.neurons.effects.interventions import parse_neurons
from interpcore.neurons.effects.saved import cache as save
from interpcore.neurons.effects.steps import deactivation as deactivate
from interpcore.neurons.effects.steps import deactivation_step, intervention_step, interventions
from interpcore.neurons.latents import latents_report
from interpcore.neurons.published import read_published, summarize_table
from interpcore.neurons.report.neuron_page import neuron_page
from interpcore.neurons.report.report import write_report
from interpcore.neurons.responses.fourier import fourier_table
from interpcore.neurons.said import ABLATED, CHANGES, EXPLAINED, WAVES, WEIGHTS
from interpcore.neurons.statistics.rounding import rounding_note
from interpcore.neurons.statistics.summarize import estimate as estimate_summary
from interpcore.neurons.study import Study
from interpcore.runs import RunFolder, write_bytes
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd

MOST_DEFECTS = 20


def summarize(study: Study, asked: asked_for.Summarize) -> Report:
    """One token pass: neurons that are dead, constant or not finite, or those by quadrant."""
    if asked.estimate:
        memory = study.options.memory * 1e9
        return _said(str(estimate_summary(study.model, study.tokens, study.statistics, memory=memory)))
    if asked.numbers is not None:
        summary = study.summary_part(*asked.numbers)
    else:
        summary = study.merge_summary_parts() if asked.merge else study.summary
    notes = [f"{summary.n_tokens} tokens, {summary.n_layers} layers: {summary.folder}"]
    if summary.card.rounding_error is not None:
        notes.append(rounding_note(summary.card.rounding_error))
    table = _frame()
    if isinstance(study.model, LatentModel):
        return latents_report(study, summary)
    if asked.quadrants:
        table = study.quadrants.groupby(["layer", "quadrant"])[["frequency", "mean"]].mean().reset_index()
        notes.append(f"Every neuron: {study.step('quadrants') / 'artifacts'}")
    notes += [
        f"Neuron {row['layer']}.{row['neuron']} is {row['defect']} ({row['tokens']} tokens)."
        for row in summary.defects()[:MOST_DEFECTS]
    ]
    return Report(table, notes=tuple(notes))


def correlate(study: Study, asked: asked_for.Correlate) -> Report:
    """Correlations with other models: how many neurons are universal, and how alike the models are."""
    comparing, options = study.comparing, study.options
    if comparing is None:
        raise Refused("correlate needs another model: --partner NAME.")
    if asked.estimate:
        models = [study.model, *study.partners]
        return _said(str(estimate_correlations(models, study.tokens, study.settings)))
    if asked.numbers is not None:
        return _said(f"Sums of part {asked.part}: {comparing.part(*asked.numbers)}")
    errors, step, sketched = None, "correlation", None
    if asked.sketch is not None:
        sketched = comparing.sketched(asked.sketch, options.universal)
        correlations, step = sketched.found, "sketch"
    else:
        correlations = comparing.merge() if asked.merge else comparing.correlations
        errors = comparing.jackknife
    found = universality(
        correlations, 0, threshold=options.universal, errors=errors, protocol=options.protocol
    )
    n, count = len(found.excess), int(found.universal.sum())
    low, _, high = found.count_interval()
    sure = f" (95% interval of each neuron: {low} surely, {high} possibly)" if errors is not None else ""
    told = (
        f"{count} of {n} neurons ({count / n:.2%}) are universal: excess correlation above "
        f"{found.threshold:g}{sure}. {study.step(step)}"
    )
    rounded = () if options.precision == "float32" else (correlation_note(comparing.of),)
    if sketched is None:
        return Report(comparing.similar, notes=(told, *rounded, SIMILAR))
    return _said(
        told,
        f"Correlations that do not decide this are estimates within {sketched.error:.2g}; products took "
        f"{sketched.work / sketched.dense_work:.0%} of the exact ones' multiplications.",
    )


def weights(study: Study, asked: asked_for.Weights) -> Report:
    """Weight statistics: medians of each layer."""
    study.check_weights()
    table = study.weight_table("weights-full", full=True) if asked.full else study.weights
    columns = ["w_in_norm", "w_out_norm", "in_out_sim", "vocab_var", "vocab_skew", "vocab_kurt", "null_space"]
    return Report(table.groupby("layer")[columns].median().reset_index(), notes=(WEIGHTS,))


def dataframe(study: Study) -> Report:
    """The neuron table: its headline numbers beside those of published tables."""
    if study.shards is not None:
        study.check_weights()
        counts = table_counts(study.table)
        file = study.step("dataframe") / "artifacts" / "neuron_df.csv"
        return Report(study.comparison, (file,), tuple(f"{value} {name}" for name, value in counts.items()))
    if not study.options.published:
        raise Refused("dataframe needs --tokens, or a published table with --from.")
    found = {Path(p).stem: summarize_table(read_published(p)) for p in study.options.published}
    names = list(dict.fromkeys(name for column in found.values() for name in column))
    columns = {stem: [column.get(name) for name in names] for stem, column in found.items()}
    return Report(_frame({"quantity": names} | columns))


def explain(study: Study, asked: asked_for.Explain) -> Report:
    """Explanations by features: those that explain most."""
    found = study.explanations(asked)
    best = found.best[found.best.place == 0].nlargest(15, "variance_reduction")
    told = (f"{row.group} explains {row.neurons} neurons best" for row in found.families.itertuples())
    families = "; ".join(told) + "."
    return Report(best, notes=(EXPLAINED, families, f"All tables: {study.step('explain') / 'artifacts'}"))


def fourier(study: Study, asked: asked_for.Fourier) -> Report:
    """Fourier features of numbers: the neurons with the most variance at one frequency."""
    card = study.card("fourier", back=list(asked.back), modulus=asked.modulus, limit=asked.limit)
    with RunFolder.open_or_create(study.step("fourier"), card) as run:
        table = fourier_table(
            study.model, study.tokens, back=asked.back, modulus=asked.modulus, limit=asked.limit
        )
        files = write_frame(run.artifact("fourier"), table)
    return Report(table.nlargest(20, "share"), files, (WAVES,))


def intervene(study: Study, asked: asked_for.Intervene) -> Report:
    """Interventions: what each changes."""
    study.check_weights()
    chosen = None if asked.neurons is None else parse_neurons(asked.neurons, study.model)
    table, _ = interventions(study, chosen, asked.values, asked.kind, asked.site, asked.limit)
    shown = ("layer", "neuron", "kind", "value", "norm", "loss_change", "entropy_change", "rank_change")
    folder = study.step(intervention_step(asked.kind, asked.site, chosen))
    notes = (CHANGES, f"All rows: {folder / 'artifacts'}")
    return Report(table[table.kind != "none"].head(40), notes=notes, shown=shown)


def deactivation(study: Study, asked: asked_for.Deactivation) -> Report:
    """Deactivation: the heads that change most with a neuron's activation."""
    study.check_weights()
    chosen = None if asked.neurons is None else parse_neurons(asked.neurons, study.model)
    heads, scores, _ = deactivate(study, chosen, asked.first, limit=asked.limit)
    strongest = heads.reindex(heads.pearson.abs().sort_values(ascending=False).index)
    best = ", ".join(f"{r.layer}.{r.neuron}" for r in scores.nlargest(10, "bos_score").itertuples())
    told = f"{int(scores.deactivates.sum())} neurons above random directions; the highest: {best}."
    files = f"All rows: {study.step(deactivation_step(chosen)) / 'artifacts'}"
    return Report(strongest.head(10), notes=(told, ABLATED, files))


def cache(study: Study, asked: asked_for.Cache) -> Report:
    """Saved activations: where they are."""
    study.check_weights()
    found = save(
        study.model,
        study.tokens,
        parse_neurons(asked.neurons, study.model),
        study.step("cache"),
        limit=asked.limit,
        dtype=getattr(torch, asked.stored),
        protocol=study.options.protocol,
        workers=study.workers,
        progress=study.progress,
        command=study.command,
    )
    n, context = found.tokens.shape
    folder = study.step("cache") / "artifacts" / "activations"
    return _said(f"{len(found.neurons)} neurons at {n} x {context} tokens: {folder}")


def view(study: Study, asked: asked_for.View) -> Report:
    """One neuron's page: where it is."""
    study.check_weights()
    html = neuron_page(
        study.path, study.model, asked.layer, asked.neuron, study.shards, examples=asked.examples
    )
    named = study.path / "view" / f"{asked.layer}.{asked.neuron}.html"
    page = named if asked.page is None else Path(asked.page)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(page, html.encode())
    return Report(_frame(), (page,))


def report(study: Study, asked: asked_for.Report) -> Report:
    """The whole study: headline numbers, and the page."""
    study.check_weights()
    found = write_report(study, asked)
    notes = (*(f"{value} {name}" for name, value in found.counts.items()), f"{len(found.figures)} figures.")
    return Report(found.comparison, (found.page,), notes)


def _frame(columns: dict[str, Any] | None = None) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(columns or {})


def _said(*notes: str) -> Report:
    return Report(_frame(), notes=notes)
