"""`interpcore surgery`: a model's blocks in another order, and what breaks."""

from pathlib import Path
from typing import Annotated

import typer

from interpcore.cli.study import Revision, add, load
from interpcore.cli.tables import in_forms, show
from interpcore.surgery.experiments import EXPERIMENTS

app = typer.Typer()
for experiment in EXPERIMENTS:
    add(app, experiment)


@app.command()
@in_forms
def recipe(
    plan: Annotated[str, typer.Argument(help="A plan, such as '0-2, 1 x5, 3' or 'skip 3'.")],
    out: Annotated[Path, typer.Argument(help="The file, .yml.")],
    model: Annotated[str, typer.Option("--model", help="Whose blocks they are: a model, folder or hub id.")],
    named: Annotated[
        str | None, typer.Option("--as", help="What the recipe takes layers from; the model as named.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="Of the merged weights.")] = "bfloat16",
    revision: Revision = None,
) -> None:
    """Write a plan as a merge recipe (passthrough YAML with layer ranges), which `--plan FILE` reads again.

    Example: interpcore surgery recipe 'repeat 1 x5' repeated.yml --model tiny
    """
    from interpcore.cli.extras import require
    from interpcore.errors import Refused
    from interpcore.surgery.options import RECIPES
    from interpcore.surgery.plans import read_plan
    from interpcore.surgery.recipes import write_recipe

    require("surgery")
    if out.suffix not in RECIPES:
        raise Refused(f"{out} is no .yml; name the recipe so.")
    read = read_plan(plan, load(model, revision=revision).plan)
    write_recipe(out, read, named or model, dtype)
    import pandas as pd

    facts = {"blocks": len(read.blocks), "of": named or model, "plan": read.text}
    then = f"interpcore surgery run --plan {out} --model {model} --out RUN"
    show(pd.DataFrame([facts]), files=[out], then=[then])
