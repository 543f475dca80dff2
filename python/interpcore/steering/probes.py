"""Linear probes: one at each depth, trained as published, or with their depth chosen on questions of their
own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.made_on import MadeOn
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure, whole_numbers
from interpcore.stats import auroc, mean_over_clusters
from interpcore.steering.directions import Directions
from interpcore.steering.fits import fit
from interpcore.steering.options import ProbeOptions
from interpcore.steering.study import StatesStudy

if TYPE_CHECKING:
    import pandas as pd


def probes(study: StatesStudy, asked: ProbeOptions) -> Report:
    """Train a probe at every depth of every site, and say which is best and how good it is."""
    import pandas as pd

    assert study.artifacts is not None
    kept, flags = study.kept(), torch.tensor(study.flags)
    vectors, norms, tables, notes = {}, {}, [], []
    for site, values in kept.items():
        wide = values.double()
        norms[site] = wide[study.fitted].mean(0).norm(dim=-1)
        if asked.training == "paper":
            vectors[site], table, note = trained_as_published(wide, flags, asked, study.options.seed)
        else:
            vectors[site], table, note = chosen_on_their_own(wide, flags, study.parts)
        tables.append(table.assign(site=site))
        notes.append(f"{site}: {note}")
    table = pd.concat(tables)
    table = table[["site", *[c for c in table if c != "site"]]]
    about = {"method": f"probe {asked.training}", "tokens": study.options.tokens, "template": study.template}
    about["data"] = study.options.data_hash()
    file = study.artifacts.artifact(f"directions/probe-{asked.training}.safetensors")
    Directions(vectors, norms, {}, MadeOn.of(study.model), about).save(file)
    place, measure = study.artifacts.artifact, "test_loss" if asked.training == "paper" else "auroc"
    figure, [axes] = new_figure(6, 3.4)
    for site, part in table.groupby("site", sort=False):
        [line] = axes.plot(part.depth, part[measure], "o-", ms=3, label=site)
        if f"{measure}_low" in part:
            ends = part[f"{measure}_low"], part[f"{measure}_high"]
            axes.fill_between(part.depth, *ends, color=line.get_color(), alpha=0.15, lw=0)
    axes.set(xlabel="depth", ylabel="AUROC" if measure == "auroc" else "test loss (nats)")
    axes.legend(frameon=False)
    whole_numbers(axes.xaxis)
    said = caption(
        model=str(study.artifacts.card.model),
        data=f"linear probes, training {asked.training}",
        n=f"{len(flags)} questions",
        note=" ".join(notes),
    )
    name = f"probes-{asked.training}"
    files: tuple[Path, ...] = (file, *write_frame(place(f"tables/{name}"), table))
    return Report(table, files + save_figure(place(f"figures/{name}"), figure, said), tuple(notes))


def chosen_on_their_own(x: Tensor, flags: Tensor, parts: list[str]) -> tuple[Tensor, pd.DataFrame, str]:
    """Logistic probes fitted on the direction part, the depth chosen on the selection part, its worth taken
    on the test part, which neither has seen.

    Args:
        x: states [n, depth, d_model] float64.
        flags: label of each [n].
        parts: "direction", "selection" or "test" of each.
    Returns: probes [depth, d_model], a row of each depth, and what was chosen, in a sentence.
    Raises: Refused where a part lacks a label.
    """
    import pandas as pd

    own = {part: torch.tensor([p == part for p in parts]) for part in set(parts)}
    for part in ("direction", "selection", "test"):
        chosen = flags[own[part]] if part in own else flags[:0]
        if not bool(chosen.any()) or bool(chosen.all()):
            raise Refused(f"The {part} part of the questions lacks one of the labels; give more questions.")
    w = fit("logistic", x[own["direction"]], flags[own["direction"]])
    along = torch.einsum("nde,de->nd", x, w)
    rows = []
    for depth in range(x.shape[1]):
        areas = {
            part: auroc(along[own[part], depth].tolist(), flags[own[part]].tolist())
            for part in ("selection", "test")
        }
        row = {"depth": depth, "selection_auroc": areas["selection"].value}
        rows.append(row | {f"auroc{end}": getattr(areas["test"], name) for end, name in _ENDS.items()})
    table = pd.DataFrame(rows)
    best = table.loc[table.selection_auroc.idxmax()]
    note = (
        f"depth {best.depth:.0f}, chosen by AUROC on {int(own['selection'].sum())} questions, "
        f"has {best.auroc:.3f} ({best.auroc_low:.3f} to {best.auroc_high:.3f}) on "
        f"{int(own['test'].sum())} others."
    )
    return w, table, note


_ENDS = {"": "value", "_low": "low", "_high": "high"}


def trained_as_published(
    x: Tensor, flags: Tensor, asked: ProbeOptions, seed: int = 0
) -> tuple[Tensor, pd.DataFrame, str]:
    """The published training: bias-free probes of two classes, all depths at once, W ~ N(0, 1) / sqrt(d),
    mean negative log-likelihood summed over depths, AdamW, each depth's gradient clipped to 1, incomplete
    batches dropped in training and test; the depth and epoch of the lowest loss on the *test* questions, so
    that this loss is too low by the choice.

    Args, Returns: as `chosen_on_their_own`; a probe is the weight of the true class less that of the other.
    """
    import pandas as pd

    draw = torch.Generator().manual_seed(seed)
    n, depths, d = x.shape
    order, size = torch.randperm(n, generator=draw), asked.batch_size
    test, train = order[: int(n * asked.test_ratio)], order[int(n * asked.test_ratio) :]
    batches = test[: len(test) - len(test) % size].view(-1, size)
    if len(train) < size or not len(batches):
        raise Refused(
            f"{n} questions give no whole batch of {size} to train and to test on; give a smaller one."
        )
    w = (torch.randn(depths, d, 2, generator=draw, dtype=torch.float64) / d**0.5).requires_grad_()
    solver = torch.optim.AdamW([w], lr=asked.learning_rate, weight_decay=asked.weight_decay)
    classes = (~flags).long()  # the true label is class 0
    best, since, kept = (float("inf"), 0, 0), 0, w.detach().clone()
    losses: dict[str, Any] = {}
    for epoch in range(asked.epochs):
        shuffled = train[torch.randperm(len(train), generator=draw)][: len(train) - len(train) % size]
        trained = torch.zeros(depths, dtype=torch.float64)
        for batch in shuffled.view(-1, size):
            loss = _probe_loss(x[batch], classes[batch], w)
            loss.sum().backward()
            assert w.grad is not None
            w.grad /= w.grad.flatten(1).norm(dim=1).clamp(min=1)[:, None, None]
            solver.step()
            solver.zero_grad()
            trained += loss.detach() / (len(shuffled) // size)
        with torch.no_grad():
            tested = torch.stack([_probe_loss(x[b], classes[b], w) for b in batches]).mean(0)
        since += 1
        if float(tested.min()) < best[0]:
            best, since, kept = (float(tested.min()), int(tested.argmin()), epoch), 0, w.detach().clone()
            losses = {"train_loss": trained.tolist(), "test_loss": tested.tolist()}
        if since == asked.patience:
            break
    right = (torch.einsum("nde,dec->ndc", x[test], kept).argmax(-1) == classes[test, None]).double().T
    shares = [mean_over_clusters(row.tolist(), range(len(row))) for row in right]
    table = pd.DataFrame({"depth": range(depths), **losses, "right": [s.value for s in shares]})
    table["right_low"], table["right_high"] = [s.low for s in shares], [s.high for s in shares]
    note = (
        f"depth {best[1]}, epoch {best[2]}: lowest loss {best[0]:.4f} on the {len(test)} test questions that "
        "they were chosen on, as published; take another set to say how good it is."
    )
    return kept[..., 0] - kept[..., 1], table, note


def _probe_loss(x: Tensor, classes: Tensor, w: Tensor) -> Tensor:
    """Mean negative log-likelihood at each depth [depth]."""
    chances = torch.einsum("nde,dec->dnc", x, w).log_softmax(-1)
    return -chances.gather(2, classes.expand(len(chances), -1)[..., None])[..., 0].mean(1)
