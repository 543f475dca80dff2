"""The world's relations as shipped: their files, and the reserve that no study uses before its trial."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

from interpcore.data.relations import Relation, RelationError, file_stem, load_relations
from interpcore.data.tinyworld.invented import invented_relations
from interpcore.data.tinyworld.public import public_relations

RELATIONS_FOLDER = Path(__file__).parent / "relations"
RESERVE_FILE = RELATIONS_FOLDER / "reserve.json"
_RESERVED_RELATIONS = ("person native language", "animal habitat", "noun plural", "hobby age")
_DRAW_SEED = 3217


def world_relations() -> list[Relation]:
    """All shipped relations with all their samples, reserve included: what the models are trained on."""
    return load_relations(RELATIONS_FOLDER)


def reserve() -> dict[str, list[str]]:
    """The reserved subjects by relation name; a relation that is reserved as a whole lists all of them."""
    content: dict[str, list[str]] = json.loads(RESERVE_FILE.read_text(encoding="utf-8"))["subjects"]
    return content


def reserved_relations() -> list[str]:
    """The names of the relations that are reserved as a whole, one per kind."""
    names: list[str] = json.loads(RESERVE_FILE.read_text(encoding="utf-8"))["relations"]
    return names


def study_relations() -> list[Relation]:
    """What a study may use: every relation that is not reserved, without its reserved subjects."""
    reserved, whole = reserve(), set(reserved_relations())
    return [
        _keep(relation, reserved[relation.name], False)
        for relation in world_relations()
        if relation.name not in whole
    ]


def reserve_relations() -> list[Relation]:
    """What only a generalisation trial may use: the reserved relations and subjects."""
    reserved = reserve()
    return [_keep(relation, reserved[relation.name], True) for relation in world_relations()]


def study_relation(name: str) -> Relation:
    """One relation a study may use. Raises: RelationError where the name is unknown or reserved."""
    if name in reserved_relations():
        raise RelationError(f"The relation {name!r} is reserved for generalisation trials.")
    found = [relation for relation in study_relations() if relation.name == name]
    if not found:
        raise RelationError(f"The tiny world has no relation {name!r}.")
    return found[0]


def build_files() -> dict[str, str]:
    """The relation files and the reserve file, by path below the relations folder, as text."""
    relations = [*invented_relations(), *public_relations()]
    files = {
        f"{relation.relation_type}/{file_stem(relation.name)}.json": relation.to_json()
        for relation in relations
    }
    files["reserve.json"] = {
        "relations": list(_RESERVED_RELATIONS),
        "subjects": {relation.name: _draw_reserve(relation) for relation in relations},
    }
    return {name: json.dumps(content, indent=2, ensure_ascii=False) + "\n" for name, content in files.items()}


def write_files(folder: Path = RELATIONS_FOLDER) -> None:
    """Write the relation files and the reserve file below `folder`."""
    for name, text in build_files().items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part")
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)


def _draw_reserve(relation: Relation) -> list[str]:
    """A third of the subjects; a subject's place in the draw is the same in all relations over its domain."""
    subjects = [sample.subject for sample in relation.samples]
    if relation.name in _RESERVED_RELATIONS:
        return subjects
    place = {
        subject: random.Random(f"{_DRAW_SEED} {relation.domain_name} {subject}").random()
        for subject in subjects
    }
    return sorted(subjects, key=place.__getitem__)[: round(len(subjects) / 3)]


def _keep(relation: Relation, reserved: list[str], wanted: bool) -> Relation:
    listed = set(reserved)
    return relation.with_samples(tuple(s for s in relation.samples if (s.subject in listed) is wanted))
