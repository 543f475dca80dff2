"""Where every neuron is active: its top contexts, and tokens drawn from intervals of its activation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.tokens import TokenShards
from interpcore.model import Model, Tap
from interpcore.neurons.statistics.summary import Summary
from interpcore.stats.top_examples import Examples

BEFORE, AFTER = 20, 8
"""Tokens shown before and after an example."""
INTERVALS, DRAWN = 5, 2
"""Equal intervals from 0 to the largest activation, and tokens drawn from each."""
MEMORY = 1 << 28
"""Bytes of activations held at once."""


@dataclass(frozen=True)
class Context:
    """A token where a neuron is active, with what stands around it.

    Args:
        index: of the token in the corpus.
        place: of the token in the window.
        tokens: ids of the window.
        values: the neuron's activation at each.
    """

    index: int
    place: int
    tokens: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Drawn(ShortRepr):
    """Tokens drawn from intervals of each neuron's activation, the lowest interval first.

    Args:
        index: of tokens in the corpus, -1 for none [interval, draw, neuron] int64.
        share: of the sample's tokens in each interval [interval, neuron]; the rest is at most 0.
    """

    index: Tensor
    share: Tensor


def activations(
    model: Model, shards: TokenShards, sequences: Sequence[int]
) -> Iterator[tuple[list[int], Tensor, Tensor, list[Tensor]]]:
    """Activations after the nonlinearity at every token of some sequences, a few sequences at a time.

    Yields: numbers of the sequences, their tokens and which of them count [sequence, position], and for every
        layer its neurons [sequence, position, neuron].
    """
    layers = range(model.plan.n_calls)
    row = shards.context * sum(model.spec.d_mlp for _ in layers) * model.embedding.element_size()
    size = max(1, MEMORY // row)
    taps = [Tap("mlp_act", d) for d in layers]
    for start in range(0, len(sequences), size):
        some = list(sequences[start : start + size])
        tokens = torch.cat([shards.sequences(i, i + 1) for i in some]).to(model.device)
        with torch.no_grad():
            out = model.forward(tokens, taps=taps, logits_at=None)
        yield some, tokens, shards.mask(tokens), [out.taps[tap].float() for tap in taps]


def draw(
    model: Model, shards: TokenShards, largest: Sequence[Tensor], sample: int, seed: int = 0
) -> list[Drawn]:
    """Tokens from each interval of every neuron's activation, out of a sample of sequences.

    Args:
        model: the decoder.
        shards: the corpus.
        largest: each layer's largest activations [neuron].
        sample: sequences read.
        seed: of the sequences and tokens drawn.
    Returns: one per layer.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = sorted(torch.randperm(shards.n_sequences, generator=generator)[:sample].tolist())
    shape = (len(largest), INTERVALS, DRAWN, model.spec.d_mlp)
    keys, index = torch.full(shape, -1.0), torch.full(shape, -1)
    counts, seen = torch.zeros(len(largest), INTERVALS, model.spec.d_mlp), 0
    for some, tokens, mask, layers in activations(model, shards, chosen):
        at = torch.tensor(some)[:, None] * shards.context + torch.arange(tokens.shape[1])
        at, kept = at[mask.cpu()], mask.cpu()
        key = torch.rand(len(at), generator=generator)
        seen += len(at)
        for layer, values in enumerate(layers):
            share = values.cpu()[kept] / largest[layer].clamp(min=1e-30)
            place = (share * INTERVALS).ceil().clamp(max=INTERVALS).long() - 1  # at most 0: below all
            for interval in range(INTERVALS):
                inside = (place == interval) & (share > 0)
                counts[layer, interval] += inside.sum(0)
                new = torch.where(inside, key[:, None], -1.0)
                both = torch.cat((keys[layer, interval], new))
                where = torch.cat((index[layer, interval], at[:, None].expand_as(new)))
                keys[layer, interval], best = both.topk(DRAWN, 0)
                index[layer, interval] = where.gather(0, best)
    index[keys < 0] = -1
    return [Drawn(index[layer], counts[layer] / max(seen, 1)) for layer in range(len(largest))]


def windows(
    model: Model, shards: TokenShards, wanted: Sequence[Tensor]
) -> Iterator[tuple[int, int, int, Context]]:
    """What stands around tokens, with the neuron's activation at each; the corpus is read where it is
    needed, once.

    Args:
        model: the decoder.
        shards: the corpus.
        wanted: each layer's tokens [example, neuron] int64, -1 for none.
    Yields: layer, neuron, number of the example, and its context.
    """
    asked: dict[int, list[tuple[int, int, int, int]]] = {}
    for layer, index in enumerate(wanted):
        for example, neuron in (index >= 0).nonzero().tolist():
            sequence, place = divmod(int(index[example, neuron]), shards.context)
            asked.setdefault(sequence, []).append((layer, neuron, example, place))
    for some, tokens, _, layers in activations(model, shards, sorted(asked)):
        by_layer, ids = [values.cpu() for values in layers], tokens.tolist()
        for row, sequence in enumerate(some):
            for layer, neuron, example, place in asked[sequence]:
                first, last = max(0, place - BEFORE), min(shards.context, place + AFTER + 1)
                values = by_layer[layer][row, first:last, neuron].tolist()
                window = tuple(ids[row][first:last])
                at = sequence * shards.context + place
                yield layer, neuron, example, Context(at, place - first, window, tuple(values))


def top_tokens(summary: Summary, context: int, count: int) -> list[Tensor]:
    """Each layer's tokens of largest activation, one of a sequence [example, neuron] int64, -1 for none."""
    return [one_of_a_sequence(summary.examples(d), context, count) for d in range(summary.n_layers)]


def one_of_a_sequence(found: Examples, context: int, count: int) -> Tensor:
    """The first tokens that lie in different sequences [count, neuron] int64, -1 where there are fewer."""
    index = found.index
    sequence = index.div(context, rounding_mode="floor")
    again = torch.zeros_like(index, dtype=torch.bool)
    for place in range(1, len(index)):
        again[place] = (sequence[:place] == sequence[place]).any(0)
    order = (again | (index < 0)).to(torch.int8).argsort(dim=0, stable=True)
    kept = index.masked_fill(again, -1).gather(0, order)
    short = count - len(kept)
    return kept[:count] if short <= 0 else torch.cat((kept, kept.new_full((short, kept.shape[1]), -1)))
