"""Rotary embeddings whose scale depends on the length of the text, each row's by its own length."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from interpcore.model.layout import Layout

POSITIONS = "position_ids"


def rescaling(hf: nn.Module) -> list[nn.Module]:
    """A model's rotary embeddings that depend on the length of the text."""
    kinds = ("dynamic", "longrope")
    return [m for m in hf.modules() if any(kind in str(getattr(m, "rope_type", "")) for kind in kinds)]


def grows(hf: nn.Module) -> bool:
    """Whether a model's rotary embeddings take a text of any length, rescaled to it."""
    return any("dynamic" in str(module.rope_type) for module in rescaling(hf))


@contextmanager
def by_row(rotaries: list[nn.Module], layout: Layout) -> Iterator[None]:
    """Rotary embeddings that give each row the angles of its own length, whatever ran before; transformers
    takes the longest row's for all, and those of an earlier, longer text."""

    def fresh(rotary: nn.Module, *_: Any) -> None:
        for name, original in [*vars(rotary).items(), *rotary.named_buffers(recurse=False)]:
            if name.endswith("original_inv_freq") and isinstance(original, Tensor):
                prefix = name.removesuffix("original_inv_freq")
                current = rotary.get_buffer(f"{prefix}inv_freq")
                rotary.register_buffer(f"{prefix}inv_freq", original.to(current).clone(), persistent=False)
                setattr(rotary, f"{prefix}max_seq_len_cached", rotary.original_max_seq_len)

    def rows(rotary: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        if not layout.ragged:
            return None
        given = kwargs[POSITIONS] if POSITIONS in kwargs else args[1]
        parts = [part.expand(layout.batch, *part.shape[1:]).clone() for part in output]
        for n in layout.lengths.unique().tolist():
            which = (layout.lengths == n).nonzero().flatten().to(given.device)
            fresh(rotary)
            own = given[:1, :n]
            found = (
                rotary.forward(*args, **kwargs | {POSITIONS: own})
                if POSITIONS in kwargs
                else rotary.forward(args[0], own, *args[2:], **kwargs)
            )
            for part, values in zip(parts, found, strict=True):
                part[which, :n] = values
        return tuple(parts)

    with ExitStack() as stack:
        for rotary in rotaries:
            stack.callback(rotary.register_forward_pre_hook(fresh).remove)
            stack.callback(rotary.register_forward_hook(rows, with_kwargs=True).remove)
        yield
