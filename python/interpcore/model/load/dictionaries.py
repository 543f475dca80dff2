"""Reading dictionaries: SAELens folders, Gemma Scope's npz files, circuit-tracer's transcoders.

What a file does not say, or says in a way that is not known here, is refused; nothing is guessed.
"""

from __future__ import annotations

import re
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model.decoder import Model
from interpcore.model.dictionary import Dictionary, site_width
from interpcore.model.names import site_address
from interpcore.runs.artifacts import read_json, read_tensors
from interpcore.runs.fields import Fields

SAELENS = ("cfg.json", "sae_weights.safetensors")
TRACER = "config.yaml"
_TENSORS = {"W_enc", "b_enc", "W_dec", "b_dec", "threshold", "W_skip"}
_BAD_ZIP = (zipfile.BadZipFile, zlib.error, NotImplementedError)
_KINDS = {
    "standard": "relu",
    "relu": "relu",
    "jumprelu": "jumprelu",
    "topk": "topk",
    "transcoder": "relu",
    "jumprelu_transcoder": "jumprelu",
    "skip_transcoder": "relu",
}


@dataclass(frozen=True)
class Said:
    """What a file says besides its tensors."""

    name: str
    activation: str
    k: int | None = None
    centred: bool = False
    reads: str | None = None
    writes: str | None = None


def load_dictionaries(
    path: str | Path, model: Model, *, reads: str | None = None, writes: str | None = None
) -> list[Dictionary]:
    """Dictionaries of a model's activations.

    Args:
        path: a SAELens folder (`cfg.json`, `sae_weights.safetensors`), a Gemma Scope `params.npz`, or
            a circuit-tracer folder (`config.yaml`, `layer_<i>.safetensors`), which holds one for each layer.
        model: whose activations they are of; their tensors get its type and device.
        reads: the site that is read, by any name that `names.site_address` knows, in place of the one that
            the file says; needed for npz files, which say none. With {} for the layer in a set.
        writes: the site that is written, likewise; None for the file's own, else what it reads.
    Returns: one, or one for each layer.
    Raises: Refused for what is no dictionary, or none of this model.
    """
    path = Path(path)
    return [
        _made(path, tensors, said, model, reads or said.reads, writes or said.writes, layer)
        for layer, (tensors, said) in enumerate(read_dictionary_files(path))
    ]


def read_dictionary_files(path: Path) -> list[tuple[dict[str, Tensor], Said]]:
    """The tensors of each dictionary in a file or folder, and what else stands there; of no model yet.

    Raises: Refused for what is no dictionary.
    """
    if path.suffix == ".npz" and path.is_file():
        return [(_npz(path), Said(path.stem, "jumprelu"))]
    if all((path / name).is_file() for name in SAELENS):
        return [_saelens(path)]
    if (path / TRACER).is_file():
        return _tracer(path)
    raise Refused(
        f"{path} is no dictionary: a folder with {' and '.join(SAELENS)}, one with {TRACER}, or a .npz file."
    )


def _made(
    path: Path,
    tensors: Mapping[str, Tensor],
    said: Said,
    model: Model,
    reads: str | None,
    writes: str | None,
    layer: int,
) -> Dictionary:
    """A dictionary of a model, from tensors by SAELens' names."""
    missing = sorted({"W_enc", "b_enc", "W_dec", "b_dec"} - set(tensors))
    if missing or not set(tensors) <= _TENSORS:
        wrong = f"has no {missing[0]}" if missing else f"has {sorted(set(tensors) - _TENSORS)[0]}"
        raise Refused(f"{path} {wrong}; a dictionary's tensors are {', '.join(sorted(_TENSORS))}.")
    broken = next((name for name, x in tensors.items() if not bool(torch.isfinite(x).all())), None)
    if broken is not None:
        raise Refused(f"{path}: {broken} is not finite everywhere.")
    if tensors["W_enc"].dim() != 2 or tensors["W_dec"].dim() != 2:
        raise Refused(f"{path}: W_enc and W_dec are no matrices.")
    if reads is None:
        raise Refused(f"{path} does not say which activation it is of; say it, such as resid.6.")
    places = [
        site_address(name.replace("{}", str(layer)), model.plan.n_calls, model.spec)
        for name in (reads, writes or reads)
    ]
    for (site, _), weight, axis in zip(places, (tensors["W_enc"], tensors["W_dec"]), (0, 1), strict=True):
        if site in model.spec.absent:
            raise Refused(f"{model.spec.name} has no site {site}: {model.spec.absent[site]}")
        if weight.shape[axis] != site_width(model, site):
            raise Refused(
                f"{path} is of activations of {weight.shape[axis]} entries; {site} of {model.spec.name} has "
                f"{site_width(model, site)}."
            )
    made = Dictionary(
        said.name,
        places[0],
        places[1],
        tensors["W_enc"],
        tensors["b_enc"],
        tensors["W_dec"],
        tensors["b_dec"],
        said.activation,
        tensors.get("threshold"),
        said.k,
        said.centred,
        None if "W_skip" not in tensors else tensors["W_skip"].mT,
    )
    return made.to(model.device, model.dtype)


