"""Ways to break a fast path while a test runs: functions and tensors changed on their way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from interpcore.model.attention import Attention
from interpcore.model.decoder import Model

Patch = Callable[[pytest.MonkeyPatch], None]


def wrapped(owner: Any, name: str, change: Callable[..., Any]) -> Patch:
    """A patch of a function by `change(original, *arguments, **named)`."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, functools.wraps(original)(functools.partial(change, original)))

    def method(monkeypatch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda self, *a, **k: change(original, self, *a, **k))

    return method if isinstance(owner, type) else patch


def heads(at: int, change: Callable[..., tuple[Any, Any, Any]]) -> Patch:
    """Queries, keys and values of a block changed on their way into the forward."""

    def changed(original, self, x, ctx, depth):
        found = original(self, x, ctx, depth)
        return change(*found) if depth == at else found

    return wrapped(Attention, "heads", changed)


def swap(q, k, v):
    """Queries for keys; keys of a group for its first query."""
    groups = q.shape[-2] // k.shape[-2]
    return k.repeat_interleave(groups, -2), q[..., ::groups, :], v


def cotangents(change: Callable[..., tuple[Any, Any, Any]]) -> Patch:
    """Derivatives of q, k and v changed on their way down."""
    from interpcore.model.linearize import attention

    return wrapped(attention, "attn_vjp", lambda original, *a, **k: change(*original(*a, **k)))


def swapped_cotangents(dq, dk, dv):
    groups, live = dq.shape[-2] // dk.shape[-2], dq.shape[2]
    own = dk[:, :, dk.shape[2] - live :]
    into_k = torch.cat([dk[:, :, : dk.shape[2] - live], dq[..., ::groups, :]], 2)
    return own.repeat_interleave(groups, -2).clone(), into_k, dv


def tapped(by: int, sites: tuple[str, ...], last: int) -> Patch:
    """Sites read at another depth than asked for."""
    from interpcore.model import context

    def shifted(original, tap, *a, **k):
        found = original(tap, *a, **k)
        if tap.site not in sites:
            return found
        return [replace(one, depth=min(max(one.depth + by, 0), last)) for one in found]

    return wrapped(context, "at_depths", shifted)


def positions(by: int) -> Patch:
    """Position embeddings counted with so much padding."""

    def changed(original, self, tokens, ctx):
        table = self.positions.roll(-by, 0)
        return original(replace(self, positions=table), tokens, ctx)

    return wrapped(Model, "embed", changed)


def rotated(by: int) -> Patch:
    """Queries turned as if padding stood between them and their keys."""

    def changed(original, self, x, places, tables=None):
        late = x.shape[-2] > 2  # queries: there are more of them than keys
        true = original(self, x, places, tables)
        return original(self, x, places + by) if late else true

    return wrapped(Attention, "rotated", changed)


def tokens_of(owner: Any, name: str, column: int) -> Patch:
    """A prefix cached under other tokens."""

    def stale(original, model, tokens, *a, **k):
        tokens = tokens.clone()
        tokens[:, column] = (tokens[:, column] + 7) % model.spec.vocab_size
        return original(model, tokens, *a, **k)

    return wrapped(owner, name, stale)
