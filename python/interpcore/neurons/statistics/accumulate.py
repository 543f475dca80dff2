"""What a token pass accumulates: the statistics asked for, cut into parts that fit the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.statistics.label_sums import LabelTotals
from interpcore.neurons.statistics.labels import LABELS
from interpcore.neurons.statistics.moment_errors import BLOCK, GroupMoments
from interpcore.neurons.statistics.quadrants import QuadrantSums
from interpcore.neurons.statistics.token_pass import READS, BothSides, Part
from interpcore.ops.bins import Bins
from interpcore.stats import GroupSums, Histogram, LinearBins, Moments, OctaveBins, TopExamples

BINS: dict[str, Bins] = {"histogram": OctaveBins(), "published": LinearBins()}
BY_TOKEN = ("token", "previous")


@dataclass(frozen=True)
class Statistics:
    """What to accumulate of every neuron; pre = before the activation, post = what the down projection reads.

    Args:
        thresholds: of pre, whose exceedance is counted.
        histogram: log-spaced histogram of pre, for quantiles.
        published: the published histogram of pre, 256 edges from -10 to 15.
        top: examples with the largest post; 0 for none.
        up: moments of the factor beside the gate, of gated neurons.
        position: sums of pre by position, and how often it is above 0.
        by_token: sums of post by token id ("token") and by the id before it ("previous").
        largest: largest post by token id too, where there are sums by "token".
        depths: block calls for `by_token`; None for all.
        errors: groups of sequences by which moments of pre are summed apart, for their standard errors; 0 for
            none.
        quadrants: the first so many sequences in which gated neurons are counted by the signs of gate and
            factor; 0 for none.
        labels: kinds of labels, of `labels.LABELS`, whose tokens post is summed over.
        precision: of the products of the forwards, of `runs.options.PRECISIONS`; sums are as ever.
    """

    thresholds: tuple[float, ...] = (0.0, -0.098)
    histogram: bool = True
    published: bool = True
    top: int = 50
    position: bool = True
    up: bool = False
    by_token: tuple[str, ...] = ()
    largest: bool = False
    depths: tuple[int, ...] | None = None
    errors: int = 0
    quadrants: int = 0
    labels: tuple[str, ...] = ()
    precision: str = "float32"

    def __post_init__(self) -> None:
        for name, known in (("by_token", BY_TOKEN), ("labels", LABELS)):
            unknown = sorted(set(getattr(self, name)) - set(known))
            if unknown:
                raise Refused(f"{name}={unknown[0]!r} is unknown; choose from {', '.join(known)}.")

    def without(self, kinds: Sequence[str]) -> Statistics:
        """The same without some kinds, by the names of its fields or as `by_token` has them."""
        by_token = tuple(kind for kind in self.by_token if kind not in kinds)
        none: dict[str, Any] = {kind: type(getattr(self, kind))() for kind in kinds if kind not in BY_TOKEN}
        return replace(self, by_token=by_token, **none)

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values; without `largest` and in float32 what older runs said."""
        said = {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}
        usual = {"largest": False, "precision": "float32"}
        return {name: x for name, x in said.items() if name not in usual or x != usual[name]}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Statistics:
        """Reads what `to_json` gave."""
        fields: dict[str, Any] = {n: tuple(x) if isinstance(x, list) else x for n, x in value.items()}
        return cls(**fields)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Kinds of parts, those of all block calls; `by_token` apart."""
        wanted = {
            "moments": True,
            "up": self.up,
            "histogram": self.histogram,
            "published": self.published,
            "top": self.top > 0,
            "position": self.position,
            "errors": self.errors > 0,
            "quadrants": self.quadrants > 0,
            "labels": bool(self.labels),
        }
        return tuple(kind for kind, there in wanted.items() if there)


@dataclass(frozen=True)
class Sizes:
    """What the size of a part depends on.

    Args:
        widths: neurons of each block call.
        context: tokens of a sequence.
        vocab_size: number of token ids.
        sequences: of the corpus.
        labels: how many there are.
        tokens: distinct token ids of the corpus, where sums by token are made; 0 in older runs, whose sums
            hold all of the vocabulary.
    """

    widths: tuple[int, ...]
    context: int
    vocab_size: int
    sequences: int = 0
    labels: int = 0
    tokens: int = 0

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        said = {name: x for name, x in asdict(self).items() if name != "tokens" or x}
        return said | {"widths": list(self.widths)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sizes:
        """Reads what `to_json` gave, among other entries; the last ones may be missing in an old card."""
        numbers = [each.name for each in fields(cls) if each.name != "widths"]
        return cls(tuple(value["widths"]), **{name: value.get(name, 0) for name in numbers})

    def bytes_per_neuron(self, kind: str, statistics: Statistics) -> int:
        """Bytes of a kind's state for one neuron."""
        if kind == "moments":
            return 8 * (2 * (2 + 6) + len(statistics.thresholds)) + 8
        if kind == "up":
            return 8 * (2 + 6) + 4
        if kind in BINS:
            return 8 * (len(BINS[kind].edges) + 2)
        if kind == "top":
            return 12 * statistics.top
        if kind == "errors":
            return 8 * (3 + 6) * statistics.errors
        if kind == "quadrants":
            return 4 * (8 + 8 + 4 + 8)
        if kind == "labels":
            return 8 * 2 * (self.labels + 1) + 4
        wide = kind == "position" or (kind == "token" and statistics.largest)
        return (20 if wide else 16) * self.groups(kind) + 4

    def groups(self, kind: str) -> int:
        """Groups of a kind of group sums."""
        return self.context if kind == "position" else self.tokens or self.vocab_size


