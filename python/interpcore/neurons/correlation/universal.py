"""Excess correlation and the set of universal neurons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.correlation.jackknife import Jackknife
from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.correlation.setup import Correlations, Pair
from interpcore.runs.shown import AsTable
from interpcore.stats.jackknife import jackknife_error

if TYPE_CHECKING:
    import pandas as pd

PROTOCOLS = ("default", "paper")
SIMILAR = (
    "Shares of neurons with a neuron like them, by the largest |r| in each partner; shuffled: with the "
    "partner's tokens shuffled; same neuron: the most similar one has the same layer and number. Where these "
    "are high and the excess is low, rotated neurons are as much alike: the models share most of what they "
    "compute."
)
"""What a reader of `similar_shares` needs."""
SHARES = (0.5, 0.9)
"""Sizes of correlations whose shares say how alike two models are."""


@dataclass(frozen=True, eq=False)
class Universality(AsTable):
    """How much more the neurons of a model resemble those of other models than rotated ones.

    Args:
        columns: by name `[n]` float64: max_corr, mean_corr, min_corr over partner models of the largest
            correlation, max_baseline, mean_baseline, min_baseline of that with rotated partners, and
            excess_corr = mean_corr - mean_baseline.
        threshold: of excess correlation.
        standard_error: of the excess, by jackknife `[n]`; NaN without one.
    """

    columns: dict[str, Tensor]
    threshold: float
    standard_error: Tensor

    @property
    def excess(self) -> Tensor:
        """Excess correlation `[n]`; NaN for a neuron that is constant or not finite."""
        return self.columns["excess_corr"]

    @property
    def universal(self) -> Tensor:
        """`[n]` bool: excess above the threshold."""
        return self.excess > self.threshold

    def to_pandas(self) -> pd.DataFrame:
        """One row per neuron: its columns, the standard error of the excess, and whether it is universal."""
        import pandas as pd

        named = {name: values.numpy() for name, values in self.columns.items()}
        return pd.DataFrame(
            named | {"excess_se": self.standard_error.numpy(), "universal": self.universal.numpy()}
        )

    def interval(self, deviations: float = 1.96) -> tuple[Tensor, Tensor]:
        """Low and high ends of the excess `[n]` each, that many standard errors apart from it."""
        reach = deviations * self.standard_error
        return self.excess - reach, self.excess + reach

    def count_interval(self, deviations: float = 1.96) -> tuple[int, int, int]:
        """How many neurons are universal, and how few and many: those whose whole interval lies above the
        threshold, and those whose interval reaches above it."""
        low, high = self.interval(deviations)
        return (
            int((low > self.threshold).sum()),
            int(self.universal.sum()),
            int((high > self.threshold).sum()),
        )


def universality(
    found: Correlations,
    model: str | int = 0,
    *,
    partners: Sequence[str | int] | None = None,
    threshold: float = 0.5,
    errors: Jackknife | None = None,
    protocol: str = "default",
) -> Universality:
    """Excess correlation of a model's neurons (Gurnee et al. 2024): the mean over partner models of the
    largest correlation, minus that of the largest with the rotated partner (mean over draws).

    Args:
        found: by `correlate`.
        model: name or number of the model.
        partners: of the partner models; None for all others.
        threshold: a neuron is universal above it.
        errors: for standard errors, which are of the first draw.
        protocol: "paper" counts an undefined correlation as 0, and leaves an undefined baseline undefined.

    Raises:
        ValueError: a name is unknown, there is no partner or no rotated baseline.
    """
    if protocol not in PROTOCOLS:
        raise Refused(f"protocol={protocol!r} is unknown; choose from {', '.join(PROTOCOLS)}.")
    a = _number(found, model)
    others = (
        [b for b in range(len(found.sets)) if b != a]
        if partners is None
        else [_number(found, b) for b in partners]
    )
    if not others or a in others:
        raise Refused("Excess correlation needs one partner model or more, other than the model itself.")
    if not found.settings.rotates:
        raise Refused("Excess correlation needs a rotated baseline; correlate with rotation='haar'.")
    best = torch.stack([found.partners[a, b].maximum for b in others])
    if protocol == "paper":
        best = best.nan_to_num()
    turned = torch.stack([found.partners[a, b].baseline.double().mean(0) for b in others])
    columns = {
        f"{name}_{kind}": value
        for kind, values in (("corr", best), ("baseline", turned))
        for name, value in (("max", values.amax(0)), ("mean", values.mean(0)), ("min", values.amin(0)))
    }
    columns["excess_corr"] = columns["mean_corr"] - columns["mean_baseline"]
    error = torch.full_like(columns["excess_corr"], torch.nan)
    if errors is not None:
        replicates = [errors.partner[a, b].deleted - errors.baseline[a, b].deleted for b in others]
        error = jackknife_error(torch.stack(replicates).mean(0))
    return Universality(columns, threshold, error)


def similar_shares(found: Correlations, null: Mapping[Pair, Partners], model: int = 0) -> pd.DataFrame:
    """How many of a model's neurons have a neuron like them in each partner model, and how many would have
    one if the partner's tokens were shuffled. A rotated baseline cannot tell this where models share so many
    neurons that rotated ones look alike too.

    Args:
        found: by `correlate`.
        null: by `null_baseline` with the kind "permutation".
        model: number of the model.

    Returns:
        One row per partner: partner; the shares of neurons whose largest |r| is above each of `SHARES`, as
        "|r| > 0.5", of these with the null as "shuffled |r| > 0.5"; "same neuron", the share whose most
        similar neuron (by |r|) has the same block call and number; median |r| and shuffled median |r|. A
        neuron without a correlation counts as having none like it.
    """
    import pandas as pd

    rows = []
    for other in (b for b in range(len(found.sets)) if b != model):
        row: dict[str, Any] = {"partner": found.sets[other].name}
        for prefix, partners in (("", found.partners[model, other]), ("shuffled ", null[model, other])):
            size, who = partners.strongest()
            row |= {f"{prefix}|r| > {cut:g}": float((size > cut).double().mean()) for cut in SHARES}
            row[f"{prefix}median |r|"] = float(size.nanmedian())
            if not prefix:
                mine = found.sets[model].address(torch.arange(len(who)))
                theirs = found.sets[other].address(who)
                same = [a == b for a, b in zip(mine, theirs, strict=True)]
                row["same neuron"] = float((same[0] & same[1]).double().mean())
        rows.append(row)
    return pd.DataFrame(rows)


def _number(found: Correlations, model: str | int) -> int:
    return found.index(model) if isinstance(model, str) else model
