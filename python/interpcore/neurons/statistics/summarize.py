"""Statistics of every neuron over a corpus: one pass over the tokens that survives being killed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.rounded import in_precision
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.features import word_texts
from interpcore.neurons.statistics.accumulate import (
    Sizes,
    Statistics,
    make_accumulator,
    part_bytes,
    plan_passes,
)
from interpcore.neurons.statistics.labels import Labeller, corpus_labellers, labeller_meaning
from interpcore.neurons.statistics.mlp_sides import Shifts, default_batch, measure_pilot, mlp_widths
from interpcore.neurons.statistics.quadrants import check_gated
from interpcore.neurons.statistics.rounding import rounding_error
from interpcore.neurons.statistics.summary import PILOT, Summary
from interpcore.neurons.statistics.token_pass import Part, Pass
from interpcore.runs import Checkpoint, RunFolder, is_run, read_tensors, write_tensors

MEMORY = 4e9


def summarize(
    model: Model,
    shards: TokenShards,
    folder: str | os.PathLike[str],
    statistics: Statistics | None = None,
    *,
    span: tuple[int, int] | None = None,
    batch: int | None = None,
    memory: float = MEMORY,
    checkpoint_every: float = 20.0,
    progress: bool = True,
    command: str | None = None,
) -> Summary:
    """Statistics of every neuron over a corpus, in a run folder.

    A call that finds the folder half done goes on from its last checkpoint, with the same bits as if it had
    not stopped. Runs over disjoint ranges in several folders can be merged by `merge_summaries`.

    Args:
        model: the model; what its down projections read are its neurons.
        shards: the tokens; the model reads those that the mask leaves out too, but they enter no statistic.
        folder: the run folder, new or that of the same run.
        statistics: which; None for the default ones.
        span: the sequences to read, from the first up to the second; on multiples of `batch`, or up to the
            last. None for all.
        batch: sequences of a forward; None for `mlp_sides.default_batch`.
        memory: bytes for what is accumulated; more takes several passes.
        checkpoint_every: seconds between checkpoints at least; they take at most 1% of the time.
        progress: show it.
        command: what was typed, for the run card.

    Raises:
        ValueError: the tokens do not fit the model, it has no MLPs as expected, no token counts, the range is
            off the grid, or there are no products to round.
        RunError: the folder is another run's, or the disk is too small or full.
    """
    statistics = statistics or Statistics()
    labellers = _labellers(model, shards, statistics)
    ids = shards.ids() if statistics.by_token else None
    sizes = _sizes(model, shards, statistics, labellers, ids)
    reading = in_precision(model, statistics.precision)
    batch = default_batch(shards.context, model.device) if batch is None else batch
    span = check_range(shards, span, batch)
    passes = plan_passes(statistics, sizes, memory)
    card = corpus_card(
        model,
        shards,
        "default",
        command,
        **sizes.to_json(),
        statistics=statistics.to_json(),
        labellers=[labeller_meaning(labeller) for labeller in labellers],
        batch=batch,
    )
    if reading is not model and not is_run(folder):
        card = replace(card, rounding_error=rounding_error(model, shards, statistics.precision))
    with RunFolder.open_or_create(folder, card) as run:
        pilot = _pilot(model, shards, run)
        for number, parts in enumerate(passes):
            one = _pass(reading, shards, parts, statistics, sizes, pilot, labellers, ids)
            path = run.artifact(f"pass-{number}.safetensors")
            size = part_bytes(parts, statistics, sizes)
            checkpoint = Checkpoint(path, size, at_least=checkpoint_every)
            label = f"token batches, pass {number + 1} of {len(passes)}"
            one.run(checkpoint, span, batch, label, progress)
    return Summary.open(folder)


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Args:
        tokens: tokens to read in each pass.
        passes: passes over them.
        tokens_per_second: of the first pass, measured.
        hours: of all passes at that rate.
        memory: bytes of the largest pass's sums.
        disk: bytes of the folder while its largest file is replaced.
    """

    tokens: int
    passes: int
    tokens_per_second: float
    hours: float
    memory: int
    disk: int

    def __str__(self) -> str:
        return (
            f"{self.tokens} tokens, {self.passes} {'pass' if self.passes == 1 else 'passes'} at "
            f"{self.tokens_per_second:.0f} tokens/s: {self.hours:.2g} h; {self.memory / 1e9:.3g} GB of "
            f"memory for sums, {self.disk / 1e9:.3g} GB of disk"
        )