def _npz(path: Path) -> dict[str, Tensor]:
    """Gemma Scope: W_enc [d, latent] or w_enc, likewise the others."""
    import numpy as np

    try:
        with path.open("rb") as opened:
            file = np.load(opened, allow_pickle=False)
            found = {name: torch.from_numpy(file[name]) for name in file.files}
    except (ValueError, OSError, EOFError, TypeError, KeyError, AttributeError, *_BAD_ZIP) as error:
        raise Refused(f"{path} is damaged or no npz file ({error}).") from error
    return {re.sub("^w_", "W_", name): x for name, x in found.items()}


def _saelens(path: Path) -> tuple[dict[str, Tensor], Said]:
    """SAELens, of version 6 on and before."""
    cfg = Fields.of(read_json(path / SAELENS[0]), str(path / SAELENS[0]), Refused)
    inner = cfg.object("metadata") if "metadata" in cfg.content else cfg
    tensors, _ = read_tensors(path / SAELENS[1])
    if "scaling_factor" in tensors and bool((tensors["scaling_factor"] == 1).all()):
        tensors = {name: x for name, x in tensors.items() if name != "scaling_factor"}
    kind = cfg.content.get("architecture", cfg.content.get("activation_fn_str"))
    if kind == "standard" and cfg.content.get("activation_fn_str", "relu") != "relu":
        kind = cfg.content["activation_fn_str"]
    if kind not in _KINDS:
        raise Refused(f"{path}: architecture {kind!r} is none of {', '.join(_KINDS)}.")
    for name, plain in {
        "normalize_activations": "none",
        "reshape_activations": ("none", "hook_z"),
        "rescale_acts_by_decoder_norm": False,
    }.items():
        value = cfg.content.get(name)
        allowed = plain if isinstance(plain, tuple) else (plain,)
        if value is not None and value not in allowed:
            raise Refused(f"{path}: {name} {value!r} is not read; {' or '.join(map(str, allowed))} is.")
    if inner.content.get("hook_head_index", cfg.content.get("hook_point_head_index")) is not None:
        raise Refused(f"{path} is of a single head, which is not read.")
    return tensors, Said(
        path.name,
        _KINDS[kind],
        _k(cfg) if _KINDS[kind] == "topk" else None,
        cfg.flag("apply_b_dec_to_input"),
        inner.text("hook_name" if "hook_name" in inner.content else "hook_point", empty=False),
        inner.content.get("hook_name_out"),
    )


def _k(cfg: Fields) -> int:
    if "k" in cfg.content:
        return cfg.whole("k", 1)
    return cfg.object("activation_fn_kwargs").whole("k", 1)


def _tracer(path: Path) -> list[tuple[dict[str, Tensor], Said]]:
    """circuit-tracer's set of transcoders, whose W_enc lies [latent, d]."""
    import yaml

    try:
        content = yaml.safe_load((path / TRACER).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise Refused(f"{path / TRACER} is no YAML ({str(error).splitlines()[0]}).") from error
    config = Fields.of(content, str(path / TRACER), Refused)
    kind = config.text("model_kind")
    if kind == "cross_layer_transcoder":
        raise Refused(f"{path} is a cross-layer transcoder, which is not read; sets of one a layer are.")
    if kind != "transcoder_set":
        raise Refused(f"{path}: model_kind {kind!r} is not read; transcoder_set is.")
    reads, writes = (config.text(f"feature_{side}_hook", empty=False) for side in ("input", "output"))
    files = sorted(path.glob("layer_*.safetensors"), key=lambda file: _layer(file))
    if [_layer(file) for file in files] != list(range(len(files))) or not files:
        raise Refused(f"{path} has no layer_0.safetensors, layer_1.safetensors, ... without a gap.")
    found = []
    for layer, file in enumerate(files):
        tensors = {n.removeprefix("activation_function."): x for n, x in read_tensors(file)[0].items()}
        if "W_enc" in tensors and tensors["W_enc"].dim() == 2:
            tensors["W_enc"] = tensors["W_enc"].mT
        activation = "jumprelu" if "threshold" in tensors else "relu"
        hooks = (f"blocks.{layer}.{hook}" for hook in (reads, writes))
        found.append((tensors, Said(f"{path.name}.{layer}", activation, None, False, *hooks)))
    return found


def _layer(file: Path) -> int:
    digits = file.stem.removeprefix("layer_")
    return int(digits) if digits.isdigit() else -1
