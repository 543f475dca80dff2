"""Token shards for a neuron study, from files or from the tiny world."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from interpcore.data.tokens import TokenShards, prepare_tokens


def make_shards(source: str, out: Path, model: str, *, documents: int, **options: Any) -> TokenShards:
    """Token shards of a source.

    Args:
        source: a corpus, see `open_corpus`, or "tiny" for documents of the tiny world, whose kinds are its
            subsets.
        out: the shards' folder.
        model: whose tokenizer: a shipped model, a transformers folder or a hub id.
        documents: how many of the tiny world.
        options: of `prepare_tokens`.
    """
    tokenizer = _tokenizer(model)
    if source != "tiny" or Path(source).exists():
        return prepare_tokens(source, out, tokenizer, **options)
    from interpcore.data.tinyworld.corpus import labelled_documents

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny-world.jsonl"
        drawn = labelled_documents(f"neurons {options.get('seed')}", documents)
        lines = (json.dumps({"text": text, "subset": kind}) for kind, text in drawn)
        path.write_text("\n".join(lines) + "\n")
        return prepare_tokens(path, out, tokenizer, **options)


def _tokenizer(model: str) -> Any:
    """A shipped model's tokenizer, else the name for `prepare_tokens` to load."""
    from interpcore.data.tinyworld.models import model_folder

    try:
        return str(model_folder(model))
    except FileNotFoundError:
        return model
