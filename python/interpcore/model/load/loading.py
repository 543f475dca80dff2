"""Loading models: by name, folder, hub id or transformers object; safetensors only, no remote code unless
asked for."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from interpcore.errors import Refused
from interpcore.model.decoder import Model
from interpcore.model.generic import GenericModel
from interpcore.model.load.bloom import bloom
from interpcore.model.load.check import check_against_transformers, check_finite
from interpcore.model.load.checkpoint import Checkpoint, assemble
from interpcore.model.load.falcon import falcon
from interpcore.model.load.gemma import gemma, gemma2
from interpcore.model.load.gguf import CONFIG, is_gguf, read_gguf
from interpcore.model.load.glm import glm
from interpcore.model.load.gpt2 import gpt2, gpt_neo
from interpcore.model.load.gpt_neox import gpt_neox
from interpcore.model.load.gptj import gptj
from interpcore.model.load.huginn import huginn
from interpcore.model.load.llama import exaone4, granite, llama, olmo
from interpcore.model.load.location import Location, first_line, locate
from interpcore.model.load.opt import opt
from interpcore.model.load.parts import Parts
from interpcore.model.load.phi import phi
from interpcore.model.load.phi3 import phi3
from interpcore.model.load.source import read_checkpoint, read_tokenizer
from interpcore.model.load.stablelm import stablelm, starcoder2
from interpcore.model.load.tensors import Unsupported
from interpcore.model.origin import Origin
from interpcore.model.weights import Weights
from interpcore.runs.fields import parse_json

FAMILIES: dict[str, Callable[[Checkpoint], Parts]] = {
    "gpt2": gpt2,
    "gpt_neo": gpt_neo,
    "gptj": gptj,
    "gpt_neox": gpt_neox,
    "llama": llama,
    "mistral": llama,
    "ministral": llama,
    "qwen2": llama,
    "qwen3": llama,
    "seed_oss": llama,
    "smollm3": llama,
    "mixtral": llama,
    "qwen3_moe": llama,
    "olmoe": llama,
    "gpt_oss": llama,
    "granite": granite,
    "olmo2": olmo,
    "olmo3": olmo,
    "exaone4": exaone4,
    "gemma": gemma,
    "gemma2": gemma2,
    "gemma3_text": gemma2,
    "glm": glm,
    "glm4": glm,
    "phi": phi,
    "phi3": phi3,
    "stablelm": stablelm,
    "starcoder2": starcoder2,
    "opt": opt,
    "falcon": falcon,
    "bloom": bloom,
    "huginn_raven": huginn,
}


OWN_FILES = ["*.safetensors", "*.json", "*.model", "*.txt"]
"""What is read of a checkpoint whose family is here: weights, configs and the tokenizer, no code."""


def load(
    source: str | Path | Any = "tiny",
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device = "cpu",
    revision: str | None = None,
    check: bool = True,
    trust_remote_code: bool = False,
) -> Model | GenericModel:
    """Load a model.

    Args:
        source: an embedded model ("tiny", "tiny-s1", "tiny-s2", "tiny-llama", "tiny-loop"), a transformers
            folder, a GGUF file (dequantised, float32 unless a dtype is given), a hub id, or a transformers
            model object, whose tensors are shared; PEFT's low-rank adapters, in it or around it, are added to
            copies of the weights that they change.
        dtype: of the weights; None takes float32 on a CPU and the checkpoint's on a GPU (an object keeps its
            own).
        device: where to put the weights (an object stays where it is).
        revision: of a hub id; the commit that it means is kept in `origin`.
        check: look for NaN weights and compare logits with transformers on 16 tokens; the gap stays in
            `load_gap`.
        trust_remote_code: run a checkpoint's own Python code; off unless asked for by name.
    Returns: a `Model`; for architectures without hand-written blocks a `GenericModel`, with a warning that
    says so.
    Raises: ValueError with one sentence for a missing folder, missing or pickled weights, files that cannot
        be read, an unknown architecture, NaN weights, or logits that disagree with transformers.
    """
    origin = None
    weights = Weights()
    if isinstance(source, str | Path):
        name, location = str(source), locate(source, revision)
        if (own := _own_family(location)) is not None:
            return _load_own(own, location, name, dtype, device, check)
        said: str | None
        if is_gguf(location.place):
            hf, tokenizer, said = read_gguf(Path(location.place), dtype, device)
        else:
            hf, tokenizer = read_checkpoint(location, dtype, device, trust_remote_code)
            said = getattr(hf.config, CONFIG, None)
        commit = getattr(hf.config, "_commit_hash", None) if location.cached else location.revision
        place = hf.get_input_embeddings().weight
        at = location.source, place.dtype, str(place.device)
        origin = Origin(*at, commit, trust_remote_code, said, loader=load)
        weights = Weights(location.weight_files())
    else:
        hf = source.get_base_model() if hasattr(source, "get_base_model") else source
        tokenizer, name = None, hf.config._name_or_path or type(hf).__name__
        refuse_looped(getattr(hf.config, "model_type", None), name)
    hf.eval()
    checkpoint = Checkpoint.of(hf, tokenizer)
    if check:
        check_finite(checkpoint.tensors, name)
    try:
        model = replace(from_checkpoint(checkpoint, name), origin=origin, weights=weights)
    except Unsupported as reason:
        warnings.warn(f"{name} loads through the generic adapter, the slow path: {reason}.", stacklevel=2)
        return replace(GenericModel.wrap(hf, name, tokenizer), origin=origin, weights=weights)
    return check_against_transformers(model, hf) if check else model


LOOPED = {
    "hrm_text": "two stacks that read each other in cycles, heads gated, the prompt seen both ways",
    "ouro": "its whole stack of blocks runs several times over",
}
"""Depth-recurrent families that have no plan here; the generic adapter takes blocks to run once."""


def refuse_looped(family: object, name: str) -> None:
    """Raises: Refused for a depth-recurrent family that has no plan here."""
    if isinstance(family, str) and family in LOOPED:
        raise Refused(
            f"{name} is a depth-recurrent model of the family {family} ({LOOPED[family]}), which has no plan "
            "of its calls here; the depth-recurrent family that loads is huginn_raven."
        )


def text_parts(checkpoint: Checkpoint) -> Parts:
    """Parts of the text model inside a model that also reads pictures or sound.

    Raises: Unsupported when it lies elsewhere than as `model.language_model`, or no hand-written block covers
        it.
    """
    hf, text = checkpoint.hf, checkpoint.config.text_config
    inner = getattr(getattr(hf, "model", None), "language_model", None)
    if not hasattr(inner, "layers") or not hasattr(hf, "lm_head"):
        raise Unsupported("the text model inside it lies where it was not looked for")
    alone = SimpleNamespace(model=inner, lm_head=hf.lm_head)
    parts = FAMILIES[text.model_type](replace(checkpoint, config=text, hf=alone))
    names = {
        site: (which, path.replace("model.", "model.language_model.", 1))
        for site, (which, path) in parts.module_names.items()
    }
    return replace(parts, module_names=names)


def _own_family(location: Location) -> Path | None:
    """The folder of a checkpoint whose family is here and not in transformers, else None; of a hub id, its
    snapshot in the cache."""
    from transformers import CONFIG_MAPPING

    file = _config_file(location)
    if file is None or not file.is_file():
        return None
    try:
        family = parse_json(file.read_text()).get("model_type")
    except (ValueError, AttributeError):
        return None  # told where transformers reads it
    refuse_looped(family, location.source)
    known = isinstance(family, str) and family in FAMILIES
    if not known or family in CONFIG_MAPPING:
        return None
    return file.parent if Path(location.place).is_dir() else _snapshot(location)


def _config_file(location: Location) -> Path | None:
    if Path(location.place).exists():
        return Path(location.place) / "config.json"
    from huggingface_hub import hf_hub_download

    try:
        return Path(
            hf_hub_download(
                location.place,
                "config.json",
                revision=location.revision,
                local_files_only=location.cached,
            )
        )
    except Exception:  # told where transformers reads it
        return None


def _snapshot(location: Location) -> Path:
    """A hub id's weights and tokenizer, none of its code."""
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                location.place,
                revision=location.revision,
                local_files_only=location.cached,
                allow_patterns=OWN_FILES,
            )
        )
    except Exception as error:
        raise Refused(f"{location.source} could not be read from the hub: {first_line(error)}") from error


