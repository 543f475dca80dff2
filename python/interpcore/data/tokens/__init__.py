"""Token shards: a corpus as fixed-length sequences of token ids, memory-mapped, with a manifest.

`prepare_tokens` makes a folder of them from text, JSON lines, Parquet or a `datasets` folder; `TokenShards`
reads it.
"""

from interpcore.data.tokens.documents import Document, document_files, read_documents
from interpcore.data.tokens.manifest import MASKS, TokenShardError
from interpcore.data.tokens.prepare import prepare_tokens
from interpcore.data.tokens.shards import TokenShards
from interpcore.data.tokens.writing import write_shards

__all__ = [
    "MASKS",
    "Document",
    "TokenShardError",
    "TokenShards",
    "document_files",
    "prepare_tokens",
    "read_documents",
    "write_shards",
]
