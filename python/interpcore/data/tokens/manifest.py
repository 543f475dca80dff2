"""What a folder of token shards says of itself, and the checks that hold it to that."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpcore.errors import Refused
from interpcore.runs import RunError, canonical_json, read_json
from interpcore.runs.fields import Fields, is_whole

MANIFEST, SUBSETS = "manifest.json", "subsets.npy"
VERSION = 1
MASKS = ("padding", "bos", "newline")
"""Kinds of tokens that `TokenShards.mask` can leave out, each a list of token ids in the manifest."""
_SEAL = "sha256"
_MOST_SUBSETS = 1 << 16
_LARGEST = 1 << 48  # more sequences, tokens or ids than a disk holds


class TokenShardError(Refused):
    """Token shards, or what they are to be made of, are not as they must be; the message says what to do."""


def make_manifest(
    shards: list[dict[str, Any]],
    *,
    context: int,
    vocab_size: int,
    largest_id: int,
    labels: NDArray[np.uint16],
    subsets: Sequence[str],
    masks: Mapping[str, Sequence[int]] | None,
    masked: Sequence[str] = MASKS,
    **described: Any,
) -> dict[str, Any]:
    """A manifest, sealed by a hash of all that it says; it names the files' and the labels' hashes.

    Args:
        shards: file, sequences and sha256 of each.
        context: tokens of a sequence.
        vocab_size: number of token ids.
        largest_id: that occurs.
        labels: each sequence's number in `subsets` [n_sequences].
        subsets: names.
        masks: ids of each kind in `MASKS` that occurs.
        masked: the kinds that the shards' mask leaves out.
        described: more entries.
    Raises: TokenShardError for masks that are none of this vocabulary.
    """
    masks = masks or {}
    check_masks((*masks, *masked))
    for kind, ids in masks.items():
        wrong = [i for i in ids if not 0 <= int(i) < vocab_size]
        if wrong:
            raise TokenShardError(f"The mask {kind} holds the id {wrong[0]} beyond the {vocab_size} tokens.")
    counts = np.bincount(labels, minlength=len(subsets)).tolist()
    manifest = {
        "version": VERSION,
        "context": int(context),
        "vocab_size": int(vocab_size),
        "n_sequences": len(labels),
        "largest_id": int(largest_id),
        "tokenizer": None,
        "subsets": [{"name": name, "sequences": k} for name, k in zip(subsets, counts, strict=True)],
        "labels": array_hash(labels),
        "masks": {kind: [int(i) for i in masks.get(kind, ())] for kind in MASKS},
        "masked": list(masked),
        "shards": shards,
        **described,
    }
    return {**manifest, _SEAL: _seal(manifest)}


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder. Older ones are not sealed; their entries are checked alike.

    Raises: TokenShardError where there is none, it was changed, or an entry is not what it must be.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise TokenShardError(
            f"{folder} holds no token shards: it has no {MANIFEST}; make them with prepare_tokens."
        )
    try:
        manifest = read_json(path)
    except RunError as error:
        raise TokenShardError(f"{error}.") from error
    if (
        not isinstance(manifest, dict)
        or not is_whole(manifest.get("version"))
        or manifest["version"] != VERSION
    ):
        raise TokenShardError(f"{path} is not a token manifest of version {VERSION}; make the shards again.")
    _check_entries(Fields(manifest, str(path), TokenShardError))
    if _SEAL in manifest and manifest[_SEAL] != _seal(manifest):
        raise TokenShardError(
            f"{path} is not what was written: its hash differs from its entries'; make the shards again."
        )
    return manifest


def _check_entries(found: Fields) -> None:
    found.whole("context", 1, _LARGEST)
    vocab_size = found.whole("vocab_size", 1, 1 << 32)
    found.whole("largest_id", 0, vocab_size - 1)
    subsets, shards, masks = found.objects("subsets"), found.objects("shards"), found.object("masks")
    check_masks(found.texts("masked"), found.where)
    masks.only(set(MASKS), set(MASKS))
    for kind in MASKS:
        masks.wholes(kind, 0, vocab_size - 1)
    for subset in subsets:
        subset.text("name")
    for shard in shards:
        shard.text("sha256")
        name = shard.text("file")
        if Path(name).name != name:
            raise TokenShardError(f"{shard.where}: file is {name!r}, not a name in the folder itself.")
    for parts, what in ((subsets, "subsets"), (shards, "shards")):
        counts = [part.whole("sequences", int(what == "shards"), _LARGEST) for part in parts]
        if sum(counts) != found.whole("n_sequences", 1, _LARGEST):
            raise TokenShardError(f"{found.where}: its {what} are not of n_sequences together.")
    if found.content.get("tokenizer") is not None:
        found.object("tokenizer").text("hash")
        found.object("tokenizer").text("name")
    if "made_of" in found.content:
        found.object("made_of")


def _seal(manifest: Mapping[str, Any]) -> str:
    entries = {name: value for name, value in manifest.items() if name != _SEAL}
    try:
        return hashlib.sha256(canonical_json(entries).encode()).hexdigest()
    except ValueError as error:
        raise TokenShardError(f"The token manifest cannot be hashed: {error}.") from error


def check_masks(kinds: Sequence[str], where: str = "masks") -> None:
    """Every kind is one of `MASKS`. Raises: TokenShardError for another."""
    unknown = sorted(set(kinds) - set(MASKS))
    if unknown:
        raise TokenShardError(f"{where}: {unknown[0]!r} is no mask; choose from {', '.join(MASKS)}.")


def check_labels(subset: Any, n: int, subsets: Sequence[str]) -> NDArray[np.uint16]:
    """Each sequence's number in `subsets` [n]; None for 0 everywhere.

    Raises: TokenShardError for another shape or kind of numbers, or one beyond the list.
    """
    labels = np.zeros(n, np.uint16) if subset is None else np.asarray(subset)
    if not 0 < len(subsets) <= _MOST_SUBSETS:
        raise TokenShardError(f"Token shards have 1 to {_MOST_SUBSETS} subsets, not {len(subsets)}.")
    if labels.shape != (n,) or labels.dtype.kind not in "iu" or (n and not 0 <= labels.min() <= labels.max()):
        raise TokenShardError(
            f"subset must be [{n}] whole numbers from 0, got {list(labels.shape)} {labels.dtype}."
        )
    if n and labels.max() >= len(subsets):
        at = int(labels.argmax())
        raise TokenShardError(
            f"Sequence {at} has the subset {labels[at]}, but there are {len(subsets)}, numbered from 0."
        )
    return labels.astype(np.uint16)


def array_hash(array: NDArray[Any]) -> str:
    """SHA-256 of an array's dtype, shape and bytes, in hexadecimal."""
    array = np.ascontiguousarray(array)
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}\n".encode())
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
