"""What a model does with prompts that begin alike: one run of the rest on one shared cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.lre.prompts import Query
from interpcore.model import Cache, Model, Tap

Depth = int | None


@dataclass(frozen=True, eq=False)
class PromptStates:
    """States of prompts on a shared prefix, ready to be edited.

    Args:
        model: the decoder.
        queries: the prompts.
        cache: the tokens that all prompts share, up to the first position that is read or written.
        depths: the source depths; None is the token embedding.
        resid: every residual depth -> stream of the tokens after the shared ones [prompt, position, d_model].
        lengths: tokens after the shared ones [prompt] int64.
        h: states at the subject's last token [prompt, depth, d_model].
        z: states before the final norm at the last token [prompt, d_model].
        logits: [prompt, vocabulary].
    """

    model: Model
    queries: tuple[Query, ...]
    cache: Cache
    depths: tuple[Depth, ...]
    resid: Mapping[int, Tensor]
    lengths: Tensor
    h: Tensor
    z: Tensor
    logits: Tensor

    @property
    def shared(self) -> int:
        """Number of shared tokens."""
        return int(self.cache.lengths[0])

    @property
    def top(self) -> Tensor:
        """The model's top token per prompt [prompt] int64."""
        return self.logits.argmax(-1)


def published_depths(n_calls: int) -> tuple[Depth, ...]:
    """The states that the published sweeps go through: the token embedding, then each block's output."""
    return (None, *range(1, n_calls + 1))


@torch.no_grad()
def read_states(model: Model, queries: Sequence[Query], depths: Sequence[Depth]) -> PromptStates:
    """Run prompts once, the tokens they share in one row.

    Args:
        model: the decoder.
        queries: prompts; any that begin differently from the others only shorten what is shared.
        depths: residual depths of `h`; None is the token embedding.
    Raises: ValueError for no prompts, or one longer than the model has positions for.
    """
    if not queries:
        raise Refused("There are no prompts to run; the relation has no test samples left.")
    shared = _shared_length(queries)
    cache = Cache()
    if shared:
        prefix = torch.tensor([queries[0].ids[:shared]], device=model.device)
        filled = model.forward(prefix, cache=cache, logits_at=None).cache
        assert filled is not None
        cache = filled
    tokens, mask = pad([q.ids[shared:] for q in queries], model.device)
    subject = torch.tensor([q.subject for q in queries])
    streams = [Tap("resid", d) for d in range(model.plan.n_calls + 1)]
    source = {d: Tap("embed", None, subject) if d is None else Tap("resid", d, subject) for d in depths}
    output = model.forward(tokens, mask, cache=cache, taps=[*streams, *source.values()], logits_at="last")
    assert output.logits is not None
    lengths = mask.sum(1).cpu()
    resid = {d: output.taps[tap].masked_fill(mask[..., None] == 0, 0.0) for d, tap in enumerate(streams)}
    z = resid[model.plan.n_calls][torch.arange(len(queries)), lengths - 1]
    h = torch.stack([output.taps[source[d]][:, 0] for d in depths], 1)
    return PromptStates(model, tuple(queries), cache, tuple(depths), resid, lengths, h, z, output.logits)


def pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right with token 0 and the mask of real tokens, both [row, longest] int64."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
    return tokens, mask


def _shared_length(queries: Sequence[Query]) -> int:
    """Tokens with which all prompts begin, none of them read or written."""
    first, limit = queries[0].ids, min(min(q.subject, q.edited) for q in queries)
    differs = (i for i in range(limit) if any(q.ids[i] != first[i] for q in queries))
    return next(differs, limit)
