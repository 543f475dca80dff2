"""Token-by-token continuation with a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.cache import Cache
from interpcore.model.output import Adapted, Decoder
from interpcore.model.prompts import read_prompts
from interpcore.model.sites import Edit, merged, rows_of, select


@dataclass(frozen=True, eq=False, repr=False)
class Generation(ShortRepr):
    """Continuations of a batch of prompts.

    Args:
        tokens: new token ids [batch, step] int64; after a row's stop token, the stop token again.
        lengths: new tokens per row up to and including its stop token [batch] int64.
        cache: cache of the prompts and all new tokens but the last; None from a model that keeps none.
    """

    tokens: Tensor
    lengths: Tensor
    cache: Cache | None


@torch.no_grad()
def generate(
    model: Decoder,
    tokens: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int,
    edits: Sequence[Edit] = (),
    cache: Cache | None = None,
    stop_tokens: Sequence[int] | None = None,
    temperature: float = 0.0,
    top_k: int | None = None,
    seed: int | None = None,
) -> Generation:
    """Continue prompts greedily, or by sampling.

    Args:
        model: the decoder; the adapter uses transformers' own cache, rows of one length together, where it
            was seen to go on as the whole text, and else reruns the text at every step.
        tokens: prompt token ids [batch, position] int64, cached prefix included.
        attention_mask: 1 at real tokens, 0 at padding on either side [batch, position], or None.
        max_new_tokens: steps at most.
        edits: sites to write; positions refer to the prompt's tokens (negative: from its last), an open range
            goes on over the new tokens.
        cache: a cache of the prompts' beginning.
        stop_tokens: ids that end a row; None takes those of the checkpoint's generation config, or else the
            tokenizer's end-of-text id; () none.
        temperature: 0 is greedy; else softmax temperature, and `seed` is required.
        top_k: sample among the k likeliest.
        seed: of the sampler.
    Returns: `Generation`.
    Raises: ValueError for prompts that do not continue the cache, or sampling without a seed.
    """
    if temperature > 0 and seed is None:
        raise Refused("Sampling needs a seed; pass seed=, or temperature=0 for greedy decoding.")
    if max_new_tokens < 1:
        raise Refused(f"max_new_tokens is at least 1; got {max_new_tokens}.")
    sampler = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    stops = torch.tensor(pick_stops(model, stop_tokens), dtype=torch.int64, device=model.device)
    layout, packed = read_prompts(tokens, attention_mask, None, model.spec, model.device)
    fixed = [absolute(edit, layout.lengths) for edit in edits]
    fixed = merged(fixed, model.plan, model.spec.absent)
    text = _text(model, packed, layout.lengths, cache)
    picked: list[Tensor] = []
    done = torch.zeros(layout.batch, dtype=torch.bool, device=model.device)
    lengths = torch.full((layout.batch,), max_new_tokens)
    for step in range(max_new_tokens):
        chosen = _pick(text.last_logits(model, fixed), temperature, top_k, sampler)
        if picked:
            chosen = torch.where(done, picked[-1], chosen)
        picked.append(chosen)
        stopped = torch.isin(chosen, stops) & ~done
        lengths[stopped.cpu()] = step + 1
        done |= stopped
        if bool(done.all()):
            break
        text.append(chosen)
    return Generation(torch.stack(picked, 1), lengths.clamp(max=len(picked)), text.cache)


def _text(
    model: Decoder, packed: Tensor, lengths: Tensor, cache: Cache | None
) -> _Cached | _Continued | _Recomputed:
    """The growing batch that suits a model."""
    if model.keeps_cache:
        return _Cached(packed, lengths, cache)
    if cache is not None:
        raise Refused("This model runs through the generic adapter, which keeps no cache; leave cache=None.")
    adapted = cast(Adapted, model)
    if adapted.continues:
        return _Continued(adapted, packed, lengths)
    return _Recomputed(packed, lengths)


class _Cached:
    """A growing batch of texts whose cache holds everything but the newest tokens."""

    def __init__(self, packed: Tensor, lengths: Tensor, cache: Cache | None):
        self.cache = Cache() if cache is None else cache
        start = self.cache.start(len(packed))
        self.cache.check_prefix(packed, lengths)
        columns = start[:, None] + torch.arange(int((lengths - start).max()))
        mask = columns < lengths[:, None]
        self.new = packed.gather(1, columns.clamp(max=packed.shape[1] - 1).to(packed.device))
        self.mask = None if bool(mask.all()) else mask

    def last_logits(self, model: Decoder, edits: Sequence[Edit]) -> Tensor:
        """Logits [batch, vocabulary] after the last token; caches the new ones."""
        output = model.forward(self.new, self.mask, cache=self.cache, edits=edits, logits_at="last")
        assert output.logits is not None and output.cache is not None
        self.cache = output.cache
        return output.logits

    def append(self, chosen: Tensor) -> None:
        """Add one token [batch] to each row."""
        self.new, self.mask = chosen[:, None], None


class _Continued:
    """A growing batch of texts on transformers' cache, rows of one length together, without padding."""

    cache = None

    def __init__(self, model: Adapted, packed: Tensor, lengths: Tensor):
        self.model = model
        self.groups = [(lengths == n).nonzero().flatten().to(packed.device) for n in lengths.unique()]
        self.new = [packed[rows, : int(n)] for rows, n in zip(self.groups, lengths.unique(), strict=True)]
        self.past: list[Any] = [None] * len(self.groups)
        self.start = [0] * len(self.groups)
        self.edits: list[list[Edit]] = []

    def last_logits(self, model: Decoder, edits: Sequence[Edit]) -> Tensor:
        """Logits [batch, vocabulary] after the last token; caches the new ones."""
        if not self.edits:  # the same at every step
            self.edits = [rows_of(edits, rows.tolist(), sum(map(len, self.groups))) for rows in self.groups]
        found = []
        for i, new in enumerate(self.new):
            logits, self.past[i] = self.model.step(new, self.past[i], self.start[i], self.edits[i], True)
            self.start[i] += new.shape[1]
            found.append(logits[:, -1])
        return torch.cat(found)[torch.cat(self.groups).argsort()]

    def append(self, chosen: Tensor) -> None:
        """Add one token [batch] to each row."""
        self.new = [chosen[rows, None] for rows in self.groups]


