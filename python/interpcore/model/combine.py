"""Modules without weights that make one stream of several: blocks side by side on one input.

Each block of a parallel range reads the entering stream and writes a branch of its own; then `mean` gives the
mean of the branches, (1/k) sum block_i(x), and `sum` what the blocks add together, x + sum (block_i(x) - x).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

BRANCH = "branch."
"""What the names of the streams begin with that hold the outputs of blocks side by side."""


@dataclass(frozen=True)
class Combine:
    """A weighted sum of streams whose weights follow from their number.

    Args:
        mean: average all streams; False reads the entering stream first and adds every other one's change.
    """

    mean: bool

    def weights(self, count: int) -> list[float]:
        """Factor of each of `count` streams."""
        return [1 / count] * count if self.mean else [2.0 - count, *[1.0] * (count - 1)]

    def __call__(self, *streams: Tensor) -> Tensor:
        """One stream [batch, position, d_model] from several of that shape."""
        first, *rest = zip(streams, self.weights(len(streams)), strict=True)
        total = first[0] * first[1]
        for stream, weight in rest:
            total = total + stream * weight
        return total

    def pull(self, g: Tensor, count: int) -> list[Tensor]:
        """Cotangents of the `count` streams from that of the output."""
        return [g * weight for weight in self.weights(count)]

    def push(self, tangents: Sequence[Tensor | None]) -> Tensor:
        """Tangent of the output from those of the streams, None for zero; at least one is given."""
        known = zip(tangents, self.weights(len(tangents)), strict=True)
        parts = [t * weight for t, weight in known if t is not None]
        return sum(parts[1:], parts[0])


COMBINERS = {"mean": Combine(True), "sum": Combine(False)}
"""Every model has them under these names."""
