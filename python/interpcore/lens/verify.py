"""Entries of a lens recomputed: rows of single prompts' Jacobians by autograd in float64, and their merge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.lens.lens import Lens
from interpcore.lens.study import HALVES, FitStudy, fit_slice
from interpcore.model import Model
from interpcore.model.plain import check_plain, plain_model, plain_run
from interpcore.runs import read_tensors
from interpcore.runs.checks import Cell, Checks, Table

LEFT_OUT = "Not recomputed: reliability's correlation, which is of the halves' means that are."
ONLY_SUMS = (
    "Not recomputed: the slices of a lens of site {site} under the rules {rules}; autograd has no such "
    "walk here."
)


@dataclass(eq=False)
class _Slices(ShortRepr):
    """The slices of a run, one file in memory at a time.

    Attributes:
        study: the study, opened.
        model: its model in float64.
        said: what each slice's cell gave.
        ends: first and last prompt of each.
    """

    study: FitStudy
    model: Model
    said: Sequence[dict[str, Any]]
    ends: Sequence[tuple[int, int]]
    _open: tuple[int, dict[str, Tensor]] = (-1, {})
    _graphs: dict[int, tuple[list[Tensor], Tensor]] = field(default_factory=dict)

    def tensors(self, number: int) -> dict[str, Tensor]:
        """A slice's file."""
        if self._open[0] != number:
            assert self.study.artifacts is not None
            found, _ = read_tensors(self.study.artifacts.artifact(self.said[number]["file"]))
            self._open, self._graphs = (number, found), {}
        return self._open[1]

    def rows(self, number: int, half: int, i: int) -> Tensor:
        """Row i of the Jacobian of each of the half's prompts, averaged over its sources [prompt, depth,
        d_model]."""
        self.tensors(number)
        start, stop = self.ends[number]
        mine = [n for n in range(start, stop) if n % 2 == half]
        return torch.stack([self._row(n, i) for n in mine])

    def _row(self, prompt: int, i: int) -> Tensor:
        skip, target = self.study.options.skip, self.study.target_depth
        if prompt not in self._graphs:
            run = plain_run(self.model, self.study.prompts[prompt], write=_grown)
            self._graphs[prompt] = [run.resid[d] for d in range(target + 1)], run.resid[target]
        states, end = self._graphs[prompt]
        # All targets at once: a source's row is the sum over the targets from its position on.
        found = torch.autograd.grad(end[skip:-1, i].sum(), states, retain_graph=True)
        return torch.stack([each[skip:-1].mean(0) for each in found])


def _grown(site: str, depth: int | None, value: Tensor) -> Tensor:
    """A graph that begins at the token embedding."""
    return value.requires_grad_() if site == "embed" else value


def checks(study: FitStudy) -> Checks:
    """What can be recomputed of a fit; see `runs.checks`."""
    assert study.folder is not None and study.artifacts is not None
    name = f"{fit_slice.__module__}.{fit_slice.__qualname__}"
    ledger = [row for row in study.folder.ledger if row.task == name]
    failed = [f"{row.key} broke off: {row.error}" for row in ledger if row.status == "failed"]
    rows = sorted((r for r in ledger if r.status == "done"), key=lambda row: row.parameters["start"])
    ends = [(row.parameters["start"], row.parameters["stop"]) for row in rows]
    gaps = [
        f"prompts {b} to {c - 1} are in no slice" for (_, b), (c, _) in pairwise([(0, 0), *ends]) if b < c
    ]
    dtype = str(study.folder.card.dtype)
    if not rows:
        return Checks((), dtype, problems=("No slice of this lens is finished.", *failed))
    model = plain_model(study.model)
    gap = check_plain(model, study.prompts[0])
    anchored = (
        () if gap is None else (f"Written out, the model's logits are transformers' within {gap:.0e}.",)
    )
    slices = _Slices(study, model, [row.result for row in rows], ends)
    file = study.artifacts.path / "artifacts" / "lens.safetensors"
    merged = _merged(slices, Lens.load(file)) if file.is_file() else []
    how = study.options
    plain = (how.site, how.rules) == ("resid", "exact")
    left_out = (LEFT_OUT,) if plain else (LEFT_OUT, ONLY_SUMS.format(site=how.site, rules=how.rules))
    tables = [*(_moments(slices) if plain else ()), *merged]
    return Checks(tables, dtype, (*anchored, *left_out), (*failed, *gaps))


def _moments(slices: _Slices) -> list[Table]:
    """Rows of each slice's means and squared deviations, at one depth."""
    depths, width, _ = slices.tensors(0)[f"{HALVES[0]}.mean"].shape

    def cell(number: int, what: str) -> Cell:
        number, i = divmod(number, width)
        number, depth = divmod(number, depths)
        slice_, half = divmod(number, 2)
        stored = slices.tensors(slice_)[f"{HALVES[half]}.{what}"][depth, i].double()
        each = slices.rows(slice_, half, i)[:, depth]
        mean = each.mean(0)
        again = mean if what == "mean" else (each - mean).square().sum(0)
        at = int((stored - again).abs().argmax())
        # Deviations are differences of J's entries, each of which is known to a share of J's row.
        scale = float(mean.norm() if what == "mean" else each.norm() * (each - mean).norm())
        place = f"{HALVES[half]} prompts at depth {depth}, row {i}, entry {at}"
        where = f"{what} of {place}, in {slices.said[slice_]['file']}"
        return Cell(where, float(stored[at]), float(again[at]), max(scale, 1e-300))

    how = "rows of J by autograd, one prompt at a time"
    size = 2 * len(slices.said) * depths * width
    return [
        Table("slices: mean", size, lambda n: cell(n, "mean"), how),
        Table("slices: squares", size, lambda n: cell(n, "squares"), how),
    ]


def _merged(slices: _Slices, lens: Lens) -> list[Table]:
    """Entries of the lens from its slices, by pooled sums."""
    depths, rows, width = lens.jacobian.shape
    errors = lens.standard_error
    assert errors is not None
    kept: dict[int, tuple[Tensor, Tensor]] = {}

    def pooled(depth: int) -> tuple[Tensor, Tensor]:
        if depth not in kept:
            kept.clear()
            count, total, square = 0, 0.0, 0.0
            for number, said in enumerate(slices.said):
                for half in HALVES:
                    n, found = said["counts"][half], slices.tensors(number)
                    mean = found[f"{half}.mean"][depth].double()
                    count, total = count + n, total + n * mean
                    square = square + found[f"{half}.squares"][depth].double() + n * mean.square()
            mean = torch.as_tensor(total) / count
            variance = (torch.as_tensor(square) - count * mean.square()).clamp(min=0) / (count - 1)
            kept[depth] = mean, (variance / count).sqrt()
        return kept[depth]

    def cell(number: int) -> Cell:
        (depth, i), j = divmod(number // width, rows), number % width
        mean, error = pooled(depth)
        where = f"{{}} at depth {depth}, entry [{i}, {j}], of lens.safetensors"
        a = Cell(
            where.format("J"), float(lens.jacobian[depth, i, j]), float(mean[i, j]), float(mean[i].norm())
        )
        stored = float(errors[depth, i, j])
        b = Cell(where.format("its standard error"), stored, float(error[i, j]), float(mean[i].norm()))
        return max(a, b, key=lambda one: one.gap)

    return [Table("lens", depths * rows * width, cell, "sums over the slices", 1e-5)]
