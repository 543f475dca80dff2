"""Two lenses of one model, entry by entry: what a rule, a text or a site's lens of others changes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from interpcore.errors import Refused
from interpcore.lens.lens import Lens, beyond_identity, correlations

if TYPE_CHECKING:
    import pandas as pd

NOTES = (
    "correlation: of J - I over its entries (of J for z); at_most: the root of the two reliabilities' "
    "product, what sampling leaves of a correlation of 1.",
    "distance: |J_a - J_b| / |J_a|.",
    "beyond_sampling: mean squared difference over summed squared standard errors; 1 where the two differ as "
    "two draws of prompts do, less where they share prompts.",
)


def compare_lenses(a: Lens, b: Lens, *, other_model: bool = False) -> pd.DataFrame:
    """How far two lenses agree at each depth that both have.

    Entries of J belong to one model's own coordinates, so lenses of different weights, or whose weights are
    not recorded, are refused.

    Args:
        a, b: the lenses.
        other_model: compare them all the same.
    Returns: one row per depth: depth, correlation, at_most, distance, beyond_sampling; NaN where nothing
        varies or no errors were kept.
    Raises: Refused for lenses of other models, sites, targets or widths.
    """
    import pandas as pd

    if not other_model:
        for name, lens in (("first", a), ("second", b)):
            if lens.made_on is None:
                raise Refused(
                    f"The {name} lens does not record the weights it was made on, so nothing says that the "
                    "two belong to one model; say --other-model to compare them all the same."
                )
        assert a.made_on is not None and b.made_on is not None
        if not a.made_on.same(b.made_on):
            raise Refused(
                f"The lenses were made on other weights or plans ({_short(a)} and {_short(b)}); their "
                "entries belong to different coordinates (--other-model compares them all the same)."
            )
    for name in ("site", "target_depth"):
        if getattr(a, name) != getattr(b, name):
            raise Refused(
                f"The lenses differ in {name} ({getattr(a, name)} and {getattr(b, name)}); compare lenses "
                "that lead from and to the same place."
            )
    shared = [d for d in a.depths if d in b.depths]
    if not shared or a.jacobian.shape[1:] != b.jacobian.shape[1:]:
        raise Refused("The lenses share no depth, or their maps have different widths.")
    one, two = (torch.stack([lens.at(d) for d in shared]).double() for lens in (a, b))
    carried, apart = a.site != "z", (one - two).flatten(1)
    beyond = (beyond_identity(each, carried).flatten(1) for each in (one, two))
    return pd.DataFrame(
        {
            "depth": shared,
            "correlation": correlations(*beyond).numpy(),
            "at_most": _at_most(a, b, shared).numpy(),
            "distance": (apart.norm(dim=1) / one.flatten(1).norm(dim=1)).numpy(),
            "beyond_sampling": _beyond_sampling(a, b, shared, apart).numpy(),
        }
    )


def _at_most(a: Lens, b: Lens, depths: list[int]) -> torch.Tensor:
    out = torch.ones(len(depths), dtype=torch.float64)
    for lens in (a, b):
        if lens.reliability is None:
            return torch.full_like(out, torch.nan)
        out *= lens.reliability[[lens.depths.index(d) for d in depths]].double()
    return out.clamp(min=0).sqrt()


def _beyond_sampling(a: Lens, b: Lens, depths: list[int], apart: torch.Tensor) -> torch.Tensor:
    variance = torch.zeros_like(apart)
    for lens in (a, b):
        if lens.standard_error is None:
            return torch.full((len(depths),), torch.nan, dtype=torch.float64)
        variance += lens.standard_error[[lens.depths.index(d) for d in depths]].flatten(1).double().square()
    varies = variance > 0
    ratio = torch.where(varies, apart.square() / variance.where(varies, torch.ones(())), 0.0)
    return ratio.sum(1) / varies.sum(1)


def _short(lens: Lens) -> str:
    assert lens.made_on is not None
    return lens.made_on.weights[:12]
