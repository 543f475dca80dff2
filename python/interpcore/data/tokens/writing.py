"""Writing token shards: an ordered choice of sequences into hashed files and a manifest, all or nothing."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from interpcore.data.tokens.manifest import (
    MANIFEST,
    MASKS,
    SUBSETS,
    TokenShardError,
    array_hash,
    check_labels,
    make_manifest,
)
from interpcore.data.tokens.shards import TokenShards, check_ids, id_dtype
from interpcore.runs import write_json

SHARD_TOKENS = 1 << 24
"""Tokens of a shard file, rounded down to whole sequences."""


def write_shards(
    folder: str | os.PathLike[str],
    sequences: NDArray[Any],
    vocab_size: int,
    *,
    subset: NDArray[Any] | None = None,
    subsets: Sequence[str] = ("all",),
    masks: Mapping[str, Sequence[int]] | None = None,
    masked: Sequence[str] = MASKS,
    seed: int | None = 0,
    count: int | None = None,
    described: Mapping[str, Any] | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenShards:
    """Writes sequences, shuffled, as memory-mapped shards with a manifest. The folder appears whole or not at
    all.

    Args:
        folder: where to; absent or empty.
        sequences: [n, context] token ids, in memory or memory-mapped.
        vocab_size: number of token ids.
        subset: each sequence's number in `subsets` [n]; None for 0 everywhere.
        subsets: names.
        masks: ids of each kind in `MASKS` that occurs.
        masked: the kinds that the shards' mask leaves out.
        seed: of the shuffle; None keeps the order.
        count: how many of the shuffled sequences to keep; None for all.
        described: more entries of the manifest, such as tokenizer and source.
        shard_tokens: tokens of a file.

    Raises:
        TokenShardError: the folder holds something, an id is not in the vocabulary, a label not in the list,
            or the disk is full.
    """
    folder = Path(folder)
    n, context = sequences.shape
    if sequences.dtype.kind not in "iu":
        raise TokenShardError(f"Tokens must be integers [n_sequences, context], got {sequences.dtype}.")
    labels = check_labels(subset, n, subsets)
    order = np.arange(n) if seed is None else np.random.Generator(np.random.PCG64(seed)).permutation(n)
    order = order[:count]
    if not len(order):
        raise TokenShardError(f"There is no sequence of {context} tokens to write to {folder}.")
    labels = labels[order]
    rows = max(shard_tokens // context, 1)
    with new_folder(folder, len(order) * context * np.dtype(id_dtype(vocab_size)).itemsize) as partial:
        shards, largest = _write_parts(partial, sequences, order, rows, vocab_size)
        np.save(partial / SUBSETS, labels)
        manifest = make_manifest(
            shards,
            context=context,
            vocab_size=vocab_size,
            largest_id=largest,
            labels=labels,
            subsets=subsets,
            masks=masks,
            masked=masked,
            seed=seed,
            **(described or {}),
        )
        write_json(partial / MANIFEST, manifest)
    return TokenShards.open(folder)


def _write_parts(
    folder: Path, sequences: NDArray[Any], order: NDArray[Any], rows: int, vocab_size: int
) -> tuple[list[dict[str, Any]], int]:
    """Writes the sequences in this order; the files' entries in the manifest, and the largest id."""
    shards, largest = [], 0
    for number, start in enumerate(range(0, len(order), rows)):
        part = np.asarray(sequences[order[start : start + rows]])
        check_ids(part, vocab_size, "the tokens")
        largest = max(largest, int(part.max()))
        part = part.astype(id_dtype(vocab_size))
        name = f"shard-{number:05d}.npy"
        np.save(folder / name, part)
        shards.append({"file": name, "sequences": len(part), "sha256": array_hash(part)})
    return shards, largest


@contextmanager
def new_folder(folder: Path, size: int = 0) -> Iterator[Path]:
    """Gives a temporary folder that takes the name `folder` when the block ends without an exception.

    Args:
        folder: absent or empty.
        size: bytes to be written.

    Raises:
        TokenShardError: the folder holds something, or the disk is or becomes too full.
    """
    check_empty(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if size > free:
        raise TokenShardError(
            f"{folder} needs {size / 1e9:.2f} GB and the disk has {free / 1e9:.2f} GB free; make room first."
        )
    with scratch_folder(folder, "partial") as partial:
        yield partial
        if folder.exists():
            folder.rmdir()
        partial.replace(folder)


@contextmanager
def scratch_folder(folder: Path, purpose: str) -> Iterator[Path]:
    """Gives an empty folder beside `folder`, hidden, removed at the end; a killed run's is emptied first.

    Raises:
        TokenShardError: the disk becomes full.
    """
    scratch = folder.with_name(f".{folder.name}.{purpose}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise TokenShardError(f"The disk is full; make room for {folder} and start again.") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def check_empty(folder: Path) -> None:
    """The folder can be written to: it is absent or empty.

    Raises:
        TokenShardError: it is not.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise TokenShardError(f"{folder} is not empty; choose another name, or remove it first.")


def made_before(folder: Path, made_of: Mapping[str, Any]) -> TokenShards | None:
    """The shards that a folder holds already; None where it holds none.

    Args:
        folder: it need not exist.
        made_of: everything that the shards depend on: hashes of the source and the tokenizer, and the
            arguments, as JSON values.
    Raises: TokenShardError for shards that are made of something else, with what differs, or do not say.
    """
    if not (folder / MANIFEST).is_file():
        return None
    shards = TokenShards.open(folder)
    before = shards.manifest.get("made_of")
    if before is None:
        raise TokenShardError(
            f"{folder} is not empty: it holds token shards that do not say what they were made of; choose "
            "another name, or remove it first."
        )
    names = [name for name in {**made_of, **before} if made_of.get(name) != before.get(name)]
    if names:
        hashes = {"source": "the source has other files or contents", "tokenizer": "the tokenizer is another"}
        told = (hashes.get(n) or f"{n} was {before.get(n)!r} and is {made_of.get(n)!r}" for n in names)
        raise TokenShardError(
            f"{folder} holds token shards made otherwise: {', '.join(told)}; choose another name, or remove "
            "it first."
        )
    return shards
