"""One pass over tokens: a forward whose activations feed every accumulator, with checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model, Plan
from interpcore.neurons.parts import SIDE, BothSides, Part, Sizes, Statistics, make_accumulator, part_bytes
from interpcore.ops import RunningMoments, activation_moments
from interpcore.runs import Checkpoint, Progress, RunError
from interpcore.stats import Accumulator, Ranges, TokenBlock

PILOT_TOKENS = 256
# Names of `interpcore.ops.activation_moments` for those of a model's MLPs.
_FUSED = {"gelu": "gelu", "relu": "relu", "silu": "silu", "swish": "silu"} | dict.fromkeys(
    ("gelu_new", "gelu_fast", "gelu_pytorch_tanh"), "gelu_tanh"
)
Function = Callable[[Tensor], Tensor]
Shifts = dict[int, dict[str, Tensor]]
"""Shifts of "pre", "post" and, where gated, "up" of each block call [N] float32."""


class Pass:
    """One pass over the tokens.

    Args:
        model, shards: what is read.
        parts: what is accumulated.
        statistics, sizes: of the run.
        pilot: shifts of each block call.
    """

    def __init__(
        self,
        model: Model,
        shards: TokenShards,
        parts: list[Part],
        statistics: Statistics,
        sizes: Sizes,
        pilot: Shifts,
    ) -> None:
        self.shards, self.parts = shards, parts
        self.model = _up_to(model, max(part.depth for part in parts))
        self.bytes = part_bytes(parts, statistics, sizes)
        self._parts: dict[int, dict[Part, Accumulator | BothSides]] = {}
        for part in parts:
            columns = slice(part.start, part.stop)
            shifts = {side: shift[columns].clone() for side, shift in pilot[part.depth].items()}
            made = make_accumulator(part, statistics, sizes, shifts)
            self._parts.setdefault(part.depth, {})[part] = made
        self._seen = Ranges()
        self._seen_depths: set[int] = set()

    def run(
        self, checkpoint: Checkpoint, span: tuple[int, int], batch: int, label: str, progress: bool
    ) -> None:
        """Reads the sequences of a range, from where the checkpoint stopped."""
        start, stop = self._resume(checkpoint, span), span[1]
        total, done = (-(-(end - span[0]) // batch) for end in (stop, start))
        with Progress(label, total, done=done, shown=progress and start < stop) as shown:
            for first in range(start, stop, batch):
                self.read(first, min(first + batch, stop))
                shown.advance()
                if checkpoint.due or first + batch >= stop:
                    checkpoint.save(self.state(), self._header(span))

    @torch.no_grad()
    def read(self, first: int, stop: int) -> None:
        """Adds the sequences from `first` up to `stop`."""
        tokens = self.shards.sequences(first, stop).to(self.model.device)
        mask = self.shards.mask(tokens).flatten()
        block = TokenBlock.of_sequences(tokens, first)
        everything = bool(mask.all())
        block, rows = (block, None) if everything else (block[mask], mask)

        def hook(function: Function, pre: Tensor, depth: int, up: Tensor | None = None) -> Tensor:
            return self._add(function, pre, depth, up, block, rows)

        self.model.forward(tokens, logits_at=None, activation=hook)
        if not self._seen_depths >= self._parts.keys():
            missing = min(self._parts.keys() - self._seen_depths)
            raise Refused(
                f"Block call {missing} of {self.model.spec.name} ran no activation that can be read; "
                "its neurons have no statistics."
            )
        self._seen.add(first, stop)

    def _add(
        self,
        function: Function,
        pre: Tensor,
        depth: int,
        up: Tensor | None,
        block: TokenBlock,
        mask: Tensor | None,
    ) -> Tensor:
        """Accumulates one block call's neurons; returns what its down projection reads."""
        self._seen_depths.add(depth)
        parts = self._parts.get(depth, {})
        rows = pre.flatten(0, 1)
        factor = None if up is None else up.flatten(0, 1)
        both = next((a for a in parts.values() if isinstance(a, BothSides)), None)
        name = _FUSED.get(self.model.block(depth).mlp.activation)
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
            wanted = {SIDE[part.kind] for part in parts if part.kind in SIDE}
            kept = mask.nonzero()[:, 0]
            sides = {side: sides[side].index_select(0, kept) for side in wanted}
        for part, accumulator in parts.items():
            if not isinstance(accumulator, BothSides):
                accumulator.update(sides[SIDE[part.kind]][:, part.start : part.stop], block)
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
        return {name: json.dumps(value) for name, value in header.items()}

    def _resume(self, checkpoint: Checkpoint, span: tuple[int, int]) -> int:
        """Loads the checkpoint; returns the first sequence that it has not seen."""
        found = checkpoint.load()
        if found is None:
            return span[0]
        state, header = found
        mine = self._header(span)
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


@torch.no_grad()
def measure_pilot(model: Model, shards: TokenShards, batch: int) -> Shifts:
    """Mean of the first tokens that count, of every block call: shifts for the sums.

    Args:
        batch: sequences of a forward.

    Raises:
        ValueError: no token counts.
    """
    found: dict[int, dict[str, list[Tensor]]] = {}
    count = 0
    for first in range(0, shards.n_sequences, batch):
        tokens = shards.sequences(first, min(first + batch, shards.n_sequences)).to(model.device)
        rows = shards.mask(tokens).flatten().nonzero()[: PILOT_TOKENS - count, 0]
        if len(rows):
            count += len(rows)
            model.forward(tokens, logits_at=None, activation=_keeper(rows, found))
        if count == PILOT_TOKENS:
            break
    if not count:
        raise Refused(
            f"The masks ({', '.join(shards.masked)}) leave none of the {shards.n_tokens} tokens; apply fewer."
        )
    return {depth: {side: _finite_mean(x) for side, x in sides.items()} for depth, sides in found.items()}


def _keeper(rows: Tensor, found: dict[int, dict[str, list[Tensor]]]) -> Callable[..., Tensor]:
    """A hook that keeps some rows of every side."""

    def hook(function: Function, pre: Tensor, depth: int, up: Tensor | None = None) -> Tensor:
        post = function(pre) if up is None else function(pre) * up
        kept = found.setdefault(depth, {})
        for side, x in {"pre": pre, "post": post, "up": up}.items():
            if x is not None:
                kept.setdefault(side, []).append(x.flatten(0, 1)[rows])
        return post

    return hook


def _finite_mean(rows: list[Tensor]) -> Tensor:
    """Mean of the finite values of each column, 0 where there is none [N] float32."""
    x = torch.cat(rows).double()
    x = x.where(x.isfinite(), torch.nan)
    return x.nanmean(0).nan_to_num().float()


def _up_to(model: Model, depth: int) -> Model:
    """The model without what follows a block call."""
    calls = model.plan.calls[: model.plan.first_call(depth + 1)]
    return model if len(calls) == len(model.plan.calls) else model.with_plan(Plan(calls))
