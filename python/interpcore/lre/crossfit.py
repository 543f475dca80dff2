"""Choosing hyperparameters on one half of the subjects and reporting on the other."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr


@dataclass(frozen=True, eq=False)
class Fold(ShortRepr):
    """Which prompts choose and which are reported, both [prompt] bool."""

    choose: Tensor
    report: Tensor


def make_folds(subjects: Sequence[str], known: Tensor, seed: int, protocol: str = "default") -> list[Fold]:
    """Two folds that swap halves; all prompts about a subject are in the same half, known subjects and
    unknown ones are halved apart, and only known prompts choose. `protocol="paper"` chooses on the known
    prompts that are reported, as published.

    Args:
        subjects: subject of each prompt [prompt].
        known: which prompts the model answers [prompt] bool.
        seed: fixes the halves.
        protocol: "default" or "paper".
    """
    if protocol == "paper":
        return [Fold(known, torch.ones_like(known))]
    answered = {s for s, k in zip(subjects, known.tolist(), strict=True) if k}
    half: set[str] = set()
    for group in (sorted(answered), sorted(set(subjects) - answered)):
        half |= set(random.Random(seed).sample(group, len(group))[::2])
    first = torch.tensor([subject in half for subject in subjects])
    return [Fold(first & known, ~first), Fold(~first & known, first)]


def choose(hits: Tensor) -> tuple[int, int]:
    """The depth and setting with the highest share of hits: the first such depth, and the middle one of its
    best settings.

    Args:
        hits: [depth, setting, prompt] bool, at least one prompt.
    """
    rates = hits.double().mean(-1)
    depth = int((rates.amax(1) == rates.max()).nonzero()[0, 0])
    best = (rates[depth] == rates[depth].max()).nonzero()[:, 0].tolist()
    return depth, best[(len(best) - 1) // 2]


def cross_fit(
    hits: Tensor, folds: Sequence[Fold], given: tuple[int, int] | None = None
) -> tuple[Tensor, list[tuple[int, int]]]:
    """Each prompt's hit at the depth and setting that the other half chose.

    Args:
        hits: [depth, setting, prompt] bool.
        folds: as `make_folds` gives.
        given: a depth and setting to take instead of a choice.
    Returns: outcomes [prompt] bool, and each fold's choice.
    """
    choices = [choose(hits[..., fold.choose]) if given is None else given for fold in folds]
    return at_choices(hits, folds, choices), choices


def at_choices(values: Tensor, folds: Sequence[Fold], choices: Sequence[tuple[int, int]]) -> Tensor:
    """values [depth, setting, prompt] at each prompt's own fold's choice [prompt]."""
    out = torch.empty_like(values[0, 0])
    for fold, (depth, setting) in zip(folds, choices, strict=True):
        out[fold.report] = values[depth, setting][fold.report]
    return out


def by_depth(hits: Tensor, folds: Sequence[Fold]) -> Tensor:
    """Outcomes where only the setting is chosen, once for each depth [depth, prompt]."""
    return torch.stack([cross_fit(one[None], folds)[0] for one in hits])


def per_fold(folds: Sequence[Fold], values: Sequence[Tensor]) -> Tensor:
    """Each prompt's value [prompt] under the choice of its own fold."""
    out = torch.empty_like(values[0])
    for fold, value in zip(folds, values, strict=True):
        out[fold.report] = value[fold.report]
    return out
