"""What a model does with prompts that begin alike: one run of the rest on one shared cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.lre.prompts import Query
from interpcore.model import Model, Tap
from interpcore.model.names import source_site
from interpcore.model.prompts import pad
from interpcore.model.versions import SharedPrompts, share_prompts

Depth = int | None


@dataclass(frozen=True, eq=False)
class PromptStates(ShortRepr):
    """States of prompts on a shared prefix, ready to be edited.

    Args:
        shared: the prompts, with the stream at every residual depth.
        queries: the prompts' ids and subjects.
        depths: the source depths; None is the token embedding.
        h: states at the subject's last token [prompt, depth, d_model].
        z: states before the final norm at the last token [prompt, d_model].
        logits: [prompt, vocabulary].
    """

    shared: SharedPrompts
    queries: tuple[Query, ...]
    depths: tuple[Depth, ...]
    h: Tensor
    z: Tensor
    logits: Tensor

    @property
    def top(self) -> Tensor:
        """The model's top token per prompt [prompt] int64."""
        return self.logits.argmax(-1)


def published_depths(n_calls: int) -> tuple[Depth, ...]:
    """The states that the published sweeps go through: the token embedding, then each block's output."""
    return (None, *range(1, n_calls + 1))


def evenly(depths: Sequence[Depth], count: int) -> list[int]:
    """Places of so many depths, evenly from the first to the last; of all where there are no more."""
    last = len(depths) - 1
    return [round(x) for x in torch.linspace(0, last, min(count, last + 1), dtype=torch.float64).tolist()]


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
    tokens, mask = pad([q.ids for q in queries], model.device)
    subject = torch.tensor([q.subject for q in queries])
    source = {d: Tap(*source_site(d), subject) for d in depths}
    shared = share_prompts(
        model,
        tokens,
        mask,
        own=min(min(q.subject, q.edited) for q in queries),
        depths=range(model.plan.n_calls + 1),
        taps=list(source.values()),
    )
    assert shared.logits is not None
    z = shared.resid[model.plan.n_calls][torch.arange(len(queries)), shared.lengths - 1]
    read = [shared.taps[source[d]][:, 0] for d in depths]
    h = torch.stack(read, 1) if read else z.new_empty(len(z), 0, z.shape[1])
    return PromptStates(shared, tuple(queries), tuple(depths), h, z, shared.logits)
