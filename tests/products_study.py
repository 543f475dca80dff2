"""A study whose cells are products, for tests of what a resumed run computes with."""

import hashlib
from functools import partial
from pathlib import Path
from typing import Any

import torch

from interpcore import ops
from interpcore.runs import RunCard, RunFolder
from interpcore.runs.experiment import Study


class NoModel:
    """Stands for a model that loads anywhere."""

    def reloader(self) -> Any:
        return partial(NoModel)


class Products(Study):
    """One cell per number of rows."""

    @classmethod
    def begin(cls, path: Path, workers: int = 1) -> "Products":
        folder = RunFolder.open_or_create(path, RunCard(products=ops.product_routes()))
        return cls(NoModel(), None, folder.artifacts, folder, workers)

    def rows(self, *numbers: int) -> list[str]:
        return [row.result for row in self.sweep(cell, [{"rows": n} for n in numbers])]


def cell(study: Products, rows: int) -> str:
    return bits_of(rows)


def bits_of(rows: int) -> str:
    """Hash of products of this many rows with weights of both layouts."""
    draw = torch.Generator().manual_seed(0)
    x, weight = torch.randn(rows, 512, generator=draw), torch.randn(512, 520, generator=draw)
    both = torch.stack([ops.product(x, weight), ops.product(x, weight.t().contiguous().t())])
    return hashlib.sha256(both.numpy().tobytes()).hexdigest()
