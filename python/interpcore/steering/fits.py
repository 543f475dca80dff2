"""Ways to find a direction in states of two labels, at every depth at once, in float64."""

from __future__ import annotations

import torch
from torch import Tensor

from interpcore.errors import Refused

RIDGE = 1e-2
STEPS = 50


def fit(method: str, states: Tensor, flags: Tensor, seed: int = 0) -> Tensor:
    """A direction at every depth, pointing to where the true label lies.

    Args:
        method: "mean", the difference in means; "pca", the first principal component; "lat", that of the
            differences of random pairs, one of each label (Zou et al. 2023); "ridge", least squares of the
            label on standardised states; "logistic", logistic regression on them.
        states: [n, depth, d_model].
        flags: label of each [n] bool.
        seed: of the pairs.
    Returns: [depth, d_model] float64.
    Raises: Refused for another method, and a label without states.
    """
    if method not in FITS:
        raise Refused(f"A direction is fitted by {', '.join(FITS)}; got {method!r}.")
    if not bool(flags.any()) or bool(flags.all()):
        raise Refused("A direction needs states of both labels; one of the two has none.")
    x = states.double().transpose(0, 1)  # [depth, n, d_model]
    return FITS[method](x, flags, seed)


def mean_difference(x: Tensor, flags: Tensor, seed: int = 0) -> Tensor:
    """mean(true) - mean(false) of [depth, n, d_model]."""
    return x[:, flags].mean(1) - x[:, ~flags].mean(1)


def principal(x: Tensor, flags: Tensor, seed: int = 0) -> Tensor:
    """First principal component [depth, d_model] of [depth, n, d_model], its sign that of the difference in
    means."""
    return _oriented(_first_component(x - x.mean(1, keepdim=True)), x, flags)


def pair_differences(x: Tensor, flags: Tensor, seed: int = 0) -> Tensor:
    """First principal component [depth, d_model] of the differences of random pairs of [depth, n, d_model],
    of random sign each, so that their mean is not what is found."""
    draw = torch.Generator().manual_seed(seed)
    true, false = flags.nonzero()[:, 0], (~flags).nonzero()[:, 0]
    n = max(len(true), len(false))
    a, b = (side[torch.randint(len(side), (n,), generator=draw)] for side in (true, false))
    signs = torch.randint(2, (n, 1), generator=draw).double() * 2 - 1
    return _oriented(_first_component((x[:, a] - x[:, b]) * signs), x, flags)


def ridge(x: Tensor, flags: Tensor, seed: int = 0) -> Tensor:
    """w [depth, d_model] of min |y - s w|^2 + RIDGE n |w|^2 with y = +-1 and standardised s
    [depth, n, d_model], per unit of the states."""
    s, scale = _standard(x)
    y = flags.double().to(x) * 2 - 1
    n = x.shape[1]
    gram = s @ s.mT + RIDGE * n * torch.eye(n, dtype=x.dtype)
    weights = s.mT @ torch.linalg.solve(gram, (y - y.mean()).expand(len(x), n)[..., None])
    return weights[..., 0] / scale


def logistic(x: Tensor, flags: Tensor, seed: int = 0) -> Tensor:
    """w [depth, d_model] of the logistic regression with penalty RIDGE n |w|^2 / 2 on standardised states
    [depth, n, d_model], by Newton's method in the space that the states span; per unit of the states."""
    s, scale = _standard(x)
    u, sizes, vh = torch.linalg.svd(s, full_matrices=False)
    z = torch.cat([u * sizes[:, None], torch.ones_like(u[..., :1])], -1)  # [depth, n, rank + 1]
    n, width = z.shape[1:]
    penalty = torch.full((width,), RIDGE * n, dtype=x.dtype)
    penalty[-1] = 1e-9 * n  # the intercept is free
    y, w = flags.double().to(x), z.new_zeros(len(z), width)
    for _ in range(STEPS):
        p = (z @ w[..., None])[..., 0].sigmoid()
        slope = torch.einsum("lnk,ln->lk", z, p - y) + penalty * w
        curve = torch.einsum("lnk,ln,lnm->lkm", z, p * (1 - p), z) + torch.diag(penalty)
        step = torch.linalg.solve(curve, slope[..., None])[..., 0]
        w = w - step * (10 / step.norm(dim=-1, keepdim=True)).clamp(max=1)
        if float(step.abs().max()) < 1e-10:
            break
    return (w[:, None, :-1] @ vh)[:, 0] / scale


FITS = {
    "mean": mean_difference,
    "pca": principal,
    "lat": pair_differences,
    "ridge": ridge,
    "logistic": logistic,
}


def _first_component(centred: Tensor) -> Tensor:
    return torch.linalg.svd(centred, full_matrices=False).Vh[:, 0]


def _oriented(direction: Tensor, x: Tensor, flags: Tensor) -> Tensor:
    along = (direction * mean_difference(x, flags)).sum(-1, keepdim=True)
    return torch.where(along < 0, -direction, direction)


def _standard(x: Tensor) -> tuple[Tensor, Tensor]:
    """States centred and divided by each coordinate's deviation, and that deviation [depth, d_model]; of
    coordinates that do not vary, 1."""
    centred = x - x.mean(1, keepdim=True)
    scale = centred.square().mean(1).sqrt()
    scale = torch.where(scale > 1e-12 * scale.amax(-1, keepdim=True).clamp(min=1e-300), scale, 1.0)
    return centred / scale[:, None], scale
