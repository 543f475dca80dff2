"""A model whose forwards run their dense products in bfloat16."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.block import Block
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.projection import Projection
from interpcore.model.weights import Weights
from interpcore.runs.options import PRECISIONS


@dataclass(frozen=True, eq=False, repr=False)
class Rounded(Projection):
    """A projection whose operands and product are rounded to bfloat16; its bias is added in the model's own
    precision."""

    def __call__(self, x: Tensor) -> Tensor:
        """Map x [..., d_in] to [..., d_out]."""
        y = self.push(x).to(x.dtype)
        return y if self.bias is None else y.add_(self.bias)


def check_precision(model: Model | GenericModel, precision: str, error: type[Refused] = Refused) -> None:
    """Refuse bfloat16 products where there is nothing to round.

    Raises: `error` with the reason.
    """
    if precision not in PRECISIONS:
        raise error(f"The precision of products is one of {', '.join(PRECISIONS)}; got {precision!r}.")
    if precision == "float32":
        return
    if isinstance(model, GenericModel):
        raise error(
            f"{model.spec.name} runs through the generic adapter, whose products are its own; leave "
            "precision at float32."
        )
    if model.dtype != torch.float32:
        raise error(f"bfloat16 products are of a float32 model; this one is {model.dtype}.")


def in_precision(model: Model | GenericModel, precision: str) -> Model | GenericModel:
    """A model whose blocks multiply in a precision, each weight cast once; norms, attention's scores,
    activations and the stream stay in the model's own, and so do mixtures of experts and the unembedding.

    Args:
        model: the model.
        precision: "float32" for the model as it is, or "bfloat16".

    Raises: Refused as `check_precision`.
    """
    check_precision(model, precision)
    if precision == "float32" or isinstance(model, GenericModel):
        return model
    modules = {
        name: module.map(_rounded) if isinstance(module, Block) else module
        for name, module in model.modules.items()
    }
    return replace(model, modules=modules, weights=Weights())


def _rounded(whole: Projection) -> Projection:
    return Rounded(whole.weight, whole.bias, "bfloat16")
