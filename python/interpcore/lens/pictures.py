"""A lens as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interpcore.runs.plots import caption, empty, new_figure, say, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from interpcore.lens.lens import Lens


def lens_figure(lens: Lens) -> Figure:
    """A lens by depth: |J - I| over |J| (1 for z) beside the size of its standard errors, and the reliability
    of the mean."""
    figure, (left, right) = new_figure(7, 2.8, 2)
    table = lens.to_pandas()
    left.plot(table.depth, table.share, "o-", color="#3b6ea8", ms=4, label="|J - I| / |J|")
    if lens.standard_error is not None:
        size = lens.jacobian.flatten(1).norm(dim=1).numpy()
        noise = table.standard_error / size
        left.plot(table.depth, noise, "s:", color="#c8772e", ms=4, mfc="none", label="its standard error")
    left.set(xlabel="depth", ylabel="share of |J|", ylim=(0, None))
    left.legend(frameon=False, fontsize=8)
    if lens.reliability is not None and bool(lens.reliability.isfinite().any()):
        right.plot(table.depth, table.reliability, "o-", color="#3b6ea8", ms=4)
        right.set(xlabel="depth", ylabel="reliability of the mean", ylim=(0, 1.05))
    else:
        empty(right, "No reliability was kept, or nothing varies.")
    whole_numbers(left.xaxis, right.xaxis)
    model = "not recorded" if lens.made_on is None else f"of weights {lens.made_on.weights[:12]}"
    data = f"{lens.site} to depth {lens.target_depth}, rules {lens.rules}"
    return say(figure, caption(model=model, data=data, n=f"{lens.count} prompts"))
