"""Lenses in the field's format: a `.pt` dict {J: {layer: [d, d]}, n_prompts, source_layers, d_model}.

Layer l is the output of block l, our resid[l + 1]; the target is the last block's output unless the file says
`target_layer`. TransformerLens adds `metadata`; a checkpoint of the reference fit holds sums of J instead.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.lens.lens import Lens
from interpcore.model import Model
from interpcore.model.made_on import MadeOn
from interpcore.runs.artifacts import atomic_path

DTYPES = {"float16": torch.float16, "float32": torch.float32}
_FLAT = ("model_name", "model_revision", "corpus", "target_layer")
_LISTED = (str, int, float, bool, type(None))


def load_lens(path: str | os.PathLike[str], model: Model | None = None) -> Lens:
    """A lens out of a run folder, a file that `lens fit` wrote, or a published `.pt`.

    Args:
        path: where it is.
        model: what it belongs to; a published file that names no target needs it.
    """
    path = lens_file(path)
    return read_published(path, model) if path.suffix == ".pt" else Lens.load(path)


def lens_file(path: str | os.PathLike[str]) -> Path:
    """The file of a lens, which may be named by its run folder."""
    given = Path(path)
    return given / "artifacts" / "lens.safetensors" if given.is_dir() else given


def read_published(path: str | os.PathLike[str], model: Model | None = None) -> Lens:
    """Read a published lens, weights only: nothing but tensors and plain values is taken.

    Args:
        path: the `.pt` file.
        model: its model, whose last block is the target where the file names none.
    Returns: the lens at the depths of its layers; it has no standard errors, and no `made_on` unless
        interpcore wrote it.
    Raises: Refused for another kind of file, or without a target.
    """
    held = _held(path)
    count = held.get("n_prompts", held.get("n_done"))
    sums = "J" not in held
    matrices = held.get("jacobian_sum" if sums else "J")
    if not isinstance(matrices, dict) or not matrices or not all(_is_layer(m) for m in matrices):
        raise Refused(f"{path} holds no Jacobian lens: it needs J, a matrix of each layer.")
    layers = {int(layer): matrix for layer, matrix in matrices.items()}
    width = held.get("d_model") or getattr(next(iter(layers.values())), "shape", (0,))[-1]
    for layer, matrix in layers.items():
        if not isinstance(matrix, Tensor) or tuple(matrix.shape) != (width, width):
            raise Refused(f"{path}: J of layer {layer} is no [{width}, {width}] matrix.")
        if not matrix.is_floating_point() or not bool(matrix.isfinite().all()):
            raise Refused(f"{path}: J of layer {layer} is not finite numbers throughout.")
    if not isinstance(count, int) or isinstance(count, bool) or count < 0 or (sums and count < 1):
        raise Refused(f"{path} does not say of how many prompts its lens is the mean (n_prompts).")
    about = _about(held)
    jacobian = torch.stack([layers[n].float() for n in sorted(layers)]) / (count if sums else 1)
    lens = Lens(
        jacobian,
        tuple(layer + 1 for layer in sorted(layers)),
        _target(path, about, model),
        count,
        rules=str(about.get("rules", "exact")),
        skip=_whole(about.get("skip_first_positions", held.get("skip_first"))),
        length=_whole(about.get("max_seq_len")),
        made_on=_made_on(about),
        published=json.dumps(about, sort_keys=True, default=str),
    )
    if model is not None:
        lens.check_model(model)
    return lens


def write_published(path: str | os.PathLike[str], lens: Lens, dtype: str = "float16") -> None:
    """Write a lens as a published file, which the reference package and TransformerLens read.

    Args:
        path: the `.pt` file.
        lens: from the residual stream; depth 0 and the target's own, which the format lacks, are left out, as
            are standard errors.
        dtype: "float16" as published, or "float32".
    Raises: Refused for a lens that the format cannot hold.
    """
    if lens.site != "resid":
        raise Refused(
            f"The published format holds lenses of the residual stream; this one leads from {lens.site}."
        )
    inner = [d for d in lens.depths if 0 < d < lens.target_depth]
    if not inner:
        raise Refused(
            "The published format holds depths between the first and the target; the lens has none."
        )
    matrices = {d - 1: lens.at(d).to(DTYPES[dtype]).clone() for d in inner}
    if not all(bool(matrix.isfinite().all()) for matrix in matrices.values()):
        raise Refused("The lens holds entries beyond float16; write it with dtype float32.")
    about = dict(json.loads(lens.published)) if lens.published else {}
    about |= {"target_layer": lens.target_depth - 1, "n_prompts": lens.count, "rules": lens.rules}
    about |= {"estimator": "jacobian_lens" if lens.rules == "exact" else f"jacobian_lens ({lens.rules})"}
    sizes = {"skip_first_positions": lens.skip, "max_seq_len": lens.length}
    about |= {name: size for name, size in sizes.items() if size is not None}
    if lens.made_on is not None:
        about["interpcore"] = lens.made_on.to_json()
    held = {
        "J": matrices,
        "n_prompts": lens.count,
        "source_layers": sorted(matrices),
        "d_model": lens.jacobian.shape[1],
        "metadata": about,
    }
    with atomic_path(path) as partial:
        torch.save(held, partial)


def _held(path: str | os.PathLike[str]) -> dict[Any, Any]:
    if not Path(path).is_file():
        raise Refused(f"There is no file {path}; give a lens.")
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch names a dozen kinds, each of which means the same here
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Refused(f"{path} cannot be read as tensors and plain values alone ({line[:100]}).") from error
    if not isinstance(held, dict):
        raise Refused(f"{path} holds no Jacobian lens, but a {type(held).__name__}.")
    return held


def _about(held: dict[Any, Any]) -> dict[str, Any]:
    """What a file says of itself: its metadata, and what checkpoints write beside their sums."""
    flat = {name: held[name] for name in _FLAT if name in held}
    given = held.get("metadata")
    nested = given if isinstance(given, dict) else {}
    return {k: v for k, v in {**flat, **nested}.items() if isinstance(v, (*_LISTED, list, dict))}


def _target(path: Any, about: dict[str, Any], model: Model | None) -> int:
    layer = _whole(about.get("target_layer"))
    if layer is None and model is None:
        raise Refused(f"{path} does not name its target layer; say which model it belongs to (--model).")
    return layer + 1 if layer is not None else model.plan.n_calls  # type: ignore[union-attr]


def _made_on(about: dict[str, Any]) -> MadeOn | None:
    own = about.get("interpcore")
    if not isinstance(own, dict) or not all(isinstance(own.get(n), str) for n in ("weights", "plan")):
        return None
    return MadeOn(own["weights"], own["plan"])


def _is_layer(name: Any) -> bool:
    return isinstance(name, int | str) and not isinstance(name, bool) and str(name).isdecimal()


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
