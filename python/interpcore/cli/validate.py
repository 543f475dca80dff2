"""`interpcore validate`: what a file or folder is, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from interpcore.errors import InterpcoreError, Refused, sentence

_THEN = {
    "prompt pairs": "interpcore circuits pareto --pairs {file} --out RUN",
    "relation": "interpcore lre run --relations {file} --out RUN",
    "relations": "interpcore lre run --relations {file} --out RUN",
    "documents": "interpcore neurons tokens {file} --out RUN-tokens",
    "token shards": "interpcore neurons report --tokens {file} --out RUN",
    "questions": "interpcore steering directions --questions {file} --out RUN",
    "evaluation log": "interpcore steering sweep --questions {file} --directions DIRECTIONS --out RUN",
    "scores": "interpcore circuits draw {file} circuit.html",
    "Jacobian lens": "interpcore lens read {file} --out RUN",
    "run folder": "interpcore show {file}",
    "study": "interpcore show {file}",
    "model": "interpcore lre run --model {file} --out RUN",
    "tasks": "interpcore surgery tasks --tasks {file} --out RUN",
    "trials": "interpcore generalize run {file} --out RUN",
}
"""What to type after each kind of file."""


def validate(
    files: Annotated[list[str], typer.Argument(help="Files or folders; or a plan, with --model.")],
    model: Annotated[
        str | None, typer.Option(help="Whose blocks a plan or recipe is of; its tokenizer reads answers.")
    ] = None,
) -> None:
    """Say what each file or folder is and what it holds, and exit with 1 where something is wrong.

    Prompt pairs and task files, relations, score files, shards, lenses, operators, directions and steering
    files, plans and recipes, trial files, questions, tables, run folders and ledgers, models.

    Example: interpcore validate my.csv runs/lre-tiny --model tiny
    """
    import pandas as pd

    from interpcore.cli.kinds import look
    from interpcore.cli.tables import show

    rows, wrong = [], []
    for file in files:
        try:
            kind, holds = look(file, model)
            rows.append({"file": file, "is": kind, "holds": holds, "fault": None})
        except (InterpcoreError, OSError, ImportError) as error:
            rows.append({"file": file, "is": None, "holds": None, "fault": sentence(error)})
            wrong.append(sentence(error))
    fine = pd.DataFrame([row for row in rows if row["fault"] is None])
    then = dict.fromkeys(_THEN[row["is"]].format(**row) for row in rows if row["is"] in _THEN)
    show(pd.DataFrame(rows), people=fine.drop(columns="fault", errors="ignore"), then=list(then))
    if wrong:
        raise Refused(" ".join(text if text.endswith((".", "?")) else f"{text}." for text in wrong))
