"""What a study of layer surgery means, and what each of its experiments asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import Refused, did_you_mean
from interpcore.runs.options import PROTOCOLS, option
from interpcore.runs.options import Options as Base

if TYPE_CHECKING:
    from interpcore.data.corpus import Corpus
    from interpcore.data.tasks import Task

TEXT = "text"
"""The task whose items are documents of the tiny world, every token of which is scored."""
PUBLISHED = "published"
"""The task name that stands for the eleven published kinds."""
RECIPES = (".yml", ".yaml")
HALVES = ("all", "first", "second")


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """What a folder means; its cells hold tasks, items and plans. `protocol="paper"` measures as published: a
    BOS token before the answer too, and the loss of the last token alone."""

    tasks: str = option(
        "generated",
        "A file of tasks (.json, as published or with scorers), or 'generated'.",
        circumstance=True,
    )
    protocol: str = option("default", "'paper' makes the published choices.", choices=PROTOCOLS)

    def check_data(self) -> None:
        """See `Options.check_data`: reads the file of tasks."""
        self.file_tasks()

    def file_tasks(self) -> list[Task] | None:
        """The tasks of the file; None for generated ones."""
        from interpcore.data.tasks import read_tasks

        return None if self.tasks == "generated" else read_tasks(self.tasks)

    def tasks_hash(self) -> str:
        """What the card says of the file."""
        import hashlib

        if self.tasks == "generated":
            return "generated"
        return hashlib.sha256(Path(self.tasks).read_bytes()).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Items(Base):
    """Which tasks, and which of their items."""

    task: tuple[str, ...] = option(
        (PUBLISHED,),
        "Tasks by name; 'published' for the eleven kinds, 'text' for running text of the tiny world, 'all' "
        "for all of a file.",
    )
    n: int = option(24, "Items per task at most; 24 explore, 100 confirm.", least=1)
    seed: int = option(0, "Of the items drawn; for a file, of their order, 0 being the file's.", least=0)
    half: str = option("all", "Items of one half by their ids, or all.", choices=HALVES)


@dataclass(frozen=True, kw_only=True)
class Run(Items):
    """Plans on tasks."""

    plan: tuple[str, ...] = option(
        ("menu",),
        "A plan such as '0-2, 1 x5, 3' or 'skip 3 then swap 0 1', or a recipe's file (.yml); 'menu' for one "
        "of every kind.",
        commas=False,
        endings=RECIPES,
    )
    draws: int = option(20, "Seeds of each plan 'random K' that names none.", least=1)
    new_tokens: int = option(0, "Tokens of a completion to measure beside the answers; 0 for none.", least=0)


@dataclass(frozen=True, kw_only=True)
class Compare(Items):
    """Two plans on the same items."""

    plan_a: str = option(..., "A plan.", positional=True, endings=RECIPES)
    plan_b: str = option("intact", "The plan to compare it with.", positional=True, endings=RECIPES)


@dataclass(frozen=True, kw_only=True)
class Map(Items):
    """All plans of some kinds, one block at a time."""

    kind: tuple[str, ...] = option(
        ("skip", "keep", "drop"),
        "skip (each block), keep (the first n), drop (the first n), repeat (each block), swap (neighbours); "
        "or of all pairs i <= j: ranges-skip, ranges-repeat, pairs-swap, chosen on one half of the items and "
        "reported on the other.",
    )
    times: tuple[int, ...] = option((2, 5), "How often a repeated block runs.", least=2)

    def __post_init__(self) -> None:
        super().__post_init__()
        if unknown := [kind for kind in self.kind if kind not in KINDS]:
            near = did_you_mean(unknown[0], KINDS)
            raise Refused(f"There is no map of {unknown[0]!r}; there are {', '.join(KINDS)}.{near}")
        if self.half != "all" and set(self.kind) & set(PAIRS):
            raise Refused("A map of pairs splits the items in halves itself; leave half at 'all'.")


SINGLES = ("skip", "keep", "drop", "repeat", "swap")
PAIRS = ("ranges-skip", "ranges-repeat", "pairs-swap")
KINDS = SINGLES + PAIRS


@dataclass(frozen=True, kw_only=True)
class Repeat(Items):
    """Every block run several times."""

    times: tuple[int, ...] = option((2, 5), "How often a block runs.", least=2)


@dataclass(frozen=True, kw_only=True)
class Influence(Items):
    """How much every block moves the stream, beside what skipping it costs."""

    task: tuple[str, ...] = option((TEXT,), "Tasks by name, or 'text' for running text of the tiny world.")
    n: int = option(100, "Items per task at most.", least=1)


@dataclass(frozen=True, kw_only=True)
class Prompted(Base):
    """A text."""

    prompt: str = option("The capital city of France is", "The text to read or to go on with.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompt.strip():
            raise Refused("The prompt is empty; give a text.")


@dataclass(frozen=True, kw_only=True)
class Tokens(Prompted):
    """What becomes more and less likely after every token of a text."""

    plan: str = option("skip 1", "The plan beside the intact one.", endings=RECIPES)
    top: int = option(5, "Tokens that gain, and tokens that lose, at each position.", least=1)


@dataclass(frozen=True, kw_only=True)
class Talk(Prompted):
    """Continuations of a text under plans."""

    plan: tuple[str, ...] = option(("skip 1",), "Plans beside the intact one.", commas=False, endings=RECIPES)
    new_tokens: int = option(20, "Tokens of a continuation at most.", least=1)
    temperature: float = option(0.0, "0 is greedy; more draws, and needs a seed.", least=0)
    seed: int | None = option(None, "Of the draw.", least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.temperature > 0 and self.seed is None:
            raise Refused("Sampling needs a seed; give one (--seed 0), or temperature 0.")


PATCHED = ("resid", "attn_out", "mlp_out", "z")
BY = ("position", "head")


@dataclass(frozen=True, kw_only=True)
class Places(Base):
    """Which clean states are put into a run."""

    site: str = option("resid", "What is put there.", choices=PATCHED)
    by: str = option(
        "position", "One position at a time; or one head of z at a time, at all positions.", choices=BY
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by == "head" and self.site != "z":
            raise Refused(f"Single heads are of site z; got {self.site!r} by head.")


@dataclass(frozen=True, kw_only=True)
class Patch(Places):
    """A clean state put into a corrupted run, at every depth and position."""

    task: str = option("facts", "Task whose items are each other's corrupted prompts.")
    n: int = option(12, "Pairs of prompts at most; those of a pair have equal numbers of tokens.", least=1)
    seed: int = option(0, "Of the items drawn.", least=0)


@dataclass(frozen=True, kw_only=True)
class Trace(Prompted, Places):
    """Noise on the subject, and clean states put back."""

    subject: str = option("France", "The part of the prompt whose embeddings get the noise.")
    answer: str = option("Paris", "What follows the prompt.")
    sigma: float = option(3.0, "Noise in standard deviations of the embeddings.", above=0)
    draws: int = option(10, "Draws of the noise.", least=1)
    seed: int = option(0, "Of the noise.", least=0)


@dataclass(frozen=True, kw_only=True)
class StandIn(Base):
    """Linear maps in place of skipped blocks."""

    span: tuple[str, ...] = option(
        ("blocks",),
        "Blocks to stand in for, such as 1 or 1-2; 'blocks' for each one alone, 'lens' for all from each "
        "depth on, which reads the last depth linearly.",
    )
    fit: int = option(400, "Documents that maps are fitted on.", least=2)
    choose: int = option(100, "Other documents, on which lambda is chosen by KL.", least=2)
    test: int = option(200, "Other documents, on which all is measured.", least=2)
    draws: int = option(400, "Random tokens that the mean Jacobian is taken at; 0 leaves it out.", least=0)
    rank: tuple[int, ...] = option((16,), "Ranks of I + low rank, cut from the ridge.", least=1)
    length: int = option(128, "Tokens of a document at most.", least=2)
    text: str = option(
        "tiny",
        "Documents: a file (.txt, .jsonl, .parquet; .gz, .zst), a folder, - (standard input) or hf:NAME; "
        "'tiny' for the tiny world's.",
        file=True,
    )
    seed: int = option(0, "Of the random tokens and the shuffled control.", least=0)

    def check_data(self) -> None:
        """See `Options.check_data`: looks for the text."""
        self.corpus()

    def corpus(self) -> Corpus | None:
        """The documents; None for the tiny world's."""
        from interpcore.data.corpus import open_corpus

        return None if self.text == "tiny" else open_corpus(self.text)
