"""What the states of two labels look like at every depth, and how well a direction tells them apart."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure, whole_numbers
from interpcore.stats import auroc
from interpcore.steering.fits import fit
from interpcore.steering.options import Method
from interpcore.steering.study import StatesStudy

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

LABELS = {True: "reasoning", False: "recall"}
COLORS = {True: "#c8772e", False: "#3b6ea8"}
NOTES = (
    "norm: length of the mean state; length: of the direction as fitted; cos_*: mean and standard deviation, "
    "over held-out questions of a label, of the cosine between state and direction.",
    "auroc: how well the component along the direction tells the labels apart on questions that it was not "
    "fitted on, with Newcombe's 95% interval; shuffled: the largest, either way up, along directions of "
    "shuffled labels (half of each label against the other half).",
)


def directions(study: StatesStudy, asked: Method) -> Report:
    """Find the directions of a method, and say at each depth how well they separate held-out questions."""
    assert study.artifacts is not None
    found = study.find(asked.method)
    table = depth_table(study, asked.method, found)
    place = study.artifacts.artifact
    figure = cosine_figure(table)
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"direction: {asked.method} at {study.options.tokens} token(s)",
        n=_counts(study),
        note="Bands: one standard deviation of questions; 95% interval.",
    )
    name = f"directions-{asked.method}"
    files: tuple[Path, ...] = (study.file(asked.method), *write_frame(place(f"tables/{name}"), table))
    files += save_figure(place(f"figures/{name}"), figure, said)
    return Report(table, files, (f"{_counts(study)}.", told_of_controls(table), *NOTES))


def depth_table(study: StatesStudy, method: str, found: Any) -> pd.DataFrame:
    """A row of each site and depth."""
    import pandas as pd

    scores, rows = study.scores(method, found), []
    held = study.held_out
    flags = torch.tensor([study.flags[i] for i in held])
    for site, vectors in found.vectors.items():
        along, length = scores[f"{site}.along"][held], scores[f"{site}.length"][held]
        cosines = along / length.clamp(min=1e-300)
        for depth in range(len(vectors)):
            row = {"site": site, "depth": depth, "norm": float(found.norms[site][depth])}
            row["length"] = float(vectors[depth].norm())
            for label, name in LABELS.items():
                own = cosines[flags == label, depth]
                row |= {f"cos_{name}": float(own.mean()), f"cos_{name}_sd": float(own.std())}
            area = auroc(along[:, depth].tolist(), flags.tolist())
            row |= {"auroc": area.value, "auroc_low": area.low, "auroc_high": area.high}
            noise = scores[f"{site}.shuffled"][held].view(len(held), -1, len(vectors))[..., depth]
            row["shuffled"] = max((_either(one, flags) for one in noise.T), default=torch.nan)
            rows.append(row)
    return pd.DataFrame(rows)


def _either(along: Tensor, flags: Tensor) -> float:
    """AUROC of a direction whose sign means nothing."""
    area = auroc(along.tolist(), flags.tolist()).value
    return max(area, 1 - area)


def told_of_controls(table: pd.DataFrame) -> str:
    """What the controls beside the AUROC say of it."""
    whole = table[(table.length > 0) & table.shuffled.notna()]
    if not len(whole):
        return "No shuffled labels stand beside the AUROC; ask for some (shuffles)."
    alike = whole[whole.shuffled >= whole.auroc_low]
    if not len(alike):
        return f"AUROC is beyond every shuffled direction at all {len(whole)} depths."
    depths = ", ".join(f"{s}.{d}" for s, d in zip(alike.site, alike.depth, strict=True))
    return (
        f"At {len(alike)} of {len(whole)} depths ({depths}) a direction of shuffled labels tells the "
        "held-out labels apart as well, within the interval: there the labels differ along what the states "
        "vary in most, and almost any direction shows it. A high AUROC is no evidence of this direction "
        "there; try --split-by category."
    )


def kept_states(study: StatesStudy) -> Report:
    """Keep the states of all questions, and show them on their first two principal components where the
    difference in means separates them best."""
    import pandas as pd

    assert study.artifacts is not None
    kept, rows = study.kept(), []
    flags = torch.tensor(study.flags)
    own = torch.zeros(len(flags), dtype=torch.bool)
    own[study.fitted] = True
    held = torch.zeros_like(own)
    held[study.held_out] = True
    for site, values in kept.items():
        vectors = fit("mean", values[own], flags[own])
        for depth in range(values.shape[1]):
            states = values[:, depth].double()
            areas = auroc((states[held] @ vectors[depth]).tolist(), flags[held].tolist())
            means = [states[flags == label].mean(0) for label in LABELS]
            rows.append(
                {
                    "site": site,
                    "depth": depth,
                    "norm": float(states.norm(dim=-1).mean()),
                    "norm_of_mean": float(states.mean(0).norm()),
                    "cos_of_means": float(torch.cosine_similarity(means[0], means[1], dim=0)),
                    "auroc": areas.value,
                    "auroc_low": areas.low,
                    "auroc_high": areas.high,
                }
            )
    table = pd.DataFrame(rows)
    best = table.loc[table.auroc.idxmax()]
    figure = plane_figure(kept[best.site][:, int(best.depth)].double(), flags)
    place = study.artifacts.artifact
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"{best.site}.{best.depth}, {study.options.tokens} token(s)",
        n=_counts(study),
        note="Line: logistic boundary in this plane.",
    )
    files: tuple[Path, ...] = write_frame(place("tables/states"), table)
    files += save_figure(place("figures/states"), figure, said)
    notes = (
        f"{_counts(study)}. States are kept in artifacts/states: question x depth x d_model by site.",
        "norm: mean length of a state; cos_of_means: of the two labels' mean states; auroc: of the "
        "difference in means on questions that it was not fitted on, with Newcombe's 95% interval.",
    )
    return Report(table, files, notes)


def cosine_figure(table: pd.DataFrame) -> Figure:
    """Cosine with the direction, and AUROC, by depth, one row of panels for each site."""
    sites = list(dict.fromkeys(table.site))
    figure, panels = new_figure(8, 2.8 * len(sites), 2 * len(sites), 2)
    for row, site in enumerate(sites):
        part = table[table.site == site]
        left, right = panels[2 * row : 2 * row + 2]
        for label, name in LABELS.items():
            mean, spread = part[f"cos_{name}"], part[f"cos_{name}_sd"]
            left.plot(part.depth, mean, "o-", ms=3, color=COLORS[label], label=name)
            left.fill_between(part.depth, mean - spread, mean + spread, color=COLORS[label], alpha=0.15, lw=0)
        left.set(xlabel=f"depth of {site}", ylabel="cosine with the direction")
        left.legend(frameon=False)
        right.plot(part.depth, part.auroc, "o-", ms=3, color="#555555")
        right.fill_between(part.depth, part.auroc_low, part.auroc_high, color="#555555", alpha=0.15, lw=0)
        right.plot(part.depth, part.shuffled, "x:", ms=3, color="#b04a4a", label="shuffled labels")
        right.legend(frameon=False)
        right.axhline(0.5, ls=":", color="#999999")
        right.set(xlabel=f"depth of {site}", ylabel="AUROC, held-out questions", ylim=(-0.02, 1.02))
        whole_numbers(left.xaxis, right.xaxis)
    return figure


def plane_figure(states: Tensor, flags: Tensor) -> Figure:
    """States [n, d_model] on their first two principal components, with the logistic boundary there."""
    centred = states - states.mean(0)
    plane = centred @ torch.linalg.svd(centred, full_matrices=False).Vh[:2].mT
    w = fit("logistic", plane[:, None], flags)[0]
    side = plane @ w
    middle = (side[flags].mean() + side[~flags].mean()) / 2
    figure, [axes] = new_figure(5, 4)
    for label, name in LABELS.items():
        x, y = plane[flags == label].T.numpy()
        axes.plot(x, y, ".", color=COLORS[label], alpha=0.6, label=name)
    across = torch.linspace(float(plane[:, 0].min()), float(plane[:, 0].max()), 50, dtype=torch.float64)
    if abs(float(w[1])) > 1e-12:
        limits = axes.get_ylim()
        axes.plot(across.numpy(), ((middle - w[0] * across) / w[1]).numpy(), "-", color="#555555", lw=1)
        axes.set_ylim(limits)
    axes.set(xlabel="first principal component", ylabel="second principal component")
    axes.legend(frameon=False)
    return figure


def _counts(study: StatesStudy) -> str:
    fitted = [study.flags[i] for i in study.fitted]
    held = [study.flags[i] for i in study.held_out]
    said = f"{sum(fitted)} reasoning and {len(fitted) - sum(fitted)} recall questions fitted"
    if set(study.held_out) & set(study.fitted):
        return f"{said}, none held out: measured on the same"
    return f"{said}, {sum(held)} and {len(held) - sum(held)} held out"
