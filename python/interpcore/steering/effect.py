"""How far a direction moves the next token's distribution, at every depth and position: exactly, and to
second order.

KL(p, p_c) of the distribution with c d added to a state is c^2 / 2 Var_p(J d) to second order, with J d the
logits' slope along d: one forward-mode walk gives it for all depths and positions at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Add, Edit, Model
from interpcore.model.linearize import linearize
from interpcore.model.linearize.norm import LinearNorm
from interpcore.model.versions import run_versions

AT = ("last", "each", "all")
BYTES = 1 << 28  # of tangents that walk together


@torch.no_grad()
def second_order(model: Model, tokens: Tensor, vectors: Mapping[int, Tensor], at: str = "last") -> Tensor:
    """Var_p(J d) / 2 of the next token after a prompt, what KL(p, p_c) / c^2 tends to.

    Args:
        model: the decoder.
        tokens: a prompt [position] int64.
        vectors: residual depth -> d [d_model], or several of each [vector, d_model].
        at: "last", d is added to the last token's state; "each", to each one's alone; "all", to all at once.
    Returns: [depth, vector, place] float64, in the order of `vectors`; places are one, or with "each" the
        positions.
    Raises: Refused for a model without hand-written blocks.
    """
    _check(model, at)
    line = linearize(model, tokens[None])
    n, d = len(tokens), model.spec.d_model
    places = n if at == "each" else 1
    norm = LinearNorm.at(model.final_norm, line.output[:, -1:], False)
    logits = model.unembed(model.final_norm(line.output[:, -1]))
    p = logits[0].double().softmax(-1)
    slope = 1.0 if model.spec.logit_softcap is None else 1 - (logits[0] / model.spec.logit_softcap).square()
    width = {depth: v.shape[0] if v.dim() == 2 else 1 for depth, v in vectors.items()}
    step = max(1, BYTES // (max(width.values()) * places * n * d * line.output.element_size()))
    # Vectors that enter later are appended behind, so a walk takes its depths in order.
    order = sorted(vectors)
    found: dict[int, Tensor] = {}
    for start in range(0, len(order), step):
        chosen = order[start : start + step]
        entering: dict[int | None, Tensor] = {
            depth: _entering(vectors[depth].view(width[depth], d).to(line.output), n, at) for depth in chosen
        }
        *_, last = line.forward_mode(entering)
        moved = model.unembedding.push(norm.jvp(last.resid[:, :, -1:]))[0, :, 0] * slope
        mean = moved.double() @ p
        half = ((moved.double().square() @ p) - mean.square()).clamp(min=0) / 2
        at_row = 0
        for depth in chosen:
            rows = width[depth] * places
            found[depth] = half[at_row : at_row + rows].view(width[depth], places)
            at_row += rows
    return torch.stack([found[depth] for depth in vectors]).cpu()


def _entering(vectors: Tensor, n: int, at: str) -> Tensor:
    """Tangents [1, vector * place, position, d_model] of vectors [vector, d_model] at their places."""
    if at == "each":
        eye = torch.eye(n, dtype=vectors.dtype, device=vectors.device)
        return torch.einsum("vd,pq->vpqd", vectors, eye).flatten(0, 1)[None]
    whole = vectors[:, None].expand(-1, n, -1)
    if at == "all":
        return whole[None]
    last = torch.zeros_like(whole)
    last[:, -1] = vectors
    return last[None]


@torch.no_grad()
def divergence(
    model: Model,
    tokens: Tensor,
    vectors: Mapping[int, Tensor],
    coefficients: Sequence[float],
    at: str = "last",
) -> Tensor:
    """KL(p, p_c) in nats of the next token after a prompt, with c d added.

    Args:
        model, tokens, at: as in `second_order`.
        vectors: residual depth -> d [d_model].
        coefficients: c.
    Returns: [coefficient, depth, place] float64.
    """
    _check(model, at)
    places: list[Any] = [None] if at == "all" else [-1] if at == "last" else list(range(len(tokens)))
    versions = [
        [Edit("resid", depth, place, Add(c * d.to(model.device)))]
        for c in coefficients
        for depth, d in vectors.items()
        for place in places
    ]
    plain = model.forward(tokens[None], logits_at="last").logits
    assert plain is not None
    before = plain.double().log_softmax(-1)
    found = []
    for start in range(0, len(versions), 64):
        after = _versions(model, tokens, versions[start : start + 64]).double().log_softmax(-1)
        found.append((before.exp() * (before - after)).sum(-1))
    return torch.cat(found).view(len(coefficients), len(vectors), len(places)).cpu()


def _versions(model: Model, tokens: Tensor, versions: Sequence[Sequence[Edit]]) -> Tensor:
    """Logits after the prompt under each version [version, vocabulary]."""
    if model.plan.streams == {"resid"}:
        return run_versions(model, tokens, versions)
    from dataclasses import replace

    edits = [replace(edit, rows=[row]) for row, own in enumerate(versions) for edit in own]
    logits = model.forward(tokens.expand(len(versions), -1), edits=edits, logits_at="last").logits
    assert logits is not None
    return logits


TARGETS = {"log-probabilities": "f694727", "probabilities": "HEAD"}


@dataclass(frozen=True, eq=False)
class PublishedEffect(ShortRepr):
    """What the published code calls the effect of a direction.

    Args:
        loss: its loss: of the model's distribution against itself.
        effect: |gradient of the loss at the last position . unit direction| at each depth [depth] float64.
        gradient: length of the loss's gradient at the logits.
    """

    loss: float
    effect: Tensor
    gradient: float


def published_effect(
    model: Model, tokens: Tensor, units: Mapping[int, Tensor], target: str = "log-probabilities"
) -> PublishedEffect:
    """The published effect of a prompt: the gradient of F.kl_div(log p, target) along a direction.

    With p itself as the target the loss is KL(p, p) = 0, whose gradient is zero; with log p, as the commit of
    the published results has it, kl_div takes the logarithm of negative numbers, so the loss is NaN, while
    a gradient flows that belongs to no divergence. Neither says what a direction does.

    Args:
        model: the decoder.
        tokens: a prompt [position] int64.
        units: residual depth -> direction of length one [d_model].
        target: one of `TARGETS`.
    """
    _check(model, "last")
    if target not in TARGETS:
        raise Refused(f"The published target is one of {', '.join(TARGETS)}; got {target!r}.")
    line = linearize(model, tokens[None])
    with torch.no_grad():
        logits = model.unembed(model.final_norm(line.output[:, -1]))
    with torch.enable_grad():
        leaf = logits.detach().requires_grad_()
        chances = leaf.log_softmax(-1)
        fixed = chances.detach() if target == "log-probabilities" else chances.detach().exp()
        loss = F.kl_div(chances, fixed, reduction="batchmean")
        (g,) = torch.autograd.grad(loss, leaf)
    with torch.no_grad():
        cap = model.spec.logit_softcap
        before = g if cap is None else g * (1 - (logits / cap).square())
        norm = LinearNorm.at(model.final_norm, line.output[:, -1:], False)
        cotangent = norm.vjp(model.unembedding.pull(before)[:, None, None])
        effect = {}
        for step in line.reverse(cotangent, stop=min(units)):
            if step.depth is not None and step.depth in units:
                own = step.resid[0, 0, -1].double()
                effect[step.depth] = (own @ units[step.depth].to(own)).abs()
    along = torch.stack([effect[d] for d in units]).cpu()
    return PublishedEffect(float(loss.detach()), along, float(g.norm()))


def _check(model: Any, at: str) -> None:
    if not isinstance(model, Model):
        raise Refused("An effect map walks hand-written blocks, which the generic adapter lacks.")
    if at not in AT:
        raise Refused(f"A direction is added at {', '.join(AT)}; got {at!r}.")
