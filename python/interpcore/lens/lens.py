"""The lens: mean Jacobians with their standard errors, merged from parts, and their file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.lens.options import KIND, RULES, SITES
from interpcore.model import Model
from interpcore.model.made_on import MadeOn, check_made_on
from interpcore.runs import RunError, read_tensors, write_tensors
from interpcore.runs.fields import Fields
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_TENSORS = ("jacobian", "standard_error", "reliability")
_NUMBERS = ("count", "target_depth", "skip", "length")
_WORDS = ("site", "rules", "published")


@dataclass(frozen=True, eq=False)
class Moments(ShortRepr):
    """Mean and sum of squared deviations of some prompts' Jacobians; parts merge.

    Args:
        count: prompts.
        mean: [depth, d_model, width]; zero without prompts.
        squares: summed squared deviations from the mean, same shape.
    """

    count: int
    mean: Tensor
    squares: Tensor

    def merge(self, other: Moments) -> Moments:
        """Both together, by Chan's update; the order decides the last bits."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        apart = other.mean - self.mean
        squares = self.squares + other.squares + apart.square() * (self.count * share)
        return Moments(count, self.mean + apart * share, squares)


@dataclass(frozen=True, eq=False)
class Lens(AsTable):
    """The average Jacobian from one site at several depths up to a target depth.

    Args:
        jacobian: mean over prompts of J, entry [n, i, j] that of d target_i / d source_j
            [depth, d_model, width]; at the target depth itself the identity.
        depths: depth of each [depth]: residual depths, or block calls for another site.
        target_depth: residual depth that it leads to, counted from 0.
        count: prompts.
        standard_error: of every entry, prompts as units, same shape; None where it was not kept.
        reliability: of the mean at each depth [depth], see `reliability`; NaN where nothing varies.
        site: what it leads from, one of `options.SITES`; width is d_model, or heads * d_head for z.
        rules: what nonlinear parts passed on, one of `options.RULES`.
        skip: first positions of each prompt that were neither source nor target; None: not recorded.
        length: tokens of a prompt at most; None: not recorded.
        made_on: weights and plan of the model; None where they are not recorded.
        published: what a published file says of itself, as JSON; "" for none.
    """

    jacobian: Tensor
    depths: tuple[int, ...]
    target_depth: int
    count: int
    standard_error: Tensor | None = None
    reliability: Tensor | None = None
    site: str = "resid"
    rules: str = "exact"
    skip: int | None = None
    length: int | None = None
    made_on: MadeOn | None = None
    published: str = ""

    def __post_init__(self) -> None:
        for name, known in (("site", SITES), ("rules", RULES)):
            if getattr(self, name) not in known:
                raise Refused(f"A lens's {name} is one of {', '.join(known)}; got {getattr(self, name)!r}.")
        n, error, reliable = len(self.depths), self.standard_error, self.reliability
        shape = tuple(self.jacobian.shape)
        last = self.target_depth - (self.site != "resid")
        if (
            self.jacobian.dim() != 3
            or shape[0] != n
            or (self.site != "z" and shape[1] != shape[2])
            or (error is not None and error.shape != shape)
            or (reliable is not None and reliable.shape != (n,))
        ):
            raise Refused(
                f"A lens of {n} depths is J and its errors [{n}, d_model, width], and a reliability of each; "
                f"got {shape}, {_shape(error)} and {_shape(reliable)}."
            )
        if (
            list(self.depths) != sorted(set(self.depths))
            or not n
            or self.depths[0] < 0
            or self.depths[-1] > last
        ):
            raise Refused(
                f"A lens from {self.site} to depth {self.target_depth} has ascending depths from 0 to "
                f"{last}, not {self.depths}."
            )

    @classmethod
    def of(
        cls, halves: tuple[Moments, Moments], *, target_depth: int, site: str = "resid", **about: Any
    ) -> Lens:
        """The lens of two halves of the prompts, at every depth; `about` are its other fields.

        Raises: Refused for a half without prompts.
        """
        if not all(half.count for half in halves):
            raise Refused("A lens with standard errors needs two prompts at least; give more text.")
        whole = halves[0].merge(halves[1])
        error = (whole.squares / (whole.count - 1) / whole.count).sqrt()
        reliable = reliability(halves[0].mean, halves[1].mean, carried=site != "z")
        depths = tuple(range(len(whole.mean)))
        return cls(whole.mean, depths, target_depth, whole.count, error, reliable, site, **about)

    def __repr__(self) -> str:
        return (
            f"Lens({self.site} of {len(self.depths)} depths to resid.{self.target_depth}, "
            f"{list(self.jacobian.shape[1:])}, rules {self.rules}, {self.count} prompts)"
        )

    def to_pandas(self) -> pd.DataFrame:
        """One row per depth: size |J - I| (|J| for z), its share of |J|, and where errors were kept the
        size of the standard errors and the reliability of the mean."""
        import pandas as pd

        beyond = beyond_identity(self.jacobian, self.site != "z").flatten(1).norm(dim=1)
        table = {
            "depth": list(self.depths),
            "beyond_identity": beyond.numpy(),
            "share": (beyond / self.jacobian.flatten(1).norm(dim=1)).numpy(),
        }
        if self.standard_error is not None:
            table["standard_error"] = self.standard_error.flatten(1).norm(dim=1).numpy()
        if self.reliability is not None:
            table["reliability"] = self.reliability.numpy()
        return pd.DataFrame(table)

    def plot(self) -> Figure:
        """How reliable the mean is at each depth, and how far it is from the identity."""
        from interpcore.lens.pictures import lens_figure

        return lens_figure(self)

    def at(self, depth: int) -> Tensor:
        """J from a depth [d_model, width].

        Raises: Refused where the lens has none.
        """
        if depth not in self.depths:
            raise Refused(f"The lens has the depths {', '.join(map(str, self.depths))}; got {depth}.")
        return self.jacobian[self.depths.index(depth)]

    def carried(self, h: Tensor, depth: int) -> Tensor:
        """J_d h: states [..., width] of a depth as the target depth would have them on average."""
        return h @ self.at(depth).to(h).mT

    def check_model(self, model: Model, other_model: bool = False) -> None:
        """Raises: Refused for another model than it was made on, or, with `other_model`, of another shape."""
        check_made_on(model, self.made_on, "The lens was", other_model)
        depth, d, spec = model.plan.n_calls, model.spec.d_model, model.spec
        width = spec.n_heads * spec.d_head if self.site == "z" else d
        if self.target_depth > depth or tuple(self.jacobian.shape[1:]) != (d, width):
            raise Refused(
                f"The lens leads to depth {self.target_depth} with maps {list(self.jacobian.shape[1:])}; "
                f"{spec.name} has {depth} depths, and its maps are {[d, width]}."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors."""
        tensors = {name: getattr(self, name) for name in _TENSORS if getattr(self, name) is not None}
        numbers = {n: str(getattr(self, n)) for n in _NUMBERS if getattr(self, n) is not None}
        words = {name: getattr(self, name) for name in _WORDS if getattr(self, name)}
        made_on = {} if self.made_on is None else self.made_on.to_json()
        depths = ",".join(map(str, self.depths))
        write_tensors(path, tensors, {"kind": KIND, "depths": depths, **numbers, **words, **made_on})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Lens:
        """Read what `save` wrote.

        Raises: RunError for another kind of file.
        """
        tensors, about = read_tensors(path)
        if about.get("kind") != KIND or "jacobian" not in tensors or set(tensors) - set(_TENSORS):
            raise RunError(f"{path} holds no Jacobian lens; give a file that `lens fit` wrote")
        for name, tensor in tensors.items():
            # A reliability may be NaN, where nothing varies.
            finite = name == "reliability" or bool(tensor.isfinite().all())
            if not tensor.is_floating_point() or not finite:
                raise RunError(f"{path} holds a {name} that is not finite numbers throughout; fit it again")
        numbers = {name: about[name] for name in _NUMBERS if name in about}
        # Files of the first edition name no depths: theirs were all up to the target's.
        depths = about["depths"].split(",") if "depths" in about else None
        if not {"count", "target_depth"} <= set(numbers) or not all(
            n.isdecimal() and len(n) < 9 for n in [*numbers.values(), *(depths or ())]
        ):
            raise RunError(f"{path} does not say what its lens was made of; fit it again")
        made_on = MadeOn.read(Fields(about, str(path), RunError))
        words = {name: about[name] for name in _WORDS if name in about}
        given: dict[str, Any] = {**tensors, **{name: int(n) for name, n in numbers.items()}, **words}
        given["depths"] = tuple(map(int, depths)) if depths else tuple(range(len(tensors["jacobian"])))
        try:
            return cls(**given, made_on=made_on)
        except Refused as error:
            raise RunError(f"{path} holds no lens: {error}") from error


def _shape(tensor: Tensor | None) -> str:
    return "none" if tensor is None else str(tuple(tensor.shape))


def reliability(first: Tensor, second: Tensor, carried: bool = True) -> Tensor:
    """How far the mean of all prompts would come again on as many others: the correlation r of the halves'
    J - I over its entries, stepped up to both halves' length by Spearman and Brown's 2 r / (1 + r).

    The identity is what the stream itself carries; left in, it would make every lens look reliable.

    Args:
        first, second: means of the halves [depth, d_model, width].
        carried: whether the stream carries the site as it is; else nothing is taken off.
    Returns: [depth], NaN where nothing varies.
    """
    one, two = (beyond_identity(half, carried).flatten(1).double() for half in (first, second))
    r = correlations(one, two)
    return 2 * r / (1 + r)


def beyond_identity(jacobian: Tensor, carried: bool = True) -> Tensor:
    """J - I [depth, d_model, d_model], or J as it is where the stream does not carry the site."""
    if not carried:
        return jacobian
    return jacobian - torch.eye(jacobian.shape[-1], dtype=jacobian.dtype, device=jacobian.device)


def correlations(one: Tensor, two: Tensor) -> Tensor:
    """Correlation of each row of two tensors [row, n], NaN where one does not vary."""
    one, two = one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True)
    return (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
