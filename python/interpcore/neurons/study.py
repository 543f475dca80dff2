"""A whole study of one model's neurons in one folder: every step in its own run folder, each made once."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.generic import GenericModel
from interpcore.model.latents import LatentModel, with_latents
from interpcore.neurons.cards import corpus_card, file_hashes
from interpcore.neurons.correlation import setup as correlation_study
from interpcore.neurons.correlation.jackknife import Jackknife
from interpcore.neurons.correlation.setup import Correlations, Settings
from interpcore.neurons.correlation.steps import CorrelationSteps
from interpcore.neurons.correlation.universal import universality
from interpcore.neurons.dataframe import neuron_table, write_table
from interpcore.neurons.options import Explain, Options
from interpcore.neurons.partners import load_partners
from interpcore.neurons.parts import all_parts, correlation_part, in_parts, merge_tree, summary_part
from interpcore.neurons.responses.study import Explanations, explain_neurons, meaning
from interpcore.neurons.statistics.accumulate import BY_TOKEN, Statistics
from interpcore.neurons.statistics.labels import LABELS
from interpcore.neurons.statistics.mlp_sides import default_batch, mlp_widths
from interpcore.neurons.statistics.moment_errors import GROUPS
from interpcore.neurons.statistics.quadrants import QUADRANT_SEQUENCES, check_gated, quadrant_table
from interpcore.neurons.statistics.summarize import part_range, state_bytes, summarize
from interpcore.neurons.statistics.summary import Summary
from interpcore.neurons.study_folder import check_study_folder
from interpcore.neurons.study_tables import joined_moments, most_similar, up_columns
from interpcore.neurons.weights.fold import FoldedWeights, fold, frequency_alignment
from interpcore.neurons.weights.study import weight_study
from interpcore.runs import RunCard, RunFolder, experiment, is_run, read_card
from interpcore.runs.frames import write_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False)
class Study(experiment.Study):
    """The steps of a study. Each step runs what it needs, goes on where it was stopped, and is read from its
    folder when it is done.

    Args:
        model, options, workers, progress: as in `runs.experiment.Study`; artifacts and folder stay None.
        path: the study's folder; the steps' run folders lie in it.
        shards: the corpus; None for the steps that need no tokens.
        partners: models trained apart from it, to correlate with; or, in a worker, what loads them.
        correlating: settings of correlations; None for those that the options say.
        command: what was typed, for the cards.
    """

    model: Model
    options: Options
    path: Path = Path()
    shards: TokenShards | None = None
    partners: Sequence[Model] = ()
    correlating: Settings | None = None
    command: str | None = None

    def __post_init__(self) -> None:
        loaded = (Model, GenericModel)
        self.partners = [each if isinstance(each, loaded) else each() for each in self.partners]

    def recipe(self) -> tuple[Callable[[], Any], type[Self], dict[str, Any]]:
        """See `runs.experiment.Study`; partners are loaded again, too."""
        load, kind, given = super().recipe()
        return load, kind, given | {"partners": [partner.reloader() for partner in self.partners]}

    def step(self, name: str) -> Path:
        """The run folder of a step."""
        return self.path / name

    @property
    def settings(self) -> Settings:
        """Of correlations."""
        if self.correlating is not None:
            return self.correlating
        options = self.options
        rotation = "published" if options.protocol == "paper" else options.rotation
        shared = {name: getattr(options, name) for name in ("draws", "seed", "precision")}
        return Settings(rotation=rotation, budget=options.budget * 1e9, **shared)

    @property
    def rounding(self) -> str:
        """See `runs.experiment.Study`: of the summary that is there, else of the one to be made."""
        folder = self.step("summary")
        said = read_card(folder).arguments["statistics"] if is_run(folder) else self.statistics.to_json()
        summed = Statistics.from_json(said).precision
        return super().rounding if summed == "float32" else summed

    @property
    def unverified(self) -> str | None:
        """See `runs.experiment.Study`."""
        there = is_run(self.step("summary"))
        missing = None if there else f"{self.path} holds no summary yet; make it with summarize."
        return super().unverified or missing

    @property
    def name(self) -> str:
        """The model's name without its folder."""
        return self.model.spec.short_name

    @property
    def statistics(self) -> Statistics:
        """What one token pass gathers for all steps."""
        gated, options = self.model.spec.gated, self.options
        every = Statistics(
            by_token=BY_TOKEN if options.by_token else (),
            largest=options.largest,
            up=gated,
            errors=GROUPS,
            quadrants=QUADRANT_SEQUENCES if gated else 0,
            labels=LABELS if options.by_label and self.model.tokenizer is not None else (),
            precision=options.precision,
        )
        return every.without(options.leave_out)

    @property
    def tokens(self) -> TokenShards:
        """The corpus. Raises: ValueError where the study has none."""
        if self.shards is None:
            raise Refused("This step reads tokens; give them with --tokens.")
        return self.shards

    def check_by_token(self) -> None:
        """Raises: Refused where the study leaves out sums that explanations need."""
        if self.statistics.by_token != BY_TOKEN or not self.statistics.position:
            raise Refused("Explanations and reports need sums by token and by position; leave neither out.")

    def check_weights(self) -> None:
        """Raises: Refused for neurons whose weights no step can read."""
        if isinstance(self.model, LatentModel):
            raise Refused(
                "This step is of a model's own neurons; of latents there are summarize, correlate and "
                "explain."
            )
        if not isinstance(self.model, Model):
            raise Refused(
                f"This step reads weights, and the generic adapter shows none of {self.model.spec.name}; "
                "summarize, correlate and explain read its neurons alone."
            )

    @cached_property
    def comparing(self) -> CorrelationSteps | None:
        """The steps that compare the model with its partners; None without partners."""
        if not self.partners:
            return None
        models = [self.model, *self.partners]

        def open_run(step: str, **more: Any) -> RunFolder:
            return RunFolder.open_or_create(self.step(step), self.card(step, models, **more))

        of = correlation_study.Study(models, self.tokens, self.settings)
        share = partial(in_parts, self, correlation_part, "correlation")
        return CorrelationSteps(self.path, of, open_run, self.progress, share)

    @cached_property
    def folded(self) -> FoldedWeights:
        """The model's folded weights."""
        return fold(self.model)

    @cached_property
    def token_counts(self) -> Tensor | None:
        """How often each token id is the next token in the corpus [vocabulary] int64; None without one."""
        return None if self.shards is None else self.shards.next_counts(self.model.embedding.shape[0])

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
            protocol=self.options.protocol,
            workers=self.workers,
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
        """One pass over the tokens for every accumulator, in parts where there are many tokens."""
        whole = self.step("summary")
        if is_run(whole) and Summary.complete(whole):
            return self._summarize("summary", None)
        most = -(-self.tokens.n_sequences // default_batch(self.tokens.context, self.model.device))
        alone = replace(self, partners=())  # which the token pass does not read
        size = state_bytes(self.model, self.tokens, self.statistics)
        parts = in_parts(alone, summary_part, "summary", most, size)
        return merge_tree(alone, parts, "summary") if parts else self._summarize("summary", None)

    def summary_part(self, number: int, of: int) -> Summary:
        """Part `number` (from 1) of `of` of the tokens, so that several processes share them."""
        batch = default_batch(self.tokens.context, self.model.device)
        return self._summarize(f"summary-{number}-of-{of}", part_range(self.tokens, number, of, batch))

    def merge_summary_parts(self) -> Summary:
        """The summary out of the parts that are there.

        Raises:
            ValueError: there are none, or they are not all the tokens.
            RunError, MergeError: they do not fit together.
        """
        return merge_tree(replace(self, partners=()), all_parts(self, "summary"), "summary")

    def _summarize(self, step: str, span: tuple[int, int] | None) -> Summary:
        return summarize(
            self.model,
            self.tokens,
            self.step(step),
            self.statistics,
            span=span,
            memory=self.options.memory * 1e9,
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
        card, options = self.card("dataframe", self.partners, **self._framing()), self.options
        layers, found, universal = range(self.summary.n_layers), self.correlations, None
        if found is not None:
            universal = universality(found, 0, errors=self.jackknife, protocol=options.protocol)
        table = neuron_table(
            self.weights,
            joined_moments([self.summary.moments(d)[0] for d in layers]),
            torch.cat([self.summary.histogram(d, published=True).counts for d in layers]),
            universal,
            errors=self.summary.moment_errors(),
            protocol=options.protocol,
        )
        if self.summary.statistics.up:
            table = table.assign(**up_columns(joined_moments([self.summary.up_moments(d) for d in layers])))
        if found is not None:
            table = table.assign(**most_similar(found))
        with RunFolder.open_or_create(self.step("dataframe"), card) as run:
            return table, write_table(table, run, list(map(Path, options.published)), options.universal)

    def _framing(self) -> dict[str, Any]:
        """What the neuron table and its comparison depend on besides model, tokens and protocol."""
        return {
            "statistics": self.statistics.to_json(),
            "correlating": None if self.comparing is None else self.comparing.meaning,
            "universal": self.options.universal,
            "published": file_hashes(self.options.published),
        }

    def explanations(self, asked: Explain | None = None) -> Explanations:
        """What neurons respond to and write, written as tables."""
        self.check_by_token()
        asked = Explain() if asked is None else asked
        layers = range(self.summary.n_layers)
        card = self.card("explain", **meaning(asked, self.options.precision))
        with RunFolder.open_or_create(self.step("explain"), card) as run:
            found = explain_neurons(
                self.model,
                self.tokens,
                [self.summary.groups("token", d) for d in layers],
                [self.summary.groups("previous", d) for d in layers],
                [self.summary.groups("position", d) for d in layers],
                asked,
                counted=self.summary.label_sums() if self.statistics.labels else None,
                path=run.artifact("sums.safetensors"),
                progress=self.progress,
            )
            found.write(run)
        return found

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
            self.options.protocol,
            self.command,
            step=step,
            models=[card.model for card in cards],
            weights=[[card.weights, card.plan_hash] for card in cards],
            **arguments,
        )

    def report_card(self, asked: Explain, limit: int | None) -> RunCard:
        """The card of a report, which depends on every step."""
        framing = self._framing() | {"explain": meaning(asked), "limit": limit, "seed": self.options.seed}
        return self.card("report", self.partners, **framing)


def open_study(
    model: Model | GenericModel,
    out: str | os.PathLike[str],
    options: Options | None = None,
    *,
    shards: TokenShards | None = None,
    partners: Sequence[Model] | None = None,
    workers: int = 1,
    progress: bool = True,
    command: str | None = None,
) -> Study:
    """A study in a folder, new or gone on with.

    Args:
        model: the decoder; through the adapter where the activation of its neurons was found, for the steps
            that read neurons alone (those that read weights refuse it).
        out: the folder, which holds a run folder per step.
        options: what the steps share; None takes the defaults.
        shards: the corpus, instead of the one that the options name.
        partners: models to correlate with, instead of those that the options name.
        workers, progress: see `runs.experiment.Study`.
        command: what was typed, for the cards.
    Raises: Refused for a model without neurons, a folder that holds something else, or the study of another
        model.
    """
    options = options or Options()
    mlp_widths(model)
    model = cast(Model, model)  # what it lacks is refused by the step that asks for it
    options.check_data()
    if shards is None and options.tokens is not None:
        shards = TokenShards.open(options.tokens)
    if shards is not None and options.positions:
        shards = shards.with_positions(options.positions)
    if partners is None:
        partners = load_partners(options.partners, model, latents=bool(options.dictionaries))
    if options.dictionaries:
        model = with_latents(model, options.dictionaries, reads=options.reads)
    check_study_folder(out, model)
    return Study(
        model,
        options,
        workers=workers,
        progress=progress,
        path=Path(out),
        shards=shards,
        partners=partners,
        command=command,
    )
