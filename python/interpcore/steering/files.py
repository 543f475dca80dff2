"""Interventions on a disk: this package's own file, lm-eval's steering file and table, GGUF control vectors,
and the form of the steering-vectors library. Nothing is ever unpickled but tensors."""

from __future__ import annotations

import csv
import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.generic import GenericModel
from interpcore.model.made_on import MadeOn
from interpcore.model.sites import SITES
from interpcore.runs import RunError, atomic_path, read_tensors, write_tensors
from interpcore.runs.fields import Fields, is_number, parse_json
from interpcore.steering.interventions import Intervention, Part, Positions

KIND = "intervention"
READ = (".safetensors", ".pt", ".pth", ".csv", ".gguf")
_LAYER_TYPES = {"decoder_block": "block", "self_attn": "attn_out", "mlp": "mlp_out"}


def save(path: str | os.PathLike[str], intervention: Intervention) -> None:
    """Write an intervention as safetensors.

    Raises: Refused for parts that are functions, which no file can hold.
    """
    tensors, listed = {}, []
    for i, part in enumerate(intervention.parts):
        if part.kind == "function":
            raise Refused("An edit that is a function cannot be written to a file.")
        for name in ("vector", "bias", "right"):
            value = getattr(part, name)
            if value is not None:
                tensors[f"{i}.{name}"] = value.double().cpu().contiguous()
        depth: Any = list(part.depth) if isinstance(part.depth, tuple) else part.depth
        if isinstance(depth, list) and not isinstance(depth[2], int):
            depth[2] = {"from": depth[2].start, "to": depth[2].stop}
        listed.append(
            {
                "site": part.site,
                "depth": depth,
                "kind": part.kind,
                "coefficient": part.coefficient,
                "positions": _said(part.positions),
                "heads": None if part.heads is None else list(part.heads),
            }
        )
    header = {"kind": KIND, "name": intervention.name, "parts": json.dumps(listed)}
    if intervention.made_on is not None:
        header |= intervention.made_on.to_json()
    write_tensors(path, tensors, header)


def load(path: str | os.PathLike[str], model: Model | GenericModel) -> Intervention:
    """Read an intervention in any of the forms, by the file's ending.

    Args:
        path: .safetensors (ours), .pt (lm-eval's, or steering-vectors'), .csv (lm-eval's), .gguf (control
            vectors).
        model: what it is for; the others name modules, which only it can place.
    Raises: Refused, RunError for a file that holds none, or that does not fit the model.
    """
    path = Path(path)
    if path.suffix not in READ:
        raise Refused(f"{path} is none of {', '.join(READ)}; give a steering file.")
    if not path.is_file():
        raise Refused(f"There is no steering file {path}.")
    if path.suffix == ".safetensors":
        found = read_own(path)
    elif path.suffix == ".csv":
        found = _table(path, model)
    elif path.suffix == ".gguf":
        found = _control_vector(path)
    else:
        found = _torch(path, model)
    found.check_model(model)
    return found


def read_own(path: Path) -> Intervention:
    """Read what `save` wrote. Raises: RunError for another kind of file."""
    tensors, header = read_tensors(path)
    if header.get("kind") != KIND:
        raise RunError(f"{path} holds no intervention; give one that `interpcore` wrote")
    try:
        listed = parse_json(header.get("parts", ""))
        made_on = MadeOn.read(Fields(header, str(path), Refused))
        rows = Fields({"parts": listed}, str(path), Refused).objects("parts")
        parts = tuple(_part(row, i, tensors) for i, row in enumerate(rows))
        return Intervention(parts, header.get("name", path.stem), made_on)
    except (ValueError, TypeError) as error:
        raise RunError(f"{path} holds no intervention: {error}") from error


