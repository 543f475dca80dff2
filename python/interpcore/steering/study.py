"""States of labelled questions, and the directions found in them: slices of questions as cells."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from interpcore.data.question_sets import labels, parts_of, split_questions
from interpcore.data.questions import Question
from interpcore.errors import Refused
from interpcore.model.card import run_card
from interpcore.model.made_on import MadeOn
from interpcore.model.prompts import token_ids
from interpcore.runs import RunFolder, experiment, read_tensors, write_tensors
from interpcore.steering.directions import Directions
from interpcore.steering.fits import fit
from interpcore.steering.moments import Moments, by_label, site_depths, states
from interpcore.steering.options import StatesOptions
from interpcore.steering.prompts import fill, published_template


def moments_slice(study: StatesStudy, start: int, stop: int) -> dict[str, Any]:
    """One cell: moments by label of the questions start to stop - 1 of the fitted part, as a file."""
    assert study.artifacts is not None
    chosen = study.fitted[start:stop]
    sums: dict[str, tuple[Moments, Moments, Tensor]] = {}
    for rows, found in study.states(chosen):
        flags = torch.tensor([study.flags[chosen[i]] for i in rows])
        weights = study.shuffled[:, [start + i for i in rows]]
        for site, (true, false, shuffled) in by_label(found, flags, weights).items():
            old = sums.get(site)
            sums[site] = (
                (true, false, shuffled)
                if old is None
                else (old[0].merge(true), old[1].merge(false), old[2] + shuffled)
            )
    name, counts = f"moments/{start}-{stop}.safetensors", [0, 0]
    tensors: dict[str, Tensor] = {}
    for site, (true, false, shuffled) in sums.items():
        counts = [true.count, false.count]
        tensors |= {f"{site}.true.mean": true.mean, f"{site}.true.squares": true.squares}
        tensors |= {f"{site}.false.mean": false.mean, f"{site}.false.squares": false.squares}
        tensors[f"{site}.shuffled"] = shuffled
    write_tensors(study.artifacts.artifact(name), tensors)
    return {"file": name, "counts": counts}


def states_slice(study: StatesStudy, start: int, stop: int) -> dict[str, Any]:
    """One cell: the states of the questions start to stop - 1 of all, as a file."""
    assert study.artifacts is not None
    kept = {site: torch.empty(0) for site in study.options.sites}
    for rows, found in study.states(list(range(start, stop))):
        for site, values in found.items():
            if not len(kept[site]):
                kept[site] = values.new_empty((stop - start, *values.shape[1:]))
            kept[site][rows] = values
    name = f"states/{start}-{stop}.safetensors"
    write_tensors(study.artifacts.artifact(name), {s: v.to(study.kept_dtype) for s, v in kept.items()})
    return {"file": name}


def scores_slice(study: StatesStudy, start: int, stop: int, method: str) -> dict[str, Any]:
    """One cell: how far the states of the questions start to stop - 1 of all lie along the directions."""
    assert study.artifacts is not None
    directions, parts = study.load(method), {}
    for rows, found in study.states(list(range(start, stop))):
        for name, values in along(directions, found).items():
            if name not in parts:
                parts[name] = values.new_empty((stop - start, values.shape[1]))
            parts[name][rows] = values
    name = f"scores/{method}-{start}-{stop}.safetensors"
    write_tensors(study.artifacts.artifact(name), parts)
    return {"file": name}


def along(directions: Directions, found: dict[str, Tensor]) -> dict[str, Tensor]:
    """Component along the unit direction, and length, of states, both [n, depth], by site; and the component
    along those of shuffled labels [n, shuffle * depth]."""
    parts = {}
    for site, values in found.items():
        wide = values.double()
        parts[f"{site}.along"] = torch.einsum("nde,de->nd", wide, _units(directions.vectors[site]))
        parts[f"{site}.length"] = wide.norm(dim=-1)
        noise = directions.shuffled.get(site, wide.new_zeros((0, *wide.shape[1:])))
        parts[f"{site}.shuffled"] = torch.einsum("nde,sde->nsd", wide, _units(noise)).flatten(1)
    return parts


def _units(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


@dataclass(eq=False)
class StatesStudy(experiment.Study):
    """What the slices share.

    Attributes:
        prompts: token ids of every question.
        flags: whether each is of the true label (reasoning).
        fitted: numbers of those that directions are fitted on.
        template: that they are asked in.
        parts: the part that each question is of.
    """

    options: StatesOptions
    prompts: list[list[int]] = field(default_factory=list)
    flags: list[bool] = field(default_factory=list)
    fitted: list[int] = field(default_factory=list)
    template: str = ""
    parts: list[str] = field(default_factory=list)
    shuffled: Tensor = field(init=False)

    def __post_init__(self) -> None:
        """Weights of a difference in means under shuffled labels [shuffle, fitted] float64: half of each
        label's questions against the other half, so that no shuffling holds a share of the labels."""
        draw = random.Random(f"shuffled labels {self.options.seed}")
        own = torch.tensor([self.flags[i] for i in self.fitted])
        self.shuffled = torch.zeros(self.options.shuffles, len(own), dtype=torch.float64)
        for row in self.shuffled:
            flags = torch.zeros(len(own), dtype=torch.bool)
            for label, more in ((True, 1), (False, 0)):
                members = (own == label).nonzero().flatten().tolist()
                flags[draw.sample(members, (len(members) + more) // 2)] = True
            row[flags], row[~flags] = 1 / int(flags.sum()), -1 / int((~flags).sum())

    @property
    def held_out(self) -> list[int]:
        """Numbers of the questions that no direction is fitted on; all where there are none."""
        own = set(self.fitted)
        return [i for i in range(len(self.prompts)) if i not in own] or list(range(len(self.prompts)))

    @property
    def kept_dtype(self) -> torch.dtype:
        """Of states in files: the model's, or float32 where that is narrower."""
        return torch.promote_types(self.model.dtype, torch.float32)

    def states(self, chosen: Sequence[int]):  # type: ignore[no-untyped-def]
        """See `moments.states`, of some questions."""
        given = self.options
        prompts = [self.prompts[i] for i in chosen]
        return states(self.model, prompts, given.sites, tokens=given.tokens, new_tokens=given.new_tokens)

    def slices(self, n: int) -> list[dict[str, Any]]:
        """Cells over n questions."""
        ends = [*range(0, n, self.options.slice_size), n]
        return [{"start": a, "stop": b} for a, b in pairwise(ends)]

    def moments(self) -> dict[str, tuple[Moments, Moments, Tensor]]:
        """By site: moments of the true and the false of the fitted part, shuffled differences in means."""
        assert self.artifacts is not None
        sums: dict[str, tuple[Moments, Moments, Tensor]] = {}
        for row in self.sweep(moments_slice, self.slices(len(self.fitted)), on_error="raise"):
            found, _ = read_tensors(self.artifacts.artifact(row.result["file"]))
            n1, n0 = row.result["counts"]
            for site in self.options.sites:
                true = Moments(n1, found[f"{site}.true.mean"], found[f"{site}.true.squares"])
                false = Moments(n0, found[f"{site}.false.mean"], found[f"{site}.false.squares"])
                shuffled = found[f"{site}.shuffled"]
                if site in sums:
                    a, b, c = sums[site]
                    true, false, shuffled = a.merge(true), b.merge(false), c + shuffled
                sums[site] = true, false, shuffled
        return sums

    def kept(self) -> dict[str, Tensor]:
        """All states by site [n, depth, d_model], from their files."""
        assert self.artifacts is not None
        rows = self.sweep(states_slice, self.slices(len(self.prompts)), on_error="raise")
        parts = [read_tensors(self.artifacts.artifact(row.result["file"]))[0] for row in rows]
        return {site: torch.cat([part[site] for part in parts]) for site in self.options.sites}

    def find(self, method: str) -> Directions:
        """Fit a direction at every depth of every site, and keep it in its file."""
        assert self.artifacts is not None
        vectors, norms, shuffled = {}, {}, {}
        flags = torch.tensor([self.flags[i] for i in self.fitted])
        if method == "mean":
            for site, (true, false, noise) in self.moments().items():
                vectors[site], shuffled[site] = true.mean - false.mean, noise
                norms[site] = true.merge(false).mean.norm(dim=-1)
        else:
            for site, values in self.kept().items():
                own = values[self.fitted].double()
                vectors[site], norms[site] = (
                    fit(method, own, flags, self.options.seed),
                    own.mean(0).norm(dim=-1),
                )
                noises = [fit(method, own, row > 0, self.options.seed) for row in self.shuffled]
                shuffled[site] = torch.stack(noises) if noises else own.new_zeros((0, *own.shape[1:]))
        counts = f"{int(flags.sum())} reasoning, {int((~flags).sum())} recall"
        about = {
            "method": method,
            "tokens": self.options.tokens,
            "data": self.options.data_hash(),
            "questions": counts,
            "template": self.template,
        }
        found = Directions(vectors, norms, shuffled, MadeOn.of(self.model), about)
        found.save(self.file(method))
        return found

    def file(self, method: str):  # type: ignore[no-untyped-def]
        """Where the directions of a method go."""
        assert self.artifacts is not None
        return self.artifacts.artifact(f"directions/{method}.safetensors")

    def load(self, method: str) -> Directions:
        """The directions of a method that the folder holds."""
        return Directions.load(self.file(method))

    def scores(self, method: str, directions: Directions) -> dict[str, Tensor]:
        """Of every question and depth, see `along`; from the kept states where a method keeps them."""
        assert self.artifacts is not None
        if method != "mean":
            return along(directions, self.kept())
        cells = [cell | {"method": method} for cell in self.slices(len(self.prompts))]
        rows = self.sweep(scores_slice, cells, on_error="raise")
        parts = [read_tensors(self.artifacts.artifact(row.result["file"]))[0] for row in rows]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def open_states(
    model: Any,
    out: str | os.PathLike[str],
    options: StatesOptions,
    *,
    questions: Sequence[Question] | None = None,
    command: str | None = None,
    **how: Any,
) -> StatesStudy:
    """The study in a run folder, new or gone on with; use it as a context manager.

    Args:
        model: the decoder.
        out: the run folder.
        options: what to take states of.
        questions: in place of those that the options name.
        command: what was typed, for the card.
        how: workers and progress, see `runs.experiment.Study`.
    Raises: Refused for questions without scores, an empty label, or a site that the model lacks.
    """
    every = options.read() if questions is None else list(questions)
    paper = options.protocol == "paper"
    flags = labels(every)
    by = options.split_by
    fitted = split_questions(every, "all" if paper else options.part, options.seed, by=by)
    labels(fitted)
    for site in options.sites:
        site_depths(model, site)
    if model.tokenizer is None:
        raise Refused(f"{model.spec.name} has no tokenizer; give a folder that holds one.")
    template = published_template(model.spec.family) if paper else options.template
    prompts = [token_ids(model.tokenizer, fill(template, q)) for q in every]
    longest, limit = max(map(len, prompts)), model.spec.max_positions
    longest += 0 if options.tokens == "last" else options.new_tokens
    if limit is not None and longest > limit:
        raise Refused(
            f"A question makes {longest} tokens with its answer; {model.spec.name} has positions for {limit}."
        )
    own = {id(q) for q in fitted}
    numbers = [i for i, q in enumerate(every) if id(q) in own]
    about: dict[str, Any] = {"prompts": prompts, "flags": flags, "fitted": numbers, "template": template}
    about["parts"] = parts_of(every, options.seed, by=by)
    study = StatesStudy(model, options, **about, **how)
    data = hashlib.sha256(json.dumps([q.to_record() for q in every]).encode()).hexdigest()
    arguments = options.arguments() | {"hash of questions": data}
    card = run_card(model, arguments=arguments, command=command, sources=options.circumstances())
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    return study
