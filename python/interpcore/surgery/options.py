"""What a study of layer surgery means, and what each of its experiments asks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.errors import Refused
from interpcore.runs.options import PROTOCOLS, option
from interpcore.runs.options import Options as Base

if TYPE_CHECKING:
    from interpcore.data.tasks import Task

TEXT = "text"
"""The task whose items are documents of the tiny world, every token of which is scored."""
PUBLISHED = "published"
"""The task name that stands for the eleven published kinds."""
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
    )
    draws: int = option(20, "Seeds of each plan 'random K' that names none.", least=1)
    new_tokens: int = option(0, "Tokens of a completion to measure beside the answers; 0 for none.", least=0)


@dataclass(frozen=True, kw_only=True)
class Compare(Items):
    """Two plans on the same items."""

    plan_a: str = option(..., "A plan.", positional=True)
    plan_b: str = option("intact", "The plan to compare it with.", positional=True)


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
            raise Refused(f"There is no map of {unknown[0]!r}; there are {', '.join(KINDS)}.")
        if self.half != "all" and set(self.kind) & set(PAIRS):
            raise Refused("A map of pairs splits the items in halves itself; leave half at 'all'.")


SINGLES = ("skip", "keep", "drop", "repeat", "swap")
PAIRS = ("ranges-skip", "ranges-repeat", "pairs-swap")
KINDS = SINGLES + PAIRS


@dataclass(frozen=True, kw_only=True)
class Repeat(Items):
    """Every block run several times."""

    times: tuple[int, ...] = option((2, 5), "How often a block runs.", least=2)
