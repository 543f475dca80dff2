"""The steps of a study that compare its model with others, each in a run folder of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.errors import Refused
from interpcore.neurons.correlation.correlate import correlate, merge_sums, sums_path
from interpcore.neurons.correlation.cross_sums import tile_bytes
from interpcore.neurons.correlation.jackknife import Jackknife, jackknife
from interpcore.neurons.correlation.nulls import null_baseline
from interpcore.neurons.correlation.reduction import FILE
from interpcore.neurons.correlation.setup import Correlations, Study
from interpcore.neurons.correlation.sketch import Sketched, correlate_by_sketch
from interpcore.neurons.correlation.universal import similar_shares
from interpcore.neurons.parts import begun_parts
from interpcore.neurons.statistics.summarize import part_range
from interpcore.runs import RunFolder, write_tensors
from interpcore.runs.frames import read_frame, write_frame

if TYPE_CHECKING:
    import pandas as pd


@dataclass(eq=False)
class CorrelationSteps:
    """What a study knows of other models' neurons.

    Args:
        folder: the study's.
        of: models (the study's first), tokens and settings.
        open_run: opens the run folder of a step, by its name and further arguments of its card.
        progress: show it.
        share: makes the sums of parts, given how many there may be and the bytes of one's sums, and returns
            their run folders; none where the sums are one piece.
    """

    folder: Path
    of: Study
    open_run: Callable[..., RunFolder]
    progress: bool = True
    share: Callable[[int, float], Sequence[Path]] = lambda most, size: ()

    @property
    def meaning(self) -> dict[str, Any]:
        """The settings; how they are cut into passes is no part of what they mean."""
        return {name: x for name, x in self.of.described().items() if name != "budget"}

    @cached_property
    def correlations(self) -> Correlations:
        """Correlations of all neurons."""
        parts = () if self._summed else self.share(-(-self.of.n_blocks // self.of.stride), self._size)
        if parts:
            self._merge(parts)
        with self._run("correlation") as run:
            found = self._correlate(run, None)
            assert found is not None
            for (a, b), partners in found.partners.items():
                path = run.artifact(f"partners/{a}-{b}.safetensors")
                if not path.is_file():  # what is done is read where nothing can be written, too
                    widths = {"widths": " ".join(map(str, found.sets[b].widths))}
                    write_tensors(path, partners.tensors(), widths)
        return found

    def part(self, number: int, of: int) -> Path:
        """Sums of part `number` (from 1) of `of` of the tokens, so that several processes share them; returns
        the step's folder."""
        step = f"correlation-{number}-of-{of}"
        span = part_range(self.of.shards, number, of, self.of.step)
        with self._run(step) as run:
            self._correlate(run, span)
        return self.folder / step

    def merge(self) -> Correlations:
        """The correlations out of the parts that are there.

        Raises:
            Refused: there are none.
            RunError: they are not all of the tokens, or do not fit together.
        """
        parts = begun_parts(self.folder, "correlation")
        if not parts:
            raise Refused(
                f"{self.folder} has no parts of correlations; make them with --part 1/2 and --part 2/2."
            )
        self._merge(parts)
        return self.correlations

    def sketched(self, buckets: int, threshold: float) -> Sketched:
        """Correlations by a sketch of so many buckets, exact where the excess may reach the threshold."""
        with self._run("sketch", buckets=buckets, universal=threshold) as run:
            return correlate_by_sketch(
                self.of.models,
                self.of.shards,
                self.of.settings,
                buckets=buckets,
                threshold=threshold,
                folder=run.artifact("sums"),
                progress=self.progress,
            )

    @cached_property
    def similar(self) -> pd.DataFrame:
        """Shares of neurons with a partner like them, beside partners with shuffled tokens: what
        `similar_shares` gives."""
        found = self.correlations
        with self._run("similar") as run:
            path = run.artifact("similar")
            if not path.with_suffix(".parquet").is_file():
                null = null_baseline(self.of.models, self.of.shards, "permutation", self.of.settings)
                write_frame(path, similar_shares(found, null))
            return read_frame(path.with_suffix(".parquet"))

    @cached_property
    def jackknife(self) -> Jackknife | None:
        """Standard errors of the correlations; None with fewer than 20 groups."""
        if self.of.settings.groups < 20:
            return None
        folder = self.folder / "correlation" / "artifacts" / "sums"
        models, shards = self.of.models, self.of.shards
        return jackknife(models, shards, self.correlations, folder=folder, progress=self.progress)

    @property
    def _summed(self) -> bool:
        """Whether the sums are there, or what was made of them."""
        sums = self.folder / "correlation" / "artifacts" / "sums"
        kept = (sums_path(sums, number) for number in range(len(self.of.passes)))
        return (sums / FILE).is_file() or all(path.is_file() for path in kept)

    @property
    def _size(self) -> int:
        """Bytes of the sums."""
        return sum(tile_bytes(self.of.sets, tile) for tiles in self.of.passes for tile in tiles)

    def _merge(self, parts: Sequence[Path]) -> None:
        sums = [part / "artifacts" / "sums" for part in parts]
        with self._run("correlation") as run:
            merge_sums(sums, run.artifact("sums"), self.of.models, self.of.shards, self.of.settings)

    def _correlate(self, run: RunFolder, span: tuple[int, int] | None) -> Correlations | None:
        sums, of = run.artifact("sums"), self.of
        return correlate(of.models, of.shards, of.settings, folder=sums, span=span, progress=self.progress)

    def _run(self, step: str, **more: Any) -> RunFolder:
        return self.open_run(step, **self.meaning, **more)
