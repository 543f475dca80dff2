"""`interpcore convert`: a GGUF file as a transformers folder."""

from pathlib import Path
from typing import Annotated, Literal

import typer


def convert(
    model: Annotated[Path, typer.Argument(help="A GGUF file.")],
    folder: Annotated[Path, typer.Argument(help="The transformers folder to write; a new one.")],
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the weights that are written.")
    ] = "float32",
) -> None:
    """Write a GGUF file as a transformers folder, dequantised; loading the folder is faster than the file.

    Example: interpcore convert smollm2-135m.gguf models/smollm2-135m
    """
    from interpcore.cli.extras import require
    from interpcore.errors import Refused
    from interpcore.model.load.gguf import convert_gguf, is_gguf

    if not is_gguf(model) or not model.is_file():
        raise Refused(f"There is no GGUF file {model}; give one, its name ending in .gguf.")
    require("gguf")
    import torch

    quantised = convert_gguf(model, folder, getattr(torch, dtype))
    import pandas as pd

    from interpcore.cli.tables import show

    then = f"interpcore lre run --model {folder} --out RUN"
    show(pd.DataFrame(), f"{dtype}. {quantised}.", files=[folder], then=[then])
