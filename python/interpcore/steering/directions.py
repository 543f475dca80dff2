"""Directions: one vector at each depth of a site, with what it was made of, and their file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import MadeOn, check_made_on
from interpcore.runs import RunError, read_tensors, tensors_hash, write_tensors
from interpcore.runs.fields import Fields, parse_json
from interpcore.runs.shown import AsTable
from interpcore.steering.options import KIND, directions_file

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Directions(AsTable):
    """Vectors from recall to reasoning (or from any label to another) at every depth of some sites.

    Args:
        vectors: site -> [depth, d_model] float64, as fitted: of a difference in means its own length.
        norms: site -> length of the mean state at each depth [depth], what "norm" scales by.
        shuffled: site -> the same fit with shuffled labels [shuffle, depth, d_model].
        made_on: weights and plan of the model; None where the file that they come from does not say.
        about: method, tokens, hash of the questions, how many of each label, template.
    """

    vectors: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]
    shuffled: Mapping[str, Tensor] = field(default_factory=dict)
    made_on: MadeOn | None = None
    about: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.vectors:
            raise Refused("A file of directions without a direction.")
        for site, vectors in self.vectors.items():
            shape, shuffled = vectors.shape, self.shuffled.get(site)
            if vectors.dim() != 2 or site not in self.norms or self.norms[site].shape != shape[:1]:
                raise Refused(f"Directions at {site} are [depth, d_model] with a norm of each depth.")
            if shuffled is not None and (shuffled.dim() != 3 or shuffled.shape[1:] != shape):
                raise Refused(f"Shuffled directions at {site} are [shuffle, depth, d_model].")

    def to_pandas(self) -> pd.DataFrame:
        """One row per site and depth: length of the direction, that of the mean state, and their ratio;
        beside it the mean ratio of shuffled labels' directions, NaN without any."""
        import pandas as pd

        rows = [
            {
                "site": site,
                "depth": depth,
                "length": float(vector.norm()),
                "state": float(self.norms[site][depth]),
                "share": float(vector.norm() / self.norms[site][depth]),
                "shuffled": float(self.shuffled[site][:, depth].norm(dim=1).mean() / self.norms[site][depth])
                if site in self.shuffled
                else float("nan"),
            }
            for site, vectors in self.vectors.items()
            for depth, vector in enumerate(vectors)
        ]
        return pd.DataFrame(rows)

    def at(self, site: str) -> Tensor:
        """The directions of a site [depth, d_model]. Raises: Refused for a site that the file lacks."""
        if site not in self.vectors:
            raise Refused(f"The directions are of {', '.join(self.vectors)}, not of {site}.")
        return self.vectors[site]

    def unit(self, site: str, depth: int, shuffle: int | None = None) -> Tensor:
        """The direction of length one [d_model] float64.

        Args:
            site, depth: where.
            shuffle: number of a shuffling of the labels; None for the direction itself.
        Raises: Refused for a site or depth that the file lacks, and a direction that is zero or not finite.
        """
        whole = self.at(site)
        found = whole if shuffle is None else self._shuffling(site, shuffle)
        if not 0 <= depth < len(found):
            raise Refused(f"The directions at {site} have depths 0 to {len(found) - 1}; got {depth}.")
        return unit(found[depth], f"The direction at {site}.{depth}")

    def _shuffling(self, site: str, shuffle: int) -> Tensor:
        there = self.shuffled.get(site)
        if there is None or shuffle >= len(there):
            n = 0 if there is None else len(there)
            raise Refused(
                f"The directions hold {n} shufflings of the labels; make them with more (--shuffles)."
            )
        return there[shuffle]

    def check_model(self, model: Model | GenericModel, other_model: bool = False) -> None:
        """Raises: Refused for another model than they were made on, or, with `other_model`, another shape."""
        check_made_on(model, self.made_on, "The directions were", other_model)
        from interpcore.steering.moments import site_depths

        for site, vectors in self.vectors.items():
            here = site_depths(model, site), model.spec.d_model
            if tuple(vectors.shape) != here:
                raise Refused(
                    f"The directions at {site} have {vectors.shape[0]} depths of width {vectors.shape[1]}; "
                    f"{model.spec.name} has {here[0]} of {here[1]}."
                )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write them as safetensors, what they are in the header."""
        header = {"kind": KIND, "about": json.dumps(dict(self.about))}
        if self.made_on is not None:
            header |= self.made_on.to_json()
        write_tensors(path, self._tensors(), header)

    def hash(self) -> str:
        """What a card says of them: a hash of their vectors, norms and shufflings."""
        return tensors_hash(self._tensors())

    def _tensors(self) -> dict[str, Tensor]:
        parts = {"vectors": self.vectors, "norms": self.norms, "shuffled": self.shuffled}
        return {f"{site}.{name}": v.contiguous() for name, part in parts.items() for site, v in part.items()}

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Directions:
        """Read what `save` wrote: the file, or the run folder that holds it.

        Raises: RunError for another kind of file.
        """
        path = directions_file(path)
        tensors, header = read_tensors(path)
        if header.get("kind") != KIND:
            raise RunError(f"{path} holds no directions; give a file that `steering directions` wrote")
        parts: dict[str, dict[str, Tensor]] = {"vectors": {}, "norms": {}, "shuffled": {}}
        for name, value in tensors.items():
            site, _, part = name.rpartition(".")
            if part not in parts or not site or not value.is_floating_point():
                raise RunError(f"{path} holds {name!r}, which is no part of a direction; make it again")
            if not bool(value.isfinite().all()):
                raise RunError(f"{path} holds {name} that is not finite throughout; make it again")
            parts[part][site] = value.double()
        try:
            about = {str(k): str(v) for k, v in dict(parse_json(header.get("about", "{}"))).items()}
            given: dict[str, Any] = parts
            return cls(**given, made_on=MadeOn.read(Fields(header, str(path), RunError)), about=about)
        except (Refused, ValueError, TypeError) as error:
            raise RunError(f"{path} holds no directions: {error}") from error


def unit(vector: Tensor, what: str = "The direction") -> Tensor:
    """A vector [..., d] of length one float64.

    Raises: Refused for one that is zero or not finite.
    """
    wide = vector.double()
    length = wide.norm(dim=-1, keepdim=True)
    if not bool(length.isfinite().all()):
        raise Refused(f"{what} is not finite; fit it again.")
    if bool((length == 0).any()):
        raise Refused(f"{what} is zero, so it points nowhere; take another depth or site.")
    return wide / length
