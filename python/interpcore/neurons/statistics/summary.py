"""What `summarize` found: reading it part by part, and merging runs over parts of the tokens."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.statistics.accumulate import Sizes, Statistics, load_accumulator
from interpcore.neurons.statistics.label_sums import LabelSums, joined_sums
from interpcore.neurons.statistics.moment_errors import joined_errors
from interpcore.neurons.statistics.quadrants import Quadrants, joined_quadrants
from interpcore.neurons.statistics.token_pass import Part
from interpcore.ops import ColumnMoments
from interpcore.runs import (
    RunCard,
    RunError,
    RunFolder,
    compare,
    read_card,
    read_metadata,
    read_tensors,
    write_tensors,
)
from interpcore.runs.shown import AsTable
from interpcore.stats import Examples, GroupTotals, HistogramCounts, Ranges

if TYPE_CHECKING:
    import pandas as pd

PILOT = "pilot.safetensors"
"""Artifact with the shifts of a run."""


@dataclass(frozen=True, eq=False)
class Summary(AsTable):
    """Statistics of every neuron, read from the run folder when asked for.

    Args:
        folder: the run folder.
        card: its card.
        ranges: sequences that every pass has seen.
        files: the file that holds each part.
    """

    folder: Path
    card: RunCard
    ranges: Ranges
    files: dict[Part, Path]

    def __repr__(self) -> str:
        n = f"{sum(self.sizes.widths):,} neurons, {self.n_tokens:,} tokens"
        return f"Summary({self.card.model}: {n}, in {self.folder})"

    def to_pandas(self) -> pd.DataFrame:
        """A row per neuron: layer, neuron; mean, var, skew, kurt (normal: 3) and maximum before the
        activation, frequency: share of tokens at which that is above 0, where it was counted; post_mean and
        post_maximum after it."""
        import pandas as pd

        frames = []
        for depth in range(self.n_layers):
            pre, post = self.moments(depth)
            columns = {"mean": pre.mean, "var": pre.variance, "skew": pre.skewness, "kurt": pre.kurtosis}
            columns["maximum"] = pre.maximum
            if 0.0 in pre.thresholds:
                columns["frequency"] = pre.frequency[list(pre.thresholds).index(0.0)]
            columns |= {"post_mean": post.mean, "post_maximum": post.maximum}
            frame = pd.DataFrame({name: values.cpu().numpy() for name, values in columns.items()})
            frame.insert(0, "layer", depth)
            frame.insert(1, "neuron", range(len(frame)))
            frames.append(frame)
        return pd.concat(frames, ignore_index=True)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> Summary:
        """Opens a run folder of `summarize` or `merge_summaries`, finished or not.

        Raises:
            RunError: there is no such run, or its passes have not seen the same tokens yet.
        """
        folder = Path(folder)
        card = read_card(folder)
        paths = sorted((folder / "artifacts").glob("pass-*.safetensors"), key=_number)
        if "statistics" not in card.arguments or not paths:
            raise RunError(f"{folder} holds no statistics of neurons; make them with summarize")
        files: dict[Part, Path] = {}
        seen = []
        for path in paths:
            header = _header(path)
            files |= {Part(*part): path for part in header["parts"]}
            seen.append(header["seen"])
        late = next((path for path, ranges in zip(paths, seen, strict=True) if ranges != seen[0]), None)
        if late is not None:
            raise RunError(
                f"{late} has not seen all the tokens that {paths[0].name} has; run summarize again"
            )
        return cls(folder, card, Ranges(tuple(pair) for pair in seen[0]), files)

    @classmethod
    def complete(cls, folder: str | os.PathLike[str]) -> bool:
        """Whether a run folder holds everything asked for, of all sequences."""
        try:
            found = cls.open(folder)
        except RunError:
            return False
        asked = [(kind, depth) for depth in range(found.n_layers) for kind in found.statistics.kinds]
        depths = found.statistics.depths
        by_token = range(found.n_layers) if depths is None else depths
        asked += [(kind, depth) for depth in by_token for kind in found.statistics.by_token]
        there: Counter[tuple[str, int]] = Counter()
        for part in found.files:
            there[part.kind, part.depth] += part.stop - part.start
        every = all(there[kind, depth] == found.sizes.widths[depth] for kind, depth in asked)
        return every and len(found.ranges) == found.sizes.sequences

    @property
    def statistics(self) -> Statistics:
        """What was accumulated."""
        return Statistics.from_json(self.card.arguments["statistics"])

    @property
    def sizes(self) -> Sizes:
        """Sizes of model and tokens."""
        return Sizes.from_json(self.card.arguments)

    @property
    def n_layers(self) -> int:
        """Number of block calls."""
        return len(self.sizes.widths)

    @property
    def n_tokens(self) -> int:
        """Tokens read, masked ones included."""
        return len(self.ranges) * self.sizes.context

    def moments(self, depth: int) -> tuple[ColumnMoments, ColumnMoments]:
        """Moments of a block call's neurons before and after the activation."""
        return self._one("moments", depth)

    def up_moments(self, depth: int) -> ColumnMoments:
        """Moments of the factor beside the gate of a block call's neurons."""
        return self._one("up", depth)

    def histogram(self, depth: int, *, published: bool = False) -> HistogramCounts:
        """Histogram of a block call's neurons before the activation; log-spaced, or in the published bins."""
        return self._one("published" if published else "histogram", depth)

    def quantiles(self, depth: int, q: Sequence[float]) -> Tensor:
        """Quantiles [len(q), N] of a block call's neurons before the activation, from the histogram."""
        pre, _ = self.moments(depth)
        return self.histogram(depth).quantile(q, pre.minimum, pre.maximum)

    def examples(self, depth: int) -> Examples:
        """Tokens at which a block call's neurons are largest after the activation."""
        return self._one("top", depth)

    def groups(self, grouping: str, depth: int) -> GroupTotals:
        """Sums by "position" (before the activation), by "token" or "previous" token id (after it)."""
        found: list[Any] = [part.finalize() for part in self._parts(grouping, depth)]
        if len(found) == 1:
            return found[0]
        optional = [name for name in ("active", "largest") if getattr(found[0], name) is not None]
        names = ["total", "square", "shift", *optional]
        joined = {name: torch.cat([getattr(one, name) for one in found], -1) for name in names}
        missing = torch.cat([one.missing for one in found], 1)
        return replace(found[0], **joined, missing=missing)

    def moment_errors(self) -> dict[str, Tensor]:
        """Standard errors of the moments of all neurons before the activation, as `errors_of` gives them."""
        parts = (part for depth in range(self.n_layers) for part in self._parts("errors", depth))
        return joined_errors([part.finalize() for part in parts])

    def quadrants(self) -> Quadrants:
        """Gated neurons by the signs of gate and factor, over the first sequences."""
        return joined_quadrants([self._parts("quadrants", depth) for depth in range(self.n_layers)])

    def label_sums(self) -> LabelSums:
        """Sums after the activation over the tokens with each label, over all neurons."""
        parts = (part for depth in range(self.n_layers) for part in self._parts("labels", depth))
        return joined_sums([part.finalize() for part in parts])

    def defects(self) -> list[dict[str, Any]]:
        """Neurons with something wrong, by name: layer, neuron, defect and number of tokens.

        Defects: "non-finite" (before or after the activation: infinite or NaN, left out of every sum),
        "constant" (after the activation the same everywhere), "dead" (before it never above 0).
        """
        rows = []
        for depth in range(self.n_layers):
            pre, post = self.moments(depth)
            bad = torch.maximum(pre.nonfinite, post.nonfinite)
            found = {
                "non-finite": (bad > 0, bad),
                "constant": (post.minimum == post.maximum, post.count),
                "dead": (pre.maximum <= 0, pre.count),
            }
            for defect, (which, tokens) in found.items():
                rows += [
                    {"layer": depth, "neuron": n, "defect": defect, "tokens": int(tokens[n])}
                    for n in which.nonzero()[:, 0].tolist()
                ]
        return rows

    def _one(self, kind: str, depth: int) -> Any:
        (accumulator,) = self._parts(kind, depth)
        return accumulator.finalize()

    def _parts(self, kind: str, depth: int) -> list[Any]:
        """The accumulators that together hold one kind of a block call's neurons."""
        if not 0 <= depth < self.n_layers:
            raise Refused(f"There is no block call {depth} among the {self.n_layers} of {self.card.model}.")
        parts = sorted((p for p in self.files if (p.kind, p.depth) == (kind, depth)), key=lambda p: p.start)
        if not parts or parts[-1].stop != self.sizes.widths[depth]:
            raise RunError(
                f"{self.folder} has no {kind} sums of block call {depth}: they were not asked for, "
                "or the run is not finished"
            )
        return [self.load(part) for part in parts]

    def load(self, part: Part) -> Any:
        """A part's accumulator."""
        return load_accumulator(part, self.statistics, self.sizes, _part_state(self.files[part], part))


