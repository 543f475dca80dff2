"""What MLPs work on in a forward: the activation's two sides, and the pilot that shifts are measured on."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.latents import LatentModel
from interpcore.model.mlp import ACTIVATIONS, MLP

PILOT_TOKENS = 256
"""Tokens from which shifts, and scales for products, are measured."""
# A CPU's cache holds what few tokens make of a block; a device waits for Python unless there are many.
CPU_TOKENS, DEVICE_TOKENS = 2048, 32_768
Function = Callable[[Tensor], Tensor]
Shifts = dict[int, dict[str, Tensor]]
"""Shifts of "pre", "post" and, where gated, "up" of each block call [N] float32."""


def default_batch(context: int, device: torch.device) -> int:
    """Sequences of a forward: up to 2048 tokens on the CPU, on another device the fewest with 32768.

    Args:
        context: tokens of a sequence.
        device: the model's.
    """
    if device.type == "cpu":
        return max(CPU_TOKENS // context, 1)
    return -(-DEVICE_TOKENS // context)


def mlp_widths(model: Model | GenericModel) -> tuple[int, ...]:
    """Neurons of each block call.

    Raises:
        ValueError: the model has no MLP that a study of neurons can read.
    """
    if isinstance(model, GenericModel):
        model.check_neurons()
        return model.widths
    if isinstance(model, LatentModel):
        return model.widths
    widths = []
    for depth in range(model.plan.n_calls):
        mlp = getattr(model.block(depth), "mlp", None)
        if not isinstance(mlp, MLP):
            raise Refused(f"Block call {depth} of {model.spec.name} has no MLP with one activation; skip it.")
        widths.append(mlp.down.weight.shape[0])
    return tuple(widths)


def activation_of(model: Model | GenericModel, depth: int) -> tuple[Function, bool]:
    """The activation function of a block call's neurons, and whether they have a gate."""
    if isinstance(model, GenericModel):
        return model.functions[depth], model.spec.gated
    mlp = model.block(depth).neurons
    return ACTIVATIONS[mlp.activation], mlp.gated


@torch.no_grad()
def mlp_sides(
    model: Model | GenericModel, tokens: Tensor, depths: Container[int], sides: Sequence[str] = ("post",)
) -> dict[int, dict[str, Tensor]]:
    """What MLPs work on in one forward.

    Args:
        tokens: [batch, position] int64.
        depths: block calls.
        sides: "pre", "post" and, of gated MLPs, "up".
    Returns: each side of each block call [token, neuron].
    """
    found: dict[int, dict[str, Tensor]] = {}

    def hook(function: Function, pre: Tensor, depth: int, up: Tensor | None = None) -> Tensor:
        post = function(pre) if up is None else function(pre) * up
        if depth in depths:
            values = {"pre": pre, "post": post, "up": up}
            found[depth] = {side: x.flatten(0, 1) for side in sides if (x := values[side]) is not None}
        return post

    model.forward(tokens, logits_at=None, activation=hook)
    return found


def pilot_activations(
    model: Model | GenericModel, shards: TokenShards, sides: Sequence[str] = ("post",)
) -> dict[int, dict[str, Tensor]]:
    """As `mlp_sides` of every block call, at the first `PILOT_TOKENS` tokens that count: [token, neuron] on
    each side. A forward reads no more sequences than hold so many.

    Raises:
        Refused: no token counts.
    """
    found: dict[int, dict[str, list[Tensor]]] = {}
    count, depths, batch = 0, range(model.plan.n_calls), -(-PILOT_TOKENS // shards.context)
    for _, tokens, mask in shards.blocks(batch, 0, shards.n_sequences, model.device):
        rows = mask.flatten().nonzero()[: PILOT_TOKENS - count, 0]
        if len(rows):
            count += len(rows)
            for depth, values in mlp_sides(model, tokens, depths, sides).items():
                kept = found.setdefault(depth, {})
                for side, x in values.items():
                    kept.setdefault(side, []).append(x[rows])
        if count == PILOT_TOKENS:
            break
    if not count:
        raise Refused(
            f"The masks ({', '.join(shards.left_out)}) leave none of the {shards.n_tokens} tokens; apply "
            "fewer."
        )
    return {depth: {side: torch.cat(x) for side, x in kept.items()} for depth, kept in found.items()}


def measure_pilot(model: Model | GenericModel, shards: TokenShards) -> Shifts:
    """Mean of the first tokens that count, of every block call: shifts for the sums.

    Raises:
        Refused: no token counts.
    """
    found = pilot_activations(model, shards, ("pre", "post", "up"))
    return {depth: {side: _finite_mean(x) for side, x in sides.items()} for depth, sides in found.items()}


def _finite_mean(rows: Tensor) -> Tensor:
    """Mean of the finite values of each column, 0 where there is none [N] float32."""
    x = rows.double()
    x = x.where(x.isfinite(), torch.nan)
    return x.nanmean(0).nan_to_num().float()
