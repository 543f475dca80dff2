"""The study's report: every figure, and one page with the numbers beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.neurons.correlation.universal import SIMILAR
from interpcore.neurons.effects.deactivation import check_paths, path_ablation
from interpcore.neurons.effects.intervention_study import check_predicting
from interpcore.neurons.effects.saved import Cached, cache
from interpcore.neurons.effects.steps import deactivation, interventions
from interpcore.neurons.families import (
    CONTRASTS,
    percentiles_within_layer,
    universal_contrasts,
)
from interpcore.neurons.features import FeatureTable, rule_features, word_texts
from interpcore.neurons.options import Explain
from interpcore.neurons.options import Report as Asked
from interpcore.neurons.report import behaviour as figures_behaviour
from interpcore.neurons.report import figures
from interpcore.neurons.report.short import sentences, worth_a_look
from interpcore.neurons.responses.study import Explanations
from interpcore.neurons.said import CHANGES, EXPLAINED, MOVED, SCORED
from interpcore.neurons.study import Study
from interpcore.neurons.weights.composition import composition
from interpcore.neurons.weights.study import weight_study
from interpcore.runs import RunFolder, pages, write_bytes
from interpcore.runs.plots import caption, save_figure
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

Figures = dict[str, "Figure"]
GROUPS_SHOWN = 8
"""Kinds of features whose best neurons get a figure: those that explain most neurons."""


MARKS = {
    "excess": "Neurons counted; dotted: the cut for universal neurons.",
    "layers": "Universal neurons counted.",
    "contrasts": "Dots: means with 95% intervals, bootstrap over neurons; grey: the middle 50% and 90%.",
    "percentiles": "Of a layer's neurons; corpora play no part.",
    "skewness": "A dot is a neuron, moved up or down at random; how many in brackets.",
    "mysteries": "A dot is a neuron.",
    "class": "Densities over the vocabulary.",
    "next_class": "Densities over tokens of the first sequences.",
    "composition": "Sizes of the products with every head's matrices, weights alone.",
    "families": "Beside each bar its count and the median share of variance explained.",
    "alphabet": "Dotted: the published 0.37.",
    "explained": "Share of the activation's variance that the label explains.",
    "positions": "Means over sequences; bands: one standard deviation.",
    "entropy": "A dot is a neuron of the last two layers; red: entropy neurons.",
    "interventions": "Means over tokens; bars: one standard error; dotted: the final norm frozen; black: the "
    "mean of all controls.",
    "deactivation": "Densities over neurons and later heads.",
    "deactivation_heads": "Over tokens, for the neurons of highest score.",
    "deactivation_path": "A dot is a token; the neuron and head of the largest |Pearson|.",
    "quadrants": "Neurons counted, over the first sequences.",
}
"""What marks, bars and bands of each figure are, by name or its beginning."""


@dataclass(frozen=True, eq=False)
class Section(ShortRepr):
    """A section of the page: what there is of it, and why the rest is not."""

    figures: Figures = field(default_factory=dict)
    tables: Sequence[pd.DataFrame] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True, eq=False)
class Report(AsTable):
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

    def to_pandas(self) -> pd.DataFrame:
        """The headline numbers."""
        return self.comparison


def write_report(study: Study, asked: Asked | None = None) -> Report:
    """Run what the study still lacks, draw every figure and write the page.

    The corpus is read once by the study's model, for every statistic of its neurons. Correlations read it
    again, since they hold the models' activations on the same tokens side by side, and so do their errors,
    since only then is it known which pairs of neurons they are of. Interventions, deactivation and saved
    activations change or look into the forward, on as many sequences as are asked for.

    Args:
        study: with tokens; without partners there is nothing about universality.
        asked: what the report asks.
    """
    from interpcore.neurons.dataframe import table_counts

    study.check_by_token()
    asked = Asked() if asked is None else asked
    labels = Explain(unigram_least=asked.unigram_least)
    card = study.report_card(labels, asked.limit)  # before the work: a bad file is refused at once
    table = study.table
    explained = study.explanations(labels)
    sections = {
        "Universal neurons": universal_section(study, table),
        "Weights and the vocabulary": vocabulary_section(study, table, explained, asked.limit),
        "What neurons respond to": explanation_section(study, explained),
        "Entropy neurons": entropy_section(study, table, asked.limit),
        "Attention deactivation": deactivation_section(study, asked.limit),
    }
    if study.model.spec.gated:
        drawn = {"quadrants": figures_behaviour.quadrant_figure(study.quadrants)}
        sections["Gated neurons"] = Section(drawn)
    paths: list[Path] = []
    corpus = corpus_name(study.tokens)
    said = caption(
        model=study.name,
        data=f"corpus {corpus} ({study.tokens.identity[:12]})",
        n=f"{len(table)} neurons, {study.tokens.n_sequences} sequences of {study.tokens.context} tokens",
    )
    with RunFolder.open_or_create(study.step("report"), card) as run:
        best = explained.best[explained.best.place == 0]
        bodies = [("In short", _short(study, table, best, corpus)), ("Numbers", _numbers(study, table))]
        for head, section in sections.items():
            parts = [pages.note(text) for text in section.notes]
            for name, figure in section.figures.items():
                marks = MARKS.get(name) or MARKS[name.partition("_")[0]]
                file = run.artifact(f"figures/{name}")
                files = save_figure(file, figure, f"{said} {marks}", dpi=110)
                paths += files
                parts.append(pages.picture_file(files[0]))
            parts += [pages.table(frame) for frame in section.tables]
            bodies.append((head, pages.joined(parts)))
        page = run.artifact("index.html")
        write_bytes(page, pages.page(f"Neurons of {study.name}", bodies).encode())
    return Report(page, tuple(paths), study.comparison, table_counts(table))


def universal_section(study: Study, table: pd.DataFrame) -> Section:
    """How alike the models are, excess correlation, layers and contrasts of universal neurons."""
    if study.comparing is None:
        return Section(notes=["Nothing is said of universality: no partner model was given (--partner)."])
    known, cut = table.excess_corr.dropna(), study.options.universal
    tables, notes = [study.comparing.similar], [SIMILAR]
    if known.empty:
        return Section({}, tables, [*notes, "No neuron has a correlation: all are constant or not finite."])
    drawn = {"excess": figures.excess_figure(table, cut)}
    strongest = table.reindex(table.excess_corr.abs().sort_values(ascending=False).index)[:15]
    columns = ["layer", "neuron", "excess_corr", "excess_se", "mean_corr", "mean_baseline", "kurt", "family"]
    if (known > cut).any():
        contrasts = universal_contrasts(table, universal=cut)
        present = [name for name in CONTRASTS if name in table]
        ranks = percentiles_within_layer(table, present)[table.excess_corr > cut]
        drawn["layers"] = figures.layer_figure(table, cut)
        drawn["contrasts"] = figures.contrast_figure(contrasts, ranks)
        tables.append(contrasts)
    else:
        notes.append(
            f"No neuron is universal: the largest excess correlation is {known.max():.3f}, and the cut "
            f"{cut:g}. Layers and contrasts of universal neurons are left out."
        )
    return Section(drawn, [*tables, strongest[columns]], notes)


def vocabulary_section(
    study: Study, table: pd.DataFrame, explained: Explanations, limit: int | None
) -> Section:
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
    notes = [MOVED]
    if len(kept):
        next_class = _next_class(study, kept, rules, limit)
        if next_class is None:
            notes.append(
                "Activations by the class of the next token are left out: of the tokens that count none, or "
                "all, have a next token of these classes."
            )
        else:
            found["next_class"] = next_class
        first = kept.iloc[0]
        mine = study.folded.neurons(int(first.layer))
        layers = [composition(mine, study.folded.heads(d)) for d in range(study.folded.n_layers)]
        values = {
            kind: torch.stack([of_layer[kind][int(first.neuron)] for of_layer in layers]).numpy()
            for kind in layers[0]
        }
        found["composition"] = figures.composition_figure(values, f"{first.layer}.{first.neuron}")
    return Section(found, [explained.logits.nlargest(15, "variance_reduction")], notes)


def next_class_neurons(logits: pd.DataFrame, count: int = 3) -> pd.DataFrame:
    """The neurons whose logit effects a class explains best, each class once."""
    return logits.sort_values("variance_reduction", ascending=False).drop_duplicates("feature")[:count]


def explanation_section(study: Study, explained: Explanations) -> Section:
    """The best neurons of each kind of feature, letters, families, positions."""
    first = explained.best[explained.best.place == 0]
    if not len(first):
        return Section(notes=["No label explains a neuron: none varies with any label that comes and goes."])
    found, notes = {"families": figures_behaviour.family_figure(explained.families)}, [EXPLAINED]
    if len(explained.letters):
        found["alphabet"] = figures_behaviour.alphabet_figure(explained.letters)
    kinds = explained.families.group[explained.families.group != "unexplained"]
    for group in kinds[:GROUPS_SHOWN]:
        name = f"explained_{group.replace(' ', '_').replace(',', '')}"
        found[name] = figures_behaviour.explanation_figure(first, group)
    places = study.summary.groups("position", 0).count
    if int((places > 0).sum()) > 1:
        found["positions"] = _positions(study, explained)
    else:
        notes.append("One position alone has tokens that count, so nothing is said of positions.")
    return Section(found, [first.nlargest(20, "variance_reduction")], notes)


def _positions(study: Study, explained: Explanations) -> Figure:
    """Activations by position of the neurons that know it best."""
    top = explained.positions.sort_values("information", ascending=False)[:6]
    curves = {}
    for row in top.itertuples():
        groups = study.summary.groups("position", int(row.layer))
        mean, spread = groups.mean[:, int(row.neuron)], groups.variance[:, int(row.neuron)].sqrt()
        curves[f"{row.layer}.{row.neuron}"] = (mean.numpy(), spread.numpy())
    return figures_behaviour.position_figure(curves)


def entropy_section(study: Study, table: pd.DataFrame, limit: int | None) -> Section:
    """Entropy neurons by their weights, and what interventions on them do."""
    found = {"entropy": figures_behaviour.entropy_figure(table)}
    try:
        check_predicting(study.tokens, limit)
    except Refused as reason:
        return Section(found, notes=[f"No interventions: {reason}"])
    changes, roles = interventions(study, limit=limit)
    found["interventions"] = figures_behaviour.intervention_figure(changes, roles)
    shown = ["layer", "neuron", "kind", "value", "norm", "loss_change", "loss_change_se", "entropy_change"]
    means = changes[changes.kind == "mean"]
    largest = means.reindex(means.loss_change.abs().sort_values().index[::-1])[shown][:20]
    told = f"Table: neurons set to their mean, the largest changes of the loss. {CHANGES}"
    return Section(found, [largest], [told])


def deactivation_section(study: Study, limit: int | None) -> Section:
    """Scores against random directions, correlations by head, and the strongest head token by token."""
    try:
        check_paths(study.model)
    except Refused as reason:
        return Section(notes=[f"No path can be ablated: {reason}"])
    heads, scores, flat = deactivation(study, limit=limit)
    found = {"deactivation": figures_behaviour.deactivation_figure(flat["scores"], flat["random"])}
    tables = [scores.nlargest(15, "bos_score")]
    known = heads.pearson.abs()
    if known.isna().all():
        none = "No activation varies where paths are ablated, so heads have none."
        return Section(found, tables, [SCORED, none])
    found["deactivation_heads"] = figures_behaviour.head_figure(heads)
    best = heads.loc[known.idxmax()]
    neuron, other, head = (int(best.layer), int(best.neuron)), int(best.attention_layer), int(best["head"])
    first = study.tokens.context // 4
    ((_, tokens, mask),) = study.tokens.blocks(8, 0, study.tokens.count(8), study.model.device)
    ablated = path_ablation(study.model, tokens, [neuron], other, first=first)[neuron]
    keep = mask[:, first:]
    title = f"{neuron[0]}.{neuron[1]} into head {other}.{head}"
    if bool(keep.any()):
        found["deactivation_path"] = figures_behaviour.path_figure(
            ablated.activation[keep], ablated.norm[keep][:, head], title
        )
    return Section(found, tables, [SCORED])


def partner_weights(study: Study) -> dict[str, pd.DataFrame]:
    """Weight statistics of the partner models, each in a run folder of its own."""
    found = {}
    for model in study.partners:
        name = model.spec.short_name
        found[name] = weight_study(
            model,
            study.step(f"weights-{name}"),
            protocol=study.options.protocol,
            progress=study.progress,
            command=study.command,
        )
    return found


def study_features(study: Study) -> FeatureTable:
    """The rules of the shipped feature file on the model's tokens."""
    return rule_features(word_texts(study.model.tokenizer, study.model.embedding.shape[0]))


