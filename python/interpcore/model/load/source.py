"""Finding a checkpoint and reading it through transformers."""

from __future__ import annotations

import difflib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
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
PATIENCE = 1.5  # seconds that the hub has to say whether it has a model
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def embedded_folder(name: str) -> Path | None:
    """Folder of a model shipped inside the package, or None."""
    folder = ASSETS / name
    return folder if (folder / "config.json").is_file() else None


@dataclass(frozen=True)
class Location:
    """Where a checkpoint is read.

    Args:
        source: what names it wherever the work goes on: an embedded model's name, an absolute path, a hub id.
        place: the folder or hub id that transformers takes.
        revision: the hub's commit, or None.
        cached: whether only the hub's cache on this machine may be read.
    """

    source: str
    place: str
    revision: str | None = None
    cached: bool = False


def locate(source: str | Path, revision: str | None = None) -> Location:
    """Find a checkpoint, without reading its weights.

    Raises: ValueError with one sentence where there is none, or a folder is asked for a revision.
    """
    name = str(source)
    shipped = embedded_folder(name)
    folder = shipped or Path(source).expanduser()
    if name.lower().endswith(".gguf") and folder.is_file():
        if revision is not None:
            raise Refused(f"{source} is a file, and files have no revisions; leave the revision out.")
        return Location(str(folder.absolute()), str(folder))
    if folder.is_dir():
        if revision is not None:
            raise Refused(f"{source} is a folder, and folders have no revisions; leave the revision out.")
        check_folder(folder)
        return Location(name if shipped else str(folder.absolute()), str(folder))
    if folder.exists() or isinstance(source, Path) or name.startswith((".", "/", "~")):
        raise Refused(
            f"There is no folder {source}; give a transformers folder, a GGUF file, a hub id, or an embedded "
            "model's name."
        )
    return _on_the_hub(name, revision)


def _on_the_hub(name: str, revision: str | None) -> Location:
    """A hub id at its commit; only what is cached here where the hub does not answer in time.

    Raises: ValueError where the hub or the cache has no such model.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    answers: list[Any] = []

    def ask() -> None:
        try:
            answers.append(HfApi().model_info(name, revision=revision, timeout=PATIENCE))
        except Exception as error:  # every way in which a network can fail
            answers.append(error)

    # Looking up the hub's address can take longer than any timeout that a request takes.
    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    answer = answers[0] if answers else TimeoutError(f"no answer in {PATIENCE} s")
    if not isinstance(answer, Exception):
        return Location(name, name, answer.sha)
    like = difflib.get_close_matches(name, [p.parent.name for p in ASSETS.glob("*/config.json")], n=1)
    hint = f"; did you mean {like[0]}?" if like else ""
    if isinstance(answer, RevisionNotFoundError):
        raise Refused(f"The hub's {name} has no revision {revision!r}.") from answer
    if isinstance(answer, RepositoryNotFoundError | HFValidationError):
        raise Refused(
            f"There is no folder {name}, and no model of that id that the hub lets you read{hint}"
        ) from answer
    if not isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        raise Refused(
            f"There is no folder {name}, the hub cannot be asked ({first_line(answer)}), and its cache here "
            f"has no such model{hint}"
        ) from answer
    return Location(name, name, revision, cached=True)


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
        raise Refused(
            f"{source} has no readable config that transformers knows: {first_line(error)}"
        ) from error
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


def first_line(error: BaseException) -> str:
    """What an error says, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