def _part(row: Fields, number: int, tensors: Mapping[str, Tensor]) -> Part:
    depth, heads = row.content.get("depth"), row.content.get("heads")
    if isinstance(depth, list):
        if len(depth) != 3 or not isinstance(depth[0], str) or not isinstance(depth[1], int):
            raise Refused(f"{row.where}: depth is {depth!r}, not (group, block, step).")
        steps = depth[2]
        if not isinstance(steps, int):
            bounds = Fields.of(steps, f"{row.where}, depth", Refused).content
            steps = slice(bounds.get("from"), bounds.get("to"))
        depth = (depth[0], depth[1], steps)
    elif depth is not None:
        depth = row.whole("depth", least=-(1 << 20), most=1 << 20)
    return Part(
        row.text("site", empty=False),
        depth,
        row.text("kind"),
        tensors.get(f"{number}.vector"),
        row.number("coefficient"),
        _positions(row),
        None if heads is None else row.wholes("heads", least=-(1 << 20)),
        tensors.get(f"{number}.bias"),
        tensors.get(f"{number}.right"),
    )


def _said(positions: Positions) -> Any:
    if isinstance(positions, slice):
        return {"from": positions.start, "to": positions.stop}
    return positions if isinstance(positions, str) else list(positions)


def _positions(row: Fields) -> Positions:
    given = row.content.get("positions", "all")
    if isinstance(given, str):
        return given
    if isinstance(given, Mapping):
        bounds = [given.get("from"), given.get("to")]
        if any(b is not None and (not isinstance(b, int) or isinstance(b, bool)) for b in bounds):
            raise Refused(
                f"{row.where}: positions run from {bounds[0]!r} to {bounds[1]!r}, not whole numbers."
            )
        return slice(*bounds)
    return row.wholes("positions", least=-(1 << 40))


def write_lm_eval(
    path: str | os.PathLike[str], intervention: Intervention, model: Model | GenericModel
) -> None:
    """Write lm-eval's own steering file, which its `steered` models read.

    Raises: Refused for what that file cannot say: other edits than additions and clamps, chosen positions,
    two edits of one module, and sites that no module's output is.
    """
    content: dict[str, dict[str, Any]] = {}
    for part in intervention.parts:
        if part.kind not in ("add", "clamp", "ablate") or part.positions != "all":
            raise Refused(
                f"lm-eval's file holds additions and clamps at all positions; the edit at {part.place} is "
                f"{part.kind} at {part.positions}."
            )
        hookpoint = _hookpoint(part, model)
        if hookpoint in content or (part.heads is not None and len(part.heads) != 1):
            raise Refused(f"lm-eval's file holds one edit of a module; {hookpoint} has more.")
        assert part.vector is not None
        content[hookpoint] = {
            "steering_vector": part.vector.float(),
            "steering_coefficient": 0.0 if part.kind == "ablate" else float(part.coefficient),
            "action": "add" if part.kind == "add" else "clamp",
            "bias": None if part.bias is None else part.bias.float(),
            "head_index": None if part.heads is None else part.heads[0],
        }
    with atomic_path(path) as partial:
        torch.save(content, partial)


def _hookpoint(part: Part, model: Model | GenericModel) -> str:
    """The module below the base model whose output a part's site is."""
    for pattern, (site, shift) in outputs(model).items():
        if site == part.site and (
            part.depth is None or (isinstance(part.depth, int) and part.depth >= shift)
        ):
            return pattern.format(d=None if part.depth is None else part.depth - shift)
    raise Refused(f"No module of {model.spec.name} puts out {part.place}, so lm-eval cannot edit it.")


def outputs(model: Model | GenericModel) -> dict[str, tuple[str, int]]:
    """Modules, by their names below transformers' base model with {d} for the block, whose output is a site:
    the site, and how many depths later than the block it is."""
    found = {}
    for site, (side, module) in model.spec.module_names.items():
        below = module.partition(".")[2]
        if below and (side == "output" or site == "resid"):
            # A block's output enters the next call: `resid` is the name that directions go by.
            found[below] = ("resid", 1) if site == "block_out" else (site, int(site == "resid"))
    return found


