"""Published hyperparameter files: depths, beta and rank of relations' operators, read instead of chosen."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from interpcore.data.relations import RelationError
from interpcore.runs import RunError, canonical_json, read_json
from interpcore.runs.fields import Fields, is_whole

KEYS = {"model_name", "relation_name", "h_layer", "beta", "rank", "z_layer", "h_layer_edit"}
LAST = -1


@dataclass(frozen=True)
class Hparams:
    """Hyperparameters of one relation.

    Attributes:
        layer, edit_layer: of the state that is read and edited, as published: "emb", or the block whose
            output it is.
        beta: factor on W.
        rank: of the inverse.
        model: whose they are, as the file says; any model may be read by them.
        file: where they stand.
    """

    layer: int | str
    edit_layer: int | str
    beta: float
    rank: int
    model: str
    file: str

    def depths(self, n_calls: int) -> tuple[int | None, int | None]:
        """Source depths of reading and editing in a model of so many blocks; None is the token embedding.

        Raises: RelationError for a layer that the model does not have.
        """
        from interpcore.model.names import site_address  # with torch, which a command's help does without

        found = []
        for layer in (self.layer, self.edit_layer):
            try:
                found.append(site_address(f"lre:{layer}", n_calls)[1])
            except ValueError as error:
                raise RelationError(f"{self.file} names the layer {layer}: {error}") from error
        return found[0], found[1]


def read_hparams(folder: str | Path) -> dict[str, Hparams]:
    """Hyperparameters by relation, of a published folder of files or of a run that wrote some.

    Args:
        folder: holds a JSON file for each relation; or a run folder of `lre run`.
    Raises: RelationError where it holds none, or one that breaks the format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RelationError(f"There is no folder {folder} of hyperparameter files.")
    run = (folder / "card.json").is_file()
    found_files = (folder / "artifacts" / "hparams").rglob("*") if run else folder.iterdir()
    files = sorted(file for file in found_files if file.name.lower().endswith(".json"))
    if not files:
        raise RelationError(f"{folder} holds no hyperparameter files, nor does it as a run of `lre run`.")
    found: dict[str, Hparams] = {}
    for file in files:
        name, one = _read(file)
        if name in found:
            raise RelationError(f"{folder} holds two files of {name!r}: {found[name].file} and {file}.")
        found[name] = one
    return found


def _read(file: Path) -> tuple[str, Hparams]:
    try:
        content = read_json(file)
    except RunError as error:
        raise RelationError(f"{file} is no hyperparameter file: {error}.") from error
    fields = Fields.of(content, str(file), RelationError)
    fields.only(KEYS, KEYS)
    for name in ("h_layer", "h_layer_edit"):
        layer = content[name]
        if layer != "emb" and not is_whole(layer):
            raise RelationError(f"{file}: {name} is {layer!r}; it is a block's number, or 'emb'.")
    if content["z_layer"] != LAST:
        raise RelationError(
            f"{file}: z_layer is {content['z_layer']!r}; operators here lead to the last block's output, -1."
        )
    beta, rank = fields.number("beta"), fields.whole("rank")
    if beta < 0:
        raise RelationError(f"{file}: beta is {beta}; give one from 0 on.")
    model = fields.text("model_name")
    one = Hparams(content["h_layer"], content["h_layer_edit"], beta, rank, model, str(file))
    return fields.text("relation_name", empty=False), one


def hparams_hash(hparams: Mapping[str, Hparams]) -> str:
    """SHA-256 of what the files say to do, wherever they are and of whichever model."""
    untold = ("file", "model")
    said = {name: {k: v for k, v in asdict(one).items() if k not in untold} for name, one in hparams.items()}
    return hashlib.sha256(canonical_json(said).encode()).hexdigest()
