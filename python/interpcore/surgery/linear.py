"""Affine maps from the stream before some blocks to the stream after them, closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model import Model
from interpcore.model.jacobians import jacobians
from interpcore.ops import comoments

LAMBDAS = (0.0, 1e-6, 1e-4, 1e-2, 1e-1)
AT_ONCE = 32  # prompts of one Jacobian


@dataclass(frozen=True, eq=False)
class Map(ShortRepr):
    """x -> matrix x + offset.

    Args:
        matrix: [d, d]. offset: [d]; both float64.
    """

    matrix: Tensor
    offset: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """The mapped states [..., d]."""
        return x @ self.matrix.to(x).mT + self.offset.to(x)


class Fit:
    """Means and covariances of paired states, from which every map follows.

    Args:
        x, y: states before and after [token, d], of the same tokens.
    """

    def __init__(self, x: Tensor, y: Tensor):
        own, cross = comoments(x, x), comoments(y, x)
        self.mean_x, self.mean_y = own.x.mean.double(), cross.x.mean.double()
        self.cross = cross.covariance
        self.values, self.vectors = torch.linalg.eigh(own.covariance)
        self.trace = self.values.sum()

    def ridge(self, damping: float) -> Map:
        """W = G (C + lambda (tr C / d) I)^-1 with G = cov(y, x), C = cov(x); for lambda = 0 the least-squares
        map of least norm."""
        d = len(self.values)
        denominators = self.values + damping * self.trace / d
        floor = torch.finfo(torch.float64).eps * d * self.values.max()
        inverse = torch.where(denominators > floor, 1 / denominators.clamp(min=floor), 0.0)
        return self.of((self.cross @ self.vectors * inverse) @ self.vectors.mT)

    def of(self, matrix: Tensor) -> Map:
        """A matrix with the offset that keeps the means."""
        return Map(matrix, self.mean_y - matrix @ self.mean_x)

    def mean_shift(self) -> Map:
        """x plus the mean change."""
        return self.of(torch.eye(len(self.mean_x), dtype=torch.float64, device=self.mean_x.device))

    def constant(self) -> Map:
        """Always the mean."""
        return self.of(torch.zeros(len(self.mean_x), len(self.mean_x), dtype=torch.float64))


def low_rank(ridge: Map, rank: int, fit: Fit) -> Map:
    """I + the best approximation of W - I by a rank."""
    eye = torch.eye(len(ridge.offset), dtype=torch.float64)
    u, s, v = torch.linalg.svd(ridge.matrix - eye)
    return fit.of(eye + u[:, :rank] * s[:rank] @ v[:rank])


def mean_jacobian(
    model: Model, prompts: Sequence[Sequence[int]], source: int, target: int, draws: int, seed: int
) -> Tensor:
    """Mean over random (prompt, position) draws of d resid[target] / d resid[source] at one position [d, d].

    Args:
        model: under the intact plan.
        prompts: token ids.
        source, target: depths.
        draws: tokens drawn, each as likely as any other.
        seed: of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    places = [(i, p) for i, prompt in enumerate(prompts) for p in range(len(prompt))]
    chosen = [places[int(k)] for k in torch.randint(len(places), (draws,), generator=generator)]
    chosen.sort(key=lambda place: place[1])
    total = torch.zeros(model.spec.d_model, model.spec.d_model, dtype=torch.float64, device=model.device)
    for at in range(0, draws, AT_ONCE):
        part = chosen[at : at + AT_ONCE]
        width = max(p for _, p in part) + 1
        rows = torch.zeros(len(part), width, dtype=torch.int64)
        mask = torch.zeros(len(part), width, dtype=torch.int64)
        for row, (i, p) in enumerate(part):
            rows[row, : p + 1] = torch.tensor(prompts[i][: p + 1])
            mask[row, : p + 1] = 1
        where = torch.tensor([p for _, p in part])
        found = jacobians(
            model,
            rows.to(model.device),
            mask,
            source_position=where,
            target_position=where,
            source_depths=[source],
            target_depth=target,
            reduce="mean",
        ).values
        assert isinstance(found, Tensor)
        total += found.reshape(total.shape).double() * len(part)
    return total / draws
