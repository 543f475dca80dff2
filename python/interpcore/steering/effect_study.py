"""Effect maps over prompts: prompts as cells, means with intervals over prompts, beside random directions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.runs import Row
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure, whole_numbers
from interpcore.stats import mean_over_clusters
from interpcore.steering import asking
from interpcore.steering.asking import AskingStudy
from interpcore.steering.effect import TARGETS, divergence, published_effect, second_order
from interpcore.steering.interventions import random_like
from interpcore.steering.options import EffectOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

RANDOM = 4
NOTES = (
    "second_order: Var_p(J d) / 2, which KL / c^2 tends to, with its 95% interval over prompts; "
    f"random: of {RANDOM} directions of equal length; kl_c: KL(p, p_c) / c^2 by intervention; ratio_c: over "
    "second_order, 1 where c is small enough.",
)
PAPER = (
    "published_*: the published effect and loss, the gradient of a distribution against itself: no effect."
)


def measure(study: EffectStudy, prompt: int) -> dict[str, Any]:
    """One cell: a prompt's map."""
    options, model = study.options, study.model
    tokens = torch.tensor(study.items[prompt].prompt, device=model.device)
    vectors = study.vectors()
    whole = {depth: torch.cat([v[None], noise]) for depth, (v, noise) in vectors.items()}
    half = second_order(model, tokens, whole, options.at)
    own = {depth: v for depth, (v, _) in vectors.items()}
    exact = divergence(model, tokens, own, options.coefficients, options.at)
    squares = torch.tensor(options.coefficients, dtype=torch.float64).square()[:, None, None]
    found: dict[str, Any] = {
        "second_order": half[:, 0].tolist(),
        "random": half[:, 1:].mean(1).tolist(),
        "kl": (exact / squares).tolist(),
    }
    if options.protocol == "paper":
        units = {depth: v / v.norm() for depth, v in own.items()}
        for target, name in TARGETS.items():
            published = published_effect(model, tokens, units, target)
            found[name] = {"effect": published.effect.tolist(), "loss": published.loss}
    return found


