"""What the commands of `interpcore neurons` share: their options and the study that these say."""

from __future__ import annotations

import re
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from interpcore.errors import Refused

if TYPE_CHECKING:
    from interpcore.neurons.correlation.correlate import Settings
    from interpcore.neurons.study import NeuronStudy


class Protocol(StrEnum):
    """Which choices a study makes."""

    default = "default"
    paper = "paper"


class Rotation(StrEnum):
    """Of partners, for the baseline of correlations."""

    haar = "haar"
    published = "published"


Out = Annotated[Path, typer.Option(help="The study's folder; commands on the same study share it.")]
ModelName = Annotated[
    str, typer.Option("--model", help="A shipped model, a transformers folder or a hub id.")
]
Tokens = Annotated[Path, typer.Option("--tokens", help="Token shards that `neurons tokens` made.")]
MaybeTokens = Annotated[
    Path | None, typer.Option("--tokens", help="Token shards that `neurons tokens` made.")
]
Partners = Annotated[
    list[str] | None,
    typer.Option("--partner", help="A model trained apart from it, on the same tokens; again for more."),
]
Paper = Annotated[Protocol, typer.Option(help="'paper' makes the published choices.")]
Memory = Annotated[float, typer.Option(min=0.01, help="GB for what a token pass gathers; else more passes.")]
Budget = Annotated[float, typer.Option(min=0.01, help="GB for sums of correlations; else more passes.")]
Sequences = Annotated[int, typer.Option(min=1, help="Sequences read by this step at most.")]
Neurons = Annotated[
    str | None, typer.Option(help="layer.neuron,layer.neuron,... or a CSV file with layer and neuron.")
]
Part = Annotated[str | None, typer.Option(help="Only this part of the tokens, such as 1/2.")]
Merge = Annotated[bool, typer.Option("--merge", help="Merge the parts that --part made.")]
Seed = Annotated[int, typer.Option(help="Of every random draw.")]
Device = Annotated[str, typer.Option(help="The torch device: cpu, cuda.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Show no progress.")]
Universal = Annotated[
    float, typer.Option("--universal", help="Excess correlation above which a neuron is universal.")
]
Published = Annotated[
    list[Path] | None,
    typer.Option("--from", help="A published CSV file to summarise beside ours; again for more."),
]


def study_settings(protocol: Protocol, seed: int, budget: float) -> Settings:
    """Of correlations, as `correlate` takes them without options of its own."""
    from interpcore.neurons.correlation.correlate import Settings

    rotation = "published" if protocol is Protocol.paper else "haar"
    return Settings(rotation=rotation, seed=seed, budget=budget * 1e9)


def part_numbers(part: str) -> tuple[int, int]:
    """The numbers of a part such as "1/2"."""
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if found is None:
        raise Refused(f"--part {part!r} is no part such as 1/2.")
    return int(found[1]), int(found[2])


def open_study(
    out: Path,
    model: str,
    tokens: Path | None,
    partner: list[str] | None = None,
    *,
    device: str,
    quiet: bool,
    protocol: Protocol = Protocol.default,
    memory: float = 4.0,
    **options: object,
) -> NeuronStudy:
    """The study that these options say."""
    import interpcore
    from interpcore.cli.extras import require
    from interpcore.data.tokens import TokenShards
    from interpcore.neurons.study import NeuronStudy
    from interpcore.neurons.study_folder import check_study_folder

    require("neurons")
    shards = None if tokens is None else TokenShards.open(tokens)
    names = list(dict.fromkeys(partner or ()))
    loaded = [interpcore.load(name, device=device) for name in (model, *names)]
    check_study_folder(out, loaded[0])  # type: ignore[arg-type]
    return NeuronStudy(
        out,
        loaded[0],  # type: ignore[arg-type]
        shards,
        loaded[1:],  # type: ignore[arg-type]
        protocol=protocol.value,
        memory=memory * 1e9,
        progress=not quiet,
        command=shlex.join(sys.argv),
        **options,  # type: ignore[arg-type]
    )