class _Recomputed:
    """A growing batch of texts, run from its beginning for every token."""

    cache = None

    def __init__(self, packed: Tensor, lengths: Tensor):
        self.packed, self.lengths = packed, lengths

    def last_logits(self, model: Decoder, edits: Sequence[Edit]) -> Tensor:
        """Logits [batch, vocabulary] after the last token."""
        mask = torch.arange(self.packed.shape[1]) < self.lengths[:, None]
        output = model.forward(self.packed, mask, edits=edits, logits_at="last")
        assert output.logits is not None
        return output.logits

    def append(self, chosen: Tensor) -> None:
        """Add one token [batch] to each row."""
        self.packed = torch.cat([self.packed, self.packed.new_zeros(len(chosen), 1)], 1)
        self.packed.scatter_(1, self.lengths[:, None].to(chosen.device), chosen[:, None])
        self.lengths = self.lengths + 1


def _pick(logits: Tensor, temperature: float, top_k: int | None, sampler: torch.Generator | None) -> Tensor:
    if temperature == 0:
        return logits.argmax(-1)
    if top_k is not None:
        floor = logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
        logits = logits.masked_fill(logits < floor, -torch.inf)
    return torch.multinomial((logits.float() / temperature).softmax(-1), 1, generator=sampler)[:, 0]


def pick_stops(model: Decoder, given: Sequence[int] | None) -> list[int]:
    """The ids that end a row, as `generate` reads its `stop_tokens`."""
    if given is not None:
        return list(given)
    end = getattr(model.tokenizer, "eos_token_id", None)
    return list(model.spec.stop_tokens) or ([] if end is None else [end])


def checkpoint_stops(hf: Any) -> tuple[int, ...]:
    """The ids at which a transformers model's own `generate` ends a row; of None, none."""
    given = getattr(getattr(hf, "generation_config", None), "eos_token_id", None)
    return () if given is None else (given,) if isinstance(given, int) else tuple(given)


def absolute(edit: Edit, lengths: Tensor) -> Edit:
    """The edit with positions that do not move as tokens are added: per row, counted from the prompt's
    start."""
    at = edit.positions
    if at is None:
        return edit
    rows = lengths if edit.rows is None else lengths[torch.as_tensor(list(edit.rows))]
    if isinstance(at, slice):
        negative = [bound for bound in (at.start, at.stop) if bound is not None and bound < 0]
        if not negative:
            return edit
        if bool((rows == rows[0]).all()):
            n = int(rows[0])
            start, stop = (b if b is None or b >= 0 else max(0, b + n) for b in (at.start, at.stop))
            return replace(edit, positions=slice(start, stop))
        raise Refused(
            "A range that counts from the end needs prompts of equal length; pass one edit per row "
            "(rows=[i])."
        )
    selected = select(edit, lengths, more=True)
    return replace(edit, positions=selected.position.view(len(rows), -1))
