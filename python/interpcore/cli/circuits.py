"""`interpcore circuits`: which edges carry a behaviour, by attribution, exact patching and faithfulness."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from interpcore.circuits.experiments import EXPERIMENTS
from interpcore.circuits.options import DIRECTIONS, SELECTIONS
from interpcore.cli.study import add
from interpcore.cli.tables import in_forms, show

app = typer.Typer()
for experiment in EXPERIMENTS:
    add(app, experiment)


@app.command(name="compare-files")
@in_forms
def compare_files(
    scores: Annotated[Path, typer.Argument(help="A file of scores.")],
    reference: Annotated[Path, typer.Argument(help="Another one, such as of exact scores.")],
) -> None:
    """How the scores of a file agree with those of another: Pearson, Kendall, mean difference, sign.

    Example: interpcore circuits compare-files runs/c-tiny/artifacts/scores/ioi/eap.safetensors
    runs/c-tiny/artifacts/scores/ioi/exact.safetensors
    """
    from dataclasses import asdict

    from interpcore.circuits.files import load_scores
    from interpcore.circuits.study.agreement import agreement
    from interpcore.circuits.study.compare import AGREED
    from interpcore.circuits.study.tables import frame

    first, second = (load_scores(file)[0] for file in (scores, reference))
    notes = [AGREED.format(level=first.level, difference="mean_difference")]
    for name in ("model", "task", "metric", "intervention", "split"):
        said = [getattr(one, name) for one in (first, second)]
        if said[0] != said[1]:
            notes.append(f"The {name} differs: {said[0]} and {said[1]}.")
    then = [f"interpcore circuits draw {scores} circuit.html"]
    found = frame([asdict(agreement(first, second))]).rename(columns={"edges": f"{first.level}s"})
    show(found, *notes, then=then)


@app.command()
@in_forms
def draw(
    scores: Annotated[Path, typer.Argument(help="A file of scores: .safetensors, .json, .pt.")],
    picture: Annotated[
        Path,
        typer.Argument(help="Where to: .svg, .png, .pdf, .html (interactive), or .json (circuit-tracer's)."),
    ],
    size: Annotated[
        str | None,
        typer.Option(help="Edges to choose: 200, 0.05 or 5%; default: the run's smallest faithful circuit."),
    ] = None,
    selection: Annotated[
        Literal[SELECTIONS], typer.Option(help="How circuits are chosen.")  # type: ignore[valid-type]
    ] = "greedy",
    most: Annotated[int, typer.Option(min=1, help="Draw the strongest edges alone.")] = 400,
    title: Annotated[str | None, typer.Option(help="Above the picture.")] = None,
    direction: Annotated[
        Literal[DIRECTIONS],  # type: ignore[valid-type]
        typer.Option(help="What a positive score of a foreign file means."),
    ] = "helps",
) -> None:
    """Draw a circuit: a row per layer, width by score, blue helps and red hurts, heads with q, k and v.

    Example: interpcore circuits draw runs/c-tiny/artifacts/scores/ioi/eap.safetensors ioi.svg --size 10%
    """
    from interpcore.circuits.circuit import select, sizes_of
    from interpcore.circuits.files import load_scores
    from interpcore.circuits.graph_json import circuit_graph_file, save_graph
    from interpcore.circuits.study.about import About
    from interpcore.circuits.study.draw import draw as draw_circuit
    from interpcore.circuits.study.page import READABLE
    from interpcore.circuits.study.tables import frame

    loaded, circuit = load_scores(scores, direction)
    about, notes = About.beside(scores, loaded), list[str]()
    if size is not None:
        count = sizes_of(loaded.graph, [size], loaded.size, loaded.level)[0]
        circuit = select(loaded, count, selection, level=loaded.level)
    elif loaded.level != "edge" and picture.suffix == ".html":
        circuit = about.drawn(loaded.graph, loaded.level) or circuit
    elif about.opens is not None and picture.suffix != ".html":  # a page opens there, and holds the others
        circuit = about.circuits[about.opens]
    elif picture.suffix != ".html" and circuit.n_edges == loaded.graph.n_edges and loaded.level == "edge":
        circuit = select(loaded, min(READABLE, loaded.size), selection)
        told = "no size was given, and no run beside the file says which circuit is faithful"
        notes = [f"{READABLE} edges are chosen: {told}."]
    then = [f"interpcore circuits evaluate {scores} --out RUN"]
    name = title or " ".join(part for part in (loaded.model, loaded.task, loaded.method) if part)
    if picture.suffix == ".json":
        written = save_graph(circuit_graph_file(circuit, loaded, name), picture)
        show(frame([]), *notes, f"{circuit.n_edges} edges.", files=[written], then=then)
        return
    drawn = draw_circuit(circuit, picture, loaded, title=name, most=most, about=about)
    notes.append(f"{len(drawn)} of {circuit.n_edges} edges are drawn.")
    show(frame([]), *notes, files=[picture], then=then)


@app.command()
@in_forms
def induction(
    model: Annotated[str, typer.Option(help="An embedded model, a folder, or a hub id.")] = "tiny",
    prompts: Annotated[int, typer.Option(min=2, help="Prompts of random tokens.")] = 64,
    period: Annotated[int, typer.Option(min=3, help="Tokens before they come again.")] = 16,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
    picture: Annotated[Path | None, typer.Option(help="A map of the heads: .png, .svg or .pdf.")] = None,
) -> None:
    """Induction heads: random tokens of the model's own vocabulary twice, and where heads look.

    Example: interpcore circuits induction --model tiny
    """
    import interpcore
    from interpcore.circuits.induction import induction as measure
    from interpcore.errors import Refused
    from interpcore.model import Model
    from interpcore.runs.artifacts import atomic_path

    if picture is not None and picture.suffix not in (".png", ".svg", ".pdf"):
        raise Refused(f"{picture} is no .png, .svg or .pdf; name the picture by its format.")
    loaded = interpcore.load(model)
    if not isinstance(loaded, Model):
        raise Refused(f"{model} runs through the generic adapter, which shows no attention of single heads.")
    found = measure(loaded, prompts, seed, period)
    files = [] if picture is None else [picture]
    if picture is not None:
        with atomic_path(picture) as partial:
            found.plot().savefig(partial, dpi=160)
    first, second = found.loss
    show(
        found.to_pandas().head(20),
        f"Mean attention in the second of two periods of {found.period} random tokens, over {prompts} "
        "prompts: to the token before, to the same token a period back, and to the one after that, where an "
        "induction head looks; _se: standard error, prompts as units.",
        f"Loss: {first:.2f} nats in the first period, {second:.2f} in the second.",
        then=[f"interpcore circuits pareto --task induction --model {model} --out RUN"],
        files=files,
    )


@app.command()
@in_forms
def latents(
    prompt: Annotated[str, typer.Argument(help="The text whose next token is explained.")],
    out: Annotated[Path, typer.Argument(help="Where to: .json, as circuit-tracer and Neuronpedia read it.")],
    dictionary: Annotated[
        list[Path], typer.Option(help="Transcoders of the model's MLPs; again for more folders.")
    ],
    model: Annotated[str, typer.Option(help="An embedded model, a folder, or a hub id.")] = "tiny",
    most: Annotated[int, typer.Option(min=1, help="Latents taken, by influence.")] = 4096,
    nodes: Annotated[float, typer.Option(min=0, max=1, help="Share of the influence kept by nodes.")] = 0.8,
    edges: Annotated[float, typer.Option(min=0, max=1, help="Share of what is left kept by edges.")] = 0.98,
) -> None:
    """Which transcoder latents, errors and tokens make which latents and next tokens, on one prompt.

    Example: interpcore circuits latents "The capital of Vorland is" graph.json --dictionary transcoders
    """
    import interpcore
    from interpcore.circuits.graph_json import latent_graph_file, save_graph
    from interpcore.circuits.latents import attribute_latents
    from interpcore.errors import Refused
    from interpcore.model import Model
    from interpcore.model.load.dictionaries import load_dictionaries

    if out.suffix != ".json":
        raise Refused(f"A graph is written as .json; got {out.name}.")
    loaded = interpcore.load(model)
    if not isinstance(loaded, Model):
        raise Refused(f"{model} runs through the generic adapter, which cannot be linearised.")
    transcoders = [each for path in dictionary for each in load_dictionaries(path, loaded)]
    tokens = loaded.encode(prompt)[0][0].tolist()
    whole = attribute_latents(loaded, tokens, transcoders, most=most)
    kept = whole.pruned(nodes, edges)
    save_graph(latent_graph_file(kept, out.stem), out)
    said = [f"{kept}, of {len(whole.nodes)} nodes."]
    said += [f"{whole.left_out} active latents have no row; --most takes more."] if whole.left_out else []
    show(kept.to_pandas().head(20), *said, files=[out], then=[f"interpcore validate {out}"])
