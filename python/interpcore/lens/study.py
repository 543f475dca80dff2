"""Fitting a lens: slices of prompts as cells, each one's moments in a file, merged in order."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch

from interpcore.errors import Refused
from interpcore.lens.lens import Lens, Moments
from interpcore.lens.options import FitOptions
from interpcore.lens.sweep import slice_moments
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.linearize import EXACT, Rules
from interpcore.model.made_on import MadeOn
from interpcore.model.prompts import first_ids, token_ids
from interpcore.runs import Row, RunFolder, experiment, read_tensors, write_tensors
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure, whole_numbers

HALVES = ("even", "odd")
LOCAL = {"exact": EXACT, "relp": Rules.relp(), "frozen": Rules(scores="frozen")}
NOTES = (
    "gain: |J| / sqrt(d_model), which is 1 where a state arrives as it is; carried: mean of J's diagonal.",
    "relative_se: |standard error| / |J|, prompts as units.",
    "reliability: correlation of J - I between prompts with even and odd numbers, over all entries, stepped "
    "up to all prompts (Spearman-Brown).",
)


def fit_slice(study: FitStudy, start: int, stop: int) -> dict[str, Any]:
    """One cell: the moments of prompts start to stop - 1, as a file."""
    assert study.artifacts is not None
    prompts = study.prompts[start:stop]
    how = study.options
    halves = slice_moments(
        study.model,
        prompts,
        skip=how.skip,
        target_depth=study.target_depth,
        site=how.site,
        rules=LOCAL[how.rules],
        first=start,
    )
    name = f"slices/{start}-{stop}.safetensors"
    tensors = {
        f"{half}.{each}": getattr(moments, each)
        for half, moments in zip(HALVES, halves, strict=True)
        for each in ("mean", "squares")
    }
    counts = {half: moments.count for half, moments in zip(HALVES, halves, strict=True)}
    write_tensors(study.artifacts.artifact(name), tensors)
    return {"file": name, "counts": counts, "tokens": sum(map(len, prompts))}


@dataclass(eq=False)
class FitStudy(experiment.Study):
    """What the slices share.

    Attributes:
        prompts: token ids of every prompt.
    """

    options: FitOptions
    prompts: list[list[int]] = field(default_factory=list)

    @property
    def target_depth(self) -> int:
        """Residual depth that the lens leads to, from 0."""
        return self.model.plan.depth(self.options.target_depth)

    def run(self) -> list[Row]:
        """Sweep over every slice that the folder does not hold yet.

        Raises: CellError for a slice that cannot be had: a lens is of all its prompts or none.
        """
        ends = [*range(0, len(self.prompts), self.options.slice_size), len(self.prompts)]
        grid = [{"start": a, "stop": b} for a, b in pairwise(ends)]
        return self.sweep(fit_slice, grid, on_error="raise")

    def lens(self) -> Lens:
        """The lens of all slices, merged in order, one in memory at a time."""
        merged: tuple[Moments, Moments] | None = None
        for row in self.run():
            halves = self._slice(row.result)
            merged = halves if merged is None else (merged[0].merge(halves[0]), merged[1].merge(halves[1]))
        assert merged is not None
        return Lens.of(
            merged,
            target_depth=self.target_depth,
            site=self.options.site,
            rules=self.options.rules,
            skip=self.options.skip,
            length=self.options.length,
            made_on=MadeOn.of(self.model),
        )

    def _slice(self, said: Any) -> tuple[Moments, Moments]:
        assert self.artifacts is not None
        found, _ = read_tensors(self.artifacts.artifact(said["file"]))
        even, odd = (
            Moments(said["counts"][half], found[f"{half}.mean"], found[f"{half}.squares"]) for half in HALVES
        )
        return even, odd

    def report(self) -> experiment.Report:
        """Write the lens, and how well each depth of it is known."""
        import pandas as pd

        assert self.artifacts is not None
        lens, place = self.lens(), self.artifacts.artifact
        assert lens.standard_error is not None and lens.reliability is not None
        file = place("lens.safetensors")
        lens.save(file)
        size = torch.linalg.matrix_norm(lens.jacobian)
        columns = {
            "gain": size / lens.jacobian.shape[-1] ** 0.5,
            "carried": lens.jacobian.diagonal(dim1=1, dim2=2).mean(1),
            "relative_se": torch.linalg.matrix_norm(lens.standard_error) / size,
            "reliability": lens.reliability,
        }
        if lens.site == "z":  # whose coordinates are not the stream's
            del columns["carried"]
        table = pd.DataFrame({name: values.double().numpy() for name, values in columns.items()})
        table.insert(0, "depth", range(len(table)))
        figure, axes = new_figure(7, 3, 2)
        for panel, name in zip(axes, ("relative_se", "reliability"), strict=True):
            panel.plot(table.depth, table[name], "o-")
            panel.set(xlabel="depth", ylabel=name.replace("_se", " standard error"))
            whole_numbers(panel.xaxis)
        data = f"lens from {lens.site} to depth {lens.target_depth}, rules {lens.rules}"
        n = f"{lens.count} prompts of at most {lens.length} tokens"
        said = caption(model=str(self.artifacts.card.model), data=data, n=n, note=" ".join(NOTES[1:]))
        files = write_frame(place("tables/depths"), table) + save_figure(
            place("figures/depths"), figure, said
        )
        asked = self.options.prompts
        fewer = "" if lens.count == asked else f"; the text has no more, {asked} were asked for"
        return experiment.Report(table, (file, *files), (f"{n}{fewer}.", *NOTES))


def read_prompts(model: Model, options: FitOptions) -> list[list[int]]:
    """Prompts of `length` tokens at most: each text's tokens in consecutive pieces, the model's first tokens
    in front of each; pieces without a source are left out.

    Raises: Refused for a model without tokenizer or with fewer positions, and for fewer than two prompts.
    """
    limit = model.spec.max_positions
    if limit is not None and options.length > limit:
        raise Refused(f"length is {options.length}; {model.spec.name} has positions for {limit}.")
    front = first_ids(model.tokenizer)
    width = options.length - len(front)
    pieces = (
        [*front, *ids[at : at + width]]
        for ids in _without(front, (token_ids(model.tokenizer, t) for t in options.read_texts() if t.strip()))
        for at in range(0, len(ids), width)
    )
    found = []
    for piece in pieces:
        if len(piece) >= options.skip + 2:
            found.append(piece)
        if len(found) == options.prompts:
            break
    if len(found) < 2:
        raise Refused(
            f"The text gives {len(found)} prompts of at least {options.skip + 2} tokens, and a lens needs "
            "two; give more text, or a smaller skip."
        )
    return found


def _without(front: list[int], texts: Iterable[list[int]]) -> Iterable[list[int]]:
    return (ids[len(front) :] for ids in texts)


def open_fit(
    model: Model,
    out: str | os.PathLike[str],
    options: FitOptions,
    *,
    command: str | None = None,
    **how: Any,
) -> FitStudy:
    """The fit in a run folder, new or gone on with; use it as a context manager.

    Args:
        model: the decoder.
        out: the run folder.
        options: what to average over.
        command: what was typed, for the card.
        how: workers and progress, see `runs.experiment.Study`.
    Raises: Refused for a model or text that does not serve; RunError for a folder that holds another run.
    """
    check_model(model)
    if model.plan.depth(options.target_depth) == 0:
        raise Refused("target_depth is 0, where the stream begins; give a later one, or -1 for the last.")
    study = FitStudy(model, options, prompts=read_prompts(model, options), **how)
    arguments, sources = options.arguments() | {"hash of text": options.text_hash()}, options.circumstances()
    corpus = options.corpus()
    if corpus is not None:
        sources["text"] = corpus.source_in(out)
    card = run_card(
        model,
        arguments=arguments,
        extends=options.extending(),
        sources=sources,
        command=command,
    )
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    if corpus is not None:
        corpus.kept(study.artifacts)
    return study


def check_model(model: Any) -> None:
    """Raises: Refused for a model that a lens cannot take."""
    if not isinstance(model, Model):
        raise Refused(
            "A lens walks hand-written blocks, which the generic adapter lacks; use a model family that "
            "interpcore has its own blocks for."
        )
    if model.tokenizer is None:
        raise Refused(f"{model.spec.name} has no tokenizer; give a folder that holds one.")
