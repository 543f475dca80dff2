"""A run as an executed notebook: its cells open the same folder and show every trial, to be run again."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.errors import Refused
from interpcore.runs import RunError, write_bytes

if TYPE_CHECKING:
    from interpcore.generalize.study import Trials

SECONDS = 600
OPENING = """\
import interpcore
import pandas as pd
from interpcore.generalize import Options, in_words, open_run

model = interpcore.load({source!r}, dtype={dtype}, revision={revision!r})
options = Options({options})
study = open_run(model, {folder!r}, options, progress=False)
outcomes = {{o.trial.id: o for o in study.outcomes()}}  # finished cells are read, missing ones run
"""
SHOWN = """\
o = outcomes[{id!r}]
print(in_words(o))
for name, judged in o.controls.items():
    print(f"  {{name}}: {{judged.verdict}}, {{judged.estimate}}")
pd.DataFrame(list(o.measured.rows)) if o.measured else None
"""
ENDING = """\
from interpcore.generalize import criterion

{name: criterion(name, list(outcomes.values())).verdict for name in ("GT1", "GT2", "GT3")}
"""


def write_notebook(study: Trials) -> Path:
    """Write `report.ipynb`, executed.

    Raises: Refused for a model of an object in memory; RunError where a cell fails.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    book = nbformat.v4.new_notebook()
    book.cells = [_cell(nbformat, kind, text) for kind, text in cells(study)]
    for number, cell in enumerate(book.cells):
        cell["id"] = f"cell-{number}"
    client: Any = NotebookClient(book, timeout=SECONDS, kernel_name="python3")
    try:
        client.execute()
    except CellExecutionError as error:
        raise RunError(f"the notebook breaks off: {str(error).strip().splitlines()[-1]}") from error
    assert study.folder is not None
    path = study.folder.artifact("report.ipynb")
    write_bytes(path, nbformat.writes(book).encode())
    return path


def cells(study: Trials) -> list[tuple[str, str]]:
    """(kind, text) of every cell; the code calls nothing but the public functions.

    Raises: Refused for a model of an object in memory.
    """
    origin, options = study.model.origin, study.options
    if origin is None or study.folder is None:
        raise Refused("A notebook loads the model again, and this one was made of an object in memory.")
    given = {name: getattr(options, name) for name in ("suite", "on", "trials", "set", "registry")}
    said = ", ".join(f"{name}={value!r}" for name, value in given.items() if value)
    opening = OPENING.format(
        source=origin.source,
        dtype=f"__import__('torch').{str(origin.dtype).removeprefix('torch.')}",
        revision=origin.revision,
        options=said,
        folder=str(study.folder.path.resolve()),
    )
    listed = [("markdown", f"# {study.suite.name}\n\n{study.suite.finding}"), ("code", opening)]
    for each in study.trials.values():
        listed += [("markdown", f"## {each.id}\n\n{each.statistic}"), ("code", SHOWN.format(id=each.id))]
    return [*listed, ("code", ENDING)]


def _cell(nbformat: Any, kind: str, text: str) -> Any:
    return getattr(nbformat.v4, f"new_{kind}_cell")(text)
