"""A whole study of one model's neurons in one folder: every step in its own run folder, each made once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.neurons.cards import corpus_card, file_hashes
from interpcore.neurons.correlation import setup as correlation_study
from interpcore.neurons.correlation.jackknife import Jackknife
from interpcore.neurons.correlation.setup import Correlations, Settings
from interpcore.neurons.correlation.steps import CorrelationSteps
from interpcore.neurons.correlation.universal import universality
from interpcore.neurons.dataframe import neuron_table, write_table
from interpcore.neurons.effects.deactivation import check_paths
from interpcore.neurons.effects.deactivation_study import deactivation_study, first_value_table, score_table
from interpcore.neurons.effects.intervention_study import PUBLISHED_VALUES, intervention_study
from interpcore.neurons.effects.interventions import WITH_VALUE, Intervention, Neuron
from interpcore.neurons.families import roles_by_weights
from interpcore.neurons.published import UNIVERSAL
from interpcore.neurons.responses.study import Explanations, Options, explain_neurons
from interpcore.neurons.statistics.accumulate import Statistics
from interpcore.neurons.statistics.labels import LABELS
from interpcore.neurons.statistics.moment_errors import GROUPS
from interpcore.neurons.statistics.quadrants import check_gated, quadrant_table
from interpcore.neurons.statistics.summarize import MEMORY, part_range, summarize
from interpcore.neurons.statistics.summary import Summary, merge_summaries
from interpcore.neurons.study_tables import joined_moments, most_similar, up_columns
from interpcore.neurons.weights.fold import FoldedWeights, fold, frequency_alignment
from interpcore.neurons.weights.study import weight_study
from interpcore.runs import RunCard, RunFolder, write_tensors
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd


QUADRANT_SEQUENCES = 64
"""Sequences in which gated neurons are counted by the signs of gate and factor."""


@dataclass(eq=False)
class NeuronStudy:
    """The steps of a study. Each step runs what it needs, goes on where it was stopped, and is read from its
    folder when it is done.

    Args:
        folder: the study's folder; the steps' run folders lie in it.
        model: the decoder.
        shards: the corpus; None for the steps that need no tokens.
        partners: models trained apart from it, to correlate with.
        protocol: "default" or "paper".
        settings: of correlations; None for the default ones.
        memory: bytes for what a token pass accumulates.
        limit: how many sequences interventions, deactivation and cache read at most.
        seed: of every draw.
        progress: show it.
        command: what was typed, for the cards.
        published: CSV files of published tables, to summarise beside ours.
        universal: excess correlation above which a neuron is universal.
    """

    folder: Path
    model: Model
    shards: TokenShards | None = None
    partners: Sequence[Model] = ()
    protocol: str = "default"
    settings: Settings | None = None
    memory: float = MEMORY
    limit: int | None = 64
    seed: int = 0
    progress: bool = True
    command: str | None = None
    published: Sequence[Path] = ()
    universal: float = UNIVERSAL

    def step(self, name: str) -> Path:
        """The run folder of a step."""
        return Path(self.folder) / name

    @property
    def name(self) -> str:
        """The model's name without its folder."""
        return short_name(self.model)

    @property
    def statistics(self) -> Statistics:
        """What one token pass gathers for all steps."""
        gated = self.model.spec.gated
        return Statistics(
            by_token=("token", "previous"),
            up=gated,
            errors=GROUPS,
            quadrants=QUADRANT_SEQUENCES if gated else 0,
            labels=() if self.model.tokenizer is None else LABELS,
        )

    @property
    def tokens(self) -> TokenShards:
        """The corpus. Raises: ValueError where the study has none."""
        if self.shards is None:
            raise Refused("This step reads tokens; give them with --tokens.")
        return self.shards

    @cached_property
    def comparing(self) -> CorrelationSteps | None:
        """The steps that compare the model with its partners; None without partners."""
        if not self.partners:
            return None
        models = [self.model, *self.partners]

        def open_run(step: str, **more: Any) -> RunFolder:
            return RunFolder.open_or_create(self.step(step), self.card(step, models, **more))

        of = correlation_study.Study(models, self.tokens, self.settings or correlation_study.Settings())
        return CorrelationSteps(Path(self.folder), of, open_run, self.progress)

    @cached_property
    def folded(self) -> FoldedWeights:
        """The model's folded weights."""
        return fold(self.model)

    @cached_property
    def token_counts(self) -> Tensor | None:
        """How often each token id is the next token in the corpus [vocabulary] int64; None without one."""
        if self.shards is None:
            return None
        counts = torch.zeros(self.model.embedding.shape[0], dtype=torch.int64)
        for start in range(0, self.shards.n_sequences, 4096):
            found = self.shards.sequences(start, min(start + 4096, self.shards.n_sequences))
            counts += torch.bincount(found[:, 1:].flatten(), minlength=len(counts))
        return counts

    @cached_property
    def weights(self) -> pd.DataFrame:
        """Weight statistics; with a corpus also frequency_alignment."""
        return self.weight_table("weights")

    def weight_table(self, step: str, *, full: bool = False) -> pd.DataFrame:
        """As `weights`, in the run folder of a step."""
        table = weight_study(
            self.model,
            self.step(step),
            full=full,
            protocol=self.protocol,
            progress=self.progress,
            command=self.command,
        )
        if self.token_counts is None:
            return table
        aligned = frequency_alignment(self.folded, self.token_counts)
        layers = [aligned(self.folded.neurons(layer).write) for layer in range(self.folded.n_layers)]
        return table.assign(frequency_alignment=torch.cat(layers).cpu().numpy())

    @cached_property
    def summary(self) -> Summary:
        """One pass over the tokens for every accumulator."""
        return self._summarize("summary", None)

    def summary_part(self, number: int, of: int) -> Summary:
        """Part `number` (from 1) of `of` of the tokens, so that several processes share them."""
        return self._summarize(f"summary-{number}-of-{of}", part_range(self.tokens, number, of))

    def merge_summary_parts(self) -> Summary:
        """The summary out of the parts that are there.

        Raises:
            ValueError: there are none, or they are not all the tokens.
            RunError, MergeError: they do not fit together.
        """
        folders = sorted(Path(self.folder).glob("summary-*-of-*"))
        if not folders:
            raise Refused(
                f"{self.folder} has no parts of a summary; make them with --part 1/2 and --part 2/2."
            )
        read = sum(len(Summary.open(folder).ranges) for folder in folders)
        if read < self.tokens.n_sequences:
            raise Refused(
                f"{', '.join(folder.name for folder in folders)} hold {read} of {self.tokens.n_sequences} "
                "sequences; make or finish the other parts first."
            )
        return merge_summaries(folders, self.step("summary"))

    def _summarize(self, step: str, span: tuple[int, int] | None) -> Summary:
        return summarize(
            self.model,
            self.tokens,
            self.step(step),
            self.statistics,
            span=span,
            memory=self.memory,
            progress=self.progress,
            command=self.command,
        )

    @property
    def correlations(self) -> Correlations | None:
        """Correlations with the partner models; None without partners."""
        return None if self.comparing is None else self.comparing.correlations

    @property
    def jackknife(self) -> Jackknife | None:
        """Standard errors of the correlations; None without partners or with fewer than 20 groups."""
        return None if self.comparing is None else self.comparing.jackknife

    @cached_property
    def quadrants(self) -> pd.DataFrame:
        """Gated neurons by the signs of gate and factor: what `quadrant_table` gives, over the first
        `QUADRANT_SEQUENCES` sequences.

        Raises:
            Refused: the MLPs have no gate.
        """
        check_gated(self.model)
        table = quadrant_table(self.summary.quadrants())
        card = self.card("quadrants", statistics=self.statistics.to_json())
        with RunFolder.open_or_create(self.step("quadrants"), card) as run:
            write_frame(run.artifact("quadrants"), table)
        return table

    @property
    def table(self) -> pd.DataFrame:
        """The neuron table, written with its comparison."""
        return self._framed[0]

    @property
    def comparison(self) -> pd.DataFrame:
        """Headline numbers of the table, and of the published ones."""
        return self._framed[1]

    @cached_property
    def _framed(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        card = self.card("dataframe", self.partners, **self._framing())
        layers = range(self.summary.n_layers)
        found = self.correlations
        table = neuron_table(
            self.weights,
            joined_moments([self.summary.moments(d)[0] for d in layers]),
            torch.cat([self.summary.histogram(d, published=True).counts for d in layers]),
            None if found is None else universality(found, 0, errors=self.jackknife, protocol=self.protocol),
            errors=self.summary.moment_errors(),
            protocol=self.protocol,
        )
        if self.summary.statistics.up:
            table = table.assign(**up_columns(joined_moments([self.summary.up_moments(d) for d in layers])))
        if found is not None:
            table = table.assign(**most_similar(found))
        with RunFolder.open_or_create(self.step("dataframe"), card) as run:
            return table, write_table(table, run, self.published, self.universal)

    def _framing(self) -> dict[str, Any]:
        """What the neuron table and its comparison depend on besides model, tokens and protocol."""
        return {
            "statistics": self.statistics.to_json(),
            "correlating": None if self.comparing is None else self.comparing.meaning,
            "universal": self.universal,
            "published": file_hashes(self.published),
        }

    def explanations(self, options: Options | None = None) -> Explanations:
        """What neurons respond to and write, written as tables."""
        options = Options() if options is None else options
        layers = range(self.summary.n_layers)
        card = self.card("explain", **options.meaning())
        with RunFolder.open_or_create(self.step("explain"), card) as run:
            found = explain_neurons(
                self.model,
                self.tokens,
                [self.summary.groups("token", d) for d in layers],
                [self.summary.groups("previous", d) for d in layers],
                [self.summary.groups("position", d) for d in layers],
                options,
                counted=self.summary.label_sums() if self.statistics.labels else None,
                path=run.artifact("sums.safetensors"),
                progress=self.progress,
            )
            for name in ("best", "letters", "families", "logits", "positions"):
                write_frame(run.artifact(name), getattr(found, name))
            write_tensors(
                run.artifact("variance_reduction.safetensors"),
                {"variance_reduction": found.reductions.float()},
                {"labels": "\n".join(found.names)},
            )
        return found

    def interventions(
        self,
        neurons: Sequence[Neuron] | None = None,
        values: Sequence[float] = PUBLISHED_VALUES,
        kind: str = "fixed",
        site: str = "post",
    ) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Interventions, and mean ablation, on the neurons that look most like entropy neurons, on the most
        like token-frequency neurons and on random controls (or on the neurons named).

        Args:
            neurons: which; None for those.
            values: of the kinds that have one.
            kind, site: as in `Intervention`.
        Returns: the table of `intervention_study`, where mean ablation has the kind "mean"; and roles: layer,
            neuron, role ("entropy", "frequency" or "control", or "named").
        """
        import pandas as pd

        same = [Intervention(kind, value, site) for value in (values if kind in WITH_VALUE else (0.0,))]
        if neurons is None:
            roles = roles_by_weights(self.weights, self.seed)
        else:
            roles = pd.DataFrame(neurons, columns=["layer", "neuron"]).assign(role="named")
        chosen = list(zip(roles.layer.tolist(), roles.neuron.tolist(), strict=True))
        means = {d: self.summary.moments(d)[1].mean for d in {layer for layer, _ in chosen}}
        done = {(d, n): [*same, Intervention("fixed", float(means[d][n]), name="mean")] for d, n in chosen}
        step = self.step(intervention_step(kind, site))
        table = intervention_study(
            self.model,
            self.tokens,
            chosen,
            done,
            step,
            counts=self.token_counts,
            limit=self.limit,
            protocol=self.protocol,
            progress=self.progress,
            command=self.command,
            about={"roles": roles.role.tolist()},
        )
        with RunFolder.open(step, shared=True) as run:
            write_frame(run.artifact("interventions"), table)
            write_frame(run.artifact("roles"), roles)
        return table, roles

    def deactivation(
        self, neurons: Sequence[Neuron] | None = None, first: int | None = None, count: int = 6
    ) -> tuple[pd.DataFrame, pd.DataFrame, dict[str, Tensor]]:
        """Deactivation scores of all neurons, and path ablations of the highest (or of the neurons named).

        Args:
            neurons: which to ablate; None for those with the highest scores.
            first: first position ablated; None for a quarter of the context, as published.
            count: how many neurons.
        Returns: the table of `deactivation_study`, that of `score_table`, and the raw scores. Beside them
            first_values.csv has what `first_value_norms` gives of every head.
        """
        check_paths(self.model)
        bos = self.tokens.manifest["masks"].get("bos") or [int(self.tokens.sequences(0, 1)[0, 0])]
        scores, flat = score_table(self.folded, self.model, int(bos[0]), seed=self.seed)
        if neurons is None:
            top = scores.sort_values("bos_score", ascending=False)[:count]
            neurons = list(zip(top.layer.tolist(), top.neuron.tolist(), strict=True))
        table = deactivation_study(
            self.model,
            self.tokens,
            neurons,
            self.step("deactivation"),
            first=self.tokens.context // 4 if first is None else first,
            limit=self.limit,
            progress=self.progress,
            command=self.command,
            about={"seed": self.seed, "bos": int(bos[0])},
        )
        values = first_value_table(self.model, self.tokens)
        with RunFolder.open(self.step("deactivation"), shared=True) as run:
            write_frame(run.artifact("first_values"), values)
            write_frame(run.artifact("heads"), table)
            write_frame(run.artifact("scores"), scores)
        return table, scores, flat

    def card(self, step: str, models: Sequence[Model] = (), **arguments: Any) -> RunCard:
        """The card of a step's run.

        Args:
            step: its name.
            models: other models that it reads.
            arguments: everything else that its results depend on.
        """
        cards = [run_card(model) for model in models]
        return corpus_card(
            self.model,
            self.tokens,
            self.protocol,
            self.command,
            step=step,
            models=[card.model for card in cards],
            weights=[[card.weights, card.plan_hash] for card in cards],
            **arguments,
        )

    def report_card(self, options: Options) -> RunCard:
        """The card of a report, which depends on every step."""
        return self.card(
            "report",
            self.partners,
            **self._framing(),
            explain=options.meaning(),
            limit=self.limit,
            seed=self.seed,
        )


def intervention_step(kind: str, site: str) -> str:
    """Name of the step with interventions of a kind at a site."""
    return "intervene" if (kind, site) == ("fixed", "post") else f"intervene-{kind}-{site}"


def short_name(model: Model) -> str:
    """A model's name without its folder."""
    return model.spec.name.rstrip("/").rsplit("/", 1)[-1]
