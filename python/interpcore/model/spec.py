"""Sizes, names and limits of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from interpcore.errors import Refused
from interpcore.model.mlp import absent_sites
from interpcore.model.recurrence import Recurrence


@dataclass(frozen=True)
class ModelSpec:
    """What is true of a model whatever plan it runs.

    Args:
        family: transformers' model type ("gpt2", "llama", ...).
        name: the folder or hub id it came from.
        d_model, n_heads, n_kv_heads, d_head, d_mlp, n_blocks, vocab_size: sizes; d_mlp counts the neurons
            that act on a token.
        max_positions: longest prompt, or None.
        gated: whether the MLPs have a gate.
        embed_scale: factor on token embeddings (Gemma).
        logit_softcap: logits become cap * tanh(logits / cap), or None.
        module_names: transformers' name of the module behind a site, with {d} for the block, and whether the
            site is its "input" or "output" (or what else, `hooks` says); sites that no module boundary shows
            are left out.
        stop_tokens: ids that end a text, as the checkpoint's generation config says, if any.
        recurrence: what a depth-recurrent model's plans have in common; None for others.
        absent: sites this model does not have, with the reason; None works it out from `gated`.
    """

    family: str
    name: str
    d_model: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_mlp: int
    n_blocks: int
    vocab_size: int
    max_positions: int | None
    gated: bool
    embed_scale: float = 1.0
    logit_softcap: float | None = None
    stop_tokens: tuple[int, ...] = field(default=(), compare=False)
    module_names: Mapping[str, tuple[str, str]] = field(default_factory=dict, compare=False, repr=False)
    recurrence: Recurrence | None = None
    absent: Mapping[str, str] = field(default=None, hash=False)  # type: ignore[arg-type]  # filled in below

    def __post_init__(self) -> None:
        if self.absent is None:
            object.__setattr__(self, "absent", absent_sites(self.gated))

    @property
    def short_name(self) -> str:
        """`name` without its folders or owner."""
        return self.name.rstrip("/").rsplit("/", 1)[-1]

    @property
    def recurs(self) -> Recurrence:
        """Its recurrence.

        Raises: Refused for a model without one.
        """
        if self.recurrence is None:
            raise Refused(f"{self.name} ({self.family}) has no recurrence: its blocks run once each.")
        return self.recurrence
