"""What probing a transformers model gave: the values at its module boundaries, and the sites found there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from interpcore._shown import ShortRepr
from interpcore.model.hooks import Watch

# Children of a block whose output may be what it adds to the stream: the part, or a norm named after it.
PARTS = {
    "attn_out": ("self_attn", "attn", "attention", "self_attention", "mixer", "linear_attn"),
    "mlp_out": ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe", "fc2"),
}
READERS = {**PARTS, "mlp_out": (*PARTS["mlp_out"], "fc1")}  # children that read what their branch reads
AFTER = {"attn_out": ("attn", "attention"), "mlp_out": ("mlp", "feedforward", "feed_forward", "ffn", "moe")}
EXACT = 1e-4  # of the identities, beside the rounding of the stream itself
NORMED = {"attn_normed": "attn_out", "mlp_normed": "mlp_out"}
INSIDE = (*PARTS, *NORMED, "attn_in", "mlp_in", "mlp_pre", "mlp_gate_pre", "mlp_up", "mlp_act")
APART = "its blocks have no two modules whose outputs add up to what a block adds to the stream."

Place = tuple[str, int | None]
Watched = tuple[Place, Watch]
Function = Callable[[Tensor], Tensor]


@dataclass
class Found(ShortRepr):
    """Sites of a transformers model.

    Args:
        layers: its blocks.
        boundaries: side (as in `hooks.watch`, or `hooks.FOR` and a reader beside it, or `hooks.TIMES` and a
            factor) and path of the module behind each site, {d} for the block.
        absent: why the others are not there.
        parallel: whether both branches read the stream that enters the block; None where it was not seen.
        functions: each block's activation, where it was found.
        widths: neurons of each block, where they were found.
    """

    layers: nn.ModuleList
    boundaries: dict[str, tuple[str, str]] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    parallel: bool | None = None
    functions: tuple[Function, ...] = ()
    widths: tuple[int, ...] = ()

    def keep(self, site: str, side: str, path: str) -> None:
        """Enter a site."""
        self.boundaries[site] = side, path
        self.absent.pop(site, None)

    def drop(self, sites: Iterable[str], why: str) -> None:
        """Take sites away."""
        for site in sites:
            self.boundaries.pop(site, None)
            self.absent[site] = why


@dataclass
class Run(ShortRepr):
    """What a forward gave at the boundaries that were watched.

    Args:
        logits: [batch, position, vocabulary].
        came: copies of the values as they came, on the CPU.
        seen: copies of the values as they went on, which differ in a forward that edits.
        order: places in the order in which they were seen.
        leaves: what was added to each value, where it was edited.
    """

    logits: Tensor = field(default_factory=lambda: torch.empty(0))
    came: dict[Place, Tensor] = field(default_factory=dict)
    seen: dict[Place, Tensor] = field(default_factory=dict)
    order: list[Place] = field(default_factory=list)
    leaves: dict[Place, Tensor] = field(default_factory=dict)

    def in_order(self, site: str, depths: Sequence[int | None]) -> bool:
        """Whether a site was seen once at each depth, in their order."""
        return [depth for key, depth in self.order if key == site] == list(depths)

    def same(self, a: Tensor, b: Tensor) -> bool:
        """Whether two values are the same arithmetic's, up to the last bits."""
        return bool(((a - b).abs() <= 16 * torch.finfo(self.logits.dtype).eps * b.abs().amax()).all())

    def near(self, key: str, depth: int, value: Tensor) -> bool:
        """Whether a value was seen at a place, up to the rounding of a sum."""
        seen = self.seen[key, depth]
        allowed = 8 * torch.finfo(self.logits.dtype).eps * value.abs().amax()
        return bool(((seen - value).abs() <= allowed).all())

    def add_up(self, attention: str, mlp: str, n_blocks: int, factor: float = 1.0) -> bool:
        """Whether two sites together, times a factor, are the change of the stream at every depth, up to
        rounding."""
        for d in range(n_blocks):
            before, after = self.seen["resid", d].double(), self.came["resid", d + 1].double()
            parts = [factor * self.seen[key, d].double() for key in (attention, mlp)]
            change = after - before
            rounding = 4 * torch.finfo(self.logits.dtype).eps
            allowed = EXACT * change.abs().max() + rounding * sum(x.abs() for x in (before, after, *parts))
            if not bool(((sum(parts) - change).abs() <= allowed).all()):
                return False
        return True


def children(blocks: Sequence[nn.Module] | nn.ModuleList) -> list[str]:
    """Names of the modules that all of several modules have."""
    return [
        child
        for child, _ in blocks[0].named_children()
        if all(isinstance(getattr(block, child, None), nn.Module) for block in blocks)
    ]


def is_norm(module: object) -> bool:
    """Whether a module calls itself a norm."""
    return "norm" in type(module).__name__.lower()


def is_projection(module: object) -> bool:
    """Whether a module is one matrix and perhaps a bias, also where PEFT adds low-rank ones to it."""
    return isinstance(getattr(module, "base_layer", module), nn.Linear | Conv1D)
