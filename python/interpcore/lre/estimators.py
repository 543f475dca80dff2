"""The other ways to an operator: from one example, as a translation, a regression, a corner, the identity.

Each gives an `Operator` at every depth, so that all are read, edited and cross-fitted alike; those without a
W of their own have the identity.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from interpcore.data.relations import Sample
from interpcore.errors import Refused
from interpcore.lre.operator import Operator, mean_operator
from interpcore.lre.prompts import Query, leave_one_out
from interpcore.lre.states import Depth, PromptStates
from interpcore.model import Edit, Model, Replace
from interpcore.model.made_on import MadeOn
from interpcore.model.names import source_site

RATE, DECAY = 5e-2, 2e-2  # of everything that is published as learned by Adam
STEPS = 100


def one_example(
    model: Model, template: str, examples: Sequence[Sample], protocol: str, depths: Sequence[Depth]
) -> Operator:
    """J and b of the first example alone, in a prompt without others (published: `j`)."""
    return mean_operator(model, leave_one_out(model.tokenizer, template, examples[:1], protocol), depths)


def few_shot_one(
    model: Model, template: str, examples: Sequence[Sample], protocol: str, depths: Sequence[Depth]
) -> Operator:
    """J and b of the first example with the others above it (published: `j-icl`)."""
    return mean_operator(model, leave_one_out(model.tokenizer, template, examples, protocol)[:1], depths)


def imaginary_subject(
    model: Model, queries: Sequence[Query], states: PromptStates, subjects: int = 2
) -> Operator:
    """J and b at the mean of some subjects' states, as long as these are on average, in the first query's
    prompt (published as a variant that did not work well).

    Args:
        model: the decoder.
        queries: leave-one-out prompts.
        states: of these prompts; each of their depths has an operator of its own, with the state written
            there.
        subjects: how many states are averaged.
    """
    means = states.h[:subjects].mean(0)
    lengths = states.h[:subjects].norm(dim=-1).mean(0) / means.norm(dim=-1)
    found = []
    for depth, h in zip(states.depths, means * lengths[:, None], strict=True):
        site, place = source_site(depth)
        edit = Edit(site, place, queries[0].subject, Replace(h))
        found.append(mean_operator(model, queries[:1], (depth,), edits=[edit]))
    weight, bias = (torch.cat([getattr(one, name) for one in found]) for name in ("weight", "bias"))
    return Operator(states.depths, weight, bias, MadeOn.of(model))


def translation(states: PromptStates) -> Operator:
    """z = h + mean(z - h) over the examples' prompts (published: `word2vec`)."""
    return shifted(states, (states.z[:, None] - states.h).mean(0))


def identity(states: PromptStates) -> Operator:
    """z = h: the logit lens."""
    return shifted(states, torch.zeros_like(states.h[0]))


def regression(states: PromptStates, protocol: str = "default", seed: int = 0) -> Operator:
    """The linear regression of z on h over the examples' prompts: the one of least norm.

    `protocol="paper"` runs the published 100 steps of Adam from a random start instead.
    """
    found = [
        _learned(h, states.z, seed) if protocol == "paper" else _least_norm(h, states.z)
        for h in states.h.unbind(1)
    ]
    weight, bias = (torch.stack([one[i] for one in found]) for i in (0, 1))
    return Operator(states.depths, weight, bias, MadeOn.of(states.shared.model))


def corner_mean(states: PromptStates, tokens: Tensor) -> Operator:
    """z = h + a step towards the corner of the unembeddings of the relation's objects, half as long as the
    mean state.

    Args:
        states: of the examples' prompts.
        tokens: first tokens of the relation's objects [object].
    """
    rows = states.shared.model.unembedding.weight[:, tokens].mT.to(states.h)
    corner = (rows / rows.norm(dim=1, keepdim=True)).mean(0)
    lengths = states.h.mean(0).norm(dim=1, keepdim=True)
    return shifted(states, corner * (lengths / corner.norm() / 2))


def corner_gradient(states: PromptStates, tokens: Tensor, seed: int = 0, logit: float = 50.0) -> Operator:
    """z = h + the state that gradient descent finds to raise the objects' logits and lower all others'.

    Args:
        states: of the examples' prompts.
        tokens: first tokens of the relation's objects [object].
        seed: of its start.
        logit: what the objects' are raised to.
    """
    model = states.shared.model
    start = torch.empty(model.spec.d_model, dtype=torch.float64)
    start.uniform_(-1, 1, generator=torch.Generator().manual_seed(seed))
    with torch.enable_grad():
        z = start.to(model.device, model.dtype).requires_grad_()
        adam = torch.optim.Adam([z], lr=RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            adam.zero_grad()
            logits = model.unembed(model.final_norm(z))
            ((logit - logits[tokens]).square().mean() + logits.mean()).backward()
            adam.step()
    return shifted(states, z.detach().expand_as(states.h[0]))


def shifted(states: PromptStates, bias: Tensor) -> Operator:
    """z = h + bias [depth, d_model]."""
    d = bias.shape[-1]
    eye = torch.eye(d, dtype=bias.dtype, device=bias.device).expand(len(bias), d, d)
    return Operator(states.depths, eye, bias, MadeOn.of(states.shared.model))


def low_rank(operator: Operator, at: int, ranks: Sequence[int]) -> Operator:
    """W cut to its largest singular values, once for each rank; every "depth" of the result is the same one.

    Args:
        operator: W and b.
        at: place of the depth.
        ranks: each from 0.
    """
    wide = torch.promote_types(operator.weight.dtype, torch.float32)
    u, s, vh = torch.linalg.svd(operator.weight[at].to(wide))
    if max(ranks) > len(s) or min(ranks) < 0:
        raise Refused(f"Ranks are 0 to {len(s)}; got {min(ranks)} to {max(ranks)}.")
    cut = torch.stack([(u[:, :r] * s[:r]) @ vh[:r] for r in ranks]).to(operator.weight)
    depths = (operator.depths[at],) * len(ranks)
    return Operator(depths, cut, operator.bias[at].expand(len(ranks), -1), operator.made_on)


def _least_norm(h: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(h.dtype, torch.float64)
    middle_h, middle_z = h.to(wide).mean(0), z.to(wide).mean(0)
    weight = (torch.linalg.pinv(h.to(wide) - middle_h) @ (z.to(wide) - middle_z)).mT
    return weight.to(h), (middle_z - weight @ middle_h).to(h)


def _learned(h: Tensor, z: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    d = h.shape[1]
    weight, bias = (torch.empty(size).uniform_(-0.1, 0.1, generator=draw) for size in ((d, d), (d,)))
    weight, bias, h, z = weight.to(h.device), bias.to(h.device), h.float(), z.float()
    with torch.enable_grad():
        adam = torch.optim.Adam([weight.requires_grad_(), bias.requires_grad_()], lr=RATE, weight_decay=DECAY)
        for _ in range(STEPS):
            adam.zero_grad()
            (z - h @ weight.mT - bias).square().mean().backward()
            adam.step()
    return weight.detach(), bias.detach()
