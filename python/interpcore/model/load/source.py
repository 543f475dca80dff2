"""Reading a checkpoint through transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from interpcore.errors import Refused
from interpcore.model.load.location import Location, first_line

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "merges.txt",
)


def read_checkpoint(
    location: Location, dtype: torch.dtype | None, device: str | torch.device, trust_remote_code: bool
) -> tuple[Any, Any]:
    """A transformers model and its tokenizer (None where the checkpoint has none).

    Raises: ValueError with one sentence when the checkpoint cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    source, place = location.source, location.place
    options: dict[str, Any] = {
        "revision": location.revision,
        "trust_remote_code": trust_remote_code,
        "local_files_only": location.cached,
    }
    # Whatever transformers cannot make of the files is told as what it is: a checkpoint that cannot be read.
    try:
        config = AutoConfig.from_pretrained(place, **options)
    except Exception as error:
        if "trust_remote_code" in str(error) and not trust_remote_code:
            raise Refused(
                f"{source} brings Python code of its own, which only load(..., trust_remote_code=True) runs."
            ) from error
        raise Refused(
            f"{source} has no readable config that transformers knows: {first_line(error)}"
        ) from error
    if not trust_remote_code:
        check_decoder(config, source)
    place_of_weights = check_device(device)
    wanted = dtype or (torch.float32 if place_of_weights.type == "cpu" else "auto")
    try:
        with without_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                place,
                config=config,
                dtype=wanted,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except Exception as error:
        raise Refused(
            f"{source} could not be loaded as a causal language model: {first_line(error)}"
        ) from error
    hf, problems = loaded
    missing = sorted(problems.get("missing_keys", ()))
    if missing:
        raise Refused(
            f"The weights of {source} lack {len(missing)} tensors, among them {missing[0]}; the folder is "
            "incomplete."
        )
    return hf.to(place_of_weights), read_tokenizer(location, options)


def check_decoder(config: Any, source: str) -> None:
    """Refuse a config of which transformers has no decoder alone, before its weights are read.

    Raises: Refused with the reason.
    """
    from transformers import AutoModelForCausalLM

    if getattr(config, "is_encoder_decoder", False):
        raise Refused(f"{source} is an encoder with a decoder ({config.model_type}); only decoders are read.")
    if type(config) not in AutoModelForCausalLM._model_mapping:
        raise Refused(
            f"transformers has no causal language model of {source}'s family, {config.model_type!r}."
        )


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """Transformers' own progress bars not shown (the hub's are, while it downloads); versions without this
    hook show them."""
    from transformers.utils import logging

    set_hook = getattr(logging, "set_tqdm_hook", None)
    if set_hook is None:
        yield
        return
    before = set_hook(lambda make, arguments, options: make(*arguments, **(options | {"disable": True})))
    try:
        yield
    finally:
        set_hook(before)


def check_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Raises: ValueError for one that this torch or this machine does not have.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
        raise Refused(f"The device {str(device)!r} cannot be used here: {reason}.") from error
    return found


def read_tokenizer(location: Location, options: dict[str, Any]) -> Any:
    """The checkpoint's tokenizer, or None: token ids can be passed without one, text cannot (`Model.encode`
    says so).

    Raises: ValueError for tokenizer files that cannot be read.
    """
    from transformers import AutoTokenizer

    # transformers answers a folder without tokenizer files with an empty tokenizer, which would drop every
    # character.
    place = Path(location.place)
    written = any((place / name).is_file() for name in TOKENIZER_FILES)
    if place.is_dir() and not written:
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(location.place, **options)
    except Exception as error:
        if not written and isinstance(error, OSError | ValueError):
            return None
        raise Refused(
            f"The tokenizer of {location.source} cannot be read ({first_line(error)}); mend its files, or "
            "take them away to work with token ids alone."
        ) from error
    return tokenizer if tokenizer.vocab_size else None
