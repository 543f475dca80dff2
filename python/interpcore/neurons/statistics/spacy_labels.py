"""Labels of words by a spaCy pipeline."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.neurons.statistics.labels import texts_hash


@dataclass(frozen=True, eq=False)
class SpacyLabels:
    """Parts of speech, dependencies and entities by a spaCy pipeline, which must be installed.

    A model's token takes the labels of the spaCy token that holds its first character that is not a space.

    Args:
        pipeline: a loaded spaCy pipeline, or the name of one.
        texts: text of each token id [vocabulary].
    """

    pipeline: Any
    texts: Sequence[str]

    def __post_init__(self) -> None:
        pipeline = self.pipeline
        if isinstance(pipeline, str):
            try:
                import spacy
            except ImportError as error:
                raise Refused("spaCy labels need spaCy: pip install spacy, and a pipeline of it.") from error
            pipeline = spacy.load(pipeline)
        labels = {
            ("part of speech", label) for label in ("ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN "
                                                    "PUNCT SCONJ SYM VERB X").split()
        }  # fmt: skip
        labels |= {("dependency", label) for label in pipeline.pipe_labels.get("parser", ())}
        labels |= {("entity", label) for label in pipeline.pipe_labels.get("ner", ())}
        object.__setattr__(self, "pipeline", pipeline)
        object.__setattr__(self, "_labels", sorted(labels))

    @property
    def names(self) -> tuple[str, ...]:
        """The labels as spaCy names them, with their kind."""
        return tuple(f"{kind} {label}" for kind, label in self._labels)  # type: ignore[attr-defined]

    @property
    def groups(self) -> tuple[str, ...]:
        """Each label's: "part of speech", "dependency" or "entity"."""
        return tuple(kind for kind, _ in self._labels)  # type: ignore[attr-defined]

    @property
    def meaning(self) -> str:
        """The texts, and the pipeline's name and version as it says them."""
        said = getattr(self.pipeline, "meta", {})
        about = [said.get(name) for name in ("lang", "name", "version")]
        return f"spacy {about} {texts_hash(self.texts)}"

    def __call__(self, tokens: Tensor, first: int) -> Tensor:
        column = {label: i for i, label in enumerate(self._labels)}  # type: ignore[attr-defined]
        out = torch.zeros(*tokens.shape, len(column), dtype=torch.bool)
        for row, ids in enumerate(tokens.tolist()):
            pieces = [self.texts[i] for i in ids]
            owner: dict[int, Any] = {}
            doc = self.pipeline("".join(pieces))
            for word in doc:
                owner |= dict.fromkeys(range(word.idx, word.idx + len(word)), word)
            at = 0
            for place, piece in enumerate(pieces):
                word = owner.get(at + len(piece) - len(piece.lstrip()))
                at += len(piece)
                if word is None:
                    continue
                found = (("part of speech", word.pos_), ("dependency", word.dep_), ("entity", word.ent_type_))
                for label in found:
                    if label in column:
                        out[row, place, column[label]] = True
        return out
