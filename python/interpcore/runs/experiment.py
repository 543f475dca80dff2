"""Experiments: options, a model and data in a run folder, run and reported one way.

An experiment opens a `Study` in a run folder, which does what the folder does not hold yet and reports what
it holds. `Experiment` names the parts, so that the command line, an agent and the documentation find them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.runs.cells import Cells
from interpcore.runs.checks import Checks, unjudged
from interpcore.runs.compared import Compared
from interpcore.runs.folder import Artifacts, RunFolder, is_run
from interpcore.runs.options import Options, declared, schema
from interpcore.runs.ray_actors import runs_here
from interpcore.runs.shown import AsFacts, AsTable, can_show, table_html
from interpcore.runs.sweeps import sweep

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from interpcore.runs.card import RunCard
    from interpcore.runs.pages import Page


@dataclass(frozen=True, eq=False)
class Report(AsTable):
    """What an experiment found. A notebook shows its table, notes and pictures.

    Attributes:
        table: its main table; intervals are `<measure>_low` and `<measure>_high`, or `<measure>_se`.
        files: what was written.
        notes: what the numbers are and what must be known about them, one sentence each.
        problems: what was refused or broke off, one sentence each; the rest is done. A command that has any
            exits with 1.
        shown: columns of the table that a person is shown; () for all.
        then: commands to try next, that only what was found can name.
    """

    table: pd.DataFrame
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()
    shown: tuple[str, ...] = ()
    then: tuple[str, ...] = ()

    def __repr__(self) -> str:
        said = [f"{len(self.table)} rows", f"{len(self.files)} files"]
        said += [f"{len(self.problems)} problems"] if self.problems else []
        return f"Report({', '.join(said)})"

    def to_pandas(self) -> pd.DataFrame:
        """The main table."""
        return self.table

    def plot(self, measure: str | None = None) -> Figure:
        """A figure of one measure of the main table: a dot for each row, with its interval.

        Args:
            measure: a column of numbers; None for the first with an interval, else the first that is not
                whole.
        """
        from interpcore.runs.folder import read_card
        from interpcore.runs.plots import table_figure

        runs = (folder for file in self.files for folder in file.parents if is_run(folder))
        run = next(runs, None)
        return table_figure(self.table, measure, model="" if run is None else str(read_card(run).model))

    @property
    def pages(self) -> tuple[Page, ...]:
        """The HTML pages among the files; a notebook shows each inline."""
        from interpcore.runs.pages import Page

        return tuple(Page.open(file) for file in self.files if file.suffix == ".html")

    def _repr_html_(self) -> str | None:
        if not can_show():
            return None
        from interpcore.runs import pages

        table = self.table[list(self.shown)] if self.shown else self.table
        table = table.dropna(axis=1, how="all")
        drawn = [pages.picture_file(file) for file in self.files if file.suffix == ".png"]
        others = [str(file) for file in self.files if file.suffix != ".png"]
        notes = (*self.problems, *self.notes, *others)
        return str(pages.joined([pages.safe(table_html("", table, *notes)), *drawn]))


@dataclass(eq=False)
class Shared(ShortRepr):
    """What the cells of a sweep share. A subclass adds what they need as fields, which can be sent to another
    process, and what is computed from them as fields with `init=False`.

    Attributes:
        model: what they run; it has `reloader()`, which gives a callable that loads it in another process.
    """

    model: Any

    def recipe(self) -> tuple[Callable[[], Any], type[Self], dict[str, Any]]:
        """What makes this again in another process: how to load the model, and all other fields. It can be
        pickled."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init and f.name != "model"}
        return self.model.reloader(), type(self), given

    def over(
        self, function: Callable[..., Any], grid: Sequence[Mapping[str, Any]], *, workers: int = 1, **how: Any
    ) -> Cells:
        """Calls `function(self, **cell)` for every cell of a grid; in a worker with that worker's own copy.

        Args:
            function: at the top level of a module.
            grid: the cells, JSON values.
            workers: 1 runs them in this process, more in that many others.
            how: further arguments of `runs.sweep`.
        Returns: one row per cell, in order.
        """
        make = (lambda: self) if runs_here(workers) else partial(_made_again, *self.recipe(), _routes())
        return sweep(function, grid, workers=workers, initialize=make, **how)


def _made_again(
    load: Callable[[], Any], kind: type[Shared], given: dict[str, Any], routes: Mapping[str, str]
) -> Shared:
    from interpcore.ops import hold_routes

    hold_routes(routes)  # as long as the worker lives: the bits are the driver's
    return kind(load(), **given)


def _routes() -> dict[str, str]:
    """How products run in this process; asked only where workers are to do the same."""
    from interpcore.ops import product_routes

    return product_routes()


