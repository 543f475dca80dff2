"""GGUF files: read through transformers, whose reader dequantises them, and written as a folder."""

from __future__ import annotations

import shutil
import uuid
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from interpcore.errors import Refused, Unavailable
from interpcore.model.load.location import first_line
from interpcore.model.load.source import check_device, without_progress_bar

NEEDED = ("gguf", "accelerate")
PLAIN = ("F32", "F16", "BF16", "F64")
CONFIG = "interpcore_quantised"
"""Entry of a converted folder's config.json that says what was quantised."""


def is_gguf(source: str | Path) -> bool:
    """Whether a name is that of a GGUF file."""
    return str(source).lower().endswith(".gguf")


def read_gguf(
    path: Path, dtype: torch.dtype | None = None, device: str | torch.device = "cpu"
) -> tuple[Any, Any, str]:
    """A transformers model with dequantised weights, its tokenizer, and what was quantised.

    Args:
        path: the file.
        dtype: of the weights; None takes float32.
        device: where to put them.
    Raises: Unavailable without the libraries; Refused for a file that is cut short, of an architecture that
        transformers does not read, or without a tokenizer.
    """
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise Unavailable(f"A GGUF file needs {', '.join(missing)}; pip install {' '.join(missing)}.")
    if not path.is_file():
        raise Refused(f"There is no file {path}; give a GGUF file.")
    place, quantised = check_device(device), _read_header(path)
    from transformers import AutoModelForCausalLM, AutoTokenizer

    how: dict[str, Any] = {"gguf_file": path.name, "local_files_only": True}
    with _quiet():
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(path.parent), **how)
        except Exception as error:  # whatever transformers cannot make of the entries
            raise Refused(
                f"{path} holds no tokenizer that transformers reads ({first_line(error)}); give the original "
                "folder, or a file that was converted with its tokenizer."
            ) from error
        try:
            hf: Any = AutoModelForCausalLM.from_pretrained(
                str(path.parent), dtype=dtype or torch.float32, **how
            )
        except Exception as error:
            raise Refused(f"{path} cannot be read as a causal model: {first_line(error)}") from error
    hf.hf_quantizer, hf.is_quantized = None, False  # the weights are plain; else it refuses to be saved
    if hasattr(hf.config, "quantization_config"):
        del hf.config.quantization_config
    setattr(hf.config, CONFIG, quantised)
    return hf.to(place), tokenizer, quantised


def convert_gguf(path: Path, folder: Path, dtype: torch.dtype | None = None) -> str:
    """Write a GGUF file as a transformers folder, whole or not at all.

    Args:
        path: the file.
        folder: where to; it must not exist, or be empty.
        dtype: of the weights; None takes float32.
    Returns: what was quantised.
    Raises: Refused as `read_gguf`, and for a folder that holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Refused(f"{folder} is there already; name a new folder.")
    hf, tokenizer, quantised = read_gguf(path, dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with without_progress_bar():
            hf.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if folder.is_dir():
            folder.rmdir()
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return quantised


def _read_header(path: Path) -> str:
    """What was quantised, from the file's own list of tensors.

    Raises: Refused for a file that is no GGUF, is cut short, or of an architecture that is not read.
    """
    from gguf import GGUFReader
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    try:
        reader = GGUFReader(path)
        field = reader.get_field("general.architecture")
        architecture = str(field.contents()) if field is not None else "no"
        kinds = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    except Exception as error:  # NumPy's complaints about a file that ends early
        raise Refused(f"{path} is no whole GGUF file ({first_line(error)}); fetch it again.") from error
    if architecture not in GGUF_SUPPORTED_ARCHITECTURES:
        raise Refused(
            f"{path} is of the architecture {architecture!r}, which transformers does not read from GGUF; "
            "give the model as a transformers folder."
        )
    few = [f"{n} of {sum(kinds.values())} tensors {kind}" for kind, n in kinds.items() if kind not in PLAIN]
    return f"GGUF, dequantised: {', '.join(few)}" if few else "GGUF, nothing quantised"


@contextmanager
def _quiet() -> Iterator[None]:
    """Neither the progress of the conversion nor its advice on memory."""
    with warnings.catch_warnings(), without_progress_bar():
        warnings.simplefilter("ignore")
        yield
