"""From documents to token shards: tokenise, pack per subset into sequences of one length, shuffle, write."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from interpcore.data.corpus import Corpus, open_corpus
from interpcore.data.documents import Document, read_documents
from interpcore.data.tokens.manifest import MASKS, TokenShardError, check_masks
from interpcore.data.tokens.shards import TokenShards, id_dtype
from interpcore.data.tokens.writing import check_empty, made_before, scratch_folder, write_shards
from interpcore.model.load.location import Location, embedded_folder, first_line, locate
from interpcore.model.load.source import TOKENIZER_FILES
from interpcore.model.prompts import bos_rule, first_ids
from interpcore.model.token_text import token_texts
from interpcore.runs import Progress, tokenizer_hash

_BATCH = 256  # documents given to the tokenizer at once


def prepare_tokens(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    tokenizer: Any,
    *,
    context: int = 512,
    max_tokens: int | None = None,
    seed: int | None = 0,
    text: str = "text",
    subset: str | None = None,
    sample_by: str = "document",
    bos: bool | None = None,
    pad_last: bool = False,
    newline_ids: Sequence[int] | None = None,
    masked: Sequence[str] = MASKS,
    min_characters: int = 1,
    revision: str | None = None,
    progress: bool = False,
) -> TokenShards:
    """Tokenises documents and writes them as shards.

    The documents of a subset follow one another with the end-of-text token between them (where the tokenizer
    has one) and are cut into sequences of `context` tokens, each begun as `bos` says. What is left of a
    subset is dropped, or padded. All sequences are shuffled together. Called again with the same files,
    tokenizer and options, it gives the shards that the folder holds.

    Args:
        source: a corpus; see `open_corpus`.
        text, subset, sample_by: where a document's text and subset are; see `read_documents`.
        folder: where to; absent, empty, or of the same call before. It appears whole or not at all.
        tokenizer: a transformers tokenizer, or a model folder or hub id to load it from.
        context: tokens of a sequence.
        max_tokens: keep ceil(max_tokens / context) of the shuffled sequences; None for all.
        seed: of the shuffle; None keeps the order of the source.
        bos: what each sequence begins with, see `interpcore.model.prompts.first_ids`.
        pad_last: pad the last sequence of a subset with the padding token instead of dropping it.
        newline_ids: ids that the newline mask leaves out; None for every token that is newlines only.
        masked: which masks apply: of padding, bos, newline. Each is by token id, and tokenizers that use one
            token for padding, beginning and end of text have it left out wherever it stands.
        min_characters: shorter documents are left out.
        revision: of the tokenizer, for the manifest and for loading it.
        progress: show it.

    Raises:
        Refused: nothing to read, a damaged file, too little text, a folder that holds something else, or a
            full disk.
    """
    corpus, folder = open_corpus(source), Path(folder)
    check_masks(masked)
    name, tokenizer = _tokenizer(tokenizer, revision)
    ids, first = special_ids(tokenizer, newline_ids), first_ids(tokenizer, bos)
    if context <= len(first):
        raise TokenShardError(f"A context of {context} leaves no room for text; give 2 or more.")
    if pad_last and not ids["padding"]:
        raise TokenShardError(f"The tokenizer {name} has no padding token; set pad_last=False.")
    fields = {"text": text, "subset": subset, "sample_by": sample_by}
    described = {**fields, "min_characters": min_characters}
    made_of = {
        "source": corpus.hash,
        "tokenizer": tokenizer_hash(tokenizer),
        "context": context,
        "max_tokens": max_tokens,
        "seed": seed,
        **described,
        "bos": bos_rule(bos),
        "pad_last": pad_last,
        "newline_ids": [int(i) for i in ids["newline"]],
        "masked": sorted(masked),
    }
    if (before := made_before(folder, made_of)) is not None:
        return before
    check_empty(folder)
    found = (d for d in _documents(corpus, fields, progress) if len(d.text) >= min_characters)
    with scratch_folder(folder, "staging") as staging:
        packing = Packing(staging / "sequences.bin", len(tokenizer), context, first)
        with packing:
            for label, tokens in _tokenised(found, tokenizer):
                packing.add(label, tokens)
            packing.finish(ids["padding"][0] if pad_last else None)
        if not packing.labels:
            raise TokenShardError(
                f"{source} holds less than one sequence of {context} tokens; lower the context."
            )
        return write_shards(
            folder,
            packing.sequences(),
            len(tokenizer),
            subset=np.array(packing.labels),
            subsets=packing.subsets,
            masks=ids,
            masked=masked,
            seed=seed,
            count=None if max_tokens is None else math.ceil(max_tokens / context),
            described={
                "tokenizer": {
                    "hash": made_of["tokenizer"],
                    "name": name,
                    "revision": revision,
                    "bos": bos_rule(bos),
                },
                "source": {"name": corpus.name, **described},
                "made_of": made_of,
            },
        )


class Packing:
    """Concatenates the tokens of each subset and appends full sequences to a file; a context manager.

    Args:
        path: the file, which takes raw ids.
        vocab_size: number of token ids.
        context: tokens of a sequence.
        first: ids that begin each.
    """

    def __init__(self, path: Path, vocab_size: int, context: int, first: Sequence[int]) -> None:
        self.dtype = np.dtype(id_dtype(vocab_size))
        self.subsets: list[str] = []
        self.labels: list[int] = []
        self._context, self._first = context, list(first)
        self._waiting: dict[str, list[int]] = {}
        self._path, self._file = path, path.open("wb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def sequences(self) -> NDArray[Any]:
        """What was written [sequences, context], mapped from the file."""
        return np.memmap(self._path, self.dtype, "r", shape=(len(self.labels), self._context))

    def add(self, subset: str, tokens: Sequence[int]) -> None:
        """Appends tokens to a subset."""
        if subset not in self._waiting:
            self._waiting[subset] = []
            self.subsets.append(subset)
        waiting = self._waiting[subset]
        waiting.extend(tokens)
        room = self._context - len(self._first)
        full = len(waiting) // room
        for start in range(0, full * room, room):
            self._write(subset, waiting[start : start + room])
        del waiting[: full * room]

    def finish(self, padding: int | None) -> None:
        """Writes what is left of each subset, padded with this id; None drops it."""
        for subset, waiting in self._waiting.items():
            if waiting and padding is not None:
                missing = self._context - len(self._first) - len(waiting)
                self._write(subset, waiting + [padding] * missing)

    def _write(self, subset: str, tokens: list[int]) -> None:
        self._file.write(np.array(self._first + tokens, dtype=self.dtype).tobytes())
        self.labels.append(self.subsets.index(subset))


def special_ids(tokenizer: Any, newline_ids: Sequence[int] | None = None) -> dict[str, list[int]]:
    """The ids of each kind in `MASKS`.

    Args:
        tokenizer: a transformers tokenizer.
        newline_ids: the newline tokens; None for every token that is newlines only.
    """
    if newline_ids is None:
        newline_ids = [i for i, text in enumerate(token_texts(tokenizer)) if set(text) == {"\n"}]
    single = {"padding": tokenizer.pad_token_id, "bos": tokenizer.bos_token_id}
    return {kind: [] if i is None else [int(i)] for kind, i in single.items()} | {
        "newline": list(newline_ids)
    }


def _tokenizer(tokenizer: Any, revision: str | None) -> tuple[str, Any]:
    if not isinstance(tokenizer, str | os.PathLike):
        return Path(tokenizer.name_or_path).name, tokenizer
    from transformers import AutoTokenizer

    source, found = str(tokenizer), Path(tokenizer)
    if embedded_folder(source) is None and found.is_dir():  # of which no weights are asked
        # transformers makes an empty tokenizer of a folder without one, and that would drop every character.
        if not any((found / file).is_file() for file in TOKENIZER_FILES):
            raise TokenShardError(f"{tokenizer} holds no tokenizer, such as a tokenizer.json.")
        place = Location(source, source, revision)
    else:
        place = locate(source, revision)
    how: dict[str, Any] = {"revision": place.revision, "local_files_only": place.cached}
    try:
        return found.name, AutoTokenizer.from_pretrained(place.place, **how)
    except (OSError, ValueError) as error:
        said = f"No tokenizer could be loaded from {tokenizer}: {first_line(error)}"
        raise TokenShardError(said) from error


def _documents(corpus: Corpus, fields: dict[str, Any], progress: bool) -> Iterator[Document]:
    """The documents of a corpus, where `fields` says."""
    with Progress("files tokenised", len(corpus.files), shown=progress) as shown:
        for path in corpus.files:
            yield from read_documents(path, corpus.path, **fields)
            shown.advance()


def _tokenised(documents: Iterable[Document], tokenizer: Any) -> Iterator[tuple[str, list[int]]]:
    """Subset and ids of each document, the end-of-text token after them."""
    end = [] if tokenizer.eos_token_id is None else [int(tokenizer.eos_token_id)]
    rest = iter(documents)
    while batch := list(itertools.islice(rest, _BATCH)):
        texts = [document.text for document in batch]
        found = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        for document, ids in zip(batch, found, strict=True):
            yield document.subset, ids + end