@dataclass(eq=False)
class Study(Shared, AsFacts):
    """An experiment at work: what all of its cells share. A family's study adds its data as fields.

    Attributes:
        options: what to do.
        artifacts: where results go; None keeps none.
        folder: the driver's run folder; None in a worker, and where nothing is kept.
        workers: 1 runs cells in this process, more in that many others, each with a model of its own.
        progress: show it on standard error.
    """

    options: Any
    artifacts: Artifacts | None = None
    folder: RunFolder | None = None
    workers: int = 1
    progress: bool = False

    def facts(self) -> dict[str, Any]:
        """What a notebook says of it, by name: model, folder and options."""
        where = "nowhere" if self.artifacts is None else str(self.artifacts.path)
        said = {each.name: getattr(self.options, each.name) for each in declared(type(self.options))}
        return {"model": self.model.spec.name, "results": where, "workers": self.workers, **said}

    def __repr__(self) -> str:
        where = "" if self.artifacts is None else f" in {self.artifacts.path}"
        family = type(self).__module__.split(".")[1]
        return f"{type(self).__name__}({family} of {self.model.spec.name}{where})"

    def sweep(self, function: Callable[..., Any], grid: Sequence[Mapping[str, Any]], **how: Any) -> Cells:
        """Runs the cells that the folder lacks, see `over`; with the study's workers and progress."""
        how = {"out": self.folder, "workers": self.workers, "progress": self.progress} | how
        return self.over(function, grid, **how)

    def recipe(self) -> tuple[Callable[[], Any], type[Self], dict[str, Any]]:
        """As in `Shared`, with nothing that only the driver may hold."""
        load, kind, given = super().recipe()
        return load, kind, given | {"folder": None, "workers": 1, "progress": False}

    @property
    def rounding(self) -> str:
        """The dtype that its results are rounded to."""
        return str(self.model.dtype).removeprefix("torch.")

    @property
    def unverified(self) -> str | None:
        """Why nothing of it can be recomputed another way, in one sentence; None where something can. Nothing
        is run."""
        return self.model.unwritten or unjudged(self.rounding)

    def close(self) -> None:
        """Lets others use the folder."""
        if self.folder is not None:
            self.folder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One experiment of a family: a command, a tool of an agent, a page of the documentation.

    Attributes:
        name: what is typed after `interpcore`, such as "lre run".
        sentence: what it finds out.
        example: a command that runs.
        options: what a run folder means; several experiments of one family may share a folder.
        asks: what this one asks of the study beyond that; its cells hold it. None for nothing.
        opens: `module:function`, called with (model, out, options, **how); gives the `Study`.
        runs: `module:function`, called with the study and, where it asks anything, what it asks; runs what is
            missing and gives the `Report`. None calls the study's own `run()` and `report()`.
        extra: the package's extra that names the libraries it needs; None for none.
        verifies: `module:function`, called with an open study; gives the `runs.checks.Checks` that recompute
            its cells another way. None for what cannot be verified.
        marks: arguments that every card of its runs has, where the options are not on cards, or are on
            those of others too; () for the options.
        compares: the table that two of its runs are compared by.
        then: commands to try next, with OUT for its folder and MODEL for its model.
    """

    name: str
    sentence: str
    example: str
    options: type[Options]
    asks: type[Options] | None = None
    opens: str
    runs: str | None = None
    extra: str | None = None
    verifies: str | None = None
    marks: tuple[str, ...] = ()
    compares: Compared | None = None
    then: tuple[str, ...] = ()

    @property
    def own(self) -> frozenset[str]:
        """Arguments that every card of its runs has."""
        return frozenset(self.marks or self._own)

    def made(self, card: RunCard) -> bool:
        """Whether a run's card is of this experiment, or of one with the same options."""
        return self.own <= set(card.arguments)

    @property
    def _own(self) -> list[str]:
        """Names of the options that say what a run means."""
        return [each.name for each in declared(self.options) if not each.circumstance]

    def options_of(self, card: RunCard, given: Mapping[str, Any] | None = None) -> Options:
        """The options that a run was made with; `given` says where data are now.

        Raises: Refused for what is no option, or does not fit.
        """
        if not self.marks or (self._own and set(self._own) <= set(card.arguments)):
            return self.options.of_card(card, given)
        names = {each.name for each in declared(self.options)}
        said = {name: value for name, value in card.sources.items() if name in names}
        return self.options.from_json(said | dict(given or {}))

    def open(self, model: Any, out: str | os.PathLike[str], options: Options, **how: Any) -> Study:
        """The study in a run folder, new or gone on with; use it as a context manager.

        Args:
            model: what to study.
            out: the folder.
            options: what to do.
            how: workers, progress, command, and the family's data where they are not read as options say.
        Raises: Refused, RunError before anything is written.
        """
        opened: Study = _named(self.opens)(model, out, options, **how)
        return opened

    def run(self, study: Study, asked: Options | None = None) -> Report:
        """Run what the study's folder lacks, and report."""
        if self.runs is None:
            whole: Any = study
            whole.run()
            reported: Report = whole.report()
            return reported
        what = () if self.asks is None else (self.asks() if asked is None else asked,)
        found: Report = _named(self.runs)(study, *what)
        return found

    def unverified(self, study: Study) -> str | None:
        """Why `checks` refuses an open study, in one sentence; None where it does not. Nothing is run."""
        if self.verifies is None:
            return f"{self.name} has no second way to compute its cells, so it cannot be verified."
        return study.unverified

    def checks(self, study: Study) -> Checks:
        """What recomputes the cells of an open study another way.

        Raises: Refused where `unverified` says why.
        """
        why = self.unverified(study)
        if why is not None or self.verifies is None:
            raise Refused(str(why))
        found: Checks = _named(self.verifies)(study)
        return found

    def tool(self) -> dict[str, Any]:
        """The experiment as a tool that an agent can call: name, description, JSON Schema of arguments."""
        both = [self.options] if self.asks is None else [self.options, self.asks]
        return {
            "name": self.name.replace(" ", "_").replace("-", "_"),
            "description": self.sentence,
            "parameters": schema(*both),
        }


def _named(reference: str) -> Any:
    """What "module:name" says. Families are named, not imported: help must not load torch."""
    module, _, name = reference.partition(":")
    return getattr(import_module(module), name)
