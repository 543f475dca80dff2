"""The world's three architectures, and model folders: where they are, how they are read and written."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
)
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP

from interpcore.data.tinyworld.loop import LoopConfig, LoopForCausalLM
from interpcore.errors import Refused

ASSETS = Path(__file__).parents[2] / "assets"
POSITIONS = 256


def new_model(architecture: str, vocabulary: int, end_of_text: int, seed: int) -> PreTrainedModel:
    """A freshly initialised model.

    Args: architecture: `gpt2` (learned positions, GELU), `llama` (grouped-query attention, RMSNorm, SwiGLU)
        or `loop` (depth-recurrent, as Huginn); vocabulary: number of tokens; end_of_text: the id of that
        token; seed: fixes the initial weights.
    Returns: the model in float32, embeddings tied. Raises: ValueError for another architecture.
    """
    if architecture not in _BUILDERS:
        raise Refused(f"The architecture {architecture!r} is not one of {', '.join(ARCHITECTURES)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _BUILDERS[architecture](
            vocab_size=vocabulary, bos_token_id=end_of_text, eos_token_id=end_of_text
        )


def model_folder(model: str | Path) -> Path:
    """Where a model is: a folder given by path, or a shipped model by its short name.

    Raises: FileNotFoundError where neither holds a `config.json`.
    """
    for folder in (Path(model), ASSETS / str(model)):
        if (folder / "config.json").is_file():
            return folder
    shipped = ", ".join(sorted(path.parent.name for path in ASSETS.glob("*/config.json")))
    raise FileNotFoundError(f"No model folder {str(model)!r}, and no shipped model of that name ({shipped}).")


def load_model(model: str | Path) -> tuple[PreTrainedModel, Any]:
    """Read a model folder or a shipped model with transformers, offline.

    Returns: (the model in float32 in evaluation mode, its tokenizer).
    """
    folder = model_folder(model)
    ours = json.loads((folder / "config.json").read_text()).get("model_type") == LoopConfig.model_type
    kind: Any = LoopForCausalLM if ours else AutoModelForCausalLM
    loaded = kind.from_pretrained(folder, dtype=torch.float32, local_files_only=True, use_safetensors=True)
    config = loaded.config  # transformers does not know every config of ours by its folder
    return loaded.eval(), AutoTokenizer.from_pretrained(folder, config=config, local_files_only=True)


def save_model(model: PreTrainedModel, tokenizer: Any, folder: Path) -> None:
    """Write a plain transformers folder in float16; the folder appears complete or not at all."""
    temporary = folder.with_name(folder.name + ".part")
    shutil.rmtree(temporary, ignore_errors=True)
    config = copy.deepcopy(model.config)
    config.architectures, config.dtype = [type(model).__name__], "float16"
    config.save_pretrained(temporary)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    weights = {
        name: tensor.to(torch.float16).contiguous()
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    }
    save_file(weights, temporary / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save_pretrained(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(temporary, folder)


def _gpt2(**tokens: Any) -> PreTrainedModel:
    shape: dict[str, Any] = dict(n_positions=POSITIONS, n_embd=128, n_layer=4, n_head=4)
    model = GPT2LMHeadModel(GPT2Config(attn_pdrop=0.0, resid_pdrop=0.0, embd_pdrop=0.0, **shape, **tokens))
    for part in model.modules():
        if isinstance(part, GPT2MLP):
            part.act = torch.nn.GELU(approximate="tanh")  # gelu_new, in one kernel
    return model


def _llama(**tokens: Any) -> PreTrainedModel:
    shape: dict[str, Any] = dict(
        max_position_embeddings=POSITIONS, hidden_size=128, intermediate_size=352, num_hidden_layers=4
    )
    heads: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=True, **shape, **heads, **tokens))


def _loop(**tokens: Any) -> PreTrainedModel:
    return LoopForCausalLM(LoopConfig(block_size=POSITIONS, **tokens))


_BUILDERS: dict[str, Callable[..., PreTrainedModel]] = {"gpt2": _gpt2, "llama": _llama, "loop": _loop}
ARCHITECTURES = tuple(_BUILDERS)
