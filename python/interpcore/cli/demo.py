"""`interpcore demo`: a whole study on a model that ships with the package."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

NEXT = (
    "interpcore lre run --model tiny --trials 3 --out runs/tiny         narrower intervals",
    "interpcore lre run --model tiny-llama --trials 3 --out runs/llama  another architecture",
    "interpcore lre compare runs/tiny runs/llama                        do they agree?",
    "interpcore lre run --model MODEL --relations FOLDER --out RUN      your model, published files",
    "interpcore ls tasks                                                what else there is",
)


def demo(
    model: Annotated[str, typer.Option(help="A shipped model, a folder or a hub id.")] = "tiny",
    out: Annotated[Path, typer.Option(help="Where the run goes; a second call reuses it.")] = Path(
        "interpcore-demo"
    ),
) -> None:
    """Which relations does a small trained model decode linearly? One trial of every relation, offline.

    Example: interpcore demo
    """
    from interpcore.cli import lre
    from interpcore.cli.study import run, show_and_end
    from interpcore.lre.experiments import RUN
    from interpcore.model.load.location import locate

    locate(model)
    Console(stderr=True).print(
        f"Linear relational embeddings on {model}: from 8 examples, an affine map of the subject's state "
        "that predicts the answer, and its inverse that changes it.",
        highlight=False,
    )
    report, _ = run(RUN, out=out, model=model, trials=1)
    show_and_end(report, lre.show, NEXT)
