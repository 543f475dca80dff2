"""What a token pass accumulates: the statistics asked for, cut into parts that fit the memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.mlp import MLP
from interpcore.stats import (
    Accumulator,
    GroupSums,
    Histogram,
    LinearBins,
    Moments,
    OctaveBins,
    TopExamples,
)
from interpcore.stats.accumulators import State
from interpcore.stats.histograms import Bins

BINS: dict[str, Bins] = {"histogram": OctaveBins(), "published": LinearBins()}
BY_TOKEN = ("token", "previous")
# What a kind reads: before or after the activation, or the factor beside a gate; moments read pre and post.
SIDE = {
    "up": "up",
    "histogram": "pre",
    "published": "pre",
    "position": "pre",
    "top": "post",
    "token": "post",
    "previous": "post",
}


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
        depths: block calls for `by_token`; None for all.
    """

    thresholds: tuple[float, ...] = (0.0, -0.098)
    histogram: bool = True
    published: bool = True
    top: int = 50
    position: bool = True
    up: bool = False
    by_token: tuple[str, ...] = ()
    depths: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.by_token) - set(BY_TOKEN))
        if unknown:
            raise Refused(f"by_token={unknown[0]!r} is unknown; choose from {', '.join(BY_TOKEN)}.")

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return {name: list(x) if isinstance(x, tuple) else x for name, x in asdict(self).items()}

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
        }
        return tuple(kind for kind, there in wanted.items() if there)


@dataclass(frozen=True)
class Part:
    """One kind of statistic of some neurons of a block call: those from `start` up to `stop`."""

    kind: str
    depth: int
    start: int
    stop: int

    @property
    def name(self) -> str:
        """Its name in a state file."""
        return f"{self.kind}/{self.depth}/{self.start}-{self.stop}"


@dataclass(frozen=True)
class Sizes:
    """What the size of a part depends on.

    Args:
        widths: neurons of each block call.
        context: tokens of a sequence.
        vocab_size: number of token ids.
    """

    widths: tuple[int, ...]
    context: int
    vocab_size: int

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self) | {"widths": list(self.widths)}

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
        return (20 if kind == "position" else 16) * self.groups(kind) + 4

    def groups(self, kind: str) -> int:
        """Groups of a kind of group sums."""
        return self.context if kind == "position" else self.vocab_size


def mlp_widths(model: Model) -> tuple[int, ...]:
    """Neurons of each block call.

    Raises:
        ValueError: the model has no MLP that a study of neurons can read.
    """
    if not isinstance(model, Model):
        raise Refused(
            f"{model.spec.name} runs through the generic adapter, which shows no neurons; "
            "statistics of neurons need a family with hand-written blocks."
        )
    widths = []
    for depth in range(model.plan.n_calls):
        mlp = getattr(model.block(depth), "mlp", None)
        if not isinstance(mlp, MLP):
            raise Refused(f"Block call {depth} of {model.spec.name} has no MLP with one activation; skip it.")
        widths.append(mlp.down.weight.shape[0])
    return tuple(widths)


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


class BothSides:
    """Moments of a block call's neurons before and after the activation.

    Args:
        pre_shift, post_shift: [N] float32.
        thresholds: of pre.
    """

    def __init__(self, pre_shift: Tensor, post_shift: Tensor, thresholds: Sequence[float]) -> None:
        self.pre, self.post = Moments(pre_shift, thresholds), Moments(post_shift)

    def merge(self, other: BothSides) -> None:
        """Adds another's."""
        self.pre.merge(other.pre)
        self.post.merge(other.post)

    def state_dict(self) -> State:
        """Both sides' tensors, as pre/... and post/..."""
        sides = {"pre": self.pre, "post": self.post}
        return {f"{side}/{k}": x for side, m in sides.items() for k, x in m.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Goes on from a state."""
        for side, moments in (("pre", self.pre), ("post", self.post)):
            moments.load_state_dict({k: state[f"{side}/{k}"] for k in moments.state_dict()})

    def finalize(self) -> tuple[Any, Any]:
        """Moments of pre and of post."""
        return self.pre.finalize(), self.post.finalize()


def make_accumulator(
    part: Part, statistics: Statistics, sizes: Sizes, shifts: Mapping[str, Tensor]
) -> Accumulator | BothSides:
    """A new accumulator for a part.

    Args:
        shifts: of "pre", "post" and, where gated, "up", for the part's neurons [N] float32.
    """
    if part.kind == "moments":
        return BothSides(shifts["pre"], shifts["post"], statistics.thresholds)
    shift = shifts[SIDE[part.kind]]
    if part.kind == "up":
        return Moments(shift)
    if part.kind in BINS:
        return Histogram(len(shift), BINS[part.kind], shift.device)
    if part.kind == "top":
        return TopExamples(len(shift), statistics.top, shift.device)
    return GroupSums(part.kind, sizes.groups(part.kind), shift, active=part.kind == "position")


def load_accumulator(
    part: Part, statistics: Statistics, sizes: Sizes, state: Mapping[str, Tensor]
) -> Accumulator | BothSides:
    """A part's accumulator from its state, which brings its own shifts."""
    if part.kind == "moments":
        shifts = {side: state[f"{side}/shift"] for side in ("pre", "post")}
    else:
        shifts = {SIDE[part.kind]: state.get("shift", torch.zeros(part.stop - part.start))}
    accumulator = make_accumulator(part, statistics, sizes, shifts)
    accumulator.load_state_dict(state)
    return accumulator
