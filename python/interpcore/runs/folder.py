"""Run folders: one card, one ledger, artifacts, and a lock against double use."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interpcore.errors import Refused, RunError
from interpcore.runs.artifacts import read_json, remove_partials, write_json
from interpcore.runs.card import Difference, RunCard, compare
from interpcore.runs.cells import Cells
from interpcore.runs.ledger import Ledger
from interpcore.runs.locks import Claims, UseLock, refuse_link
from interpcore.runs.shown import AsFacts

if TYPE_CHECKING:
    import pandas as pd

_CARD, _LEDGER, _CLAIMS, _LOCK, _ARTIFACTS = "card.json", "ledger.sqlite", "claims", "lock", "artifacts"
_OWN_NAMES = {_CARD, _LEDGER, _CLAIMS, _LOCK, _ARTIFACTS}
_NOT_WRITABLE = (errno.EROFS, errno.EACCES, errno.EPERM)


_LOOKING: ContextVar[bool] = ContextVar("looking", default=False)


@contextmanager
def only_looking() -> Iterator[None]:
    """Runs are opened as they are as long as this lasts: none is made, gone on with or locked, and one that
    other versions made is taken. Its card must fit in all else."""
    token = _LOOKING.set(True)
    try:
        yield
    finally:
        _LOOKING.reset(token)


@dataclass(frozen=True)
class Artifacts:
    """The files of a run apart from its ledger: no lock, no database, and it can be sent to a worker.

    Attributes:
        path: the run folder.
        card: what the run means.
    """

    path: Path
    card: RunCard

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """The artifacts of a run that exists; nothing is written, so that a read-only disk will do.

        Args:
            path: the run folder.

        Raises:
            RunError: no run there, or its card is damaged.
        """
        return cls(Path(path), read_card(path))

    def artifact(self, name: str) -> Path:
        """The path of an artifact, its folder made. Write to it through `runs.artifacts`.

        Args:
            name: a relative path, such as "layer3/operator.safetensors".

        Returns:
            The path inside the run's `artifacts/`.

        Raises:
            Refused: the name leads out of the folder.
        """
        if not name or Path(name).is_absolute() or ".." in Path(name).parts:
            raise Refused(
                f"the artifact name {name!r} leads out of the run folder; give a relative path without '..'"
            )
        path = self.path / _ARTIFACTS / name
        for part in (path.parent, *path.parent.parents[: len(Path(name).parts) - 1]):
            refuse_link(part)
        with _kept_on_a_read_only_disk():
            path.parent.mkdir(parents=True, exist_ok=True)
        return path


class RunFolder(AsFacts):
    """A run on disk, held by the process that drives it; use it as a context manager.

    Make one with `create`, `open` or `open_or_create`. The folder holds `card.json`, `ledger.sqlite`
    (with SQLite's side files), `artifacts/`, and the files `lock` and `claims`, whose locks end with the
    process.

    Attributes:
        path: the folder.
        card: what the run means, as the folder says.
        ledger: its finished cells.
        claims: which process works on which cell.
        read_only: the disk or the folder's rights let nothing be written, or `only_looking` is at work; then
            nothing is locked either.
    """

    def __init__(
        self, path: Path, card: RunCard | None, *, shared: bool, may_create: bool, allow_difference: bool
    ) -> None:
        self.path = path
        for name in _OWN_NAMES:
            refuse_link(path / name)
        looking = _LOOKING.get()
        if looking and not is_run(path):
            raise RunError(f"{path} is not finished: it has no {_CARD}; run the step first")
        self.read_only = looking or (is_run(path) and _read_only(path))
        self._lock: UseLock | None = None
        self._release: Callable[[], None] | None = None
        if self.read_only:
            self.claims = Claims(None)
            self.card = _agreed(path, card, allow_difference)
            self.ledger = Ledger(path / _LEDGER, read_only=True)
            self._release = _hold_products(self.card)
            return
        self._lock = UseLock(path / _LOCK, shared=shared, what=f"the run folder {path}")
        self.claims = Claims(path / _CLAIMS)
        try:
            (path / _ARTIFACTS).mkdir(exist_ok=True)
            remove_partials(path)
            with self.claims.hold(_CARD):
                self.ledger = Ledger(path / _LEDGER)
                self.card = self._settle(card, may_create=may_create, allow_difference=allow_difference)
            self._release = _hold_products(self.card)
        except BaseException:
            self.close()
            raise

    def __repr__(self) -> str:
        return f"RunFolder({str(self.path)!r}, {len(self.cells)} cells)"

    @property
    def cells(self) -> Cells:
        """Its finished cells, which `to_pandas()` gives as a data frame."""
        return Cells(self.ledger)

    def facts(self) -> dict[str, Any]:
        """What a notebook says of it, by name: what the run is, and what is finished."""
        files = sum(file.is_file() for file in (self.path / _ARTIFACTS).rglob("*"))
        said = {name: value for name, value in self.card.to_json().items() if value}
        said = {
            name: value for name, value in said.items() if name not in ("versions", "products", "extends")
        }
        return {"folder": str(self.path), "finished": f"{self.cells!r}, {files} files", **said}

    def to_pandas(self) -> pd.DataFrame:
        """Its finished cells as a data frame, see `Cells.to_pandas`."""
        return self.cells.to_pandas()

    def _settle(self, card: RunCard | None, *, may_create: bool, allow_difference: bool) -> RunCard:
        """The folder's card: written where there is none, or where nothing is finished yet; extended where
        the caller only asks for more of the same."""
        file = self.path / _CARD
        if card is None or not may_create:
            return _agreed(self.path, card, allow_difference)
        if file.exists():
            stored = read_card(self.path)
            differences = [] if allow_difference else compare(stored, card)
            if not differences:
                return stored
            if all(difference.extends(card) for difference in differences):
                more = {str(difference.entry): difference.right for difference in differences}
                card = replace(stored, extends=card.extends, arguments={**stored.arguments, **more})
            elif self._is_empty() and self._lock is not None and self._lock.alone():
                self.ledger.clear()
            else:
                raise RunError(_another(self.path, differences))
        write_json(file, card.to_json())
        return card

    def _is_empty(self) -> bool:
        """Whether nothing is finished; a cell that only says that its input was refused is not."""
        kept = any(file.is_file() for file in (self.path / _ARTIFACTS).rglob("*"))
        return not kept and not any(row.status == "done" and not row.refused for row in self.ledger)

    @classmethod
    def create(cls, path: str | os.PathLike[str], card: RunCard, *, shared: bool = False) -> Self:
        """Makes a new run.

        Args:
            path: the folder; absent or empty.
            card: what the run means.
            shared: let other processes that also ask for it use the folder at the same time.

        Returns:
            The folder, locked for this process.

        Raises:
            RunError: the folder holds something already, or is in use.
        """
        path = Path(path)
        if path.exists() and (is_run(path) or _foreign(path)):
            raise RunError(f"the folder {path} is not empty; open it as a run, or choose another name")
        path.mkdir(parents=True, exist_ok=True)
        return cls(path, card, shared=shared, may_create=True, allow_difference=False)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        card: RunCard | None = None,
        *,
        allow_difference: bool = False,
        shared: bool = False,
    ) -> Self:
        """Opens a run that exists.

        Args:
            path: the folder.
            card: what the caller takes the run to mean; None takes the folder's word.
            allow_difference: open it although the cards differ in meaning (the folder's card stays).
            shared: let other processes that also ask for it use the folder at the same time.

        Returns:
            The folder, locked for this process.

        Raises:
            RunError: no run there, its card differs in meaning (the message says in what), it is damaged, or
                in use.
        """
        path = Path(path)
        if not is_run(path):
            raise RunError(
                f"{path} is not a run folder: it has no {_CARD}; check the name, or create a run there"
            )
        return cls(path, card, shared=shared, may_create=False, allow_difference=allow_difference)

    @classmethod
    def open_or_create(
        cls,
        path: str | os.PathLike[str],
        card: RunCard,
        *,
        allow_difference: bool = False,
        shared: bool = False,
    ) -> Self:
        """Opens the run if there is one, else makes it; safe when several processes do so at once.

        Args:
            path: the folder.
            card: what the run means.
            allow_difference: as in `open`.
            shared: as in `open`.

        Returns:
            The folder, locked for this process.

        Raises:
            RunError: as in `open`, or the folder holds something that is not a run.
        """
        path = Path(path)
        if path.exists() and not path.is_dir():
            raise RunError(f"{path} is a file, and a run needs a folder; choose another name")
        path.mkdir(parents=True, exist_ok=True)
        foreign = _foreign(path)
        if foreign and not is_run(path):
            raise RunError(
                f"{path} is not a run folder: it has {foreign[0]} but no {_CARD}; choose another name"
            )
        return cls(path, card, shared=shared, may_create=True, allow_difference=allow_difference)

    @property
    def artifacts(self) -> Artifacts:
        """The part of the folder that workers and readers use."""
        return Artifacts(self.path, self.card)

    def artifact(self, name: str) -> Path:
        """As `Artifacts.artifact`."""
        return self.artifacts.artifact(name)

    def close(self) -> None:
        """Closes the ledger and lets others use the folder."""
        if self._release is not None:
            self._release()
        if hasattr(self, "ledger"):
            self.ledger.close()
        self.claims.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def is_run(path: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a run: whether it has a card.

    Args:
        path: the folder; it need not exist.
    """
    return (Path(path) / _CARD).is_file()


def read_card(path: str | os.PathLike[str]) -> RunCard:
    """The card of a run folder, without opening (and locking) the run.

    Args:
        path: the folder.

    Returns:
        The card.

    Raises:
        RunError: it is missing, damaged or of another version.
    """
    file = Path(path) / _CARD
    return RunCard.from_json(read_json(file), where=str(file))


def _hold_products(card: RunCard) -> Callable[[], None] | None:
    """Products go the run's ways from now on; gives what ends that, None where the card records none."""
    if not card.products:
        return None
    from interpcore.ops import hold_routes  # loads torch

    return hold_routes(card.products)


def _foreign(path: Path) -> list[str]:
    """What a folder holds besides hidden files and what a killed creation leaves."""
    own = _OWN_NAMES | {f"{_LEDGER}{side}" for side in ("-wal", "-shm", "-journal")}
    return sorted({entry.name for entry in path.iterdir() if entry.name[0] != "."} - own)


def _agreed(path: Path, card: RunCard | None, allow_difference: bool) -> RunCard:
    """The folder's card; refuses one that means something else than the caller's."""
    stored = read_card(path)
    differences = [] if card is None or allow_difference else compare(stored, card)
    if _LOOKING.get():  # a later version may look at what an earlier one made
        differences = [each for each in differences if each.field != "versions"]
    if differences:
        raise RunError(_another(path, differences))
    return stored


def _another(path: Path, differences: list[Difference]) -> str:
    return (
        f"the run in {path} does not mean the same as this one; choose another folder (in Python, also "
        f"allow_difference=True): {' '.join(map(str, differences))}"
    )


def _read_only(path: Path) -> bool:
    """Whether nothing can be written into a folder."""
    try:
        os.close(os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666))
    except OSError as error:
        if error.errno in _NOT_WRITABLE:
            return True
        raise
    return False


@contextmanager
def _kept_on_a_read_only_disk() -> Iterator[None]:
    """Lets a folder be missing where it cannot be made: who reads there is told which file is not there."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NOT_WRITABLE:
            raise