def plan_passes(statistics: Statistics, sizes: Sizes, memory: float) -> list[list[Part]]:
    """The parts of each pass over the tokens, in order, as many as the memory holds.

    Args:
        memory: bytes.

    Raises:
        ValueError: it does not hold the moments of a block call, or one neuron's sums.
    """
    wanted = [(kind, depth) for depth in range(len(sizes.widths)) for kind in statistics.kinds]
    depths = range(len(sizes.widths)) if statistics.depths is None else statistics.depths
    wanted += [(kind, depth) for depth in depths for kind in statistics.by_token]
    passes: list[list[Part]] = [[]]
    left = memory
    for kind, depth in wanted:
        each, width = sizes.bytes_per_neuron(kind, statistics), sizes.widths[depth]
        most = width if kind in ("moments", "up") else min(int(memory // each), width)
        if most == 0 or most * each > memory:
            raise Refused(
                f"{memory / 1e9:.3g} GB of memory do not hold {kind} sums of {each * max(most, 1) / 1e9:.3g} "
                "GB, which cannot be cut; raise the memory."
            )
        for start in range(0, width, most):
            part = Part(kind, depth, start, min(start + most, width))
            size = each * (part.stop - part.start)
            if size > left:
                passes.append([])
                left = memory
            passes[-1].append(part)
            left -= size
    return passes


def part_bytes(parts: Sequence[Part], statistics: Statistics, sizes: Sizes) -> int:
    """Bytes of the state of some parts."""
    return sum((p.stop - p.start) * sizes.bytes_per_neuron(p.kind, statistics) for p in parts)


def make_accumulator(
    part: Part,
    statistics: Statistics,
    sizes: Sizes,
    shifts: Mapping[str, Tensor],
    ids: Tensor | None = None,
) -> Any:
    """A new accumulator for a part.

    Args:
        shifts: of "pre", "post" and, where gated, "up", for the part's neurons [N] float32.
        ids: token ids that have a sum of their own [sizes.tokens] int64; None for all.
    """
    if part.kind == "moments":
        return BothSides(shifts["pre"], shifts["post"], statistics.thresholds)
    shift = shifts[READS[part.kind][-1]]
    width, device = len(shift), shift.device
    if part.kind == "up":
        return Moments(shift)
    if part.kind in BINS:
        return Histogram(width, BINS[part.kind], device)
    if part.kind == "top":
        return TopExamples(width, statistics.top, device)
    if part.kind == "errors":
        return GroupMoments(width, statistics.errors, sizes.sequences, BLOCK, sizes.context, device)
    if part.kind == "quadrants":
        return QuadrantSums(width, statistics.quadrants * sizes.context, device)
    if part.kind == "labels":
        return LabelTotals(sizes.labels, shift)
    largest = part.kind == "token" and statistics.largest
    if part.kind == "position" or ids is None:
        active = part.kind == "position"
        return GroupSums(part.kind, sizes.groups(part.kind), shift, active=active, largest=largest)
    return GroupSums(part.kind, ids, shift, largest=largest)


def load_accumulator(part: Part, statistics: Statistics, sizes: Sizes, state: Mapping[str, Tensor]) -> Any:
    """A part's accumulator from its state, which brings its own shifts."""
    none = torch.zeros(part.stop - part.start)
    shifts = {side: state.get(f"{side}/shift", state.get("shift", none)) for side in ("pre", "post", "up")}
    accumulator = make_accumulator(part, statistics, sizes, shifts, state.get("ids"))
    accumulator.load_state_dict(state)
    return accumulator
