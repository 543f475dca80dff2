"""Steering along a lens's directions, and swapping one token's coordinate for another's, as edits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.lens.lens import Lens
from interpcore.model import Add, Edit, LowRank, Model, Tap
from interpcore.model.prompts import token_ids
from interpcore.model.sites import Positions


def one_token(model: Model, text: str) -> int:
    """The token that a text is.

    Raises: Refused for a text of several tokens, with the tokens.
    """
    ids = token_ids(model.tokenizer, text, bos=False) if text else []
    if len(ids) != 1:
        parts = [model.tokenizer.decode([i]) for i in ids]
        raise Refused(
            f"{text!r} is {len(ids)} tokens ({parts}); a lens's direction belongs to one token, mostly one "
            "with a leading space."
        )
    return int(ids[0])


def directions(
    lens: Lens, model: Model, tokens: list[int], depth: int, *, protocol: str = "default"
) -> Tensor:
    """Where each token's logit, as the lens reads it, rises fastest: J^T (g * W_U[t]), with the final norm's
    weight g, and without what the norm takes off.

    Args:
        lens: from the residual stream.
        model: its model.
        tokens: which.
        depth: residual depth.
        protocol: "paper" leaves the norm's weight out, J^T W_U[t], as published.
    Returns: [token, d_model].
    Raises: Refused for a lens of another site.
    """
    if lens.site != "resid":
        raise Refused(f"Directions are of the residual stream; this lens leads from {lens.site}.")
    norm, weight = model.final_norm, model.unembedding.weight
    rows = weight[:, tokens].mT.to(torch.promote_types(weight.dtype, torch.float32))
    if protocol != "paper":
        rows = rows if norm.weight is None else rows * (norm.weight.to(rows) + norm.offset)
        rows = rows - rows.mean(-1, keepdim=True) if norm.center else rows
    return rows @ lens.at(depth).to(rows)


def steering(
    direction: Tensor, depth: int, *, strength: float, norm: float, positions: Positions = None
) -> Edit:
    """Adds a direction, `strength` times a typical norm long.

    Args:
        direction: of any length [d_model].
        depth: residual depth.
        strength: share of `norm` that is added.
        norm: of states there, such as their median on the plain prompt (early positions' norms are orders of
            magnitude above the others').
        positions: where, as in `Edit`.
    """
    return Edit("resid", depth, positions, Add(direction / direction.norm() * (strength * norm)))


def swapping(pair: Tensor, depth: int, *, strength: float = 1.0, positions: Positions = None) -> Edit:
    """Exchanges a state's coordinates along two directions, h + strength * V (P - 1) V^+ h; what is
    orthogonal to both stays.

    Args:
        pair: the directions [2, d_model].
        depth: residual depth.
        strength: 1 exchanges, 2 is the published double strength.
        positions: where, as in `Edit`.
    Raises: Refused for directions that are one.
    """
    v = pair.mT.double()
    if torch.linalg.matrix_rank(v) < 2:
        raise Refused("The two tokens have one direction there, so that nothing can be exchanged.")
    left = strength * (v[:, [1, 0]] - v)
    return Edit("resid", depth, positions, LowRank(left.to(pair), torch.linalg.pinv(v).mT.to(pair)))


def rotated(directions: Tensor, seed: int) -> Tensor:
    """A control: the same lengths and angles to one another, in a random place [n, d_model]."""
    draw = torch.Generator().manual_seed(seed)
    noise = torch.randn(directions.shape[1], len(directions), generator=draw, dtype=torch.float64)
    basis = torch.linalg.qr(noise).Q.to(directions.device)
    return (torch.linalg.qr(directions.mT.double()).R.mT @ basis.mT).to(directions)


@torch.no_grad()
def edit_prompt(
    study: Any, prompt: str, into: str, out_of: str, depth: int, strength: float, draw: int, protocol: str
) -> dict[str, float]:
    """One cell: what follows a prompt edited at one depth with the lens's directions (draw 0) or with random
    ones of the same lengths and angle (draw 1, 2, ...).

    Args:
        study: with model and lens.
        prompt: the text; its every position is edited.
        into: the token steered to, or swapped in.
        out_of: the token swapped out; "" steers.
        depth: residual depth; -1 edits nothing.
        strength: see `steering` and `swapping`.
        draw: which directions.
        protocol: see `directions`.
    Returns: probabilities of both tokens, target and source (NaN without one), and top, the likeliest token.
    """
    model, lens = study.model, study.lens
    ids = [one_token(model, text) for text in (into, out_of) if text]
    tokens, edits = model.encode(prompt)[0], []
    if depth >= 0:
        found = directions(lens, model, ids, depth, protocol=protocol)
        found = found if draw == 0 else rotated(found, draw)
        if out_of:
            edits = [swapping(found, depth, strength=strength)]
        else:
            tap = Tap("resid", depth)
            norms = model.forward(tokens, taps=[tap], logits_at=None).taps[tap].norm(dim=-1)
            edits = [steering(found[0], depth, strength=strength, norm=float(norms.median()))]
    logits = model.forward(tokens, edits=edits, logits_at="last").logits
    assert logits is not None
    chances = logits[0].double().softmax(-1)
    source = float(chances[ids[1]]) if out_of else float("nan")
    return {"target": float(chances[ids[0]]), "source": source, "top": int(chances.argmax())}
