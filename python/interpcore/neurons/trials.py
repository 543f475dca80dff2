"""The suite `neurons`: does it hold elsewhere that a small share of neurons is shared between models trained
apart, and that these are skewed, heavy-tailed and rarely active?"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from interpcore.data.tinyworld.heldout import KINDS
from interpcore.generalize.context import UNTRAINED, Suite
from interpcore.generalize.definition import Trial, trial
from interpcore.generalize.measured import Measured
from interpcore.model.token_text import token_texts
from interpcore.neurons.trials_context import (
    NULL,
    REFERENCE,
    ROTATED,
    SHUFFLED,
    Neurons,
    Settings,
    joined,
    without_each,
)
from interpcore.stats.association import spearman

FINDING = (
    "A small share of neurons is shared between models trained apart; these have high skew and kurtosis, are "
    "rarely active and have a negative input bias."
)
ABOUT: dict[str, Any] = {"suite": "neurons", "finding": FINDING, "direction": "above"}
SIGNATURE: dict[str, Any] = {
    "unit": "neuron",
    "threshold": 0.5,
    "least_units": 20,
    "controls": (UNTRAINED, SHUFFLED),
}
DRAWS, PERMUTATIONS, FALSE_SHARE = 20, 100, 0.05


@trial(**ABOUT, **SIGNATURE, id="N1", criterion="GT1")
def kurtosis(context: Neurons) -> Measured:
    """Mean percentile within its layer of a universal neuron's kurtosis."""
    return context.percentiles([m.kurtosis for m in context.moments()])


@trial(**ABOUT, **SIGNATURE, id="N2", criterion="GT1")
def negative_bias(context: Neurons) -> Measured:
    """Mean percentile within its layer of a universal neuron's negative input bias, norms folded in."""
    return context.percentiles([-bias for bias in context.biases()])


@trial(**ABOUT, **SIGNATURE, id="N3", criterion="GT1")
def rarely_active(context: Neurons) -> Measured:
    """Mean percentile within its layer of how rarely a universal neuron is active."""
    return context.percentiles([-m.frequency[0] for m in context.moments()])


def _on_text(kind: str) -> Trial:
    """N4 on a kind of text."""

    def measure(context: Neurons) -> Measured:
        return context.percentiles([m.kurtosis for m in context.moments(kind)], kind)

    measure.__doc__ = f"N1 on {kind}, the universal neurons fixed on the corpus."
    return trial(**ABOUT, **(SIGNATURE | {"controls": (SHUFFLED,)}), id=f"N4-{kind}", criterion="GT2")(
        measure
    )


def _same_skew(kind: str) -> Trial:
    """N5 on a kind of text."""

    def measure(context: Neurons) -> Measured:
        corpus, groups = context.moments(), context.groups(kind)

        def rank(layers: list[Tensor]) -> float:
            each = [float(spearman(m.skewness, skew)) for m, skew in zip(corpus, layers, strict=True)]
            return float(np.mean(each))

        value = rank([joined(layer).skewness for layer in groups])
        deleted = zip(*(without_each(layer) for layer in groups), strict=True)
        values = [rank([m.skewness for m in layers]) for layers in deleted]
        units = [f"documents {i}" for i in range(len(values))]
        return Measured.jackknife(
            value, values, units, facts={"tokens": context.counted(kind)}, **context.sources()
        )

    measure.__doc__ = f"Rank correlation within layers of every neuron's skew between the corpus and {kind}."
    about: dict[str, Any] = {"threshold": 0.0, "unit": "group of documents", "least_units": 20}
    return trial(**ABOUT, **about, id=f"N5-{kind}", criterion="GT2", primary=False, beside=(REFERENCE,))(
        measure
    )


@trial(
    **ABOUT,
    id="N6",
    criterion="GT3",
    unit="head",
    threshold=0.0,
    least_units=8,
    controls=(UNTRAINED, ROTATED),
)
def heads(context: Neurons) -> Measured:
    """How much more often than half a head's most similar head in another model is more similar than after a
    random rotation of that model's heads (linear CKA of outputs)."""
    model, *others = context.models
    mine = context.heads(model)
    make = torch.Generator().manual_seed(context.seed)
    beaten = []
    for other in others:
        theirs = context.heads(other)
        own = _rotated(theirs, make) if context.control == ROTATED else theirs
        best = _most_alike(mine, own)
        beaten += [(best > _most_alike(mine, _rotated(theirs, make))).double() for _ in range(DRAWS)]
    values = torch.stack(beaten).mean(0) - 0.5
    n_heads = mine[0].shape[1]
    units = [f"{i // n_heads}.{i % n_heads}" for i in range(len(values))]
    return Measured(values.tolist(), units, (-0.5, 0.5), **context.sources())


@trial(**ABOUT, id="N7", criterion="GT3", unit="dimension", threshold=0.01, least_units=50, controls=(NULL,))
def embedding_dimensions(context: Neurons) -> Measured:
    """Share of embedding dimensions with a kurtosis over the vocabulary above the 99th percentile of random
    orthogonal bases of the same matrix."""
    embedding = context.setting.model.embedding.double()
    make = torch.Generator().manual_seed(context.seed)
    d = embedding.shape[1]
    if context.control == NULL:
        embedding = embedding @ _orthogonal(d, make)
    null = torch.cat([_kurtosis(embedding @ _orthogonal(d, make)) for _ in range(DRAWS)])
    above = _kurtosis(embedding) > null.quantile(0.99)
    return Measured(above.double().tolist(), [str(i) for i in range(d)], (0, 1), **context.sources())