def place_of(hookpoint: str, model: Model | GenericModel) -> tuple[str, int | None]:
    """Site and depth of a module's output, by its name below transformers' base model.

    Raises: Refused for a module that is no site here.
    """
    for pattern, (site, shift) in outputs(model).items():
        before, there, after = pattern.partition("{d}")
        if not there and hookpoint == pattern:
            return site, None
        number = hookpoint.removeprefix(before).removesuffix(after) if hookpoint.startswith(before) else ""
        if number.isdecimal() and hookpoint == pattern.format(d=int(number)):
            if int(number) >= model.plan.n_calls:
                raise Refused(f"{hookpoint!r}: {model.spec.name} has blocks 0 to {model.plan.n_calls - 1}.")
            return site, int(number) + shift
    known = ", ".join(outputs(model)) or "none"
    raise Refused(
        f"{hookpoint!r} is no module of {model.spec.name} whose output is a site; these are: {known}."
    )


def _torch(path: Path, model: Model | GenericModel) -> Intervention:
    """lm-eval's dictionary of hookpoints, or steering-vectors' activations by layer, read weights-only."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (
        pickle.UnpicklingError,
        RuntimeError,
        EOFError,
        ValueError,
        KeyError,
        zipfile.BadZipFile,
    ) as error:
        raise RunError(
            f"{path} is damaged, or holds other objects than tensors, numbers and texts, which are not read"
        ) from error
    if not isinstance(content, Mapping) or not content:
        raise RunError(f"{path} holds no steering vectors")
    if "layer_activations" in content:
        return _layer_activations(Fields(content, str(path), Refused), path.stem)
    parts = []
    for hookpoint, about in content.items():
        row = Fields.of(about, f"{path}, {hookpoint}", Refused)
        row.only(
            {"steering_vector", "steering_coefficient", "action", "bias", "head_index"},
            {"steering_vector", "action"},
        )
        parts.append(_steered(row, str(hookpoint), model))
    return Intervention(tuple(parts), path.stem)


def _steered(row: Fields, hookpoint: str, model: Model | GenericModel) -> Part:
    """An edit as lm-eval means it: at all positions of a module's output, of one head where it says one."""
    vector, bias, head = (row.content.get(n) for n in ("steering_vector", "bias", "head_index"))
    coefficient = row.content.get("steering_coefficient", 1.0)
    if not isinstance(vector, Tensor) or vector.dim() != 1:
        raise Refused(f"{row.where}: steering_vector is no vector.")
    if bias is not None and not isinstance(bias, Tensor):
        raise Refused(f"{row.where}: bias is no vector.")
    if not is_number(coefficient):
        raise Refused(f"{row.where}: steering_coefficient is {coefficient!r}, not a number.")
    action = row.text("action")
    if action not in ("add", "clamp"):
        raise Refused(f"{row.where}: action is {action!r}; there are add and clamp.")
    site, depth = place_of(hookpoint, model)
    heads = None if head is None else (row.whole("head_index"),)
    if (heads is None) != (SITES[site].heads is None):
        has = "has no heads; leave head_index out" if heads else "is of several heads; give head_index"
        raise Refused(f"{row.where}: the output of {hookpoint} {has}.")
    if action == "add":
        bias = None  # lm-eval refuses a decoder's bias here, which an addition does not use
    return Part(site, depth, action, vector.double(), float(coefficient), heads=heads, bias=bias)


def _layer_activations(row: Fields, name: str) -> Intervention:
    """The steering-vectors library's `layer_activations` and `layer_type`."""
    kind = row.content.get("layer_type", "decoder_block")
    if kind not in _LAYER_TYPES:
        raise Refused(f"{row.where}: layer_type {kind!r} is none of {', '.join(_LAYER_TYPES)}.")
    site, given = _LAYER_TYPES[kind], Fields.of(row.content["layer_activations"], row.where, Refused).content
    parts: list[Part] = []
    for layer, vector in given.items():
        if not isinstance(layer, int) or not isinstance(vector, Tensor):
            raise Refused(f"{row.where}: layer {layer!r} has no vector.")
        place = ("resid", layer + 1) if site == "block" else (site, layer)
        parts.append(Part(*place, "add", vector.double().flatten()))
    return Intervention(tuple(parts), name)


