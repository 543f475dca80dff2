"""A sweep over depths and coefficients on the selection part: which edit changes which answers."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.runs import Row
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure
from interpcore.steering import asking
from interpcore.steering.asking import AskingStudy, measured, scored
from interpcore.steering.moments import site_depths
from interpcore.steering.options import SweepOptions
from interpcore.steering.sweep import sweep_scores

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

SLICE = 32  # questions of a cell


def score_slice(study: SweepStudy, start: int, stop: int) -> list[Any]:
    """One cell: the options' log-probabilities of questions start to stop - 1 under every edit, [depth]
    [coefficient][question][option], NaN as null."""
    options = study.options
    scores = sweep_scores(
        study.model,
        study.items[start:stop],
        study.vectors(),
        (0.0, *options.coefficients),
        site=options.site,
        kind=options.edit,
        positions=options.positions,
        batch=options.batch,
    )
    found: list[Any] = scores.tolist()
    return found


@dataclass(eq=False)
class SweepStudy(AskingStudy):
    """What the slices share."""

    options: SweepOptions

    @property
    def depths(self) -> list[int]:
        """Depths that are edited: those asked for, or all at which the direction is one."""
        options, directions = self.options, self.directions
        assert directions is not None
        if options.depths or options.calls:
            return asking.depths_of(self.model, options.site, options.depths, options.calls)
        lengths = directions.at(options.site).norm(dim=-1)
        return [d for d in range(site_depths(self.model, options.site)) if float(lengths[d]) > 0]

    def vectors(self):  # type: ignore[no-untyped-def]
        """Depth -> what a coefficient of 1 means."""
        options, directions = self.options, self.directions
        assert directions is not None
        found = {}
        for depth in self.depths:
            u = directions.unit(options.site, depth)
            length = {
                "unit": 1.0,
                "norm": float(directions.norms[options.site][depth]),
                "own": float(directions.vectors[options.site][depth].norm()),
            }[options.scale]
            found[depth] = u * length if options.edit == "add" else u
        return found

    def run(self) -> list[Row]:
        """Score every slice of questions that the folder does not hold yet."""
        n = len(self.items)
        cells = [{"start": a, "stop": min(a + SLICE, n)} for a in range(0, n, SLICE)]
        return self.sweep(score_slice, cells, on_error="raise")

    def report(self) -> Report:
        """A row of each depth, coefficient and subset; which cell is best for each subset."""
        import pandas as pd

        assert self.artifacts is not None
        slices, rows = [row.result for row in self.run()], []
        for d, depth in enumerate(self.depths):
            plain = None
            for c, coefficient in enumerate((0.0, *self.options.coefficients)):
                found = scored(self.items, [q for part in slices for q in part[d][c]])
                plain = found if plain is None else plain
                cell = {"depth": depth, "coefficient": coefficient}
                rows += [cell | one for one in measured(self.questions, found, plain)]
        table = pd.DataFrame(rows)
        notes = [
            f"{len(self.items)} questions of the {self.options.part} part; coefficient 0 is the plain model."
        ]
        for subset, part in table.groupby("subset", sort=False):
            best = part.loc[part.right.idxmax()]
            notes.append(
                f"Best for {subset}: depth {best.depth:.0f}, coefficient {best.coefficient:g}, "
                f"{best.right:.3f} right (plain {part.right.iloc[0]:.3f}), the best of {len(part)} cells: "
                "take its size on other questions (`steering accuracy`)."
            )
        place, given = self.artifacts.artifact, self.options
        said = caption(
            model=str(self.artifacts.card.model),
            data=f"{given.edit} at {given.site}, {given.positions}, scale {given.scale}",
            n=f"{len(self.items)} questions",
            note="Below: bands are exact 95% intervals.",
        )
        files: tuple[Path, ...] = write_frame(place("tables/sweep"), table)
        files += save_figure(place("figures/sweep"), sweep_figure(table), said)
        return Report(table, files, (*notes, *asking.NOTES))


def sweep_figure(table: pd.DataFrame) -> Figure:
    """Difference in right answers over depth and coefficient above, shares by coefficient at the depth that
    moves most below; a column for each subset."""
    subsets = list(dict.fromkeys(table.subset))
    figure, panels = new_figure(3.6 * len(subsets), 6, 2 * len(subsets), len(subsets))
    for column, subset in enumerate(subsets):
        part = table[table.subset == subset]
        grid = part.pivot(index="depth", columns="coefficient", values="right")
        change = grid.sub(grid[0.0], axis=0)
        top, low = panels[column], panels[len(subsets) + column]
        most = max(0.05, float(change.abs().to_numpy().max()))
        shown = top.imshow(change, cmap="RdBu", vmin=-most, vmax=most, aspect="auto", origin="lower")
        top.set_xticks(range(len(grid.columns)), [f"{c:g}" for c in grid.columns], fontsize=6, rotation=60)
        step = max(1, len(grid) // 12)
        top.set_yticks(range(0, len(grid), step), [f"{d:.0f}" for d in grid.index[::step]], fontsize=7)
        top.set(xlabel="coefficient", ylabel="depth", title=f"change in right, {subset}")
        figure.colorbar(shown, ax=top)
        depth = change.abs().max(axis=1).idxmax()
        line = part[part.depth == depth].sort_values("coefficient")
        low.plot(line.coefficient, line.right, "o-", ms=3, color="#3b6ea8")
        low.fill_between(line.coefficient, line.right_low, line.right_high, color="#3b6ea8", alpha=0.15, lw=0)
        low.set(xlabel=f"coefficient at depth {depth:.0f}", ylabel=f"right, {subset}", ylim=(-0.02, 1.02))
    return figure


def open_sweep(
    model: Any, out: str | os.PathLike[str], options: SweepOptions, *, command: str | None = None, **how: Any
) -> SweepStudy:
    """The sweep in a run folder, new or gone on with; arguments and errors as `accuracy.open_accuracy`."""
    from interpcore.errors import Refused

    if options.answers == "generate":
        raise Refused(
            "A sweep scores options or letters; generated answers are asked by `steering accuracy`."
        )
    if options.edit == "ablate":
        raise Refused("Ablation has no coefficient to sweep; amplify with the coefficient -1 is ablation.")
    directions, _ = asking.read_written(model, options)
    assert directions is not None
    items = asking.prepare(model, options, options.part)
    study = SweepStudy(model, options, items=items, directions=directions, **how)
    study.vectors()
    found = asking.open_folder(study, out, command, hash_of_directions=directions.hash())
    assert isinstance(found, SweepStudy)
    return found
