"""The mean few-shot operator: estimate, prediction, files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from interpcore.data.relations import Sample
from interpcore.errors import Refused
from interpcore.lre.prompts import Query, leave_one_out
from interpcore.lre.states import Depth, published_depths
from interpcore.model import Edit, Model
from interpcore.model.jacobians import jacobians
from interpcore.model.made_on import NOT_RECORDED, MadeOn, check_made_on
from interpcore.model.names import source_name
from interpcore.model.prompts import pad
from interpcore.model.readout import Readout
from interpcore.runs import RunError, read_tensors, write_tensors
from interpcore.runs.fields import Fields
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Operator(AsTable):
    """LRE(h) = beta * W h + b, once for each source depth.

    Args:
        depths: source depths; None is the token embedding.
        weight: W [depth, d_model, d_model].
        bias: b [depth, d_model].
        made_on: weights and plan of the model that it was estimated on; None where they are not recorded.
    """

    depths: tuple[Depth, ...]
    weight: Tensor
    bias: Tensor
    made_on: MadeOn | None = None

    def __post_init__(self) -> None:
        n, d_model = len(self.depths), self.bias.shape[-1]
        if tuple(self.weight.shape) != (n, d_model, d_model) or tuple(self.bias.shape) != (n, d_model):
            raise Refused(
                f"An operator of {n} depths is W [{n}, d_model, d_model] and b [{n}, d_model]; got "
                f"{tuple(self.weight.shape)} and {tuple(self.bias.shape)}."
            )

    def to_pandas(self) -> pd.DataFrame:
        """One row per depth: norms of W and b, and of W - I, what the stream alone does not carry."""
        import pandas as pd

        weight = self.weight.float()
        beyond = weight - torch.eye(weight.shape[-1], device=weight.device)
        return pd.DataFrame(
            {
                "depth": [source_name(d) for d in self.depths],
                "weight_norm": weight.flatten(1).norm(dim=1).cpu().numpy(),
                "beyond_identity": beyond.flatten(1).norm(dim=1).cpu().numpy(),
                "bias_norm": self.bias.float().norm(dim=1).cpu().numpy(),
            }
        )

    def at(self, depth: Depth) -> int:
        """Place of a depth. Raises: ValueError where the operator has none."""
        if depth not in self.depths:
            raise Refused(f"The operator has the depths {self.depths}; got {depth}.")
        return self.depths.index(depth)

    def only(self, place: int) -> Operator:
        """The operator at one of its depths, by place."""
        return Operator(
            self.depths[place : place + 1], self.weight[[place]], self.bias[[place]], self.made_on
        )

    def read(self, h: Tensor, betas: Sequence[float]) -> Tensor:
        """Predicted states before the final norm, for every depth and beta; the sweep over beta costs one
        product.

        Args:
            h: states at the subject [prompt, depth, d_model].
            betas: factors on W.
        Returns: z [depth, beta, prompt, d_model].
        """
        moved = torch.einsum("dij,pdj->dpi", self.weight, h.to(self.weight))
        factors = torch.tensor(betas, dtype=moved.dtype, device=moved.device)
        return factors[:, None, None] * moved[:, None] + self.bias[:, None, None]

    def save(self, path: str | os.PathLike[str], **about: str) -> None:
        """Write `weight`, `bias`, depths and the model's hashes as safetensors; `about` joins the header."""
        depths = ",".join(source_name(d) for d in self.depths)
        tensors = {"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}
        made_on = {} if self.made_on is None else self.made_on.to_json()
        write_tensors(path, tensors, {"depths": depths, **made_on, **about})

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> tuple[Operator, dict[str, str]]:
        """Read an operator and its header, which says "not recorded" of weights that an older file lacks.

        Raises: RunError for another kind of file.
        """
        tensors, about = read_tensors(path)
        if set(tensors) != {"weight", "bias"} or "depths" not in about:
            raise RunError(f"{path} holds no LRE operator; give a file that Operator.save wrote")
        named = about.pop("depths").split(",")
        if not all(d == "embed" or (d.isdecimal() and len(d) < 9) for d in named) or len(set(named)) < len(
            named
        ):
            raise RunError(
                f"{path} names the depths {','.join(named)[:60]}; they are embed or numbers, each once"
            )
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not bool(tensor.isfinite().all()):
                raise RunError(
                    f"{path} holds a {name} that is not finite numbers throughout; estimate it again"
                )
        made_on = MadeOn.read(Fields(about, str(path), RunError))
        about = {k: v for k, v in about.items() if k not in ("weights", "plan")}
        about |= {} if made_on else {"weights": NOT_RECORDED}
        depths = tuple(None if d == "embed" else int(d) for d in named)
        try:
            return cls(depths, tensors["weight"], tensors["bias"], made_on), about
        except Refused as error:
            raise RunError(f"{path} holds no LRE operator: {error}") from error


def estimate(
    model: Model,
    template: str,
    examples: Sequence[Sample],
    *,
    protocol: str = "default",
    depths: Sequence[Depth] | None = None,
) -> Operator:
    """The operator of a relation: W and b are means over examples of J and of z - J h, each in a prompt with
    the other examples above it; every depth from one sweep per example.

    Args:
        model: the decoder.
        template: text with one `{}`.
        examples: the training facts, n = 8 by default in studies.
        protocol: "default" or "paper", see `encode_query`.
        depths: source depths; None takes `published_depths`.
    Raises: ValueError without examples, for a subject that is not in its prompt, or a prompt too long.
    """
    if not examples:
        raise Refused("An operator needs at least one example; give training samples.")
    chosen = published_depths(model.plan.n_calls) if depths is None else tuple(depths)
    return mean_operator(model, leave_one_out(model.tokenizer, template, examples, protocol), chosen)


def mean_operator(
    model: Model, queries: Sequence[Query], depths: Sequence[Depth], edits: Sequence[Edit] = ()
) -> Operator:
    """The operator whose W and b are means over prompts of J and of z - J h.

    Args:
        model: the decoder.
        queries: prompts and where their subjects end.
        depths: source depths.
        edits: sites to write; J is taken of the edited model.
    """
    tokens, mask = pad([q.ids for q in queries], model.device)
    swept = jacobians(
        model,
        tokens,
        mask,
        source_position=[q.subject for q in queries],
        source_depths=depths,
        reduce="mean",
        edits=edits,
    )
    assert isinstance(swept.values, Tensor)
    return Operator(tuple(depths), swept.values, swept.bias.mean(0), MadeOn.of(model))


@torch.no_grad()
def predict(
    model: Model,
    operator: Operator,
    h: Tensor,
    betas: Sequence[float],
    k: int = 1,
    *,
    other_model: bool = False,
) -> Tensor:
    """The operator's k highest tokens at every depth and beta, one depth at a time.

    Args:
        model: the decoder.
        operator: W and b.
        h: states at the subject [prompt, depth, d_model].
        betas: factors on W.
        k: how many tokens.
        other_model: take an operator that was estimated on another model, too.
    Returns: tokens, best first [depth, beta, prompt, k] int64.
    Raises: Refused for another model's operator.
    """
    check_made_on(model, operator.made_on, "The operator was", other_model)
    return read_tokens(model, operator, h, betas, k)


@torch.no_grad()
def read_tokens(model: Model, operator: Operator, h: Tensor, betas: Sequence[float], k: int = 1) -> Tensor:
    """What `predict` gives, of an operator that is known to be this model's own: the model's weights, which
    it hashes to tell, are not read for it.

    Args:
        model, operator: what reads, and what is read.
        h: states [prompt, depth, d_model] at the operator's depths.
        betas: factors of W h.
        k: how many tokens.
    Returns: tokens, best first [depth, beta, prompt, k] int64.
    """
    moved = (h[:, i].to(weight) @ weight.mT for i, weight in enumerate(operator.weight))
    return Readout(model).ranked(moved, operator.bias, betas, k).cpu()


@torch.no_grad()
def ranked_tokens(model: Model, z: Tensor, k: int, max_rows: int = 4096) -> Tensor:
    """The k tokens that the final norm and the unembedding rank highest.

    Args:
        model: the decoder.
        z: states before the final norm [..., d_model].
        k: how many.
        max_rows: states decoded together; bounds memory.
    Returns: tokens, best first [..., k] int64.
    """
    rows = z.reshape(-1, z.shape[-1]).to(model.device, model.dtype)
    top = [model.unembed(model.final_norm(part)).topk(k).indices for part in rows.split(max_rows)]
    return torch.cat(top).view(*z.shape[:-1], k).cpu()
