"""What a family's loader hands over: parts and sizes, before they become a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model.block import Block
from interpcore.model.decoder import Module
from interpcore.model.norm import Norm
from interpcore.model.plan import Plan
from interpcore.model.projection import Projection
from interpcore.model.recurrence import Recurrence


@dataclass(frozen=True, eq=False)
class Parts(ShortRepr):
    """Blocks, embeddings and sizes of a checkpoint; fields as in `Model` and `ModelSpec`.

    Args:
        blocks: run one after the other, unless `modules` and `plan` say otherwise.
        absent: sites that are absent for another reason than the kind of the blocks' MLPs.
    """

    blocks: Sequence[Block]
    embedding: Tensor
    final_norm: Norm
    unembedding: Projection
    n_heads: int
    d_head: int
    max_positions: int | None
    positions: Tensor | None = None
    n_kv_heads: int | None = None
    embed_scale: float = 1.0
    logit_softcap: float | None = None
    module_names: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    modules: Mapping[str, Module] = field(default_factory=dict)
    plan: Plan | None = None
    recurrence: Recurrence | None = None
    absent: Mapping[str, str] = field(default_factory=dict)
