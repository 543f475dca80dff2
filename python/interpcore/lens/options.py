"""What a lens is fitted on, and what is read through it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import Refused
from interpcore.runs.options import PROTOCOLS, Options, option

if TYPE_CHECKING:
    from interpcore.data.corpus import Corpus

KIND = "jacobian lens"  # what a lens's file says it is
SITES = ("resid", "attn_out", "mlp_out", "z")
RULES = ("exact", "relp", "frozen")
TINY_DOCUMENTS = 100  # of the tiny world, in one running text


@dataclass(frozen=True, kw_only=True)
class FitOptions(Options):
    """What a lens is an average of."""

    text: str = option(
        "tiny",
        "Text to take prompts from: a file (.txt, .jsonl, .parquet; .gz, .zst), a folder, - (standard input) "
        "or hf:NAME; or 'tiny' for the tiny world's documents.",
        circumstance=True,
    )
    prompts: int = option(1000, "Prompts to average over, at most.", least=2, extends=True)
    length: int = option(128, "Tokens of a prompt at most.", least=3)
    skip: int = option(16, "First positions of a prompt that are neither source nor target.", least=0)
    target_depth: int = option(-1, "Residual depth that the lens leads to; -1 is the last block's output.")
    site: str = option(
        "resid",
        "What the lens leads from; attn_out, mlp_out and z (every head's) of each block.",
        choices=SITES,
    )
    rules: str = option(
        "exact",
        "What nonlinear parts pass on: 'exact' derivatives, 'relp' (the R-lens) or 'frozen' attention "
        "probabilities.",
        choices=RULES,
    )
    slice_size: int = option(
        32,
        "Prompts of a cell: what a killed run does again at most. A cell keeps four lenses' worth of disk.",
        least=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length < self.skip + 2:
            raise Refused(
                f"length is {self.length} and skip {self.skip}; a prompt needs a token between those skipped "
                f"and its last one, so give a length of at least {self.skip + 2}."
            )

    def check_data(self) -> None:
        """See `Options.check_data`: looks for the text."""
        self.text_hash()

    def text_hash(self) -> str:
        """What the card says of the text: a hash of what is read, or "tiny"."""
        corpus = self.corpus()
        return "tiny" if corpus is None else corpus.hash

    def corpus(self) -> Corpus | None:
        """The text; None for the tiny world's."""
        from interpcore.data.corpus import open_corpus

        return None if self.text == "tiny" else open_corpus(self.text)

    def read_texts(self) -> Iterator[str]:
        """The texts in order; the tiny world's never end."""
        from interpcore.data.tinyworld.corpus import END_OF_TEXT, documents

        if (corpus := self.corpus()) is not None:
            return corpus.texts()
        return (END_OF_TEXT.join(documents(f"lens {block}", TINY_DOCUMENTS)) for block in count())


@dataclass(frozen=True, kw_only=True)
class ReadOptions(Options):
    """Which lens is read, and how."""

    lens: str = option(
        ...,
        "A lens: a file that `lens fit` wrote, its run folder, or a published .pt.",
        circumstance=True,
        positional=True,
    )
    top: int = option(3, "Tokens read at each depth and position.", least=1)
    other_model: bool = option(False, "Read with a lens of another model.")

    @property
    def file(self) -> Path:
        """The lens's file."""
        given = Path(self.lens)
        return given / "artifacts" / "lens.safetensors" if given.is_dir() else given

    def check_data(self) -> None:
        """See `Options.check_data`: reads what the lens says of itself."""
        from interpcore.runs.artifacts import read_metadata

        if self.file.suffix != ".pt" and read_metadata(self.file).get("kind") != KIND:
            raise Refused(f"{self.file} holds no Jacobian lens; give a file that `lens fit` wrote.")
        if not self.file.is_file():
            raise Refused(f"There is no file {self.file}; give a lens.")

    def lens_hash(self) -> str:
        """What the card says of the lens."""
        with self.file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True, kw_only=True)
class Prompt(Options):
    """What is read."""

    prompt: str = option("The capital of France is", "A text to read at every depth and position.")
    depths: tuple[int, ...] = option((), "Show these depths alone.", least=0, flag="depth", circumstance=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt)


@dataclass(frozen=True, kw_only=True)
class Change(Options):
    """What is edited through the lens."""

    prompt: str = option("The capital of France is", "A text, edited at every position.")
    into: str = option(..., "The token to steer to or to swap in, with its leading space.")
    out_of: str = option("", "The token to swap out; leave it out to steer.")
    depths: tuple[int, ...] = option(
        (), "Edit at these depths, one at a time; default: all.", least=0, flag="depth"
    )
    strength: float = option(1.0, "Of the swap (1 exchanges), or the steering vector over the states' norm.")
    draws: int = option(4, "Controls: random directions of the same lengths and angle.", least=1)
    protocol: str = option(
        "default", "'paper' leaves the final norm's weight out of directions.", choices=PROTOCOLS
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_prompt(self.prompt)


def check_prompt(prompt: str) -> None:
    """Raises: Refused for an empty text."""
    if not prompt.strip():
        raise Refused("The prompt is empty; give a text.")