def merge_summaries(folders: Sequence[str | os.PathLike[str]], out: str | os.PathLike[str]) -> Summary:
    """One run out of runs of the same model, statistics, tokens and mask over disjoint ranges of sequences.

    Counts, extremes, histograms and examples are those of one run over all; moments and sums within 1e-12.

    Args:
        folders: two or more run folders.
        out: a new one, or what a killed call left of it.

    Raises:
        RunError: they differ in what they mean, or were cut into other passes.
        MergeError: they overlap, or have other shifts.
    """
    summaries = [Summary.open(folder) for folder in folders]
    first, rest = summaries[0], summaries[1:]
    seen = Ranges(first.ranges)
    for other in rest:
        differences = compare(first.card, other.card)
        if differences:
            raise RunError(
                f"{other.folder} and {first.folder} do not mean the same: {' '.join(map(str, differences))}"
            )
        if other.files.keys() != first.files.keys():
            raise RunError(
                f"{other.folder} and {first.folder} were run with different memory budgets, or one is "
                "not finished; finish both with the same one"
            )
        seen.merge(other.ranges)
    with RunFolder.open_or_create(out, first.card) as run:
        shutil.copy(first.folder / "artifacts" / PILOT, run.artifact(PILOT))
        for path in sorted(set(first.files.values()), key=_number):
            parts = [part for part, file in first.files.items() if file == path]
            state: dict[str, Tensor] = {}
            for part in parts:
                whole = first.load(part)
                for other in rest:
                    whole.merge(other.load(part))
                state |= {f"{part.name}/{name}": x for name, x in whole.state_dict().items()}
            header = {"parts": [list(vars(part).values()) for part in parts], "seen": list(seen)}
            if len(list(seen)) == 1:
                # summarize over the whole range then finds it done.
                header["range"] = list(*seen)
            write_tensors(run.artifact(path.name), state, {k: json.dumps(v) for k, v in header.items()})
    return Summary.open(out)


def _number(path: Path) -> int:
    return int(path.stem.rpartition("-")[2])


def _header(path: Path) -> dict[str, Any]:
    return {name: json.loads(value) for name, value in read_metadata(path).items()}


def _part_state(path: Path, part: Part) -> dict[str, Tensor]:
    """The tensors of one part, the others left on the disk."""
    prefix = f"{part.name}/"
    tensors, _ = read_tensors(path, prefix)
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
