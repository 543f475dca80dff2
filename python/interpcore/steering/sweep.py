"""Depths by coefficients on one shared run: rows of a batch carry different coefficients, enter the plan at
the depth that they edit, and share everything before the first edited token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Add, Cache, Edit, Model, Tap
from interpcore.model.generic import GenericModel
from interpcore.model.maps import Map
from interpcore.model.prompts import pad
from interpcore.steering.choice import answer_positions, log_softmax, option_score, text_of
from interpcore.steering.interventions import Positions, Steer, placed
from interpcore.steering.prompts import Item

SWEPT = ("resid", "attn_in", "attn_out", "mlp_in", "mlp_out", "block_out")


@dataclass(frozen=True, eq=False)
class _Rows(ShortRepr):
    """Texts of some questions, the first of all, then the second, ..., each on its question's prefix.

    Args:
        cache: prefixes, one row a text; None where the first token is edited.
        suffix, mask: tokens from the first edited one on [row, position].
        lengths, totals: of prompts and texts [row].
        streams: depth -> resid of the suffix [row, position, d_model]; empty where no row can enter there.
        plain: log-probabilities at `answer_positions` without an edit.
    """

    cache: Cache | None
    suffix: Tensor
    mask: Tensor
    lengths: Tensor
    totals: Tensor
    streams: Mapping[int, Tensor]
    plain: Tensor


@torch.no_grad()
def sweep_scores(
    model: Model | GenericModel,
    items: Sequence[Item],
    vectors: Mapping[int, Tensor],
    coefficients: Sequence[float],
    *,
    site: str = "resid",
    kind: str = "add",
    positions: Positions = "onward",
    batch: int = 256,
) -> Tensor:
    """Log-probability of every option, as `option_scores`, under every edit of a grid.

    Args:
        model: the decoder.
        items: questions with options.
        vectors: depth -> what a coefficient of 1 adds, or the unit direction of another kind [d_model].
        coefficients: 0 is the plain model, whatever the kind, and costs nothing.
        site: one of `SWEPT`.
        kind: "add", "amplify" or "clamp".
        positions: as in `interventions.Part`.
        batch: rows at once at most.
    Returns: [depth, coefficient, question, option] float64, in the order of `vectors`; NaN past a question's
        last option.
    Raises: Refused for another site or kind.
    """
    if site not in SWEPT or kind not in ("add", "amplify", "clamp"):
        raise Refused(
            f"A sweep edits {', '.join(SWEPT)} by add, amplify (ablation is its coefficient -1) or clamp; "
            f"got {kind} at {site}."
        )
    widest = max(len(item.options) for item in items)
    out = torch.full((len(vectors), len(coefficients), len(items), widest), torch.nan, dtype=torch.float64)
    edited = [c for c in coefficients if c != 0]
    order = sorted(range(len(items)), key=lambda i: len(items[i].prompt))
    at = 0
    while at < len(order):
        step = max(
            1, batch // (max(1, len(edited)) * max(len(_texts(items[i])) for i in order[at : at + batch]))
        )
        chosen, at = order[at : at + step], at + step
        texts = [_texts(items[i]) for i in chosen]
        rows = _shared(model, [items[i] for i in chosen], texts, list(vectors), positions)
        for d, (depth, vector) in enumerate(vectors.items()):
            found = _edited(model, rows, site, depth, kind, vector, edited, positions) if edited else []
            by_value = dict(zip(edited, found, strict=True))
            for c, value in enumerate(coefficients):
                _read(out[d, c], by_value[value] if value else rows.plain, items, chosen, texts)
    return out


def _texts(item: Item) -> list[tuple[int, ...]]:
    """The different texts that a question's options run, in order."""
    return list(dict.fromkeys(text_of(item, k) for k in range(len(item.options))))


