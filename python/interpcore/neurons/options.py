"""What a study of neurons means, and what each of its experiments asks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from interpcore.errors import Refused
from interpcore.runs.options import PRECISIONS, PROTOCOLS, option
from interpcore.runs.options import Options as Base

LEFT_OUT = ("histogram", "published", "top", "position", "errors", "previous")
"""What a token pass can do without, by the names of `Statistics`."""
UNIVERSAL = 0.5
"""Excess correlation above which a neuron is universal, as published."""


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """What all steps of a study share. A study's folder holds a run folder per step, whose card says what
    that step depends on."""

    tokens: str | None = option(None, "Token shards that `neurons tokens` made.", circumstance=True)
    partners: tuple[str, ...] = option(
        (), "A model trained apart from it, on the same tokens; again for more.", flag="partner", file=True
    )
    positions: tuple[int, ...] = option(
        (), "Count this position of every sequence alone, -1 the last; again for more.", flag="position"
    )
    dictionaries: tuple[str, ...] = option(
        (),
        "A sparse autoencoder or transcoder of the model, whose latents take its neurons' place (summarize, "
        "correlate, explain): SAELens, Gemma Scope or circuit-tracer files; again for more.",
        flag="dictionary",
        file=True,
    )
    reads: str | None = option(
        None, "The site that the dictionaries read, such as resid.6, where they do not say it.", flag="site"
    )
    rotation: str = option("haar", "Of partners, for the baseline.", choices=("haar", "published"))
    draws: int = option(1, "Rotations of every layer.", least=1)
    universal: float = option(UNIVERSAL, "Excess correlation above which a neuron is universal.")
    published: tuple[str, ...] = option(
        (), "A published CSV file to summarise beside ours; again for more.", flag="from", file=True
    )
    by_token: bool = option(
        True, "Sums by token and previous token, which explanations need; one per entry of the vocabulary."
    )
    largest: bool = option(
        False, "Beside sums by token the largest activation by token, as the published scripts have it."
    )
    leave_out: tuple[str, ...] = option(
        (), "Of the token pass, where no other step needs it; again for more.", choices=LEFT_OUT
    )
    by_label: bool = option(True, "Sums by label in context (word, quote, ...).")
    precision: str = option(
        PRECISIONS[0],
        "Of products in the token pass's forwards, and of activations in correlations: float32 leaves the "
        "model's own; bfloat16 rounds their operands, and measures the error.",
        choices=PRECISIONS,
    )
    protocol: str = option("default", "'paper' makes the published choices.", choices=PROTOCOLS)
    seed: int = option(0, "Of every random draw.")
    parts: int | None = option(
        None,
        "Parts of a token pass, shared out among workers; the bits depend on it, not on them. Default: by "
        "the number of tokens, 262,144 at least in each.",
        least=1,
        circumstance=True,
    )
    memory: float = option(
        4.0, "GB for what a process gathers in a token pass; else more passes.", above=0, circumstance=True
    )
    budget: float = option(
        8.0, "GB for a process's sums of correlations; else more passes.", above=0, circumstance=True
    )

    def check_data(self) -> None:
        """See `Options.check_data`: published tables and dictionaries, and whether there are shards."""
        for file in self.dictionaries:
            if not Path(file).exists():
                raise Refused(f"There is no dictionary {file}.")
        for file in self.published:
            if not Path(file).is_file():
                raise Refused(f"There is no file {file}.")
        if self.tokens is not None and not Path(self.tokens).is_dir():
            raise Refused(f"{self.tokens} holds no token shards; make them with `interpcore neurons tokens`.")


@dataclass(frozen=True, kw_only=True)
class OfParts(Base):
    """What passes over the tokens ask that several processes may share."""

    estimate: bool = option(False, "Say what it will take, and stop.")
    part: str | None = option(None, "Only this part of the tokens, such as 1/2.")
    merge: bool = option(False, "Merge the parts that --part made.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.part is not None and not re.fullmatch(r"\d+/\d+", self.part):
            raise Refused(f"--part {self.part!r} is no part such as 1/2.")

    @property
    def numbers(self) -> tuple[int, int] | None:
        """Which part of how many."""
        if self.part is None:
            return None
        number, _, of = self.part.partition("/")
        return int(number), int(of)


@dataclass(frozen=True, kw_only=True)
class Summarize(OfParts):
    """What the token pass asks."""

    quadrants: bool = option(False, "Of gated neurons, also by the signs of gate and factor.")


@dataclass(frozen=True, kw_only=True)
class Correlate(OfParts):
    """What correlations ask."""

    sketch: int | None = option(
        None, "Estimate from so many buckets of tokens; exact where it decides.", least=1
    )


@dataclass(frozen=True, kw_only=True)
class Weights(Base):
    """What weight statistics ask."""

    full: bool = option(False, "Keep summaries of all cosines and all compositions too.")


@dataclass(frozen=True, kw_only=True)
class Explain(Base):
    """What explanations by features ask: which labels to try."""

    features: str | None = option(None, "A feature file of your own.", file=True)
    unigram_least: int = option(3000, "Rarer words are no feature.", least=1)
    unigram_most: int = option(500, "The commonest so many words are features at most.", least=1)
    spacy: str | None = option(None, "A spaCy pipeline for parts of speech.", file=True)
    context: bool = option(True, "Also labels that the token alone does not give.")
    limit: int | None = option(
        None, "Sequences of the pass for labels in context; default: all.", least=1, flag="sequences"
    )
    keep: int = option(3, "Best labels kept per neuron.", least=1)

    def check_data(self) -> None:
        """See `Options.check_data`: the feature file."""
        if self.features is not None and not Path(self.features).is_file():
            raise Refused(f"There is no feature file {self.features}.")


@dataclass(frozen=True, kw_only=True)
class Fourier(Base):
    """What Fourier features ask."""

    back: tuple[int, ...] = option(
        (0, 1, 2), "Places before the token whose number counts; again for more.", least=0
    )
    modulus: int | None = option(
        None, "Numbers count by their remainder; default: as many as have a token each.", least=5
    )
    limit: int | None = option(None, "Sequences read, the first so many.", least=1, flag="sequences")


FEW = "Sequences read by this step, the first so many."
NEURONS = "layer.neuron,layer.neuron,... or a CSV file with layer and neuron."


@dataclass(frozen=True, kw_only=True)
class Intervene(Base):
    """What interventions ask."""

    neurons: str | None = option(None, NEURONS, file=True)
    kind: str = option(
        "fixed",
        "What is done: to zero, cut from above (threshold) or below (relu), set (fixed), multiply.",
        choices=("zero", "threshold", "relu", "fixed", "multiply"),
    )
    site: str = option("post", "Before (pre) or after (post) the activation.", choices=("pre", "post"))
    values: tuple[float, ...] = option(
        (-0.17, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0), "Of threshold, fixed and multiply."
    )
    limit: int | None = option(64, FEW, least=1, flag="sequences")


@dataclass(frozen=True, kw_only=True)
class Deactivation(Base):
    """What the deactivation of attention heads asks."""

    neurons: str | None = option(None, NEURONS, file=True)
    first: int | None = option(None, "First position ablated; default: a quarter of the context.", least=1)
    limit: int | None = option(64, FEW, least=1, flag="sequences")


@dataclass(frozen=True, kw_only=True)
class Cache(Base):
    """What saving activations asks."""

    neurons: str = option(..., NEURONS, file=True)
    limit: int | None = option(None, FEW + " Default: all.", least=1, flag="sequences")
    stored: str = option("float32", "Type of the activations on disk.", choices=("float32", "float16"))


@dataclass(frozen=True, kw_only=True)
class View(Base):
    """What one neuron's page asks."""

    layer: int = option(..., "From 0.", least=0, positional=True)
    neuron: int = option(..., "From 0.", least=0, positional=True)
    page: str | None = option(None, "Where to; default: OUT/view/LAYER.NEURON.html.", file=True)
    examples: int = option(12, "Contexts shown.", least=1)


@dataclass(frozen=True, kw_only=True)
class Report(Base):
    """What the report asks."""

    unigram_least: int = option(3000, "Rarer words are no feature.", least=1)
    limit: int | None = option(64, FEW, least=1, flag="sequences")
