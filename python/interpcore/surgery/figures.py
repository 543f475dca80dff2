"""Pictures of plans on tasks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interpcore.runs.plots import caption, counted, named_ticks, new_figure, save_figure, whole_numbers

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.surgery.study import Study

MOST_NATS = 10.0
"""The farthest that the colours of a heat map go, so that one ruined task does not hide the others."""


def draw_heat(study: Study, table: pd.DataFrame, kind: str) -> tuple[Path, ...]:
    """Block over task, coloured by the change of the loss."""
    if study.artifacts is None:
        return ()
    wide = table.pivot(index="task", columns="place", values="loss_change")
    wide = wide.loc[list(dict.fromkeys(table.task))]
    figure, [axes] = new_figure(3.2 + 0.3 * wide.shape[1], max(2.4, 1.5 + 0.25 * len(wide)))
    most = _most(wide.to_numpy())
    image = axes.imshow(wide, aspect="auto", cmap="RdBu_r", vmin=-most, vmax=most)
    figure.colorbar(image, ax=axes, label="change of loss (nats)", extend="both")
    done = table.drop_duplicates("task").set_index("task").done
    axes.set_yticks(range(len(wide)), [t if done[t] else f"({t})" for t in wide.index])
    named_ticks(axes.xaxis, range(wide.shape[1]), list(map(str, wide.columns)), 31)
    axes.set(xlabel="block", title=kind)
    note = "Answers' loss under the plan minus under the intact one, mean over items. Tasks in brackets: not "
    return _saved(study, f"map-{kind}", figure, table, f"{note}done by the intact model.")


def draw_curves(study: Study, table: pd.DataFrame, kind: str) -> tuple[Path, ...]:
    """The loss, and where answers are right or wrong their share, by the number of blocks."""
    if study.artifacts is None:
        return ()
    figure, axes = new_figure(9, 3.6, 2)
    for number, (name, one) in enumerate(table.groupby("task", sort=False)):
        how: dict[str, Any] = {"color": f"C{number % 10}", "ls": "-" if one.done.all() else ":"}
        axes[0].plot(one.place, one.loss, label=str(name), **how)
        if "right" in one and one.right.notna().all():
            axes[1].plot(one.place, one.right, **how)
            axes[1].fill_between(
                one.place, one.right_low, one.right_high, color=how["color"], alpha=0.1, lw=0
            )
    axes[0].set(ylabel="answer loss (nats)", yscale="symlog")
    axes[1].set(ylabel="share right", ylim=(-0.02, 1.02))
    for each in axes:
        each.set_xlabel("blocks kept" if kind == "keep" else "blocks dropped")
        whole_numbers(each.xaxis)
    axes[0].legend(fontsize=6, ncols=2)
    return _saved(
        study,
        f"map-{kind}",
        figure,
        table,
        "Means over items; bands: 95% intervals; dotted: not done by the intact model.",
    )


def draw_pairs(study: Study, table: pd.DataFrame, kind: str) -> tuple[Path, ...]:
    """i over j for every task, by the items that chose nothing."""
    if study.artifacts is None:
        return ()
    tasks = list(dict.fromkeys(table.task))
    columns = min(4, len(tasks))
    figure, axes = new_figure(2.6 * columns, 2.4 * -(-len(tasks) // columns), len(tasks), columns)
    most = _most(table.second.to_numpy())
    for each, name in zip(axes, tasks, strict=True):
        wide = table[table.task == name].pivot(index="i", columns="j", values="second")
        image = each.imshow(wide, origin="lower", cmap="RdBu_r", vmin=-most, vmax=most)
        each.set(title=name, xlabel="j", ylabel="i")
        whole_numbers(each.xaxis, each.yaxis)
    figure.colorbar(image, ax=axes, label="change of loss (nats)", extend="both")
    said = f"Second half of the items; n: pairs of {kind}."
    return _saved(study, f"map-{kind}", figure, table.assign(n=len(table) // len(tasks)), said)


def _most(changes: np.ndarray) -> float:
    """Where the colours end: at the largest change of a loss (nats), at most at `MOST_NATS`."""
    return min(float(np.nanmax(np.abs(changes), initial=1e-3)), MOST_NATS)


def _saved(study: Study, name: str, figure: Any, table: pd.DataFrame, note: str) -> tuple[Path, ...]:
    assert study.artifacts is not None
    counts = sorted(set(table.n))
    n = f"{counts[0]} items" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} items"
    model = str(study.artifacts.card.model)
    said = caption(model=model, data=f"answers of {counted(table.task.nunique(), 'task')}", n=n, note=note)
    return save_figure(study.artifacts.artifact(f"figures/{name.replace(' ', '-')}"), figure, said)
