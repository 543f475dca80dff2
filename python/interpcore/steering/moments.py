"""States of questions, one forward per batch, streamed into moments by label: none is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Model, Tap
from interpcore.model.generic import GenericModel
from interpcore.model.prompts import pad
from interpcore.model.sites import SITES, at_depths

TOKENS = ("last", "answer", "all")
ROWS = 16

States = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Moments(ShortRepr):
    """Mean and sum of squared deviations of states [..., d_model] float64; parts merge.

    Args:
        count: states.
        mean, squares: over them.
    """

    count: int
    mean: Tensor
    squares: Tensor

    @classmethod
    def of(cls, states: Tensor) -> Moments:
        """Of states [n, *shape], which may be none."""
        wide = states.double()
        mean = wide.mean(0) if len(wide) else wide.new_zeros(wide.shape[1:])
        return cls(len(wide), mean, (wide - mean).square().sum(0))

    def merge(self, other: Moments) -> Moments:
        """Both together, by Chan's update; the order decides the last bits."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.count * share)
        return Moments(count, self.mean + apart * share, squares)

    @property
    def variance(self) -> Tensor:
        """Of one state, unbiased, in the mean's shape; NaN where there are fewer than two."""
        return self.squares / (self.count - 1) if self.count > 1 else torch.full_like(self.mean, torch.nan)


def site_depths(model: Model | GenericModel, site: str) -> int:
    """Depths of a site of `d_model` entries.

    Raises: Refused for another site, or one that this model lacks.
    """
    if site not in SITES or "d_model" not in SITES[site].shape or SITES[site].heads is not None:
        streams = [name for name, s in SITES.items() if "d_model" in s.shape and s.heads is None]
        raise Refused(f"A direction lives at a site of d_model entries ({', '.join(streams)}); got {site!r}.")
    if SITES[site].depths == "none":
        at_depths(Tap(site), model.plan, model.spec.absent)
        return 1
    at_depths(Tap(site, 0), model.plan, model.spec.absent)
    return model.plan.n_calls + (SITES[site].depths == "calls+1")


def site_taps(model: Model | GenericModel, site: str, positions: int | None) -> list[Tap]:
    """A tap at each depth of a site, in order."""
    count = site_depths(model, site)
    if SITES[site].depths == "none":
        return [Tap(site, positions=positions)]
    return [Tap(site, depth, positions) for depth in range(count)]


@torch.no_grad()
def states(
    model: Model | GenericModel,
    prompts: Sequence[Sequence[int]],
    sites: Sequence[str],
    *,
    tokens: str = "last",
    new_tokens: int = 32,
    rows: int = ROWS,
) -> Iterator[tuple[list[int], States]]:
    """Each prompt's state at every depth of some sites, a batch at a time; of several tokens their mean.

    Args:
        model: the decoder.
        prompts: token ids of each.
        sites: of `d_model` entries.
        tokens: "last", the prompt's last one; "answer", those that the model generates after it, greedily;
            "all", the prompt and these.
        new_tokens: generated at most, for "answer" and "all".
        rows: prompts of a batch; short and long ones are not mixed.
    Yields: numbers of the batch's prompts, and site -> states [prompt, depth, d_model] float64.
    Raises: Refused for a site or `tokens` that there is not, and a state that is not finite.
    """
    if tokens not in TOKENS:
        raise Refused(f"States are taken at tokens {', '.join(TOKENS)}; got {tokens!r}.")
    taps = {site: site_taps(model, site, -1 if tokens == "last" else None) for site in sites}
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for at in range(0, len(order), rows):
        chosen = order[at : at + rows]
        texts, own = [list(prompts[i]) for i in chosen], [len(prompts[i]) for i in chosen]
        if tokens != "last":
            texts = _answered(model, texts, new_tokens)
        ids, mask = pad(texts, model.device)
        every = [tap for some in taps.values() for tap in some]
        read = model.forward(ids, mask, taps=every, logits_at=None).taps
        weights = None if tokens == "last" else _weights(texts, own if tokens == "answer" else None)
        found = {site: torch.stack([_mean(read[t], weights) for t in some], 1) for site, some in taps.items()}
        for site, values in found.items():
            if not bool(values.isfinite().all()):
                raise Refused(
                    f"A state of {model.spec.name} at {site} is not finite; load it in a wider dtype."
                )
        yield chosen, found


def _answered(model: Model | GenericModel, texts: list[list[int]], new_tokens: int) -> list[list[int]]:
    """The prompts with what the model says after them, the end-of-text token included."""
    ids, mask = pad(texts, model.device)
    out = model.generate(ids, mask, max_new_tokens=new_tokens)
    said = zip(texts, out.tokens.tolist(), out.lengths.tolist(), strict=True)
    return [text + new[:length] for text, new, length in said]


def _weights(texts: Sequence[Sequence[int]], own: Sequence[int] | None) -> Tensor:
    """Weight of every position [row, position]: equal over those from `own` on (None: over all), else 0."""
    weights = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.float64)
    for row, text in enumerate(texts):
        first = 0 if own is None else own[row]
        weights[row, first : len(text)] = 1 / (len(text) - first)
    return weights


def _mean(values: Tensor, weights: Tensor | None) -> Tensor:
    """States [row, position, d] to one of each row [row, d] float64."""
    if weights is None:
        return values[:, 0].double().cpu()
    wide = values.double().cpu().masked_fill((weights == 0)[..., None], 0.0)
    return torch.einsum("rp,rpd->rd", weights, wide)


def by_label(
    found: Mapping[str, Tensor], flags: Tensor, shuffled: Tensor
) -> dict[str, tuple[Moments, Moments, Tensor]]:
    """What a batch of states adds to the streamed sums.

    Args:
        found: site -> states [n, depth, d_model].
        flags: label of each [n] bool.
        shuffled: weight of each under every shuffling of the labels [shuffle, n].
    Returns: site -> moments of the true, moments of the false, weighted sums [shuffle, depth, d_model].
    """
    return {
        site: (
            Moments.of(values[flags]),
            Moments.of(values[~flags]),
            torch.einsum("sn,nde->sde", shuffled, values.double()),
        )
        for site, values in found.items()
    }