@dataclass(eq=False)
class EffectStudy(AskingStudy):
    """What the prompts share."""

    options: EffectOptions

    def vectors(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Residual depth -> what a coefficient of 1 adds [d_model], and random ones of its length [random,
        d_model]; depths at which the direction is zero are left out."""
        assert self.directions is not None
        options, directions = self.options, self.directions
        lengths = {
            "unit": torch.ones_like(directions.norms["resid"]),
            "norm": directions.norms["resid"],
            "own": directions.vectors["resid"].norm(dim=-1),
        }[options.scale]
        draw, found = torch.Generator().manual_seed(options.seed), {}
        for depth, vector in enumerate(directions.vectors["resid"]):
            if float(vector.norm()) > 0:
                own = directions.unit("resid", depth) * float(lengths[depth])
                found[depth] = own, random_like(own.expand(RANDOM, -1), draw)
        return found

    def run(self) -> list[Row]:
        """Map every prompt that the folder does not hold yet."""
        return self.sweep(measure, [{"prompt": i} for i in range(len(self.items))], on_error="raise")

    def report(self) -> Report:
        """A row of each depth, and with "each" of each place counted from the prompt's end."""
        import pandas as pd

        assert self.artifacts is not None
        options, cells = self.options, [row.result for row in self.run()]
        places = min(len(cell["second_order"][0]) for cell in cells)
        rows = []
        for d, depth in enumerate(self.vectors()):
            for place in range(-places, 0):
                row: dict[str, Any] = {"depth": depth}
                row |= {"from_end": place} if options.at == "each" else {}
                values = [cell["second_order"][d][place] for cell in cells]
                mean = mean_over_clusters(values, range(len(values)), share=False)
                row |= {
                    "second_order": mean.value,
                    "second_order_low": mean.low,
                    "second_order_high": mean.high,
                }
                row["random"] = sum(cell["random"][d][place] for cell in cells) / len(cells)
                for c, value in enumerate(options.coefficients):
                    row[f"kl_{value:g}"] = sum(cell["kl"][c][d][place] for cell in cells) / len(cells)
                    row[f"ratio_{value:g}"] = row[f"kl_{value:g}"] / max(mean.value, 1e-300)
                for name in TARGETS.values() if options.protocol == "paper" else ():
                    row[f"published_{name}"] = sum(cell[name]["effect"][d] for cell in cells) / len(cells)
                    row[f"published_loss_{name}"] = sum(cell[name]["loss"] for cell in cells) / len(cells)
                rows.append(row)
        table, place_of = pd.DataFrame(rows), self.artifacts.artifact
        said = caption(
            model=str(self.artifacts.card.model),
            data=f"direction at resid, {options.at} token(s), scale {options.scale}",
            n=f"{len(cells)} prompts",
            note="Band: 95% interval over prompts, down to a tenth of the lowest mean; dashed: random "
            "directions of equal length.",
        )
        files: tuple[Path, ...] = write_frame(place_of("tables/effect"), table)
        files += save_figure(place_of("figures/effect"), effect_figure(table), said)
        paper = (PAPER,) if options.protocol == "paper" else ()
        return Report(table, files, (f"{len(cells)} prompts.", *NOTES, *paper))


def effect_figure(table: pd.DataFrame) -> Figure:
    """Effect by depth, or over depth and place."""
    if "from_end" not in table:
        figure, [axes] = new_figure(6, 3.6)
        axes.plot(table.depth, table.second_order, "o-", ms=3, color="#c8772e", label="direction")
        known = [x for x in (*table.second_order, *table.random) if x > 0]
        floor = (
            min(known, default=1e-12) / 10
        )  # the axis is logarithmic: an interval that reaches 0 ends here
        low, high = table.second_order_low.clip(lower=floor), table.second_order_high.clip(lower=floor)
        axes.fill_between(table.depth, low, high, color="#c8772e", alpha=0.2, lw=0)
        axes.plot(table.depth, table.random, "--", color="#555555", label="random")
        axes.set(xlabel="depth", ylabel="KL / c², second order (nats)", yscale="log")
        axes.legend(frameon=False)
        whole_numbers(axes.xaxis)
        return figure
    grid = table.pivot(index="depth", columns="from_end", values="second_order")
    figure, [axes] = new_figure(0.4 * grid.shape[1] + 2.5, 0.22 * len(grid) + 2)
    top = grid.to_numpy().clip(1e-12)
    from matplotlib.colors import LogNorm

    shown = axes.imshow(
        top, aspect="auto", origin="lower", cmap="magma", norm=LogNorm(max(top.max() * 1e-6, top.min()))
    )
    axes.set_xticks(range(grid.shape[1]), [str(c) for c in grid.columns], fontsize=6, rotation=90)
    axes.set_yticks(
        range(0, len(grid), max(1, len(grid) // 12)), grid.index[:: max(1, len(grid) // 12)], fontsize=7
    )
    axes.set(xlabel="place, from the prompt's end", ylabel="depth")
    figure.colorbar(shown, ax=axes, label="KL / c², second order (nats)")
    return figure


def open_effect(
    model: Any, out: str | os.PathLike[str], options: EffectOptions, *, command: str | None = None, **how: Any
) -> EffectStudy:
    """The study in a run folder, new or gone on with; arguments and errors as `accuracy.open_accuracy`."""
    if not isinstance(model, Model):
        raise Refused("An effect map walks hand-written blocks, which the generic adapter lacks.")
    if options.site != "resid" or options.edit != "add":
        raise Refused("An effect map adds a direction at resid; leave site and edit as they are.")
    directions, _ = asking.read_written(model, options)
    if directions is None or "resid" not in directions.vectors:
        raise Refused("The directions hold none at resid; make them with `steering directions --site resid`.")
    items = asking.prepare(model, options, options.part)[: options.questions_at_most]
    study = EffectStudy(model, options, items=items, directions=directions, **how)
    found = asking.open_folder(study, out, command, hash_of_directions=directions.hash())
    assert isinstance(found, EffectStudy)
    return found
