"""What every neuron responds to and writes, over a corpus: tables of the best labels, letters and
positions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.cards import file_hashes
from interpcore.neurons.features import FeatureTable, rule_features, unigram_features, word_texts
from interpcore.neurons.options import Explain
from interpcore.neurons.responses.explain import (
    Explained,
    best_labels,
    explain,
    explain_logits,
    families,
    letter_neurons,
    token_sums,
)
from interpcore.neurons.responses.positions import (
    position_information,
    position_spread,
    position_variance_reduction,
)
from interpcore.neurons.statistics.label_sums import LabelSums, joined_sums, label_sums
from interpcore.neurons.statistics.labels import Labeller, TokenLabels, corpus_labellers
from interpcore.neurons.statistics.mlp_sides import mlp_widths
from interpcore.neurons.statistics.spacy_labels import SpacyLabels
from interpcore.neurons.weights.fold import fold
from interpcore.runs import RunFolder, write_tensors
from interpcore.runs.frames import write_frame
from interpcore.runs.shown import AsTable
from interpcore.stats.group_sums import GroupTotals

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.data.tokens import TokenShards
    from interpcore.model import Model


def meaning(asked: Explain, precision: str = "float32") -> dict[str, Any]:
    """What explanations depend on, as JSON values, with the hash of the feature file in place of its name.

    Args:
        asked: what is asked.
        precision: of the forwards that sums by token and position are of; said where it is another.
    """
    files = None if asked.features is None else file_hashes([asked.features])
    rounded = {} if precision == "float32" else {"precision": precision}
    return asked.arguments() | {"features": files} | rounded


LOGIT_MEASURES = ("variance_reduction", "welch_t", "skew_reduction", "kurtosis_reduction")


@dataclass(frozen=True, eq=False)
class Explanations(AsTable):
    """What labels say about all neurons.

    Args:
        best: layer, neuron, place, feature, group, variance_reduction, mean_difference, welch_t.
        letters: the best neuron of every letter: letter, layer, neuron, variance_reduction, shown.
        families: what kinds of features explain how many neurons best.
        logits: the class of next tokens that each neuron's writing vector sets apart most, by variance
            reduction of its logit effects, with skew_reduction and kurtosis_reduction.
        positions: per neuron information (nats), spread_between, spread_within, variance_reduction.
        reductions: variance reduction of all neurons and labels [label, neuron], names in `names`.
        names: of the labels.
    """

    best: pd.DataFrame
    letters: pd.DataFrame
    families: pd.DataFrame
    logits: pd.DataFrame
    positions: pd.DataFrame
    reductions: Tensor
    names: tuple[str, ...]

    def to_pandas(self) -> pd.DataFrame:
        """The best labels of every neuron."""
        return self.best

    def write(self, run: RunFolder) -> None:
        """Keep them as artifacts of a run."""
        for name in ("best", "letters", "families", "logits", "positions"):
            write_frame(run.artifact(name), getattr(self, name))
        path, named = run.artifact("variance_reduction.safetensors"), {"labels": "\n".join(self.names)}
        write_tensors(path, {"variance_reduction": self.reductions.float()}, named)


def explain_neurons(
    model: Model,
    shards: TokenShards,
    by_token: Sequence[GroupTotals],
    by_previous: Sequence[GroupTotals],
    by_position: Sequence[GroupTotals],
    options: Explain | None = None,
    *,
    counted: LabelSums | None = None,
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> Explanations:
    """Every label for every neuron.

    Args:
        model: the decoder, with a tokenizer.
        shards: the corpus.
        by_token, by_previous: sums of activations per token id and per id of the token before, by layer.
        by_position: sums of pre-activations per position, by layer.
        options: what labels.
        counted: sums over the labels of `corpus_labellers`, as a summary holds them; None makes a pass for
            them. Labels of a spaCy pipeline, and a limit, always need a pass of their own.
        path: keeps the sums of that pass, so that it can be killed and go on.
        progress: show it.
    Raises: ValueError for a model without a tokenizer.
    """
    options = Explain() if options is None else options
    if model.tokenizer is None:
        raise Refused(f"{model.spec.name} has no tokenizer, and features are rules on its tokens' texts.")
    texts = word_texts(model.tokenizer, model.embedding.shape[0])
    counts = torch.zeros(len(texts), dtype=torch.int64)
    counts[by_token[0].ids] = by_token[0].count
    rules = rule_features(texts, options.features)
    words = unigram_features(texts, counts, least=options.unigram_least, most=options.unigram_most)
    current, before = rules + words, TokenLabels(rules)
    found = [explain(group_label_sums(current.has, by_token))]
    found.append(explain(group_label_sums(rules.has, by_previous)))
    names, groups = [*current.names, *before.names], [*current.groups, *before.groups]
    labellers, sums = _in_context(model, shards, texts, options, counted, path, progress)
    found += [explain(of_labels) for of_labels in sums]
    names += [name for labeller in labellers for name in labeller.names]
    groups += [group for labeller in labellers for group in labeller.groups]
    whole = Explained(
        *(
            torch.cat([getattr(f, n) for f in found])
            for n in ("variance_reduction", "mean_difference", "welch_t")
        )
    )
    best = _addressed(best_labels(whole, tuple(names), tuple(groups), keep=options.keep), model)
    return Explanations(
        best,
        _addressed(letter_neurons(found[0], current), model),
        families(best),
        logit_table(model, rules),
        position_table(by_position),
        whole.variance_reduction,
        tuple(names),
    )


def group_label_sums(has: Tensor, layers: Sequence[GroupTotals]) -> LabelSums:
    """Sums per feature of the token, over the neurons of all layers; a neuron with values that were not
    finite gets NaN.

    Args:
        has: [feature, vocabulary] bool.
        layers: sums per token id.
    """
    parts = []
    for groups in layers:
        sums = token_sums(has[:, groups.ids], groups.count, groups.total, groups.square)
        broken = groups.missing.to_dense().sum(0) > 0
        sums.all_square[broken] = torch.nan
        parts.append(replace(sums, shift=groups.shift))
    return joined_sums(parts)


def logit_table(model: Model, features: FeatureTable) -> pd.DataFrame:
    """The class of tokens that each neuron's logit effects set apart most.

    Returns: layer, neuron, feature, group, variance_reduction, welch_t (positive where the class is raised),
        skew_reduction, kurtosis_reduction; no rows of latents, and of a model through the adapter, which
        shows no weights.
    """
    import pandas as pd

    from interpcore.model import Model
    from interpcore.model.latents import LatentModel

    if not isinstance(model, Model) or isinstance(model, LatentModel):
        return pd.DataFrame(columns=["layer", "neuron", "feature", "group", *LOGIT_MEASURES])
    folded = fold(model)
    frames = []
    for layer in range(folded.n_layers):
        write = folded.neurons(layer).write
        found = explain_logits(folded, write, features.has)
        reduction, at = found.explained.variance_reduction.nan_to_num(nan=-torch.inf).max(0)
        columns = {"variance_reduction": reduction, "welch_t": found.explained.welch_t.gather(0, at[None])[0]}
        for name in LOGIT_MEASURES[2:]:
            columns[name] = getattr(found, name).gather(0, at[None])[0]
        frame = pd.DataFrame({name: value.cpu().numpy() for name, value in columns.items()})
        frame.insert(0, "layer", layer)
        frame.insert(1, "neuron", range(len(write)))
        frame.insert(2, "feature", [features.names[i] for i in at.tolist()])
        frame.insert(3, "group", [features.groups[i] for i in at.tolist()])
        frames.append(frame[frame.variance_reduction > -torch.inf])
    return pd.concat(frames, ignore_index=True)


def position_table(layers: Sequence[GroupTotals]) -> pd.DataFrame:
    """What position says about every neuron, from sums of pre-activations; a neuron with values that were not
    finite gets NaN.

    Returns: layer, neuron, information (nats), spread_between, spread_within, variance_reduction.
    """
    import pandas as pd

    frames = []
    for layer, groups in enumerate(layers):
        if groups.active is None:
            raise Refused("The sums by position did not count activations above 0; summarize again.")
        count = groups.count.double()
        between, within = position_spread(count, groups.total, groups.square)
        columns = {
            "information": position_information(groups.active, count),
            "spread_between": between,
            "spread_within": within,
            "variance_reduction": position_variance_reduction(count, groups.total, groups.square),
        }
        broken = groups.missing.to_dense().sum(0) > 0
        columns = {name: value.masked_fill(broken, torch.nan) for name, value in columns.items()}
        frame = pd.DataFrame({name: value.numpy() for name, value in columns.items()})
        frame.insert(0, "layer", layer)
        frame.insert(1, "neuron", range(len(frame)))
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def _in_context(
    model: Model,
    shards: TokenShards,
    texts: Sequence[str],
    options: Explain,
    counted: LabelSums | None,
    path: str | os.PathLike[str] | None,
    progress: bool,
) -> tuple[list[Labeller], list[LabelSums]]:
    """Labels that the token alone does not give, and sums over them: those of the summary, or of a pass."""
    if not options.context:
        return [], []
    labellers, sums = corpus_labellers(texts, shards), []
    if counted is not None and options.limit is None:
        sums.append(counted)
    wanted: list[Labeller] = [] if sums else list(labellers)
    if options.spacy is not None:
        # What a token without text stands for ends a text.
        wanted.append(SpacyLabels(options.spacy, [text or "\n" for text in texts]))
        labellers.append(wanted[-1])
    if wanted:
        sums.append(label_sums(model, shards, wanted, path=path, limit=options.limit, progress=progress))
    return labellers, sums


def _addressed(table: pd.DataFrame, model: Model) -> pd.DataFrame:
    """The table with layer and neuron in place of the column's number."""
    starts = np.cumsum([0, *mlp_widths(model)])
    layer = np.searchsorted(starts, table.column, side="right") - 1
    table = table.assign(layer=layer, neuron=table.column - starts[layer])
    rest = [name for name in table.columns if name not in ("layer", "neuron", "column")]
    return table[["layer", "neuron", *rest]]