@trial(
    **ABOUT,
    id="N8",
    criterion="GT3",
    unit="group of token types",
    threshold=0.0,
    least_units=20,
    controls=(SHUFFLED,),
)
def number_tokens(context: Neurons) -> Measured:
    """Share of neurons that tell digits from other tokens (types, positions taken off, Benjamini-Hochberg at
    5%) minus the same with the classes permuted."""
    ids, means = context.by_type()
    texts = token_texts(context.model.tokenizer, context.model.spec.vocab_size)
    digits = torch.tensor([texts[i].strip().isdigit() for i in ids])
    make = torch.Generator().manual_seed(context.seed)
    if context.control == SHUFFLED:
        digits = digits[torch.randperm(len(digits), generator=make)]
    group = torch.zeros(len(ids), dtype=torch.int64)
    for which in (digits, ~digits):  # every group has its part of both classes
        group[which] = torch.arange(int(which.sum())) % 20

    def found(rows: Tensor) -> float:
        right, wrong = digits[rows], digits[rows][torch.randperm(len(rows), generator=make)]
        return _told_apart(means[rows], right, make) - _told_apart(means[rows], wrong, make)

    value = found(torch.arange(len(ids)))
    deleted = [found((group != g).nonzero()[:, 0]) for g in range(20)]
    facts = {"digit types": int(digits.sum()), "other types": int((~digits).sum()), "neurons": means.shape[1]}
    return Measured.jackknife(
        value, deleted, [f"types {g}" for g in range(20)], facts=facts, **context.sources()
    )


@trial(**ABOUT, id="N9", criterion="GT1", unit="neuron", threshold=0.0, least_units=20, controls=(UNTRAINED,))
def more_than_untrained(context: Neurons) -> Measured:
    """Share of universal neurons minus that of untrained weights."""
    least = context.setting.options.universal
    trained, fresh = ((excess > least).double() for excess in (context.excess(), context.excess(fresh=True)))
    units = [str(i) for i in range(len(trained))]
    facts = {"universal": int(trained.sum()), "untrained": int(fresh.sum()), "of": len(trained)}
    return Measured((trained - fresh).tolist(), units, (-1, 1), facts=facts, **context.sources())


def _most_alike(mine: list[Tensor], theirs: list[Tensor]) -> Tensor:
    """Largest linear CKA of each of my heads with any of theirs [head]."""
    own, other = (torch.cat([z - z.mean(0) for z in side], 1) for side in (mine, theirs))
    cross = torch.einsum("thi,tkj->hkij", own, other).square().sum((2, 3))
    sizes = [torch.einsum("thi,thj->hij", z, z).square().sum((1, 2)).sqrt() for z in (own, other)]
    return (cross / (sizes[0][:, None] * sizes[1])).amax(1)


def _rotated(heads: list[Tensor], make: torch.Generator) -> list[Tensor]:
    """Every layer's heads [token, head, d_head] after one rotation of all their dimensions together."""
    return [(z.flatten(1) @ _orthogonal(z[0].numel(), make)).view_as(z) for z in heads]


def _orthogonal(d: int, make: torch.Generator) -> Tensor:
    """A random rotation [d, d], Haar."""
    q, r = torch.linalg.qr(torch.randn(d, d, generator=make, dtype=torch.float64))
    return q * r.diagonal().sign()


def _kurtosis(x: Tensor) -> Tensor:
    """Pearson's, of every column."""
    centred = x - x.mean(0)
    return centred.pow(4).mean(0) / centred.square().mean(0).square()


def _told_apart(means: Tensor, digits: Tensor, make: torch.Generator) -> float:
    """Share of neurons whose standardised difference between classes of token types is beyond what permuted
    classes give, by Benjamini and Hochberg at 5%; the permuted differences of all neurons are one null."""
    n = int(digits.sum())
    scaled = (means - means.mean(0)) / means.std(0).clamp(min=1e-12)
    weight = digits.to(scaled) / n - (~digits).to(scaled) / (len(digits) - n)
    orders = [torch.randperm(len(weight), generator=make) for _ in range(PERMUTATIONS)]
    permuted = torch.stack([weight[order] for order in orders])
    null = (permuted @ scaled).abs().flatten().sort().values
    seen = (weight @ scaled).abs()
    p = (len(null) - torch.searchsorted(null, seen) + 1) / (len(null) + 1)
    ordered = p.sort().values
    below = ordered <= FALSE_SHARE * torch.arange(1, len(p) + 1) / len(p)
    return float(below.nonzero()[-1, 0] + 1) / len(p) if bool(below.any()) else 0.0


SUITE = Suite(
    name="neurons",
    finding=FINDING,
    trials=(
        kurtosis,
        negative_bias,
        rarely_active,
        more_than_untrained,
        *map(_on_text, KINDS),
        *map(_same_skew, KINDS),
        heads,
        embedding_dimensions,
        number_tokens,
    ),
    context=Neurons,
    settings=Settings,
    most_new=5,
)