def _load_own(
    folder: Path, location: Location, name: str, dtype: Any, device: str | torch.device, check: bool
) -> Model:
    """A model of a family that transformers does not have; nothing to compare its logits with."""
    from transformers import PreTrainedConfig

    checkpoint = Checkpoint.read(folder, dtype, device)
    # With a config of its own, transformers does not look at the folder's, nor for code that it names.
    options = {"config": PreTrainedConfig(), "trust_remote_code": False}
    here = replace(location, place=str(folder))  # a hub id's snapshot: nothing is asked of the hub again
    checkpoint = replace(checkpoint, tokenizer=read_tokenizer(here, options))
    if check:
        check_finite(checkpoint.tensors, name)
    model = from_checkpoint(checkpoint, name)
    origin = Origin(location.source, model.dtype, str(model.device), location.revision, loader=load)
    return replace(model, origin=origin, weights=Weights(here.weight_files()))


def from_transformers(hf: Any, name: str, tokenizer: Any = None) -> Model:
    """A `Model` that shares the tensors of a transformers model.

    Raises: Unsupported when no hand-written block covers it.
    """
    return from_checkpoint(Checkpoint.of(hf, tokenizer), name)


def from_checkpoint(checkpoint: Checkpoint, name: str) -> Model:
    """A `Model` of a checkpoint's tensors.

    Raises: Unsupported when no hand-written block covers it.
    """
    family = checkpoint.config.model_type
    inside = getattr(getattr(checkpoint.config, "text_config", None), "model_type", None)
    read = FAMILIES.get(family) or (text_parts if inside in FAMILIES else None)
    if read is None:
        raise Unsupported(f"there are no hand-written blocks for {family!r}")
    if getattr(checkpoint.config, "num_hidden_layers", 1) < 1:
        raise Refused(f"{name} has no blocks; its config gives their number as 0 or less.")
    if hasattr(checkpoint.hf, "get_input_embeddings") and hasattr(
        checkpoint.hf.get_input_embeddings(), "base_layer"
    ):
        raise Unsupported("its token embedding has an adapter")
    try:
        parts = read(checkpoint)
    except AttributeError as error:
        raise Unsupported(f"its modules are not those of its family ({error})") from error
    return assemble(checkpoint, parts, name)
