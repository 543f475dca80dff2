"""Interventions and directions that the steering tests share."""

from __future__ import annotations

import torch

from interpcore.model.made_on import MadeOn
from interpcore.steering.directions import Directions
from interpcore.steering.interventions import Intervention, Part

D = 32


def vector(seed, width=D, scale=1.0):
    return scale * torch.randn(width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def every_kind(model):
    """One intervention that uses every kind of edit, place and positions."""
    last = model.plan.n_calls - 1
    low = torch.stack([vector(4), vector(5)]) / 30
    parts = [
        Part("resid", 1, "add", vector(1), 0.7, "onward"),
        Part("resid", 1, "amplify", vector(2), 0.4, "all"),
        Part("attn_out", 1, "ablate", vector(3), positions="last"),
        Part("mlp_out", last, "clamp", vector(1), 3.0, "answer", bias=vector(6)),
        Part("resid", last, "low-rank", low, 0.5, slice(2, None), right=low.flip(0)),
        Part("resid", 2, "add", vector(7), 0.3, (1, 3)),
        Part("resid", model.plan.n_calls, "function", positions="onward", function=lambda x: x * 1.1),
    ]
    if "z" not in model.spec.absent:
        head = vector(8, model.spec.d_head)
        parts.append(Part("z", 2, "add", head, 1.0, "onward", heads=(1,)))
    return Intervention(tuple(parts), "every kind")


def some_directions(model, sites=("resid", "attn_out", "mlp_out")):
    vectors = {
        s: torch.stack([vector(9 * i + len(s)) for i in range(model.plan.n_calls + (s == "resid"))])
        for s in sites
    }
    norms = {s: torch.arange(1.0, len(v) + 1).double() for s, v in vectors.items()}
    return Directions(vectors, norms, {s: v[None] + 1 for s, v in vectors.items()}, MadeOn.of(model))
