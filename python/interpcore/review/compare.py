"""`compare`: two runs of one kind row by row, or a run beside published numbers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interpcore.errors import Refused
from interpcore.review.experiments import comparable, run_cards
from interpcore.runs.card import Difference, RunCard
from interpcore.runs.card import compare as differences_of
from interpcore.runs.claims import Claim, find_table
from interpcore.runs.compared import Compared
from interpcore.runs.experiment import Report
from interpcore.runs.frames import read_frame
from interpcore.stats import correlation, mean_over_clusters

if TYPE_CHECKING:
    import pandas as pd

PUBLISHED = "published"
MODEL = ("model", "revision", "weights", "tokenizer", "bos", "dtype", "plan", "plan_hash")
"""Fields of a card that differ between two models."""
FEW = 4
NOTES = (
    "difference: second minus first, mean over the rows that both have; correlation: of the two runs over "
    "those rows.",
    "rows: that both have; only_first, only_second: rows that one lacks.",
)
PAIRED = "_low to _high: 95% interval of the difference, paired, over {unit}s."
OWN_CHOICES = "The run makes choices of its own; --protocol paper makes the published ones."
DEPENDENT = "There is no interval: the rows of this table depend on one another."


def compare(
    first: str | os.PathLike[str], second: str | os.PathLike[str], *, differ: Sequence[str] = ()
) -> Report:
    """One table of two runs: what each has in the mean, and how much more the second has, row by row.

    Args:
        first, second: run folders; `second` may be "published", for the published numbers of the family.
        differ: fields of the card in which the runs are meant to differ: "model" for all that a model is,
            "arguments", "versions", ..., or "all".
    Returns: one row per measure over all rows, then one per value of the columns that the family names.
    Raises: Refused for runs of different families, or that differ in meaning in more than they are said to;
        RunError for a folder that is no run.
    """
    one = Path(first)
    declared = comparable(one)
    if str(second) == PUBLISHED and not Path(second).is_dir():
        return _beside_published(one, declared)
    two = Path(second)
    if comparable(two) != declared:
        raise Refused(f"{first} and {second} are runs of different kinds, which have no table in common.")
    left, right = _files(one, declared), _files(two, declared)
    different = _different(_card_of(left), _card_of(right))
    refused = [each for each in different if not _told(each, differ)]
    if refused:
        fields = list(dict.fromkeys("model" if each.field in MODEL else each.field for each in refused))
        raise Refused(
            f"{first} and {second} do not mean the same: {' '.join(map(str, refused[:FEW]))} If they are "
            f"meant to, say --differ {','.join(fields)}."
        )
    table = paired(read_frame(left), read_frame(right), declared)
    said = PAIRED.format(unit=declared.unit) if declared.unit else DEPENDENT
    return Report(table, notes=(*NOTES, said, *(f"Meant to differ: {each}" for each in different)))


def paired(first: pd.DataFrame, second: pd.DataFrame, declared: Compared) -> pd.DataFrame:
    """The lines of a comparison. Raises: Refused where no row is in both tables."""
    import pandas as pd

    keys = list(declared.keys)
    for frame, name in ((first, "first"), (second, "second")):
        if frame.duplicated(keys).any():
            raise Refused(f"The {name} run has two rows of the same {', '.join(keys)}; report it anew.")
    both = first.merge(second, on=keys, how="outer", suffixes=("|1", "|2"), indicator=True)
    there = (both["_merge"] == "both").to_numpy()
    if not there.any():
        raise Refused(f"The runs have no row in common: none of the same {', '.join(keys)}.")
    lacking = {f"only_{n}": int((both["_merge"] == f"{n_of}_only").sum()) for n, n_of in _SIDES.items()}
    if declared.where:
        for n in (1, 2):
            there = there & (both[f"{declared.where}|{n}"] == True).to_numpy()  # noqa: E712, absent is not
    kept = both[there]
    measures = [m for m in declared.measures if f"{m}|1" in both.columns]
    lines: list[dict[str, Any]] = [_line(kept, m, declared.unit) | lacking for m in measures]
    for column in declared.by:
        for value, rows in kept.groupby(column, sort=False):
            lines += [{column: value} | _line(rows, m, declared.unit) for m in measures]
    table = pd.DataFrame(lines)
    front = [name for name in ("measure", *declared.by) if name in table.columns]
    return table[[*front, *(name for name in table.columns if name not in front)]]


_SIDES = {"first": "left", "second": "right"}


def _line(rows: pd.DataFrame, measure: str, unit: str) -> dict[str, Any]:
    """One measure of matched rows; values that either run lacks are left out."""
    columns = [f"{measure}|1", f"{measure}|2"]
    there = np.isfinite(rows[columns].astype(float)).all(axis=1)
    pairs = rows[there]
    a, b = (pairs[column].to_numpy(dtype=np.float64) for column in columns)
    line: dict[str, Any] = {"measure": measure, "rows": len(pairs)}
    if not len(pairs):
        return line
    line |= {"first": a.mean(), "second": b.mean(), "difference": (b - a).mean()}
    if unit:
        found = mean_over_clusters(b - a, pairs[unit].tolist(), bounds=_bounds(a, b), share=False)
        line |= {"difference_low": found.low, "difference_high": found.high, f"{unit}s": found.n}
    if len(pairs) >= FEW and a.std() > 0 and b.std() > 0:
        line["correlation"] = correlation(a, b).value
    return line


def _bounds(a: np.ndarray, b: np.ndarray) -> tuple[float, float] | None:
    """Where differences lie, of shares."""
    shares = min(a.min(), b.min()) >= 0 and max(a.max(), b.max()) <= 1
    return (-1.0, 1.0) if shares else None


def _files(folder: Path, declared: Compared) -> Path:
    return find_table(declared.table, list(run_cards(folder)))


def _card_of(file: Path) -> RunCard:
    """The card of the run whose artifact a file is."""
    run = next(parent.parent for parent in file.parents if parent.name == "artifacts")
    return run_cards(run)[run]


def _different(first: RunCard, second: RunCard) -> list[Difference]:
    """In what two runs differ, but in how much of the same they did."""
    return [
        each
        for each in differences_of(first, second)
        if not (each.field == "arguments" and each.entry in {*first.extends, *second.extends})
    ]


def _told(difference: Difference, differ: Sequence[str]) -> bool:
    named = "model" if difference.field in MODEL else difference.field
    return bool({"all", difference.field, named} & set(differ))


def _beside_published(folder: Path, declared: Compared) -> Report:
    """Published numbers beside the same statistics of a run."""
    import pandas as pd

    if not declared.published:
        raise Refused(f"There are no published numbers of the kind of run that {folder} holds.")
    file = find_table(declared.published_table, list(run_cards(folder)))
    frame, arguments = read_frame(file), _card_of(file).arguments
    chosen = (OWN_CHOICES,) if arguments.get("protocol") == "default" else ()
    return Report(
        pd.DataFrame([*_published_lines(frame, declared), *_row_lines(frame, declared)]),
        notes=(
            "ours: of this run, of so many rows; difference: ours minus published, which is of the models "
            "and data that the source names.",
            *chosen,
        ),
    )


def _row_lines(frame: pd.DataFrame, declared: Compared) -> Iterator[dict[str, Any]]:
    for row in declared.rows_beside(frame):
        source = row.pop("source")
        yield row | {"difference": row["ours"] - row["published"], "source": source}


def _published_lines(frame: pd.DataFrame, declared: Compared) -> Iterator[dict[str, Any]]:
    for each in declared.published:
        claim = Claim(each.what, declared.published_table, each.statistic, "=", each.value, each.filter)
        found, rows = claim.found(frame)
        yield {
            "what": each.what,
            "published": each.value,
            "ours": found,
            "rows": rows,
            "difference": found - each.value,
            "source": each.source,
        }