def estimate(
    model: Model,
    shards: TokenShards,
    statistics: Statistics | None = None,
    *,
    span: tuple[int, int] | None = None,
    batch: int | None = None,
    memory: float = MEMORY,
    seconds: float = 5.0,
    clock: Callable[[], float] = time.monotonic,
) -> Estimate:
    """What `summarize` with the same arguments will take, by reading some of its batches; nothing is written.

    Args:
        seconds: how long to read, after a first batch that is not timed unless it is the only one.
    """
    statistics = statistics or Statistics()
    labellers = _labellers(model, shards, statistics)
    ids = shards.ids() if statistics.by_token else None
    sizes = _sizes(model, shards, statistics, labellers, ids)
    batch = default_batch(shards.context, model.device) if batch is None else batch
    start, stop = check_range(shards, span, batch)
    passes = plan_passes(statistics, sizes, memory)
    pilot = measure_pilot(model, shards)
    one = _pass(
        in_precision(model, statistics.precision), shards, passes[0], statistics, sizes, pilot, labellers, ids
    )
    done, begun = 0, clock()
    for first in range(start, stop, batch):
        end = min(first + batch, stop)
        one.read(first, end)
        done += end - first
        if first == start and end < stop:
            done, begun = 0, clock()
        elif clock() - begun >= seconds:
            break
    rate = done * shards.context / (clock() - begun)
    tokens = (stop - start) * shards.context
    sums = [part_bytes(parts, statistics, sizes) for parts in passes]
    hours = len(passes) * tokens / rate / 3600
    return Estimate(tokens, len(passes), rate, hours, max(sums), sum(sums) + max(sums))


def state_bytes(model: Model, shards: TokenShards, statistics: Statistics) -> int:
    """Bytes of the sums of a run."""
    labellers = _labellers(model, shards, statistics)
    ids = shards.ids() if statistics.by_token else None
    sizes = _sizes(model, shards, statistics, labellers, ids)
    return sum(part_bytes(parts, statistics, sizes) for parts in plan_passes(statistics, sizes, 1e18))


def check_range(shards: TokenShards, span: tuple[int, int] | None, batch: int) -> tuple[int, int]:
    """The range of sequences to read.

    Raises:
        ValueError: it is empty or leaves the shards, or an end is not on the grid of batches.
    """
    if batch < 1:
        raise Refused(f"batch={batch} reads nothing; give 1 or more.")
    start, stop = (0, shards.n_sequences) if span is None else span
    if not 0 <= start < stop <= shards.n_sequences:
        raise Refused(f"Sequences {start} to {stop} are no range of the {shards.n_sequences} there are.")
    off = next((x for x in (start, stop) if x % batch and x != shards.n_sequences), None)
    if off is not None:
        raise Refused(
            f"Sequence {off} is within a batch of {batch}, and parts of a run are cut on one grid so "
            f"that they merge exactly; take {off // batch * batch} or {(off // batch + 1) * batch}."
        )
    return start, stop


def part_range(shards: TokenShards, number: int, of: int, batch: int) -> tuple[int, int]:
    """Range of the sequences that one of several processes reads, cut on the grid of batches.

    Args:
        number: which part, from 1.
        of: how many there are.
        batch: sequences of a forward, those of `summarize`.

    Raises:
        ValueError: there is no such part, or nothing is left for it.
    """
    batches = -(-shards.n_sequences // batch)
    if not 1 <= number <= of <= batches:
        raise Refused(
            f"Part {number}/{of} is none: 1/{of} to {of}/{of} are parts, of {batches} batches at most."
        )
    start, stop = (batches * n // of * batch for n in (number - 1, number))
    return start, min(stop, shards.n_sequences)


def _labellers(model: Model, shards: TokenShards, statistics: Statistics) -> list[Labeller]:
    """What gives the labels that are counted."""
    if not statistics.labels:
        return []
    if model.tokenizer is None:
        raise Refused(f"{model.spec.name} has no tokenizer, and labels are rules on its tokens' texts.")
    texts = word_texts(model.tokenizer, model.embedding.shape[0])
    return corpus_labellers(texts, shards, statistics.labels)


def _sizes(
    model: Model,
    shards: TokenShards,
    statistics: Statistics,
    labellers: Sequence[Labeller],
    ids: Tensor | None,
) -> Sizes:
    widths = mlp_widths(model)
    if statistics.up and not model.spec.gated:
        raise Refused(f"{model.spec.name} has MLPs without a gate, so there is no factor beside it.")
    if statistics.quadrants:
        check_gated(model)
    shards.check_model(model)
    labels = sum(len(labeller.names) for labeller in labellers)
    tokens = 0 if ids is None else len(ids)
    return Sizes(widths, shards.context, shards.vocab_size, shards.n_sequences, labels, tokens)


def _pass(
    model: Model | GenericModel,
    shards: TokenShards,
    parts: Sequence[Part],
    statistics: Statistics,
    sizes: Sizes,
    pilot: Shifts,
    labellers: Sequence[Labeller],
    ids: Tensor | None,
) -> Pass:
    """A pass with new accumulators for some parts."""
    accumulators = {}
    for part in parts:
        columns = slice(part.start, part.stop)
        shifts = {side: shift[columns].clone() for side, shift in pilot[part.depth].items()}
        accumulators[part] = make_accumulator(part, statistics, sizes, shifts, ids)
    return Pass(model, shards, accumulators, labellers)


def _pilot(model: Model, shards: TokenShards, run: RunFolder) -> Shifts:
    """The run's shifts, measured and written the first time."""
    path = run.artifact(PILOT)
    if not path.is_file():
        measured = measure_pilot(model, shards)
        write_tensors(path, {f"{side}/{d}": x for d, sides in measured.items() for side, x in sides.items()})
    found: Shifts = {}
    for name, shift in read_tensors(path)[0].items():
        side, depth = name.split("/")
        found.setdefault(int(depth), {})[side] = shift.to(model.device)
    return found
