"""`interpcore ls`: what there is to study, to study with, and what has been studied."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from interpcore.cli.tables import show
from interpcore.errors import InterpcoreError, Refused, did_you_mean, sentence

if TYPE_CHECKING:
    from interpcore.runs.card import RunCard

DEEP = 4  # folders below the one that is listed
Rows = Iterator[dict[str, Any]]


def ls(
    what: Annotated[str, typer.Argument(help="models, tasks, relations, methods, sites or runs.")],
    folder: Annotated[
        Path | None,
        typer.Argument(help="Of runs, models or relation files; default: here, and shipped ones."),
    ] = None,
) -> None:
    """List the models, tasks, relations, methods and sites that commands take by name, or the runs in a
    folder.

    Example: interpcore ls runs runs
    """
    import pandas as pd

    if what not in LISTS:
        raise Refused(
            f"There is no list of {what!r}; there are {', '.join(LISTS)}.{did_you_mean(what, LISTS)}"
        )
    if folder is not None and not folder.exists():
        raise Refused(f"There is no folder {folder} to list.")
    rows, then = LISTS[what]
    found = list(rows(folder))
    notes = [] if found else [f"There are no {what} in {folder or 'this folder'}."]
    show(pd.DataFrame(found), *notes, then=[then])


def _models(folder: Path | None) -> Rows:
    """Shipped ones, or the transformers folders below a folder."""
    from interpcore.model.load.location import ASSETS
    from interpcore.runs.artifacts import read_json

    root = ASSETS if folder is None else folder
    for file in sorted(_below(root, "config.json")):
        try:
            config = read_json(file)
        except InterpcoreError:
            continue
        if not isinstance(config, dict) or "model_type" not in config:
            continue
        text = config.get("text_config") or config
        name = file.parent.name if folder is None else str(file.parent)
        yield {
            "model": name,
            "architecture": config["model_type"],
            "blocks": _first(text, "num_hidden_layers", "n_layer", "n_layers"),
            "d_model": _first(text, "hidden_size", "n_embd", "d_model"),
            "heads": _first(text, "num_attention_heads", "n_head", "n_heads"),
            "vocabulary": _first(text, "vocab_size"),
        }


def _tasks(folder: Path | None) -> Rows:
    """Of circuits, and of surgery and agents."""
    from interpcore.circuits.task_list import TASKS
    from interpcore.data.tasks import KINDS

    for task in TASKS.values():
        yield {"task": task.name, "of": "circuits", "measured by": task.metric, "what": task.title}
    for name, kind in KINDS.items():
        yield {"task": name, "of": "surgery, agent", "measured by": kind.scorer, "what": kind.description}


def _relations(folder: Path | None) -> Rows:
    from interpcore.data.relations import load_relations
    from interpcore.data.tinyworld.world import study_relations

    for relation in study_relations() if folder is None else load_relations(folder):
        yield {
            "relation": relation.name,
            "kind": relation.relation_type,
            "facts": len(relation.samples),
            "objects": len(relation.objects),
            "template": relation.prompt_templates[0],
        }


def _methods(folder: Path | None) -> Rows:
    from interpcore.circuits.methods import METHODS, method_of
    from interpcore.lens.options import RULES
    from interpcore.lre.options import METHODS as OPERATORS
    from interpcore.steering.options import METHODS as DIRECTIONS

    for name in METHODS:
        yield {"method": name, "of": "circuits --method", "what": method_of(name).sentence}
    for name in OPERATORS:
        yield {"method": name, "of": "lre baselines --method", "what": "a way to an affine operator"}
    for name in RULES:
        yield {"method": name, "of": "lens fit --rules", "what": "what nonlinear parts pass on"}
    for name in DIRECTIONS:
        yield {"method": name, "of": "steering directions --method", "what": "a way to a direction"}


def _sites(folder: Path | None) -> Rows:
    from interpcore.model.other_names import OTHERS
    from interpcore.model.sites import SITES

    for name, site in SITES.items():
        yield {
            "site": name,
            "depths": {"none": "-", "calls": "0..D-1", "calls+1": "0..D"}[site.depths],
            "shape": site.shape,
            "TransformerLens": OTHERS["transformer_lens"].get(name, ""),
            "meaning": site.meaning,
        }


def _runs(folder: Path | None) -> Rows:
    from interpcore.review.shown import state
    from interpcore.runs.folder import read_card

    root = folder or Path(".")
    for file in sorted(_below(root, "card.json")):
        run = file.parent
        try:
            card, found = read_card(run), state(run)
        except InterpcoreError as error:
            yield {"run": str(run), "of": "damaged", "model": sentence(error)}
            continue
        yield {
            "run": str(run),
            "of": found.kind,
            "model": card.model or "",
            "done": found.done,
            "of cells": found.asked,
            "failed": found.failed,
            "begun": _when(card),
        }


def _when(card: RunCard) -> str:
    try:
        return datetime.fromisoformat(card.created).strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return card.created


def _first(config: dict[str, Any], *names: str) -> Any:
    return next((config[name] for name in names if config.get(name) is not None), None)


def _below(root: Path, name: str, deep: int = DEEP) -> Iterator[Path]:
    """Files of a name in a folder and those below it; a folder that has one is not searched further."""
    if (root / name).is_file():
        yield root / name
    elif deep and root.is_dir():
        for entry in sorted(root.iterdir()):
            if entry.is_dir() and not entry.is_symlink() and not entry.name.startswith("."):
                yield from _below(entry, name, deep - 1)


LISTS: dict[str, tuple[Callable[[Path | None], Rows], str]] = {
    "models": (_models, "interpcore lre run --model tiny --out runs/lre-tiny"),
    "tasks": (_tasks, "interpcore circuits pareto --task ioi --out runs/c-tiny"),
    "relations": (_relations, "interpcore lre run --relations FOLDER --out RUN"),
    "methods": (_methods, "interpcore circuits attribute --method eap-ig --out RUN"),
    "sites": (_sites, "interpcore steering states --site attn_out --out RUN"),
    "runs": (_runs, "interpcore show RUN"),
}
