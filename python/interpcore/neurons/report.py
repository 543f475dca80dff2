"""The study's report: every figure, and one page with the numbers beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from interpcore.neurons import figures, figures_behaviour, pages
from interpcore.neurons.cache import Cached, cache
from interpcore.neurons.composition import composition
from interpcore.neurons.deactivation import path_ablation
from interpcore.neurons.explanation_study import Explanations, Options
from interpcore.neurons.families import (
    CONTRASTS,
    percentiles_within_layer,
    universal_contrasts,
)
from interpcore.neurons.features import FeatureTable, rule_features, word_texts
from interpcore.neurons.neuron_study import NeuronStudy, short_name
from interpcore.neurons.published import UNIVERSAL
from interpcore.neurons.weight_study import weight_study
from interpcore.runs import RunFolder, write_bytes
from interpcore.runs.plots import caption, save_figure

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
GROUPS_SHOWN = 8
"""Kinds of features whose best neurons get a figure: those that explain most neurons."""


@dataclass(frozen=True, eq=False)
class Report:
    """What was written.

    Args:
        page: the HTML file.
        figures: the pictures.
        comparison: headline numbers, ours and those of published tables.
        counts: dead, constant and overflowing neurons.
    """

    page: Path
    figures: tuple[Path, ...]
    comparison: pd.DataFrame
    counts: dict[str, int]


def write_report(study: NeuronStudy, options: Options | None = None) -> Report:
    """Run what the study still lacks, draw every figure and write the page.

    Args:
        study: with tokens; without partners there is nothing about universality.
        options: of explanations.
    """
    from interpcore.neurons.dataframe import table_counts

    options = Options() if options is None else options
    card = study.report_card(options)  # before the work: a bad file is refused at once
    table = study.table
    explained = study.explanations(options)
    changes, roles = study.interventions()
    heads, scores, flat = study.deactivation()
    drawn = {
        "Universal neurons": universal_figures(table, study.universal),
        "Weights and the vocabulary": vocabulary_figures(study, table, explained),
        "What neurons respond to": explanation_figures(study, explained),
        "Entropy neurons": {
            "entropy": figures_behaviour.entropy_figure(table),
            "interventions": figures_behaviour.intervention_figure(changes, roles),
        },
        "Attention deactivation": deactivation_figures(study, heads, flat),
    }
    if study.model.spec.gated:
        drawn["Gated neurons"] = {"quadrants": figures_behaviour.quadrant_figure(study.quadrants)}
    tables = _tables(study, table, explained, changes, scores)
    paths: list[Path] = []
    said = caption(
        model=study.name,
        data=f"corpus {study.tokens.identity[:12]}",
        n=f"{len(table)} neurons, {study.tokens.n_sequences} sequences of {study.tokens.context} tokens",
    )
    with RunFolder.open_or_create(study.step("report"), card) as run:
        sections = [("In short", _short(study, table))]
        for head, of_section in drawn.items():
            parts = []
            for name, figure in of_section.items():
                paths += save_figure(run.artifact(f"figures/{name}"), figure, said, dpi=110)
                parts.append(f'<img alt="{name}" src="figures/{name}.png">')
            parts += [pages.table(frame) for frame in tables.get(head, ())]
            sections.append((head, "\n".join(parts)))
        page = run.artifact("index.html")
        title = f"Neurons of {study.name}"
        write_bytes(page, pages.page(title, sections).encode())
    return Report(page, tuple(paths), study.comparison, table_counts(table))


def universal_figures(table: pd.DataFrame, universal: float = UNIVERSAL) -> Figures:
    """Excess correlation, layers and contrasts with the rest; nothing without correlations."""
    if table.excess_corr.isna().all():
        return {}
    present = [name for name in CONTRASTS if name in table]
    ranks = percentiles_within_layer(table, present)[table.excess_corr > universal]
    return {
        "excess": figures.excess_figure(table, universal),
        "layers": figures.layer_figure(table, universal),
        "contrasts": figures.contrast_figure(universal_contrasts(table, universal=universal), ranks),
    }


def vocabulary_figures(study: NeuronStudy, table: pd.DataFrame, explained: Explanations) -> Figures:
    """Logit effects by layer over all models of the study, of single neurons by class, and heads."""
    tables = {study.name: table} | partner_weights(study)
    found = {
        "percentiles": figures.percentile_figure(tables),
        "skewness": figures.skew_figure(tables),
        "mysteries": figures.mystery_figure(table),
    }
    rules = study_features(study)
    best = explained.logits.sort_values("variance_reduction", ascending=False)
    kept = next_class_neurons(best)
    for row in kept.itertuples():
        has = rules.has[rules.names.index(row.feature)]
        effects = study.folded.unembedding.mT @ study.folded.neurons(row.layer).write[row.neuron]
        title = f"{row.layer}.{row.neuron}: {row.feature}"
        found[f"class_{row.layer}_{row.neuron}"] = figures.class_figure(effects, has, row.feature, title)
    if len(kept):
        found["next_class"] = _next_class(study, kept, rules)
        first = kept.iloc[0]
        mine = study.folded.neurons(int(first.layer))
        layers = [composition(mine, study.folded.heads(d)) for d in range(study.folded.n_layers)]
        values = {
            kind: torch.stack([of_layer[kind][int(first.neuron)] for of_layer in layers]).numpy()
            for kind in layers[0]
        }
        found["composition"] = figures.composition_figure(values, f"{first.layer}.{first.neuron}")
    return found


def next_class_neurons(logits: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The neurons whose logit effects a class explains best, each class once."""
    return logits.sort_values("variance_reduction", ascending=False).drop_duplicates("feature")[:count]


