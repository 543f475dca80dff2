"""The dense products of a Jacobian sweep, each at the best rate that any routine reaches on that very one.

No routine is at its best on every shape and layout, so the sum over products is what a sweep could cost that
did nothing else. Products are those with weights, and with a folded MLP's matrices.
"""

import statistics
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore.model import projection
from interpcore.model.linearize import mlp as linear_mlp
from interpcore.ops import batch_product
from interpcore.ops.product_routes import available

REPEATS = 3
Run = Callable[[], object]


@dataclass(frozen=True)
class Layout:
    """Sizes and strides of a tensor."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @classmethod
    def of(cls, x: Tensor) -> "Layout":
        """That of a tensor."""
        return cls(tuple(x.shape), x.stride())

    def tensor(self) -> Tensor:
        """A tensor of small random values that lies so."""
        held = tuple(size if stride else 1 for size, stride in zip(self.shape, self.stride, strict=True))
        out = torch.empty_strided(held, self.stride).normal_(generator=torch.Generator().manual_seed(0))
        return out.expand(self.shape)


@dataclass(frozen=True)
class Product:
    """One product: x [..., k] by weight [k, n], or by a matrix per leading index [..., k, n]."""

    x: Layout
    weight: Layout
    bias: bool

    @property
    def operations(self) -> float:
        """Multiplications and additions."""
        rows = 1
        for size in self.x.shape[:-1]:
            rows *= size
        return 2.0 * rows * self.x.shape[-1] * self.weight.shape[-1]

    def ways(self) -> dict[str, Run]:
        """Every routine that can run it."""
        x, weight = self.x.tensor(), self.weight.tensor()
        if weight.dim() > 2:
            xs = [one.contiguous() for one in x.flatten(0, -3)]
            matrices = list(weight.flatten(0, -3))
            found: dict[str, Run] = {
                "batched": lambda: torch.matmul(x, weight),
                "batch_product": lambda: batch_product(x.flatten(0, -3), weight.flatten(0, -3)),
            }
            for name, run in available().items():
                found[name] = lambda run=run: [run(*pair, None) for pair in zip(xs, matrices, strict=True)]  # type: ignore[misc]
            return found
        bias = torch.ones(weight.shape[1]) if self.bias else None
        # A slice of a wider weight sends oneDNN to a generic loop.
        whole = weight.is_contiguous() or weight.t().is_contiguous()
        return {
            name: lambda run=run: run(x, weight, bias)  # type: ignore[misc]
            for name, run in available().items()
            if whole or name != "onednn"
        }

    def best(self) -> tuple[str, float]:
        """The routine with the least CPU seconds, and these: medians, the routines in turn."""
        ways = self.ways()
        spent: dict[str, list[float]] = {name: [] for name in ways}
        calls = max(1, int(1e8 / self.operations))  # a call shorter than the clock's grain is repeated
        for _ in range(REPEATS + 1):
            for name, run in ways.items():
                begun = time.process_time()
                for _ in range(calls):
                    run()
                spent[name].append((time.process_time() - begun) / calls)
        medians = {name: statistics.median(taken[1:]) for name, taken in spent.items()}
        name = min(medians, key=lambda one: medians[one])
        return name, medians[name]


def products_of(run: Run) -> Counter[Product]:
    """The products that a call takes, and how often each."""
    found: Counter[Product] = Counter()
    plain, plain_matrices = projection.product, linear_mlp.apply_matrices
    plain_batch = linear_mlp.batch_product

    def counted(x: Tensor, weight: Tensor, **options: object) -> Tensor:
        found[Product(Layout.of(x), Layout.of(weight), options.get("bias") is not None)] += 1
        return plain(x, weight, **options)  # type: ignore[arg-type]

    def counted_matrices(g: Tensor, matrices: Tensor) -> Tensor:
        found[Product(Layout.of(g.transpose(1, 2)), Layout.of(matrices), False)] += 1
        return plain_matrices(g, matrices)

    def counted_batch(
        x: Tensor,
        weight: Tensor,
        scale: Tensor | None = None,
        x2: Tensor | None = None,
        scale2: Tensor | None = None,
        **options: Any,
    ) -> Tensor:
        if scale is not None:  # an MLP's matrices; cotangents through them are counted above
            scaled = Layout((len(scale), *x.shape), (x.numel(), x.shape[1], 1))
            found[Product(scaled, Layout.of(weight), False)] += 1
        return plain_batch(x, weight, scale, x2, scale2, **options)

    projection.product, linear_mlp.apply_matrices = counted, counted_matrices
    linear_mlp.batch_product = counted_batch
    try:
        run()
    finally:
        projection.product, linear_mlp.apply_matrices = plain, plain_matrices
        linear_mlp.batch_product = plain_batch
    return found


def least_seconds(products: Counter[Product]) -> float:
    """CPU seconds of all of them, each on the routine that is fastest for it."""
    return sum(count * product.best()[1] for product, count in products.items())
