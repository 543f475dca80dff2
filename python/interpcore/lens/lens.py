"""The lens: mean Jacobians with their standard errors, merged from parts, and their file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.lens.options import KIND
from interpcore.model import Model
from interpcore.model.made_on import MadeOn, check_made_on
from interpcore.runs import RunError, read_tensors, write_tensors
from interpcore.runs.fields import Fields

_NUMBERS = ("count", "target_depth", "skip", "length")


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and sum of squared deviations of some prompts' Jacobians; parts merge.

    Args:
        count: prompts.
        mean: [depth, d_model, d_model]; zero without prompts.
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
class Lens:
    """The average Jacobian from every depth up to a target depth.

    Args:
        jacobian: mean over prompts of J, entry [d, i, j] that of d target_i / d resid[d]_j
            [depth, d_model, d_model], depths 0 to the target, where it is the identity.
        standard_error: of every entry, prompts as units, same shape.
        reliability: of the mean at each depth [depth], see `reliability`; NaN where nothing varies.
        count: prompts.
        target_depth: residual depth that it leads to, counted from 0.
        skip: first positions of each prompt that were neither source nor target.
        length: tokens of a prompt at most.
        made_on: weights and plan of the model.
    """

    jacobian: Tensor
    standard_error: Tensor
    reliability: Tensor
    count: int
    target_depth: int
    skip: int
    length: int
    made_on: MadeOn

    def __post_init__(self) -> None:
        d = self.jacobian.shape[-1]
        if tuple(self.jacobian.shape) != (self.target_depth + 1, d, d) or (
            (self.standard_error.shape, self.reliability.shape)
            != (self.jacobian.shape, self.jacobian.shape[:1])
        ):
            raise Refused(
                f"A lens to depth {self.target_depth} is J and its errors [{self.target_depth + 1}, d_model, "
                f"d_model], and a reliability of each depth; got {tuple(self.jacobian.shape)}, "
                f"{tuple(self.standard_error.shape)} and {tuple(self.reliability.shape)}."
            )

    @classmethod
    def of(
        cls, halves: tuple[Moments, Moments], *, target_depth: int, skip: int, length: int, made_on: MadeOn
    ) -> Lens:
        """The lens of two halves of the prompts.

        Raises: Refused for a half without prompts.
        """
        if not all(half.count for half in halves):
            raise Refused("A lens with standard errors needs two prompts at least; give more text.")
        whole = halves[0].merge(halves[1])
        error = (whole.squares / (whole.count - 1) / whole.count).sqrt()
        return cls(
            whole.mean,
            error,
            reliability(halves[0].mean, halves[1].mean),
            whole.count,
            target_depth,
            skip,
            length,
            made_on,
        )

    def carried(self, h: Tensor, depth: int) -> Tensor:
        """J_d h: states [..., d_model] of a depth as the target depth would have them on average."""
        return h @ self.jacobian[depth].to(h).mT

    def check_model(self, model: Model, other_model: bool = False) -> None:
        """Raises: Refused for another model than it was made on, or, with `other_model`, of another shape."""
        check_made_on(model, self.made_on, "The lens was", other_model)
        depth, d = model.plan.n_calls, model.spec.d_model
        if self.target_depth > depth or self.jacobian.shape[-1] != d:
            raise Refused(
                f"The lens leads to depth {self.target_depth} of width {self.jacobian.shape[-1]}; "
                f"{model.spec.name} has {depth} depths of width {d}."
            )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as safetensors."""
        tensors = {name: getattr(self, name) for name in ("jacobian", "standard_error", "reliability")}
        numbers = {name: str(getattr(self, name)) for name in _NUMBERS}
        write_tensors(path, tensors, {"kind": KIND, **numbers, **self.made_on.to_json()})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Lens:
        """Read what `save` wrote.

        Raises: RunError for another kind of file.
        """
        tensors, about = read_tensors(path)
        wanted = {"jacobian", "standard_error", "reliability"}
        if about.get("kind") != KIND or set(tensors) != wanted:
            raise RunError(f"{path} holds no Jacobian lens; give a file that `lens fit` wrote")
        numbers = {name: about.get(name, "") for name in _NUMBERS}
        made_on = MadeOn.read(Fields(about, str(path), RunError))
        if made_on is None or not all(n.isdecimal() and len(n) < 9 for n in numbers.values()):
            raise RunError(f"{path} does not say what its lens was made of; fit it again")
        for name in ("jacobian", "standard_error"):
            if not tensors[name].is_floating_point() or not bool(tensors[name].isfinite().all()):
                raise RunError(f"{path} holds a {name} that is not finite numbers throughout; fit it again")
        try:
            given: dict[str, Any] = {**tensors, **{name: int(n) for name, n in numbers.items()}}
            return cls(**given, made_on=made_on)
        except Refused as error:
            raise RunError(f"{path} holds no lens: {error}") from error


def reliability(first: Tensor, second: Tensor) -> Tensor:
    """How far the mean of all prompts would come again on as many others: the correlation r of the halves'
    J - I over its entries, stepped up to both halves' length by Spearman and Brown's 2 r / (1 + r).

    The identity is what the stream itself carries; left in, it would make every lens look reliable.

    Args:
        first, second: means of the halves [depth, d_model, d_model].
    Returns: [depth], NaN where J - I does not vary.
    """
    eye = torch.eye(first.shape[-1], dtype=first.dtype, device=first.device)
    one, two = ((half - eye).flatten(1).double() for half in (first, second))
    one, two = one - one.mean(1, keepdim=True), two - two.mean(1, keepdim=True)
    r = (one * two).sum(1) / (one.norm(dim=1) * two.norm(dim=1))
    return 2 * r / (1 + r)
