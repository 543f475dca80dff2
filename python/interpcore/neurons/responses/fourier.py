"""Fourier features of numbers: whether a neuron is a wave of the value of a token, as in modular arithmetic.

For values v = 0 .. p - 1, a neuron's means m_v are split into frequencies k by the discrete Fourier
transform: the variance of m is the sum over k of power_k (Parseval), and share_k = power_k / variance of the
activation over all tokens that count (Nanda et al. 2023, arXiv 2301.05217, for what such neurons do).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.token_text import token_texts
from interpcore.neurons.statistics.mlp_sides import mlp_sides, mlp_widths

if TYPE_CHECKING:
    import pandas as pd

    from interpcore.data.tokens import TokenShards
    from interpcore.model import Model

LEAST = 5
"""Values that have frequencies to tell apart."""


def values_of(model: Model, modulus: int | None = None) -> Tensor:
    """The number that each token id writes [vocabulary] int64, -1 for none; ids themselves where the model
    has no tokenizer.

    Args:
        model: whose tokens.
        modulus: numbers count by their remainder; None keeps those below the first that no token writes.
    Raises: Refused for a vocabulary without `LEAST` numbers from 0 on.
    """
    size = model.spec.vocab_size
    if model.tokenizer is None:
        values = torch.arange(size)
    else:
        texts = [text.strip() for text in token_texts(model.tokenizer, size)]
        short = (t.isascii() and t.isdecimal() and len(t) < 10 for t in texts)
        values = torch.tensor([int(t) if fits else -1 for t, fits in zip(texts, short, strict=True)])
    if modulus is not None:
        values = torch.where(values >= 0, values % modulus, -1)
    known = set(values.tolist())
    p = next(i for i in range(size + 1) if i not in known)
    if p < LEAST or (modulus is not None and p < modulus):
        raise Refused(
            f"{model.spec.name} has tokens for the numbers 0 to {p - 1}; Fourier features need those up to "
            f"{(modulus or LEAST) - 1}."
        )
    return torch.where(values < p, values, -1)


@torch.no_grad()
def fourier_table(
    model: Model,
    shards: TokenShards,
    *,
    back: Sequence[int] = (0, 1, 2),
    modulus: int | None = None,
    limit: int | None = None,
    batch_tokens: int = 8192,
) -> pd.DataFrame:
    """The strongest frequency of every neuron in the value of the token so many places before.

    Args:
        model: the decoder.
        shards: the corpus; where its mask counts one position, as of the equals sign, that alone is read.
        back: places: 0 is the token itself.
        modulus: as in `values_of`.
        limit: read the first so many sequences; None for all.
        batch_tokens: of a forward.

    Returns: layer, neuron, back, frequency (waves over all values), share (of the activation's variance, at
        that frequency), all (of it, at all frequencies together), phase (radians), tokens (with a number
        there).
    Raises: Refused for a corpus without numbers at that place, or that has no such place.
    """
    import pandas as pd

    if max(back) >= shards.context:
        raise Refused(f"--back is {max(back)}; sequences have {shards.context} tokens, so give less.")
    values = values_of(model, modulus).to(model.device)
    p, widths = int(values.max()) + 1, mlp_widths(model)
    sums = torch.zeros(len(back), p, sum(widths), dtype=torch.float64, device=model.device)
    counts = torch.zeros(len(back), p, dtype=torch.float64, device=model.device)
    moments = torch.zeros(len(back), 2, sum(widths), dtype=torch.float64, device=model.device)
    step = max(batch_tokens // shards.context, 1)
    for _, tokens, mask in shards.blocks(step, 0, shards.count(limit), model.device):
        sides = mlp_sides(model, tokens, range(len(widths)))
        post = torch.cat([sides[d]["post"] for d in range(len(widths))], 1).double()
        for number, places in enumerate(back):
            there = torch.full_like(tokens, -1)
            there[:, places:] = values[tokens[:, : tokens.shape[1] - places]]
            keep = (mask & (there >= 0)).flatten()
            which, x = there.flatten()[keep], post[keep]
            sums[number].index_add_(0, which, x)
            counts[number] += torch.bincount(which, minlength=p)
            moments[number] += torch.stack([x.sum(0), x.square().sum(0)])
    frames = []
    for number, places in enumerate(back):
        if bool((counts[number] == 0).any()):
            continue  # not every value stands there
        frames.append(_table(sums[number], counts[number], moments[number], widths).assign(back=places))
    if not frames:
        raise Refused(f"No place {', '.join(map(str, back))} tokens back holds all numbers 0 to {p - 1}.")
    table = pd.concat(frames, ignore_index=True)
    first = ["layer", "neuron", "back"]
    return table[[*first, *[name for name in table.columns if name not in first]]]


def _table(sums: Tensor, counts: Tensor, moments: Tensor, widths: Sequence[int]) -> pd.DataFrame:
    """The best frequency of each neuron, of sums by value [value, neuron] and counts [value]."""
    import pandas as pd

    p, n = len(sums), counts.sum()
    means = sums / counts[:, None]
    waves = torch.fft.rfft(means, dim=0)[1:] / p
    power = 2 * waves.abs().square()
    if p % 2 == 0:
        power[-1] /= 2  # the alternating wave has no partner
    variance = moments[1] / n - (moments[0] / n).square()
    share = torch.where(variance > 0, power / variance, torch.nan)
    best = share.nan_to_num(-1).argmax(0)
    chosen = waves.gather(0, best[None])[0]
    layer = torch.repeat_interleave(torch.arange(len(widths)), torch.tensor(list(widths)))
    neuron = torch.cat([torch.arange(width) for width in widths])
    return pd.DataFrame(
        {
            "layer": layer.numpy(),
            "neuron": neuron.numpy(),
            "frequency": (best + 1).cpu().numpy(),
            "share": share.gather(0, best[None])[0].cpu().numpy(),
            "all": share.sum(0).cpu().numpy(),
            "phase": chosen.angle().cpu().numpy(),
            "tokens": int(n),
        }
    )