def _control_vector(path: Path) -> Intervention:
    """llama.cpp's control vector: `direction.N` is added to the output of block N."""
    try:
        import gguf
    except ImportError as error:
        raise Refused(f"Reading {path} needs the gguf library; pip install gguf.") from error
    try:
        tensors = [(t.name, torch.from_numpy(t.data.copy())) for t in gguf.GGUFReader(path).tensors]
    except (ValueError, IndexError, OSError, KeyError, UnicodeDecodeError, OverflowError) as error:
        raise RunError(f"{path} is damaged or no GGUF file: {error}") from error
    parts: list[Part] = []
    for name, vector in tensors:
        number = name.removeprefix("direction.")
        if not number.isdecimal() or not vector.is_floating_point():
            raise RunError(f"{path} holds {name!r}; a control vector holds direction.N, one for each block")
        parts.append(Part("resid", int(number) + 1, "add", vector.double().flatten()))
    if not parts:
        raise RunError(f"{path} holds no direction")
    return Intervention(tuple(parts), path.stem)


def _table(path: Path, model: Model | GenericModel) -> Intervention:
    """lm-eval's table of sparse coders' features; coders lie in local folders. Several rows may name one
    module, all of which are kept."""
    parts: list[Part] = []
    for line, row in _lines(path):
        where = f"line {line} of {path}"
        fields = Fields(row, where, Refused)
        fields.only(
            {"loader", "action", "sparse_model", "hookpoint", "feature_index", "steering_coefficient"}
            | {"head_index", "sae_id", "description"},
            {"sparse_model", "feature_index", "steering_coefficient"},
        )
        try:
            feature, value = int(row["feature_index"]), float(row["steering_coefficient"])
        except ValueError as error:
            raise Refused(f"{where}: {error}.") from error
        decoder, bias, hook = _coder(row, where)
        if not 0 <= feature < len(decoder):
            raise Refused(f"{where}: feature {feature} is outside a coder of {len(decoder)}.")
        about = {"steering_vector": decoder[feature], "steering_coefficient": value, "bias": bias}
        head = row.get("head_index") or ""
        about |= {"action": row.get("action") or "add", "head_index": int(head) if head.isdecimal() else None}
        parts.append(_steered(Fields(about, where, Refused), row.get("hookpoint") or hook, model))
    return Intervention(tuple(parts), path.stem)


def _lines(path: Path) -> Iterator[tuple[int, dict[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        try:
            for line, row in enumerate(csv.DictReader(stream), 2):
                yield line, {k: v or "" for k, v in row.items() if k}
        except (csv.Error, UnicodeDecodeError, TypeError) as error:
            raise Refused(f"{path} is no table of text: {error}.") from error


def _coder(row: Mapping[str, str], where: str) -> tuple[Tensor, Tensor | None, str]:
    """Decoder [feature, d_model], its bias and its hookpoint, of a coder in a local folder."""
    folder = Path(row["sparse_model"])
    inside = [folder / (row.get("sae_id") or ""), folder / (row.get("hookpoint") or ""), folder]
    files = [f for place in inside for f in (place / "sae.safetensors", place / "sae_weights.safetensors")]
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise Refused(f"{where}: there is no sparse coder in {folder}; bring it into a local folder first.")
    tensors, _ = read_tensors(file)
    if "W_dec" not in tensors or tensors["W_dec"].dim() != 2:
        raise Refused(f"{where}: {file} holds no decoder W_dec [feature, d_model].")
    return tensors["W_dec"].double(), tensors.get("b_dec"), ""


def intervention_hash(intervention: Intervention) -> str:
    """What a card says of an intervention: a hash of everything that it writes."""
    import hashlib

    whole = hashlib.sha256()
    for part in intervention.parts:
        whole.update(
            repr((part.site, part.depth, part.kind, part.coefficient, part.positions, part.heads)).encode()
        )
        for tensor in (part.vector, part.bias, part.right):
            whole.update(b"-" if tensor is None else tensor.double().numpy(force=True).tobytes())
        if part.function is not None:
            whole.update(repr(part.function).encode())
    return whole.hexdigest()