def _next_class(study: Study, kept: pd.DataFrame, rules: FeatureTable, limit: int | None) -> Figure | None:
    """Activations of prediction-like neurons by the class of the token that comes next; None where no class
    both comes and stays away."""
    neurons = list(zip(kept.layer.tolist(), kept.neuron.tolist(), strict=True))
    saved: Cached = cache(
        study.model,
        study.tokens,
        neurons,
        study.step("next_class"),
        limit=limit,
        protocol=study.options.protocol,
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
        return None
    return figures.next_class_figure(values, "activation by the next token's class")


def _short(study: Study, table: pd.DataFrame, best: pd.DataFrame, corpus: str) -> str:
    from interpcore.neurons.dataframe import table_counts

    told = sentences(
        table,
        best,
        table_counts(table),
        model=study.name,
        corpus=corpus,
        tokens=study.summary.n_tokens,
    )
    look = worth_a_look(table, best, study.options.universal)
    links = [
        (f"../../../site/neuron.html#{row.layer}.{row.neuron}", f"{row.layer}.{row.neuron}")
        for row in look.itertuples()
    ]
    parts = [pages.note(text) for text in (*told, "Neurons to look at first:")]
    parts.append(pages.linked_table(links, look[["why", "value"]]))
    where = (
        "Links lead to the site of all neurons, which interpcore neurons site RUN makes beside this report."
    )
    return pages.joined([*parts, pages.note(where)])


def _numbers(study: Study, table: pd.DataFrame) -> str:
    import pandas as pd

    from interpcore.neurons.dataframe import table_counts

    counts = pd.DataFrame(list(table_counts(table).items()), columns=["", "neurons"])
    families = table.family[table.family != ""].value_counts().rename_axis("family").reset_index()
    known = study.comparison.dropna(how="all", subset=study.comparison.columns[1:])  # where none is universal
    return pages.side_by_side([pages.table(known), pages.table(counts), pages.table(families)])


def corpus_name(shards: TokenShards) -> str:
    """A corpus's name: that of its folder."""
    return "in memory" if shards.folder is None else shards.folder.resolve().name
