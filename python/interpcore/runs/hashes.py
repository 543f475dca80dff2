"""Hashes that name weights and tokenizers in a run card."""

import hashlib
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def tensors_hash(tensors: "Mapping[str, torch.Tensor]") -> str:
    """Hash of named tensors: names, dtypes, shapes and bytes, whatever their order, strides or device.

    Args:
        tensors: name -> tensor [any shape].

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        ValueError: a tensor has no data (meta device).
    """
    return hashlib.sha256("\n".join(_lines(tensors)).encode()).hexdigest()


def same_weights(first: str, second: str) -> bool:
    """Whether two hashes of models (`interpcore.model.weights.model_hash`) are of one model.

    What stands behind a dash, of what is computed with the weights, counts where both record it: older ones
    are of the weights alone.
    """
    (weights, _, config), (others, _, other) = first.partition("-"), second.partition("-")
    return weights == others and (not config or not other or config == other)


def tensor_hashes(tensors: "Mapping[str, torch.Tensor]") -> dict[str, str]:
    """Hash of each of some named tensors: name, dtype, shape and bytes.

    Args:
        tensors: name -> tensor [any shape].

    Returns:
        name -> SHA-256 in hexadecimal, sorted by name.

    Raises:
        ValueError: a tensor has no data (meta device).
    """
    hashes = (hashlib.sha256(line.encode()).hexdigest() for line in _lines(tensors))
    return dict(zip(sorted(tensors), hashes, strict=True))


def tokenizer_hash(tokenizer: Any) -> str:
    """Hash of a tokenizer: its serialised JSON, without the padding and truncation that a call leaves in it.

    Args:
        tokenizer: a transformers tokenizer with a `tokenizers` backend, or a `tokenizers.Tokenizer`.

    Returns:
        SHA-256 in hexadecimal.

    Raises:
        TypeError: the tokenizer has no serialised form.
    """
    backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if not hasattr(backend, "to_str"):
        raise TypeError(
            f"a {type(tokenizer).__qualname__} has no serialised form to hash; load it through "
            "transformers.AutoTokenizer"
        )
    content = json.loads(backend.to_str())
    content["padding"] = content["truncation"] = None
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _lines(tensors: "Mapping[str, torch.Tensor]") -> list[str]:
    """What is hashed of each tensor, sorted by name."""
    import torch

    # hashlib lets go of the GIL on large buffers, so threads hash a large model at memory speed.
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(lambda name: _tensor_line(name, tensors[name]), sorted(tensors)))


def _tensor_line(name: str, tensor: "torch.Tensor") -> str:
    import torch

    if tensor.is_meta:
        raise ValueError(
            f"tensor {name!r} is on the meta device and has no data to hash; load the weights first"
        )
    data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    digest = hashlib.sha256(data.data).hexdigest()
    return json.dumps([name, str(tensor.dtype), list(tensor.shape), digest])