def explanation_figures(study: NeuronStudy, explained: Explanations) -> Figures:
    """The best neurons of each kind of feature, letters, families, positions."""
    found = {"families": figures_behaviour.family_figure(explained.families)}
    if len(explained.letters):
        found["alphabet"] = figures_behaviour.alphabet_figure(explained.letters)
    first = explained.best[explained.best.place == 0]
    kinds = explained.families.group[explained.families.group != "unexplained"]
    for group in kinds[:GROUPS_SHOWN]:
        name = f"explained_{group.replace(' ', '_').replace(',', '')}"
        found[name] = figures_behaviour.explanation_figure(first, group)
    top = explained.positions.sort_values("information", ascending=False)[:6]
    curves = {}
    for row in top.itertuples():
        groups = study.summary.groups("position", int(row.layer))
        mean, spread = groups.mean[:, int(row.neuron)], groups.variance[:, int(row.neuron)].sqrt()
        curves[f"{row.layer}.{row.neuron}"] = (mean.numpy(), spread.numpy())
    found["positions"] = figures_behaviour.position_figure(curves)
    return found


def deactivation_figures(study: NeuronStudy, heads: pd.DataFrame, flat: Mapping[str, Any]) -> Figures:
    """Scores against random directions, correlations by head, and the strongest head token by token."""
    best = heads.loc[heads.pearson.abs().idxmax()] if heads.pearson.notna().any() else heads.iloc[0]
    neuron, other, head = (int(best.layer), int(best.neuron)), int(best.attention_layer), int(best["head"])
    first = study.tokens.context // 4
    tokens = study.tokens.sequences(0, min(8, study.tokens.n_sequences)).to(study.model.device)
    ablated = path_ablation(study.model, tokens, [neuron], other, first=first)[neuron]
    keep = study.tokens.mask(tokens)[:, first:]
    title = f"{neuron[0]}.{neuron[1]} into head {other}.{head}"
    return {
        "deactivation": figures_behaviour.deactivation_figure(flat["scores"], flat["random"]),
        "deactivation_heads": figures_behaviour.head_figure(heads),
        "deactivation_path": figures_behaviour.path_figure(
            ablated.activation[keep], ablated.norm[keep][:, head], title
        ),
    }


def partner_weights(study: NeuronStudy) -> dict[str, pd.DataFrame]:
    """Weight statistics of the partner models, each in a run folder of its own."""
    found = {}
    for model in study.partners:
        name = short_name(model)
        found[name] = weight_study(
            model,
            study.step(f"weights-{name}"),
            protocol=study.protocol,
            progress=study.progress,
            command=study.command,
        )
    return found


def study_features(study: NeuronStudy) -> FeatureTable:
    """The rules of the shipped feature file on the model's tokens."""
    return rule_features(word_texts(study.model.tokenizer, study.model.embedding.shape[0]))


def _next_class(study: NeuronStudy, kept: pd.DataFrame, rules: FeatureTable) -> Figure:
    """Activations of prediction-like neurons by the class of the token that comes next."""
    neurons = list(zip(kept.layer.tolist(), kept.neuron.tolist(), strict=True))
    saved: Cached = cache(
        study.model,
        study.tokens,
        neurons,
        study.step("next_class"),
        limit=study.limit,
        protocol=study.protocol,
        progress=study.progress,
        command=study.command,
    )
    values = {}
    for column, row in enumerate(kept.itertuples()):
        has = rules.has[rules.names.index(row.feature)][saved.tokens[:, 1:]]
        act, mask = saved.post[:, :-1, column], saved.mask[:, :-1]
        inside, outside = act[mask & has].numpy(), act[mask & ~has].numpy()
        if len(inside) and len(outside):
            values[f"{row.layer}.{row.neuron}: {row.feature}"] = (inside, outside)
    if not values:
        nothing = np.zeros(1)
        values = {"no token of these classes": (nothing, nothing)}
    return figures.next_class_figure(values, "activation by the next token's class")


def _short(study: NeuronStudy, table: pd.DataFrame) -> str:
    import pandas as pd

    from interpcore.neurons.dataframe import table_counts

    counts = pd.DataFrame(list(table_counts(table).items()), columns=["", "neurons"])
    families = table.family[table.family != ""].value_counts().rename_axis("family").reset_index()
    return pages.side_by_side([pages.table(study.comparison), pages.table(counts), pages.table(families)])


def _tables(
    study: NeuronStudy,
    table: pd.DataFrame,
    explained: Explanations,
    changes: pd.DataFrame,
    scores: pd.DataFrame,
) -> dict[str, list[pd.DataFrame]]:
    """Tables under the figures of each section."""
    strongest = table.reindex(table.excess_corr.abs().sort_values(ascending=False).index)[:15]
    columns = ["layer", "neuron", "excess_corr", "excess_se", "mean_corr", "mean_baseline", "kurt", "family"]
    best = explained.best[explained.best.place == 0]
    shown = ["layer", "neuron", "kind", "value", "norm", "loss_change", "loss_change_se", "entropy_change"]
    means = changes[changes.kind == "mean"]
    contrasts = universal_contrasts(table, universal=study.universal)
    return {
        "Universal neurons": [] if table.excess_corr.isna().all() else [contrasts, strongest[columns]],
        "Weights and the vocabulary": [explained.logits.nlargest(15, "variance_reduction")],
        "What neurons respond to": [best.nlargest(20, "variance_reduction")],
        "Entropy neurons": [means.reindex(means.loss_change.abs().sort_values().index[::-1])[shown][:20]],
        "Attention deactivation": [scores.nlargest(15, "bos_score")],
    }
