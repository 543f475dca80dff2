"""Token shards: a corpus as fixed-length sequences of token ids, memory-mapped, with a manifest.

`prepare_tokens` makes a folder of them from a corpus; `TokenShards`
reads it.
"""

from interpcore.data.tokens.manifest import MASKS, TokenShardError
from interpcore.data.tokens.prepare import prepare_tokens
from interpcore.data.tokens.shards import TokenShards
from interpcore.data.tokens.writing import write_shards

__all__ = [
    "MASKS",
    "TokenShardError",
    "TokenShards",
    "prepare_tokens",
    "write_shards",
]
