"""Interventions: what is written where, as one affine form, compiled to edits for a batch of prompts.

x -> x + left (right^T x) + offset is addition (no right), amplification and ablation (left = c u, right = u),
clamping (the component along u set to a value) and any low-rank map; a function of one's own is the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model import Add, Edit, Function, Model
from interpcore.model.call import Address
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import MadeOn, check_made_on
from interpcore.model.maps import Map, Selection
from interpcore.model.sites import SITES, at_depths
from interpcore.steering.directions import unit

KINDS = ("add", "amplify", "ablate", "clamp", "low-rank")
WHERE = ("all", "last", "onward", "answer")
Positions = str | slice | tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Steer(Map):
    """x -> x + left (right^T x) + offset over the last dimension.

    Args:
        left, right: [rank, d], or one of each edit row [row, rank, d].
        offset: [d], or one of each edit row [row, d].
    """

    left: Tensor
    right: Tensor
    offset: Tensor

    @classmethod
    def stacked(cls, maps: Sequence[Steer], features: int) -> Map | None:
        """See `Map.stacked`."""
        parts = [[getattr(one, name) for one in maps] for name in ("left", "right", "offset")]
        alike = all(
            p.dim() == 2 - (i == 2) and p.shape == part[0].shape for i, part in enumerate(parts) for p in part
        )
        return cls(*(torch.stack(part) for part in parts)) if alike else None

    def __call__(self, x: Tensor, at: Selection) -> Tensor:
        return self.jvp(x, x, at) + _aligned(self.offset, x, at, 1)

    def jvp(self, tangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        """See `Map`."""
        left, right = (_aligned(part, x, at, 2).to(tangent.dtype) for part in (self.left, self.right))
        return tangent + (tangent[..., None, :] * right).sum(-1, keepdim=True).mul(left).sum(-2)

    def vjp(self, cotangent: Tensor, x: Tensor, at: Selection) -> Tensor:
        """See `Map`."""
        return replace(self, left=self.right, right=self.left).jvp(cotangent, x, at)


def _aligned(operand: Tensor, x: Tensor, at: Selection, dims: int) -> Tensor:
    """An operand of `dims` dimensions, or of one more with the edit rows in front, against x [selected,
    *feature]."""
    operand = operand.to(device=x.device, dtype=x.dtype)
    if operand.dim() == dims:
        return operand
    own = operand[at.row.to(x.device)]
    return own.view(len(own), *[1] * (x.dim() - 2), *own.shape[1:])


@dataclass(frozen=True, eq=False)
class Part(ShortRepr):
    """One edit of an intervention.

    Args:
        site, depth: where, as in `Edit`: a depth, or (group, block, step or range of steps).
        kind: one of `KINDS`, or "function".
        vector: what "add" adds once (any length), the direction (any length) of "amplify", "ablate" and
            "clamp" [d]; the left factors [rank, d] of "low-rank"; None for "function".
        coefficient: of "add", "amplify" (x + c (x.u) u) and "low-rank"; the value that "clamp" sets.
        positions: "all"; "last", the prompt's last token; "onward", it and all that follow; "answer", what
            follows it; or absolute ones, a slice or numbers, whatever the padding and caching.
        heads: of per-head sites.
        bias: "clamp" sets the component of x - bias [d].
        right: right factors of "low-rank" [rank, d].
        function: x [selected, *feature] -> the same shape, for "function".
    """

    site: str
    depth: Address | None
    kind: str
    vector: Tensor | None = None
    coefficient: float = 1.0
    positions: Positions = "all"
    heads: tuple[int, ...] | None = None
    bias: Tensor | None = None
    right: Tensor | None = None
    function: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.kind == "function":
            if self.function is None:
                raise Refused("An edit of the kind 'function' needs a function.")
            return
        if self.kind not in KINDS:
            raise Refused(f"An edit's kind is one of {', '.join(KINDS)}, function; got {self.kind!r}.")
        if self.vector is None or not bool(self.vector.isfinite().all()):
            raise Refused(f"The {self.kind} at {self.place} needs a vector of finite numbers.")
        if self.coefficient != self.coefficient or abs(self.coefficient) == float("inf"):
            raise Refused(f"The {self.kind} at {self.place} has the coefficient {self.coefficient}.")
        if isinstance(self.positions, str) and self.positions not in WHERE:
            raise Refused(f"Positions are {', '.join(WHERE)}, or absolute ones; got {self.positions!r}.")
        if self.kind == "low-rank" and (self.right is None or self.right.shape != self.vector.shape):
            raise Refused("A low-rank edit has as many right as left factors, [rank, d] both.")
        if self.kind != "low-rank" and self.vector.dim() != 1:
            raise Refused(f"The {self.kind} at {self.place} takes one vector [d].")
        if self.bias is not None and self.kind != "clamp":
            raise Refused(f"Only a clamp has a bias; the edit at {self.place} is {self.kind}.")
        if self.kind in ("amplify", "ablate", "clamp"):
            unit(self.vector, f"The direction of the {self.kind} at {self.place}")

    @property
    def place(self) -> str:
        """Its site and depth in words."""
        return self.site if self.depth is None else f"{self.site}.{self.depth}"

    def map(self) -> Map:
        """What it does to the activations that it selects."""
        if self.kind == "function":
            assert self.function is not None
            return Function(self.function)
        assert self.vector is not None
        if self.kind == "add":
            return Add(self.vector, self.coefficient)
        nothing = torch.zeros_like(self.vector if self.vector.dim() == 1 else self.vector[0])
        if self.kind == "low-rank":
            assert self.right is not None
            return Steer(self.coefficient * self.vector, self.right, nothing)
        u = unit(self.vector)
        if self.kind == "clamp":
            at = self.coefficient + (0.0 if self.bias is None else float(u @ self.bias.double()))
            return Steer(-u[None], u[None], at * u)
        factor = self.coefficient if self.kind == "amplify" else -1.0
        return Steer(factor * u[None], u[None], nothing.double())


@dataclass(frozen=True, eq=False)
class Intervention:
    """Edits made together, in their order where several write one place.

    Args:
        parts: the edits.
        name: what tables call it.
        made_on: the model whose directions it writes; None where that is not known.
    """

    parts: tuple[Part, ...] = ()
    name: str = "none"
    made_on: MadeOn | None = None

    def edits(
        self, model: Model | GenericModel, lengths: Tensor, totals: Tensor | None = None, more: int = 0
    ) -> list[Edit]:
        """The edits for a batch of texts.

        Args:
            model: what runs them.
            lengths: tokens of each row's prompt [row], what "last" and "onward" count from.
            totals: tokens of each row [row]; None: the prompts alone.
            more: tokens that will be generated after them.
        Raises: Refused for a site or depth that the model lacks.
        """
        totals = lengths if totals is None else totals
        found = []
        for part in self.parts:
            plain = Edit(part.site, part.depth, None, part.map(), heads=part.heads)
            places = placed(part.positions, lengths, totals, more, model.keeps_cache)
            for one in at_depths(plain, model.plan, model.spec.absent):
                found += [replace(one, rows=rows, positions=at) for rows, at in places]
        return found

    @property
    def unwritten(self) -> str | None:
        """Why `verify` does not write it out, in one sentence; None where it does."""
        for part in self.parts:
            whole = SITES[part.site].shape == "[batch, position, d_model]" and part.site != "final_norm"
            if part.kind == "function" or not whole or not isinstance(part.depth, int | None):
                return f"The {part.kind} at {part.place} is not written out in float64."
        return None

    def check_model(self, model: Model | GenericModel, other_model: bool = False) -> None:
        """Raises: Refused for a model that it cannot be run on, or was not made for."""
        check_made_on(model, self.made_on, "The intervention was", other_model)
        sizes = {"d_model": model.spec.d_model, "d_mlp": model.spec.d_mlp, "d_head": model.spec.d_head}
        for part in self.parts:
            at_depths(
                Edit(part.site, part.depth, None, Add(torch.zeros(1)), heads=part.heads),
                model.plan,
                model.spec.absent,
            )
            last = SITES[part.site].shape.strip("[]").split(", ")[-1]
            width = sizes.get(last, model.spec.vocab_size)
            if last == "key":
                raise Refused("Attention scores have as many entries as there are keys; no vector fits them.")
            if part.vector is not None and part.vector.shape[-1] != width:
                raise Refused(
                    f"The {part.kind} at {part.place} has {part.vector.shape[-1]} entries; the site has "
                    f"{width} in {model.spec.name}."
                )

    def scaled(self, factor: float) -> Intervention:
        """With every coefficient multiplied by a factor."""
        return replace(self, parts=tuple(replace(p, coefficient=p.coefficient * factor) for p in self.parts))

    def random(self, seed: int) -> Intervention:
        """The control: every vector replaced by one of its length that points anywhere. Edits that write the
        same direction keep writing one and the same.

        Raises: Refused for parts that are functions.
        """
        draw = torch.Generator().manual_seed(seed)
        drawn: dict[bytes, Tensor] = {}
        parts = []
        for part in self.parts:
            if part.vector is None or part.kind == "low-rank":
                raise Refused(f"There is no random direction for the {part.kind} at {part.place}.")
            key = part.vector.double().numpy(force=True).tobytes()
            if key not in drawn:
                drawn[key] = random_like(part.vector, draw)
            parts.append(replace(part, vector=drawn[key]))
        return replace(self, parts=tuple(parts), name=f"random {seed}")


def random_like(vector: Tensor, draw: torch.Generator) -> Tensor:
    """A vector of the same length that points anywhere [..., d] float64."""
    found = torch.randn(vector.shape, generator=draw, dtype=torch.float64)
    return found / found.norm(dim=-1, keepdim=True) * vector.double().cpu().norm(dim=-1, keepdim=True)


def placed(
    positions: Positions, lengths: Tensor, totals: Tensor, more: int = 0, cached: bool = True
) -> list[tuple[list[int] | None, Any]]:
    """Rows (None: all) and positions, as in `Edit`, that an intervention's positions mean in a batch.

    Args:
        positions: as in `Part`.
        lengths, totals: tokens of each row's prompt, and of the row [row] int64.
        more: tokens still to come, which only an edit in a forward with a cache can reach beforehand.
        cached: whether the model keeps one.
    """
    if positions == "all":
        return [(None, None)]
    if not isinstance(positions, str):
        return [(None, positions if isinstance(positions, slice) else list(positions))]
    first = lengths - 1 + (positions == "answer")
    if positions == "last":
        return [(None, first)]
    if bool((first == first[0]).all()):
        return [(None, slice(int(first[0]), None))]
    if more and not cached:
        return [([row], slice(int(at), None)) for row, at in enumerate(first)]
    last = totals + more - 1
    rows = (first <= last).nonzero()[:, 0]
    if not len(rows):
        return []
    n = int((last - first).max()) + 1
    # An entry named twice is written twice with the same value.
    at = torch.minimum(first[rows, None] + torch.arange(n), last[rows, None])
    return [(None if len(rows) == len(first) else rows.tolist(), at)]


def everywhere(
    model: Model | GenericModel, direction: Tensor, scale: float = 0.1, skip: int = 0, kind: str = "amplify"
) -> Intervention:
    """LiReFs' recipe: one direction, of one layer, at the input, attention output and MLP output of every
    block and at all tokens; x + scale (x.r) r.

    Args:
        model: the decoder.
        direction: r, any length [d_model].
        scale: theirs is 0.1; -1 is ablation.
        skip: first blocks left alone.
        kind: "amplify" as published, or another.
    """
    sites = ("resid", "attn_out", "mlp_out")
    parts = tuple(
        Part(site, depth, kind, direction, scale)
        for depth in range(skip, model.plan.n_calls)
        for site in sites
    )
    return Intervention(parts, f"everywhere {scale:g}")


def each_site(
    directions: Any,
    depths: Sequence[int],
    *,
    sites: Sequence[str] = ("resid",),
    kind: str = "add",
    scale: str = "unit",
    coefficient: float = 1.0,
    positions: Positions = "all",
    shuffle: int | None = None,
) -> Intervention:
    """The recurrent-steering study's recipe: every site its own direction.

    Args:
        directions: of those sites.
        depths: where, from 0.
        sites: which.
        kind: one of `KINDS` but "low-rank".
        scale: of "add" and "clamp": "unit", the direction's length is one; "norm", that of the mean state
            there; "own", as it was fitted.
        coefficient, positions: as in `Part`.
        shuffle: take the directions of a shuffling of the labels.
    Raises: Refused for a direction that is not there, zero or not finite.
    """
    parts = []
    for depth in depths:
        for site in sites:
            u = directions.unit(site, depth, shuffle)
            length = {"unit": 1.0, "norm": float(directions.norms[site][depth])}.get(scale)
            if scale == "own":
                length = float(directions.vectors[site][depth].norm())
            if length is None:
                raise Refused(f"A direction's scale is unit, norm or own; got {scale!r}.")
            factor = length if kind in ("add", "clamp") else 1.0
            at = None if SITES[site].depths == "none" else depth
            vector = u * factor if kind == "add" else u
            value = coefficient * factor if kind == "clamp" else coefficient
            parts.append(Part(site, at, kind, vector, value, positions))
    name = "direction" if shuffle is None else f"shuffled {shuffle}"
    return Intervention(tuple(parts), name, directions.made_on)


RECIPES = {"each-site": each_site, "everywhere": everywhere}
"""The two published recipes by name; they are different experiments."""
