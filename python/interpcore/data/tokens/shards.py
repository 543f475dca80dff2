"""Reading token shards: memory-mapped sequences, masks by token id, and the checks that go with them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tokenize import TokenError  # what NumPy's reader of headers lets out
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from interpcore.data.tokens.manifest import (
    MASKS,
    SUBSETS,
    TokenShardError,
    array_hash,
    check_labels,
    check_masks,
    make_manifest,
    read_manifest,
)
from interpcore.runs import canonical_json, tokenizer_hash
from interpcore.runs.shown import AsFacts


@dataclass(frozen=True, eq=False)
class TokenShards(AsFacts):
    """Sequences of one length in a fixed order. Make one with `open` or `of_arrays`.

    Args:
        manifest: what the shards are: context, vocab_size, n_sequences, tokenizer, seed, subsets, masks and
            the files with their hashes.
        parts: the sequences of each shard [sequences, context], memory-mapped or in memory.
        subset: number of each sequence's subset in `manifest["subsets"]` [n_sequences] uint16.
        masked: which of `MASKS` the method `mask` leaves out.
        folder: where they lie; None for arrays.
        positions: the only ones that count, from 0; () for all.
    """

    manifest: Mapping[str, Any]
    parts: tuple[NDArray[Any], ...]
    subset: NDArray[np.uint16]
    masked: tuple[str, ...] = MASKS
    folder: Path | None = None
    positions: tuple[int, ...] = ()
    _verified: set[int] = field(default_factory=set, repr=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Shards in a folder go to another process by their name: their files are mapped there, not sent."""
        if self.folder is None:
            return TokenShards, (self.manifest, self.parts, self.subset, self.masked, None, self.positions)
        return _reopened, (self.folder, self.masked, self.positions)

    @classmethod
    def open(cls, folder: str | os.PathLike[str]) -> TokenShards:
        """Opens a folder that `prepare_tokens` or `write_shards` made.

        The size of every file is checked now, its hash when the file is first read.

        Raises:
            TokenShardError: the folder has no manifest, it was changed, or a file is missing, cut short or of
                another version.
        """
        folder = Path(folder)
        manifest = read_manifest(folder)
        context = manifest["context"]
        parts = tuple(
            _mapped(folder / shard["file"], (shard["sequences"], context)) for shard in manifest["shards"]
        )
        stored = np.array(_mapped(folder / SUBSETS, (manifest["n_sequences"],)))
        if manifest.get("labels", array_hash(stored)) != array_hash(stored):
            raise TokenShardError(
                f"{folder / SUBSETS} is not what was written: its hash differs from the manifest's; make the "
                "shards again."
            )
        shards = cls(manifest, parts, stored, tuple(manifest["masked"]), folder)
        subset = check_labels(stored, shards.n_sequences, shards.subset_names)
        return replace(shards, subset=subset)

    @classmethod
    def of_arrays(
        cls,
        tokens: NDArray[Any] | Tensor,
        vocab_size: int,
        *,
        subset: Sequence[int] | NDArray[Any] | None = None,
        subsets: Sequence[str] = ("all",),
        masks: Mapping[str, Sequence[int]] | None = None,
    ) -> TokenShards:
        """Shards of token ids in memory.

        Args:
            tokens: [n_sequences, context], any integer dtype.
            vocab_size: number of token ids.
            subset: each sequence's number in `subsets` [n_sequences]; None for 0 everywhere.
            subsets: names.
            masks: ids of each kind in `MASKS` that occurs; None for no masked token.

        Raises:
            TokenShardError: an id is not in the vocabulary, or shapes do not fit.
        """
        array = np.asarray(tokens)
        if array.ndim != 2 or not array.size or array.dtype.kind not in "iu":
            raise TokenShardError(
                f"Tokens must be integers [n_sequences, context], got {list(array.shape)} {array.dtype}."
            )
        check_ids(array, vocab_size, "the tokens")
        labels = check_labels(subset, len(array), subsets)
        array = array.astype(id_dtype(vocab_size))
        manifest = make_manifest(
            [{"file": None, "sequences": len(array), "sha256": array_hash(array)}],
            context=array.shape[1],
            vocab_size=vocab_size,
            largest_id=array.max(),
            labels=labels,
            subsets=subsets,
            masks=masks,
        )
        return cls(manifest, (array,), labels)

    def __repr__(self) -> str:
        return f"TokenShards({self.n_sequences} x {self.context} tokens, vocabulary {self.vocab_size})"

    def facts(self) -> dict[str, Any]:
        """What a notebook says of them, by name."""
        return {
            "tokens": f"{self.n_sequences:,} sequences of {self.context}",
            "vocabulary": self.vocab_size,
            "subsets": ", ".join(self.subset_names),
            "left out of statistics": ", ".join(self.left_out) or "nothing",
            "folder": "in memory" if self.folder is None else str(self.folder),
            "hash": self.identity[:12],
        }

    @property
    def n_sequences(self) -> int:
        """Number of sequences."""
        return int(self.manifest["n_sequences"])

    @property
    def context(self) -> int:
        """Tokens of a sequence."""
        return int(self.manifest["context"])

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""
        return int(self.manifest["vocab_size"])

    @property
    def n_tokens(self) -> int:
        """Number of tokens, masked ones included."""
        return self.n_sequences * self.context

    @property
    def subset_names(self) -> tuple[str, ...]:
        """Names of the subsets, in the order of the numbers in `subset`."""
        return tuple(entry["name"] for entry in self.manifest["subsets"])

    @property
    def identity(self) -> str:
        """Hash of the sequences and their order (not of the mask): what a statistic over them refers to."""
        named = {
            "context": self.context,
            "shards": [[shard["sequences"], shard["sha256"]] for shard in self.manifest["shards"]],
        }
        return hashlib.sha256(canonical_json(named).encode()).hexdigest()

    def sequences(self, start: int, stop: int) -> Tensor:
        """The sequences numbered from `start` up to `stop`.

        Returns:
            [stop - start, context] int64.

        Raises:
            TokenShardError: the range leaves the shards, or a file read for the first time is not what was
                written.
        """
        if not 0 <= start <= stop <= self.n_sequences:
            raise TokenShardError(
                f"Sequences {start} to {stop} are not among the {self.n_sequences} of these shards."
            )
        chosen = []
        first = 0
        for number, part in enumerate(self.parts):
            low, high = max(start - first, 0), min(stop - first, len(part))
            if low < high:
                self._verify(number)
                chosen.append(torch.from_numpy(part[low:high].astype(np.int64)))
            first += len(part)
        return torch.cat(chosen) if chosen else torch.empty((0, self.context), dtype=torch.int64)

    def next_counts(self, vocabulary: int) -> Tensor:
        """How often each token id is the next token of another [vocabulary] int64."""
        counts = torch.zeros(vocabulary, dtype=torch.int64)
        for start in range(0, self.n_sequences, 4096):
            found = self.sequences(start, min(start + 4096, self.n_sequences))
            counts += torch.bincount(found[:, 1:].flatten(), minlength=vocabulary)
        return counts

    def count(self, limit: int | None = None) -> int:
        """How many sequences the first `limit` of them are; None for all."""
        return min(self.n_sequences, limit or self.n_sequences)

    def spans(self, size: int, limit: int | None = None) -> list[dict[str, int]]:
        """The first `limit` sequences cut into blocks, the last one perhaps shorter.

        Returns:
            start and stop of each block, as cells of a sweep.
        """
        n = self.count(limit)
        return [{"start": start, "stop": min(n, start + size)} for start in range(0, n, size)]

    def blocks(
        self, size: int, start: int, stop: int, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """The sequences from `start` up to `stop`, `size` at a time.

        Yields:
            The number of the first one, the tokens [sequence, position] int64 and which of them count
            [sequence, position] bool, on the device.
        """
        for first in range(start, stop, size):
            tokens = self.sequences(first, min(first + size, stop)).to(device)
            yield first, tokens, self.mask(tokens)

    def ids(self) -> Tensor:
        """The token ids that occur, increasing [id] int64."""
        there = torch.zeros(self.vocab_size, dtype=torch.bool)
        for _, tokens, _ in self.blocks(1 << 12, 0, self.n_sequences):
            there[tokens] = True
        return there.nonzero()[:, 0]

    def mask(self, tokens: Tensor) -> Tensor:
        """Which tokens count: all but the ids of the kinds in `masked`, at `positions`.

        Args:
            tokens: whole sequences [..., context] int64.

        Returns:
            The same shape, bool.
        """
        left_out = [i for kind in self.masked for i in self.manifest["masks"][kind]]
        counts = ~torch.isin(tokens, torch.tensor(left_out, dtype=tokens.dtype, device=tokens.device))
        if self.positions:
            here = torch.zeros(self.context, dtype=torch.bool, device=tokens.device)
            here[list(self.positions)] = True
            counts &= here
        return counts

    @property
    def left_out(self) -> tuple[str, ...]:
        """What the mask leaves out, in words."""
        places = ", ".join(map(str, self.positions))
        return (*self.masked, *([f"all positions but {places}"] if self.positions else []))

    def with_positions(self, positions: Sequence[int]) -> TokenShards:
        """The same sequences where only some positions count, negative ones from the sequence's end.

        Raises:
            TokenShardError: a position is outside a sequence.
        """
        wrong = [i for i in positions if not -self.context <= i < self.context]
        if wrong:
            raise TokenShardError(
                f"Position {wrong[0]} is outside sequences of {self.context} tokens; give 0 to "
                f"{self.context - 1}, or -{self.context} to -1 from the end."
            )
        return replace(self, positions=tuple(sorted({i % self.context for i in positions})))

    def with_mask(self, masked: Sequence[str]) -> TokenShards:
        """The same sequences with other kinds of tokens left out by `mask`.

        Raises:
            TokenShardError: a kind is not in `MASKS`.
        """
        check_masks(masked)
        return replace(self, masked=tuple(kind for kind in MASKS if kind in masked))

    def check_model(self, model: Any) -> None:
        """The model reads these token ids, in sequences of this length.

        Args:
            model: an `interpcore.model.Model`.

        Raises:
            TokenShardError: its tokenizer is another, its vocabulary too small or its context too short.
        """
        name = model.spec.name
        ours = (self.manifest["tokenizer"] or {}).get("hash")
        if ours is not None and model.tokenizer is not None and tokenizer_hash(model.tokenizer) != ours:
            made_with = self.manifest["tokenizer"]["name"]
            raise TokenShardError(
                f"The tokens were made with the tokenizer of {made_with}, which is not that of {name}; "
                "make them again with the model's own."
            )
        largest, embeddings = self.manifest["largest_id"], model.spec.vocab_size
        if largest >= embeddings:
            raise TokenShardError(
                f"The tokens hold the id {largest} and {name} has {embeddings} embeddings; "
                "make them again with the model's own tokenizer."
            )
        longest = model.spec.max_positions
        if longest is not None and self.context > longest:
            raise TokenShardError(
                f"Sequences of {self.context} tokens do not fit {name}, which reads {longest}; "
                f"make them again with context={longest} or less."
            )

    def _verify(self, number: int) -> None:
        shard = self.manifest["shards"][number]
        if self.folder is None or number in self._verified:
            return
        path = self.folder / shard["file"]
        if array_hash(self.parts[number]) != shard["sha256"]:
            raise TokenShardError(
                f"{path} is not what was written: its hash differs from the manifest's; make the shards "
                "again."
            )
        check_ids(self.parts[number], self.vocab_size, str(path))
        largest = int(self.parts[number].max())
        if largest > self.manifest["largest_id"]:
            raise TokenShardError(
                f"{path} holds the id {largest}, above the manifest's largest, "
                f"{self.manifest['largest_id']}; make the shards again."
            )
        self._verified.add(number)


def id_dtype(vocab_size: int) -> type[np.unsignedinteger[Any]]:
    """The smallest unsigned dtype that holds every id."""
    return np.uint16 if vocab_size <= 1 << 16 else np.uint32


def check_ids(array: NDArray[Any], vocab_size: int, where: str) -> None:
    """Every id is in the vocabulary.

    Raises:
        TokenShardError: one is not.
    """
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= vocab_size:
        wrong = low if low < 0 else high
        raise TokenShardError(
            f"The id {wrong} in {where} is not in the vocabulary of {vocab_size} tokens; was another "
            "tokenizer used?"
        )


def _mapped(path: Path, shape: tuple[int, ...]) -> NDArray[Any]:
    """A memory-mapped .npy file of this shape."""
    if not path.is_file():
        raise TokenShardError(f"The token file {path} is missing; make the shards again.")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError, SyntaxError, OverflowError, TokenError) as error:
        raise TokenShardError(
            f"The token file {path} ({path.stat().st_size} bytes) is cut short or damaged; make the shards "
            "again."
        ) from error
    if array.dtype.kind not in "iu":
        raise TokenShardError(f"The token file {path} holds {array.dtype}, no whole numbers; make it again.")
    if array.shape != shape:
        raise TokenShardError(
            f"The token file {path} is {list(array.shape)} where the manifest says {list(shape)}; "
            "make the shards again."
        )
    return array


def _reopened(folder: Path, masked: tuple[str, ...], positions: tuple[int, ...]) -> TokenShards:
    return replace(TokenShards.open(folder), masked=masked, positions=positions)
