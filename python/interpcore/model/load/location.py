"""Where a checkpoint is: shipped, a folder, a file, the hub or its cache here. Loads no torch, so that a
wrong name is told at once."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from interpcore.errors import Refused, did_you_mean

ASSETS = Path(__file__).parents[2] / "assets"
PATIENCE = 1.4  # seconds that the hub has to say whether it has a model
PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def shipped() -> list[str]:
    """Names of the models inside the package."""
    return sorted(file.parent.name for file in ASSETS.glob("*/config.json"))


def embedded_folder(name: str) -> Path | None:
    """Folder of a model shipped inside the package, or None."""
    folder = ASSETS / name
    inside = Path(name).name == name  # a path leads elsewhere
    return folder if inside and (folder / "config.json").is_file() else None


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

    def weight_files(self) -> list[Path]:
        """The files of weights here, sorted; none of a hub id, whose files lie in the hub's own cache."""
        place = Path(self.place)
        return [place] if place.is_file() else sorted(place.glob("*.safetensors"))


def locate(source: str | Path, revision: str | None = None) -> Location:
    """Find a checkpoint, without reading its weights. An embedded model's name is that model; a folder of the
    same name is told of, by a warning, and meant by ./NAME.

    Raises: ValueError with one sentence where there is none, or a folder is asked for a revision.
    """
    name = str(source)
    inside = embedded_folder(name)
    if inside is not None and (Path(name) / "config.json").is_file():
        warnings.warn(f"{name} is the embedded model; for the folder here write ./{name}.", stacklevel=2)
    folder = inside or Path(source).expanduser()
    if name.lower().endswith(".gguf") and folder.is_file():
        if revision is not None:
            raise Refused(f"{source} is a file, and files have no revisions; leave the revision out.")
        return Location(str(folder.absolute()), str(folder))
    if folder.is_dir():
        if revision is not None:
            raise Refused(f"{source} is a folder, and folders have no revisions; leave the revision out.")
        check_folder(folder)
        return Location(name if inside else str(folder.absolute()), str(folder))
    if folder.exists() or isinstance(source, Path) or name.startswith((".", "/", "~")):
        raise Refused(
            f"There is no folder {source}; give a transformers folder, a GGUF file, a hub id, or an embedded "
            f"model's name.{did_you_mean(folder, _beside(folder))}"
        )
    return _on_the_hub(name, revision)


def _on_the_hub(name: str, revision: str | None) -> Location:
    """A hub id at its commit; only what is cached here where the hub does not answer in time.

    Raises: ValueError where the hub or the cache has no such model.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    near = did_you_mean(name, [*shipped(), *_beside(Path(name))])
    if near and "/" not in name and not _in_cache(name, revision):  # the hub's ids name their owner
        raise Refused(f"There is no folder {name}, and no model {name}.{near}")
    answer = ask(lambda: HfApi().model_info(name, revision=revision, timeout=PATIENCE))
    if not isinstance(answer, Exception):
        return Location(name, name, answer.sha)
    if isinstance(answer, RevisionNotFoundError):
        raise Refused(f"The hub's {name} has no revision {revision!r}.") from answer
    if isinstance(answer, RepositoryNotFoundError | HFValidationError):
        raise Refused(
            f"There is no folder {name}, and no model of that id that the hub lets you read.{near}"
        ) from answer
    if not _in_cache(name, revision):
        raise Refused(
            f"There is no folder {name}, the hub cannot be asked ({first_line(answer)}), and its cache here "
            f"has no such model.{near}"
        ) from answer
    return Location(name, name, revision, cached=True)


def ask(call: Callable[[], Any]) -> Any:
    """What the hub answers, or the exception that came instead, in `PATIENCE` seconds.

    Args:
        call: the request. Looking up the hub's address can take longer than any timeout that it takes.
    """
    answers: list[Any] = []

    def asked() -> None:
        try:
            answers.append(call())
        except Exception as error:  # every way in which a network can fail
            answers.append(error)

    asking = threading.Thread(target=asked, daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return answers[0] if answers else TimeoutError(f"no answer in {PATIENCE} s")


def _beside(folder: Path) -> list[str]:
    """The folders where a folder should be."""
    return [str(p) for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []


def _in_cache(name: str, revision: str | None) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str)
    except HFValidationError:
        return False


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


def first_line(error: BaseException) -> str:
    """What an error says, in one line; two where the first announces the second."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    more = lines[1:2] if lines[0].rstrip().endswith(":") else []
    return " ".join(line.strip() for line in (lines[0], *more))
