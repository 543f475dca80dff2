"""`interpcore lens`: the average Jacobian from every depth, and what states say when read through it."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from interpcore.cli.study import Device, Revision, add, load
from interpcore.cli.tables import in_forms, show
from interpcore.lens.experiments import EXPERIMENTS

app = typer.Typer()
for experiment in EXPERIMENTS:
    add(app, experiment)


@app.command()
@in_forms
def convert(
    lens: Annotated[Path, typer.Argument(help="A lens: a run folder, .safetensors, or a published .pt.")],
    out: Annotated[Path, typer.Argument(help="Where to: .pt (published) or .safetensors.")],
    model: Annotated[
        str | None, typer.Option(help="Its model: checks the lens against it, and records its weights.")
    ] = None,
    revision: Revision = None,
    device: Device = "cpu",
    dtype: Annotated[
        Literal["float16", "float32"], typer.Option(help="Of a .pt; float16 is published.")
    ] = "float16",
) -> None:
    """Write a lens in the other format.

    Example: interpcore lens convert gpt2_jacobian_lens.pt lens.safetensors --model gpt2
    """
    from dataclasses import replace

    from interpcore.cli.extras import require
    from interpcore.errors import Refused
    from interpcore.lens.published import lens_file, load_lens, write_published
    from interpcore.model.made_on import MadeOn

    require("lens")
    if out.suffix not in (".pt", ".safetensors"):
        raise Refused(f"{out} is neither .pt nor .safetensors; name the file by its format.")
    if not lens_file(lens).is_file():
        raise Refused(f"There is no file {lens_file(lens)}; give a lens.")
    loaded = None if model is None else load(model, revision=revision, device=device)
    found = load_lens(lens, loaded)
    if loaded is not None:
        found.check_model(loaded)
        found = found if found.made_on else replace(found, made_on=MadeOn.of(loaded))
    if out.suffix == ".pt":
        write_published(out, found, dtype)
    else:
        found.save(out)
    import pandas as pd

    facts = {"depths": len(found.depths), "target_depth": found.target_depth, "prompts": found.count}
    show(pd.DataFrame([facts]), files=[out], then=[f"interpcore lens read {out} --out RUN"])


@app.command()
@in_forms
def compare(
    first: Annotated[Path, typer.Argument(help="A lens: a run folder, .safetensors, or .pt.")],
    second: Annotated[Path, typer.Argument(help="Another lens of the same model.")],
    other_model: Annotated[
        bool, typer.Option("--other-model", help="Compare lenses of different weights.")
    ] = False,
) -> None:
    """How far two lenses of one model agree at each depth: with another text, rule or number of prompts.

    Example: interpcore lens compare runs/lens-tiny runs/lens-tiny-relp
    """
    from interpcore.cli.extras import require
    from interpcore.lens.compare import NOTES, compare_lenses
    from interpcore.lens.published import load_lens

    require("lens")
    lenses = [load_lens(path) for path in (first, second)]
    table = compare_lenses(*lenses, other_model=other_model)
    notes = [
        f"The {name} differs: {getattr(lenses[0], name)} and {getattr(lenses[1], name)}."
        for name in ("rules", "count", "skip", "length")
        if getattr(lenses[0], name) != getattr(lenses[1], name)
    ]
    show(table, *NOTES, *notes, then=[f"interpcore lens read {first} --out RUN"])
