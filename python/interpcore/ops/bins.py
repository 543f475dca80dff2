"""Fixed bins of a histogram: the same for every column and run, so that counts add up."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Bins(Protocol):
    """Bins between increasing edges: bin 0 lies below edges[0], the last one above the last edge."""

    @property
    def edges(self) -> Tensor:
        """[bins - 1] float64."""

    def index(self, values: Tensor) -> Tensor:
        """The bin of each value, int32, of the same shape; any bin for a value that is not finite."""

    def rule(self) -> dict[str, Any]:
        """What the C++ form finds a bin by; a tensor that it points to lives as long as the process."""


@dataclass(frozen=True)
class OctaveBins:
    """Log-spaced bins of both signs: every octave of |x| is cut into equal parts, small |x| share one bin.

    Args:
        low, high: |x| from 2^low to 2^high has bins of its own.
        parts: bins of an octave, a power of two up to 64.
    """

    low: int = -14
    high: int = 14
    parts: int = 8

    @property
    def edges(self) -> Tensor:
        """[2 (high - low) parts + 2] float64, symmetric about 0."""
        octaves = torch.arange(self.low, self.high, dtype=torch.float64)
        steps = 1 + torch.arange(self.parts, dtype=torch.float64) / self.parts
        one = torch.tensor([1.0], dtype=torch.float64)
        side = torch.cat(((octaves.exp2()[:, None] * steps).flatten(), one * 2.0**self.high))
        return torch.cat((-side.flip(0), side))

    def index(self, values: Tensor) -> Tensor:
        """An edge belongs to the bin farther from 0."""
        bits = values.float().view(torch.int32)
        # The leading bits of a float32 count octaves and their parts.
        size = ((bits & 0x7FFFFFFF) >> (24 - self.parts.bit_length())).sub_((127 + self.low) * self.parts - 1)
        size.clamp_(0, (self.high - self.low) * self.parts + 1)
        # -size where the sign bit is set; torch.where takes as long as all the rest.
        sign = bits >> 31
        return (size ^ sign).sub_(sign).add_((self.high - self.low) * self.parts + 1)

    def rule(self) -> dict[str, Any]:
        """See `Bins.rule`."""
        return {
            "bits": 24 - self.parts.bit_length(),
            "offset": (127 + self.low) * self.parts - 1,
            "most": (self.high - self.low) * self.parts + 1,
        }


@dataclass(frozen=True)
class LinearBins:
    """Equal bins; the published ones by default. Bin k counts edges[k - 1] < x <= edges[k].

    Args:
        first, last: outer edges.
        count: number of edges, float32 values of `torch.linspace`.
    """

    first: float = -10.0
    last: float = 15.0
    count: int = 256

    @property
    def edges(self) -> Tensor:
        """[count] float64."""
        return torch.linspace(self.first, self.last, self.count).double()

    def index(self, values: Tensor) -> Tensor:
        """As `torch.bucketize(values, edges)`, which takes several times as long."""
        x = values.float()
        place = (x - self.first).mul_((self.count - 1) / (self.last - self.first))
        edge = place.ceil()
        # Rounding can put a value near an edge one bin off.
        near = ((place.sub_(edge) + 0.5).abs_() > 0.499).nonzero(as_tuple=True)
        found = edge.nan_to_num_().clamp_(0, self.count).int()
        found[near] = torch.bucketize(x[near], self.edges.float().to(x.device), out_int32=True)
        return found

    def rule(self) -> dict[str, Any]:
        """See `Bins.rule`."""
        scale = (self.count - 1) / (self.last - self.first)
        edge = closed(self).data_ptr()
        return {"first": self.first, "scale": scale, "count": self.count, "edge": edge}


@functools.cache
def closed(bins: LinearBins, device: torch.device | str = "cpu") -> Tensor:
    """The edges, and infinity on both sides [count + 2] float32."""
    end = torch.tensor([torch.inf])
    return torch.cat((-end, bins.edges.float(), end)).to(device)


def as_numbers(bins: Bins) -> tuple[str, list[float]]:
    """Kind and three numbers of bins, which a declared op takes; `from_numbers` is the way back.

    Raises:
        ValueError: bins of neither kind.
    """
    if isinstance(bins, OctaveBins):
        return "octave", [float(bins.low), float(bins.high), float(bins.parts)]
    if isinstance(bins, LinearBins):
        return "linear", [float(bins.first), float(bins.last), float(bins.count)]
    raise ValueError(f"bins must be OctaveBins or LinearBins, not {type(bins).__name__}.")


def from_numbers(kind: str, numbers: Sequence[float]) -> Bins:
    """The bins of which `as_numbers` made these."""
    first, last, count = numbers
    if kind == "octave":
        return OctaveBins(int(first), int(last), int(count))
    return LinearBins(first, last, int(count))