def _shared(
    model: Model | GenericModel,
    items: Sequence[Item],
    texts: Sequence[Sequence[tuple[int, ...]]],
    depths: Sequence[int],
    positions: Positions,
) -> _Rows:
    """Run everything that no edit changes, once."""
    copies = max(map(len, texts))
    rows = [own[min(k, len(own) - 1)] for k in range(copies) for own in texts]
    lengths = torch.tensor([len(item.prompt) for item in items] * copies)
    totals = torch.tensor([len(text) for text in rows])
    enters = isinstance(model, Model) and model.plan.streams == {"resid"}
    # Only a text's own tokens are edited: what stands before them is one cached row of its question.
    starts = (
        lengths - 1
        if positions in ("last", "onward", "answer") and model.keeps_cache
        else torch.zeros_like(lengths)
    )
    cache: Cache | None = Cache() if model.keeps_cache else None
    if model.keeps_cache and bool((starts > 0).all()):
        prefix, real = pad([item.prompt[:-1] for item in items], model.device)
        cache = model.forward(prefix, real, cache=Cache(), logits_at=None).cache
        assert cache is not None
        cache = cache.repeated(copies)
    else:
        starts = torch.zeros_like(lengths)
    suffix, mask = pad([text[int(s) :] for text, s in zip(rows, starts, strict=True)], model.device)
    taps = {depth: Tap("resid", depth) for depth in depths} if enters else {}
    read = answer_positions(lengths, totals)
    given: dict[str, Any] = {"cache": cache} if cache is not None and cache.segments else {}
    output = model.forward(suffix, mask, taps=list(taps.values()), logits_at=read, **given)
    assert output.logits is not None
    gone = ~mask.bool()[..., None]
    streams = {depth: output.taps[tap].masked_fill(gone, 0.0) for depth, tap in taps.items()}
    kept = cache if given else None
    return _Rows(kept, suffix, mask, lengths, totals, streams, log_softmax(output.logits))


def _edited(
    model: Model | GenericModel,
    rows: _Rows,
    site: str,
    depth: int,
    kind: str,
    vector: Tensor,
    coefficients: Sequence[float],
    positions: Positions,
) -> list[Tensor]:
    """Log-probabilities under each coefficient [row, n, vocabulary], all coefficients one batch."""
    times, n = len(coefficients), len(rows.suffix)
    lengths, totals = rows.lengths.repeat(times), rows.totals.repeat(times)
    values = torch.tensor(coefficients, dtype=torch.float64).repeat_interleave(n)
    edits = []
    for chosen, at in placed(positions, lengths, totals):
        own = values if chosen is None else values[chosen]
        edits.append(Edit(site, depth, at, _per_row(kind, vector.cpu().double(), own), rows=chosen))
    read = answer_positions(lengths, totals)
    cache = None if rows.cache is None else rows.cache.repeated(times)
    if rows.streams:
        assert isinstance(model, Model)
        stream = rows.streams[depth].repeat(times, 1, 1)
        own_tokens = rows.mask.sum(1).cpu().repeat(times)
        out = model.run_from(depth, stream, cache, lengths=own_tokens, edits=edits, logits_at=read)
    else:
        given: dict[str, Any] = {} if cache is None else {"cache": cache}
        tokens, mask = rows.suffix.repeat(times, 1), rows.mask.repeat(times, 1)
        out = model.forward(tokens, mask, edits=edits, logits_at=read, **given)
    assert out.logits is not None
    return list(log_softmax(out.logits).split(n))


def _per_row(kind: str, vector: Tensor, values: Tensor) -> Map:
    """The edit of each row, with a coefficient of its own [row]."""
    if kind == "add":
        return Add(values[:, None, None] * vector)
    u, nothing = vector[None], torch.zeros_like(vector)
    if kind == "amplify":
        return Steer(values[:, None, None] * u, u, nothing)
    return Steer(-u, u, values[:, None] * vector)


def _read(
    out: Tensor,
    chances: Tensor,
    items: Sequence[Item],
    chosen: Sequence[int],
    texts: Sequence[Sequence[tuple[int, ...]]],
) -> None:
    """Write the options' scores of some questions into [question, option]."""
    for place, i in enumerate(chosen):
        for k, option in enumerate(items[i].options):
            row = texts[place].index(text_of(items[i], k)) * len(chosen) + place
            out[i, k] = option_score(chances[row], option)
