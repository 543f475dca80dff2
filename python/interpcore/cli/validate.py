"""`interpcore validate`: what a file or folder is, and what is wrong with it."""

from __future__ import annotations

from typing import Annotated

import typer

from interpcore.errors import InterpcoreError, Refused, sentence


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
    show(pd.DataFrame(rows), people=fine.drop(columns="fault", errors="ignore"))
    if wrong:
        raise Refused(" ".join(text if text.endswith((".", "?")) else f"{text}." for text in wrong))
