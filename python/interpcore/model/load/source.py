"""Finding a checkpoint and reading it through transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from interpcore.errors import Refused

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "merges.txt",
)
ASSETS = Path(__file__).parents[2] / "assets"
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def embedded_folder(name: str) -> Path | None:
    """Folder of a model shipped inside the package, or None."""
    folder = ASSETS / name
    return folder if (folder / "config.json").is_file() else None


def read_checkpoint(
    source: str | Path,
    dtype: torch.dtype | None,
    device: str | torch.device,
    revision: str | None,
    trust_remote_code: bool,
) -> tuple[Any, Any]:
    """A transformers model and its tokenizer (None where the checkpoint has none).

    Raises: ValueError with one sentence when the checkpoint cannot be found or read.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM

    place: str | Path = embedded_folder(str(source)) or source
    path = Path(place).expanduser()
    local = path.is_dir()
    if local:
        check_folder(path)
    elif path.exists() or isinstance(source, Path) or str(source).startswith((".", "/", "~")):
        raise Refused(
            f"There is no folder {source}; give a transformers folder, a hub id, or an embedded model's name."
        )
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(str(path if local else place), **options)
    except (OSError, ValueError, KeyError) as error:
        said = f"{source} has no readable config that transformers knows"
        if not local:
            said = f"There is no folder {source}, and no model of that hub id could be read"
        raise Refused(f"{said}: {_first_line(error)}") from error
    place_of_weights = check_device(device)
    wanted = dtype or (torch.float32 if place_of_weights.type == "cpu" else "auto")
    try:
        with without_progress_bar():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                str(path if local else place),
                config=config,
                dtype=wanted,
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise Refused(
            f"{source} could not be loaded as a causal language model: {_first_line(error)}"
        ) from error
    hf, problems = loaded
    missing = sorted(problems.get("missing_keys", ()))
    if missing:
        raise Refused(
            f"The weights of {source} lack {len(missing)} tensors, among them {missing[0]}; the folder is "
            "incomplete."
        )
    return hf.to(place_of_weights), _tokenizer(str(path if local else place), options)


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
        reason = _first_line(error).rstrip(".")
        raise Refused(f"The device {str(device)!r} cannot be used here: {reason}.") from error
    return found


def check_folder(path: Path) -> None:
    """Refuse a folder without config or safetensors weights, saying which."""
    if not (path / "config.json").is_file():
        raise Refused(f"{path} has no config.json; give a folder written by transformers' save_pretrained.")
    if not any(path.glob("*.safetensors")):
        pickled = [p.name for pattern in PICKLED for p in path.glob(pattern)]
        if pickled:
            raise Refused(
                f"{path} holds its weights as a pickle ({pickled[0]}), which is not loaded; save them as "
                "safetensors first."
            )
        raise Refused(f"{path} has no weights; it needs a .safetensors file beside config.json.")


def _tokenizer(place: str, options: dict[str, Any]) -> Any:
    """The checkpoint's tokenizer, or None: token ids can be passed without one, text cannot (`Model.encode`
    says so)."""
    from transformers import AutoTokenizer

    # transformers answers a folder without tokenizer files with an empty tokenizer, which would drop every
    # character.
    if Path(place).is_dir() and not any((Path(place) / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, **options)
    except (OSError, ValueError, KeyError, ImportError, TypeError, AttributeError):
        return None
    return tokenizer if tokenizer.vocab_size else None


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
