"""What a run of a model over a corpus says about itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.card import run_card
from interpcore.model.latents import LatentModel
from interpcore.runs import RunCard, canonical_json


def corpus_card(
    model: Model, shards: TokenShards, protocol: str, command: str | None, **arguments: Any
) -> RunCard:
    """The card of a run of a model over a corpus; its `key` names everything that the run depends on."""
    return run_card(
        model,
        protocol=protocol,
        split=shards.identity,
        masks=shards.left_out,
        arguments={"corpus": corpus_hash(shards), **arguments},
        sources=({} if shards.folder is None else {"tokens": str(shards.folder.resolve())})
        | ({"positions": list(shards.positions)} if shards.positions else {})
        | (dict(model.found) if isinstance(model, LatentModel) else {}),
        command=command,
    )


def file_hashes(paths: Iterable[str | os.PathLike[str]]) -> dict[str, str]:
    """Name -> hash of the content (SHA-256 in hexadecimal) of files that a run reads.

    Raises: ValueError for one that is not there.
    """
    found = {}
    for path in map(Path, paths):
        if not path.is_file():
            raise Refused(f"There is no file {path}.")
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def corpus_hash(shards: TokenShards) -> str:
    """Hash of all that a statistic over a corpus depends on: sequences and their order, the ids that each
    mask in force leaves out, positions that alone count, subsets (SHA-256 in hexadecimal)."""
    said = [
        shards.identity,
        {kind: shards.manifest["masks"][kind] for kind in shards.masked},
        list(shards.subset_names),
        hashlib.sha256(shards.subset.tobytes()).hexdigest(),
        *([list(shards.positions)] if shards.positions else []),
    ]
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()
