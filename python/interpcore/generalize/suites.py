"""The families' suites by name, and trials of one's own file. Families are imported when asked for."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.errors import Refused, did_you_mean
from interpcore.generalize.definition import Trial
from interpcore.generalize.options import Options

if TYPE_CHECKING:
    from interpcore.generalize.context import Suite
    from interpcore.generalize.study import Trials

SUITES = {
    "relations": "interpcore.lre.trials",
    "neurons": "interpcore.neurons.trials",
    "circuits": "interpcore.circuits.trials",
}


def find_suite(name: str) -> tuple[Suite, tuple[Trial, ...]]:
    """A suite by name with its trials, or that of a user's file with the file's.

    Raises: Refused for an unknown name, or a file without trials of one suite.
    """
    if name in SUITES:
        suite: Suite = import_module(SUITES[name]).SUITE
        return suite, suite.trials
    if not name.endswith(".py"):
        raise Refused(
            f"There is no suite {name!r}; there are {', '.join(SUITES)}, or a file (.py) with trials."
            f"{did_you_mean(name, SUITES)}"
        )
    trials = read_trials(Path(name))
    suites = {each.suite for each in trials}
    if len(suites) != 1 or not suites <= set(SUITES):
        raise Refused(
            f"{name} has trials of {', '.join(sorted(suites))}; give those of one suite, which are "
            f"{', '.join(SUITES)}."
        )
    return find_suite(suites.pop())[0], trials


def read_trials(path: Path) -> tuple[Trial, ...]:
    """The trials that a file defines with `@trial`. The file is run.

    Raises: Refused where there is no such file, it does not run, or it defines none.
    """
    if not path.is_file():
        raise Refused(f"There is no file {path} of trials.")
    place = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]
    spec = util.spec_from_file_location(f"trials_{path.stem}_{place}", path)
    assert spec is not None and spec.loader is not None
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses and the text of its classes are looked for
    try:
        spec.loader.exec_module(module)
    except Refused:
        raise
    except Exception as error:
        raise Refused(f"{path} does not run: {type(error).__name__}: {error}") from error
    found = [value for value in vars(module).values() if isinstance(value, Trial)]
    if not found:
        raise Refused(f"{path} defines no trial; decorate a function with @trial(...).")
    return tuple({each.id: each for each in found}.values()) if _different(found) else tuple(found)


def _different(found: list[Trial]) -> bool:
    """Whether trials under one id are one and the same."""
    return len({each.id for each in found}) == len({id(each) for each in found})


def open_run(model: Any, out: str | os.PathLike[str], options: Options, **how: Any) -> Trials:
    """The run of the suite that the options name, see `open_trials`."""
    from interpcore.generalize.study import open_trials

    suite, trials = find_suite(options.suite)
    return open_trials(model, out, options, suite=suite, trials=trials, **how)
