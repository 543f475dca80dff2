"""`show`: what a run folder holds, whatever made it: what it is, how much is finished, tables, pictures."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.review.experiments import experiments, run_cards
from interpcore.runs.card import RunCard
from interpcore.runs.experiment import Report
from interpcore.runs.folder import read_card
from interpcore.runs.ledger import Ledger

if TYPE_CHECKING:
    import pandas as pd

PICTURES = (".png", ".svg", ".pdf")
PAGES = (".html", ".md", ".ipynb")
SESSION = "session.sqlite"
LONG = 60


@dataclass(frozen=True)
class State:
    """What is finished in one run folder.

    Args:
        kind: the commands that may have made it, or what else it is.
        done, failed: cells in the ledger.
        asked: cells that sweeps into it have asked for; at least those in the ledger.
        seconds: that the cells took.
        failures: what the last cells that failed say.
    """

    kind: str
    done: int
    failed: int
    asked: int
    seconds: float
    failures: tuple[str, ...] = ()


def state(run: Path) -> State:
    """What is finished in a run folder.

    Raises: RunError for a damaged card or ledger.
    """
    card, counts, seconds, failures = read_card(run), Counter[str](), 0.0, list[str]()
    asked, tasks = 0, set[str]()
    file = run / "ledger.sqlite"
    if file.is_file():
        with Ledger(file, read_only=True) as ledger:
            asked = ledger.asked
            for row in ledger:
                counts[row.status] += 1
                seconds += row.seconds
                tasks.add(row.task)
                if row.status == "failed" and row.error:
                    failures.append(f"{row.key}: {row.error}")
    return State(
        kind_of(run, card, tasks),
        counts["done"],
        counts["failed"],
        max(asked, counts.total()),
        seconds,
        tuple(failures[-3:]),
    )


def kind_of(run: Path, card: RunCard, tasks: Collection[str] = ()) -> str:
    """What made a run, in few words.

    Args:
        run: its folder.
        card: its card.
        tasks: of the rows of its ledger.
    """
    functions = sorted({task.partition(" ")[0] for task in tasks})
    families = sorted({name.split(".")[1] for name in functions if name.startswith("interpcore.")})
    typed = re.search(r"\binterpcore(?:\.cli)? (\w+ [\w-]+)", card.command or "")
    if typed and (not families or typed[1].split()[0] in families):
        return typed[1]
    if families:
        return ", ".join(families)
    if functions:
        return f"sweep of {', '.join(functions)}"
    if (run / "artifacts" / SESSION).is_file():
        return "agent run"
    made = [each for each in experiments() if each.own and each.made(card)]
    if not made:
        return "a run"
    best = max(made, key=lambda each: len(each.own))
    return f"{best.name.split()[0]} {run.name}" if best.marks else best.name


def show(folder: str | os.PathLike[str]) -> Report:
    """What a run folder, or a study's with a run folder per step, holds.

    Returns: a row per table; the files are its pictures and pages.
    Raises: RunError for a folder that holds no run, or a damaged one.
    """
    import pandas as pd

    root = Path(folder)
    cards = run_cards(root)
    rows: list[dict[str, Any]] = []
    notes = [_made(root, next(iter(cards.values())))]
    files: list[Path] = []
    for run, card in cards.items():
        found = state(run)
        name = run if run == root else run.relative_to(root)
        notes.append(f"{name}: {found.kind}, {_finished(found)}.{_arguments(card)}")
        notes += [f"Failed in {name}: {text}" for text in found.failures]
        inside = sorted(p for p in (run / "artifacts").rglob("*") if p.is_file())
        tables = [p for p in inside if p.suffix == ".parquet"]
        rows += [{"table": str(p.relative_to(root)), **_size(p)} for p in tables]
        files += [p for p in inside if p.suffix in (*PICTURES, *PAGES)]
    return Report(pd.DataFrame(rows), files=tuple(_once(files)), notes=tuple(notes))


def _finished(found: State) -> str:
    if not found.asked:
        return "which has no cells"
    failed = f", {found.failed} failed" if found.failed else ""
    return f"{found.done} of {found.asked} cells finished{failed}, {found.seconds:.0f} s"


def _made(root: Path, card: RunCard) -> str:
    said = [f"{root}: {card.model or 'no model'}"]
    said += [card.dtype] if card.dtype else []
    said += [f"protocol {card.protocol}", f"begun {card.created}"]
    made = f" Made by: {card.command}" if card.command else ""
    return f"{', '.join(said)}.{made}"


def _arguments(card: RunCard) -> str:
    """What was asked of a run, as far as it is short."""
    said = {name: f"{name} {value}" for name, value in card.arguments.items() if value not in (None, [], "")}
    short = [text for text in said.values() if len(text) <= LONG]
    return f" With {', '.join(short)}." if short else ""


def _size(path: Path) -> dict[str, Any]:
    """Rows and columns of a table, from its footer alone."""
    from pyarrow import ArrowException, parquet

    try:
        meta = parquet.read_metadata(path)
    except (ArrowException, OSError):
        return {"rows": "damaged"}
    return {"rows": meta.num_rows, "columns": meta.num_columns}


def _once(files: list[Path]) -> list[Path]:
    """A picture in several formats once."""
    seen: dict[Path, Path] = {}
    for file in files:
        seen.setdefault(file.with_suffix("") if file.suffix in PICTURES else file, file)
    return list(seen.values())


def table(folder: str | os.PathLike[str], name: str) -> pd.DataFrame:
    """One table of a run, by its name or the end of its path.

    Raises: RunError where there is none, or several.
    """
    from interpcore.runs.claims import find_table
    from interpcore.runs.frames import read_frame

    wanted = name.removesuffix(".parquet")
    return read_frame(find_table(wanted, list(run_cards(Path(folder)))))
