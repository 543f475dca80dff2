"""What a run of a model over a corpus says about itself."""

from __future__ import annotations

from typing import Any

from interpcore.data.tokens import TokenShards
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.runs import RunCard


def corpus_card(
    model: Model, shards: TokenShards, protocol: str, command: str | None, **arguments: Any
) -> RunCard:
    """The card of a run of a model over a corpus."""
    return run_card(
        model,
        protocol=protocol,
        split=shards.identity,
        masks=tuple(shards.masked),
        arguments=arguments,
        command=command,
    )
