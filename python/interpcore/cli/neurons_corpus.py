"""Token shards for a neuron study, from files or from the tiny world."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.data.corpus import open_corpus
from interpcore.model.load.location import locate

if TYPE_CHECKING:
    from interpcore.data.tokens import TokenShards


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
    own = source != "tiny" or Path(source).exists()
    if own:
        open_corpus(source)  # what is not there, here and below, is told before torch is loaded
    if not Path(model).is_dir():  # which needs no weights
        locate(model, options.get("revision"))
    from interpcore.data.tokens import prepare_tokens

    if own:
        return prepare_tokens(source, out, model, **options)
    from interpcore.data.tinyworld.corpus import labelled_documents

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny-world.jsonl"
        drawn = labelled_documents(f"neurons {options.get('seed')}", documents)
        lines = (json.dumps({"text": text, "subset": kind}) for kind, text in drawn)
        path.write_text("\n".join(lines) + "\n")
        return prepare_tokens(path, out, model, **options)
