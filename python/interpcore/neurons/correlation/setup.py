"""Correlations of several models' neurons: what they are of, how they are taken, and what comes out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from interpcore.data.tokens import TokenShards
from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.neurons.cards import corpus_card
from interpcore.neurons.correlation.cross_sums import Columns, plan_passes
from interpcore.neurons.correlation.partners import Partners
from interpcore.neurons.correlation.reader import SIMILARITIES, NeuronSet, Reader, Span, neuron_set
from interpcore.neurons.correlation.similarity import ROTATIONS, Rotation
from interpcore.runs import RunCard, canonical_json, tensors_hash

BLOCK_TOKENS = 8192
PARTS = 4
"""Parts that tokens of so many blocks can be cut into: float32 rounds alike only between the same cuts."""
GROUPS = 20
Pair = tuple[int, int]


@dataclass(frozen=True)
class Settings:
    """What correlations mean, whatever sequences they are taken over.

    Args:
        similarity: "pearson", "cosine" or "jaccard" (of activation > `jaccard_threshold`).
        jaccard_threshold: see there.
        rotation: of partners for the baseline: "haar", "published", a function (see `similarity.Rotation`) or
            None; as read from a file, a function is "function" and the hash of its matrices.
        draws: number of rotations of every block.
        seed: of the rotations.
        groups: groups of whole sequences for standard errors.
        top_k: partners kept per neuron.
        precision: of the products, as in `comoments`; "bfloat16" rounds shifted values first.
        budget: bytes for sums of products; more passes over the tokens where they do not fit.
    """

    similarity: str = "pearson"
    jaccard_threshold: float = 0.0
    rotation: Rotation | None = "haar"
    draws: int = 1
    seed: int = 0
    groups: int = GROUPS
    top_k: int = 50
    precision: str = "float32"
    budget: float = 8e9

    def __post_init__(self) -> None:
        if self.similarity not in SIMILARITIES:
            raise Refused(
                f"similarity={self.similarity!r} is unknown; choose from {', '.join(SIMILARITIES)}."
            )
        named = isinstance(self.rotation, str) and not self.rotation.startswith("function ")
        if named and self.rotation not in ROTATIONS:
            raise Refused(f"rotation={self.rotation!r} is unknown; choose from {', '.join(ROTATIONS)}.")
        if self.similarity == "jaccard" and self.rotation is not None:
            raise Refused("A rotation has no Jaccard similarity; use rotation=None.")

    @property
    def rotates(self) -> bool:
        """Whether there is a rotated baseline."""
        return self.rotation is not None and self.draws > 0


@dataclass(frozen=True, eq=False)
class Correlations:
    """Similarities between the neurons of several models, summarised.

    Args:
        sets: the neurons of each model.
        columns: sums over single neurons, of each model.
        partners: by (model, partner model): what is kept of the similarities.
        settings: how they were taken.
        identity: which models and tokens they are of.
    """

    sets: tuple[NeuronSet, ...]
    columns: tuple[Columns, ...]
    partners: dict[Pair, Partners]
    settings: Settings
    identity: str

    @property
    def n_tokens(self) -> int:
        """Number of tokens that count."""
        return int(self.columns[0].count.sum())

    def index(self, name: str) -> int:
        """The number of a model."""
        names = [neurons.name for neurons in self.sets]
        if name not in names:
            raise Refused(f"There is no model {name!r} here; there are {', '.join(names)}.")
        return names.index(name)


class Study:
    """Models, tokens and settings with their passes: what `correlate` and the second passes share.

    Args:
        models: at least two, or one for its rotations alone.
        shards: the tokens.
        settings: see there.
        names: of the models; None for their own.
    """

    def __init__(
        self,
        models: Sequence[Model],
        shards: TokenShards,
        settings: Settings,
        names: Sequence[str] | None = None,
    ) -> None:
        for model in models:
            shards.check_model(model)
        self.models, self.shards, self.settings = list(models), shards, settings
        given = [None] * len(models) if names is None else list(names)
        self.sets = tuple(neuron_set(model, name) for model, name in zip(models, given, strict=True))
        if len({neurons.name for neurons in self.sets}) < len(models):
            raise Refused("Two models have one name; give names=[...] that differ.")
        if shards.n_sequences < settings.groups:
            raise Refused(
                f"{shards.n_sequences} sequences do not make {settings.groups} groups; give more tokens or "
                "groups=."
            )
        self.block = max(min(BLOCK_TOKENS // shards.context, shards.n_sequences // settings.groups), 1)
        self.n_blocks = -(-shards.n_sequences // self.block)
        self.stride = max(min(BLOCK_TOKENS // (self.block * shards.context), self.n_blocks // PARTS), 1)
        self.passes = plan_passes(self.sets, settings.budget, within=settings.rotates)
        self.reader = Reader(
            self.models,
            self.sets,
            shards,
            similarity=settings.similarity,
            jaccard_threshold=settings.jaccard_threshold,
            precision=settings.precision,
        )

    @property
    def step(self) -> int:
        """Sequences that are read and multiplied together."""
        return self.stride * self.block

    def span(self, block: int) -> Span:
        """A block's sequences, and the group that they belong to."""
        stop = min((block + 1) * self.block, self.shards.n_sequences)
        return Span(block * self.block, stop, block * self.settings.groups // self.n_blocks)

    def steps(self, blocks: range) -> list[list[Span]]:
        """Blocks that are read and multiplied together: what a product adds to its sums costs as much for few
        tokens as for many."""
        starts = range(blocks.start, blocks.stop, self.stride)
        return [[self.span(b) for b in range(at, min(at + self.stride, blocks.stop))] for at in starts]

    @cached_property
    def cards(self) -> tuple[RunCard, ...]:
        """Of each model over the tokens."""
        return tuple(corpus_card(model, self.shards, "default", None) for model in self.models)

    def identity(self) -> str:
        """What sums are of: models, tokens, mask, blocks, similarity. Rotations are no part of it."""
        models = zip(self.sets, self.cards, strict=True)
        return canonical_json(
            {
                "models": [[n.name, card.weights, card.plan_hash, card.dtype] for n, card in models],
                "tokens": self.shards.identity,
                "masked": list(self.shards.left_out),
                "block": self.block,
                "groups": self.settings.groups,
                "similarity": [self.settings.similarity, self.settings.jaccard_threshold],
                "precision": self.settings.precision,
            }
        )

    def meaning(self, what: Any, blocks: range) -> str:
        """Everything that sums depend on, what is summed and over which blocks, for a file."""
        of = [self.identity(), *(card.key for card in self.cards)]
        return canonical_json({"of": of, "what": what, "blocks": [blocks.start, blocks.stop]})

    def meaning_of_steps(self, what: Any, blocks: range) -> str:
        """As `meaning`, of sums that are saved after one of the `steps`."""
        return self.meaning(what if self.stride == 1 else [what, f"{self.stride} blocks a step"], blocks)

    def described(self) -> dict[str, Any]:
        """The settings as JSON; a rotation that is a function by the hash of its matrices."""
        rotation = self.settings.rotation
        if callable(rotation):
            calls = [
                (model, depth, draw)
                for model, neurons in enumerate(self.sets)
                for depth in range(len(neurons.widths))
                for draw in range(self.settings.draws)
            ]
            rotation = f"function {tensors_hash({str(call): rotation(*call) for call in calls})}"
        return asdict(self.settings) | {"rotation": rotation}

    def file(self, folder: str | os.PathLike[str], label: str, meaning: str) -> Path:
        """A file for sums: other ones have other names, so that several fit in one folder."""
        digest = hashlib.sha256(meaning.encode()).hexdigest()[:8]
        return Path(folder) / f"{label.replace(' ', '-')}-{digest}.safetensors"

    def block_range(self, span: tuple[int, int] | None) -> range:
        """The blocks of a range of sequences.

        Raises:
            ValueError: it does not begin and end between two blocks.
        """
        if span is None:
            return range(self.n_blocks)
        start, stop = span
        ends = stop == self.shards.n_sequences or stop % self.step == 0
        if not (0 <= start < stop <= self.shards.n_sequences and start % self.step == 0 and ends):
            raise Refused(
                f"Sequences {start} to {stop} do not begin and end on the grid of blocks of {self.step} in "
                f"{self.shards.n_sequences}; round them."
            )
        return range(start // self.block, -(-stop // self.block))
