"""One pass over tokens: a forward whose activations feed every accumulator, with checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused, RunError
from interpcore.model import Model, Plan
from interpcore.model.generic import GenericModel
from interpcore.model.latents import LatentModel
from interpcore.neurons.statistics.mlp_sides import Function
from interpcore.ops import RunningMoments, activation_moments
from interpcore.runs import Checkpoint, Progress, RunCard
from interpcore.stats import Moments, Ranges, TokenBlock
from interpcore.stats.accumulators import State

# Names of `interpcore.ops.activation_moments` for those of a model's MLPs.
_FUSED = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"} | dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh"
)
READS: dict[str, tuple[str, ...]] = {
    "moments": ("pre", "post"),
    "up": ("up",),
    "histogram": ("pre",),
    "published": ("pre",),
    "position": ("pre",),
    "errors": ("pre",),
    "top": ("post",),
    "token": ("post",),
    "previous": ("post",),
    "labels": ("post",),
    "quadrants": ("pre", "up", "post"),
}
"""What a kind of accumulator reads: before ("pre") or after ("post") the activation, or the factor beside a
gate ("up")."""
Labeller = Callable[[Tensor, int], Tensor]
"""Gives labels [batch, position, label] bool of tokens [batch, position] and the number of their first
sequence."""


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


class Pass:
    """One pass over the tokens.

    Args:
        model, shards: what is read.
        accumulators: what each part is added to.
        labellers: what gives the labels that parts of the kind "labels" count.
        meaning: everything that the sums depend on, where no run card says it: a `RunCard.key`.
    """

    def __init__(
        self,
        model: Model | GenericModel,
        shards: TokenShards,
        accumulators: Mapping[Part, Any],
        labellers: Sequence[Labeller] = (),
        meaning: str = "",
    ) -> None:
        self.shards, self.parts = shards, list(accumulators)
        self.model = _up_to(model, max(part.depth for part in self.parts))
        self._labellers, self._meaning = labellers, meaning
        self._parts: dict[int, dict[Part, Any]] = {}
        for part, accumulator in accumulators.items():
            self._parts.setdefault(part.depth, {})[part] = accumulator
        self._counts_labels = any(part.kind == "labels" for part in self.parts)
        self._seen = Ranges()
        self._seen_depths: set[int] = set()

    def run(
        self, checkpoint: Checkpoint | None, span: tuple[int, int], batch: int, label: str, progress: bool
    ) -> None:
        """Reads the sequences of a range, from where the checkpoint stopped; without one nothing is kept."""
        start, stop = span[0] if checkpoint is None else self._resume(checkpoint, span), span[1]
        if checkpoint is not None and start < stop:
            checkpoint.check_room()
        total, done = (-(-(end - span[0]) // batch) for end in (stop, start))
        with Progress(label, total, done=done, shown=progress and start < stop) as shown:
            for first in range(start, stop, batch):
                self.read(first, min(first + batch, stop))
                shown.advance()
                if checkpoint is not None and (checkpoint.due or first + batch >= stop):
                    checkpoint.save(self.state(), self._header(span))

    @torch.no_grad()
    def read(self, first: int, stop: int) -> None:
        """Adds the sequences from `first` up to `stop`."""
        (_, tokens, mask), *_ = self.shards.blocks(stop - first, first, stop, self.model.device)
        mask = mask.flatten()
        block = TokenBlock.of_sequences(tokens, first)
        everything = bool(mask.all())
        block, rows = (block, None) if everything else (block[mask], mask)
        labels = self._labels(tokens, first, mask) if self._counts_labels else None

        def hook(function: Function, pre: Tensor, depth: int, up: Tensor | None = None) -> Tensor:
            return self._add(function, pre, depth, up, block, rows, labels)

        self.model.forward(tokens, logits_at=None, activation=hook)
        if not self._seen_depths >= self._parts.keys():
            missing = min(self._parts.keys() - self._seen_depths)
            raise Refused(
                f"Block call {missing} of {self.model.spec.name} ran no activation that can be read; "
                "its neurons have no statistics."
            )
        self._seen.add(first, stop)

    def _labels(self, tokens: Tensor, first: int, mask: Tensor) -> Tensor:
        """Labels of the tokens that count [label, token] float32."""
        found = [labeller(tokens.cpu(), first).flatten(0, 1) for labeller in self._labellers]
        return torch.cat(found, -1)[mask.cpu()].float().mT.contiguous().to(self.model.device)

    def _add(
        self,
        function: Function,
        pre: Tensor,
        depth: int,
        up: Tensor | None,
        block: TokenBlock,
        mask: Tensor | None,
        labels: Tensor | None,
    ) -> Tensor:
        """Accumulates one block call's neurons; returns what its down projection reads."""
        self._seen_depths.add(depth)
        parts = self._parts.get(depth, {})
        rows = pre.flatten(0, 1)
        factor = None if up is None else up.flatten(0, 1)
        both = next((a for a in parts.values() if isinstance(a, BothSides)), None)
        name = _fused(self.model, depth)
        if name is not None:
            # A pass without moments activates by the same kernel: all passes see the same bits.
            if both is None:
                running = tuple(RunningMoments(rows.shape[1], device=rows.device) for _ in range(2))
                counted: Tensor | None = rows.new_zeros(len(rows), dtype=torch.bool)
            else:
                running, counted = (both.pre.running, both.post.running), mask
            post = activation_moments(rows, name, running[0], running[1], up=factor, mask=counted)
        else:
            post = function(rows) if factor is None else function(rows) * factor
            if both is not None:
                both.pre.update(rows, mask=mask)
                both.post.update(post, mask=mask)
        sides = {"pre": rows, "post": post} | ({} if factor is None else {"up": factor})
        if mask is not None:
            wanted = {side for part in parts if part.kind != "moments" for side in READS[part.kind]}
            kept = mask.nonzero()[:, 0]
            sides = {side: sides[side].index_select(0, kept) for side in wanted}
        for part, accumulator in parts.items():
            if part.kind != "moments":
                values = [sides[side][:, part.start : part.stop] for side in READS[part.kind]]
                accumulator.update(*values, labels if part.kind == "labels" else block)
        return post.view(pre.shape)

    def state(self) -> dict[str, Tensor]:
        """Everything accumulated, by part and name."""
        accumulators = {part: a for parts in self._parts.values() for part, a in parts.items()}
        return {
            f"{part.name}/{name}": x for part, a in accumulators.items() for name, x in a.state_dict().items()
        }

    def _header(self, span: tuple[int, int]) -> dict[str, str]:
        parts = [[p.kind, p.depth, p.start, p.stop] for p in self.parts]
        header = {"parts": parts, "seen": list(self._seen), "range": list(span)}
        said = {"meaning": self._meaning} if self._meaning else {}
        return {name: json.dumps(value) for name, value in header.items()} | said

    def _resume(self, checkpoint: Checkpoint, span: tuple[int, int]) -> int:
        """Loads the checkpoint; returns the first sequence that it has not seen."""
        found = checkpoint.load()
        if found is None:
            return span[0]
        state, header = found
        mine = self._header(span)
        if header.get("meaning") != mine.get("meaning"):
            raise RunError(
                f"{checkpoint.path} holds sums of something else; choose another folder, or delete it."
            )
        if header.get("range") != mine["range"]:
            raise RunError(
                f"{checkpoint.path} is of sequences {header.get('range')}, not {mine['range']}; "
                "choose another folder for another range"
            )
        if header.get("parts") != mine["parts"]:
            raise RunError(
                f"{checkpoint.path} was begun with another memory budget, which cuts the passes otherwise; "
                "give the same one, or choose another folder"
            )
        for parts in self._parts.values():
            for part, accumulator in parts.items():
                prefix = f"{part.name}/"
                accumulator.load_state_dict(
                    {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
                )
        self._seen = Ranges(tuple(pair) for pair in json.loads(header["seen"]))
        return span[0] + len(self._seen)


def accumulate(
    model: Model | GenericModel,
    shards: TokenShards,
    accumulators: Mapping[Part, Any],
    *,
    card: RunCard,
    limit: int,
    batch: int,
    labellers: Sequence[Labeller] = (),
    path: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> None:
    """A pass of its own, for statistics that no summary holds.

    Args:
        model, shards, accumulators, labellers: as in `Pass`.
        card: says everything that the sums depend on.
        limit: read the first so many sequences.
        batch: sequences of a forward.
        path: keeps the sums, so that the pass can be killed and go on; None keeps nothing.
        progress: show it.

    Raises:
        RunError: the file holds sums of something else, or the disk is too full for them and their copy.
    """
    one = Pass(model, shards, accumulators, labellers, card.key)
    size = sum(x.nbytes for x in one.state().values())
    checkpoint = None if path is None else Checkpoint(path, size, at_least=20.0)
    one.run(checkpoint, (0, limit), batch, card.arguments["step"], progress)


def _fused(model: Model | GenericModel, depth: int) -> str | None:
    """What `interpcore.ops.activation_moments` calls a block call's activation; None where it has none such,
    of latents, and through the adapter."""
    if isinstance(model, GenericModel | LatentModel):
        return None
    return _FUSED.get(model.block(depth).neurons.activation)


def _up_to(model: Model | GenericModel, depth: int) -> Model | GenericModel:
    """The model without what follows a block call; whole through the adapter, which runs one plan, and where
    its neurons are latents."""
    if isinstance(model, GenericModel | LatentModel):
        return model
    calls = model.plan.calls[: model.plan.first_call(depth + 1)]
    return model if len(calls) == len(model.plan.calls) else model.with_plan(Plan(calls))
