"""Relations: a set of (subject, object) facts with the templates that ask for them, as published JSON files.

A prompt puts the subject into a template's `{}`; a few-shot prompt writes one finished line per example above
it.
"""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RELATION_TYPES = ("factual", "commonsense", "linguistic", "bias")
_KEYS = {"name", "prompt_templates", "prompt_templates_zs", "properties", "samples", "domain", "range"}
_PROPERTIES = {"relation_type", "domain_name", "range_name", "symmetric"}


class RelationError(ValueError):
    """A relation file or a request about a relation that cannot be served."""


@dataclass(frozen=True)
class Sample:
    """One fact: `subject` and `object` as written in text, without a leading space."""

    subject: str
    object: str


@dataclass(frozen=True)
class Prompt:
    """A prompt and where its subject stands: `text[start:end]` is the subject of the last line."""

    text: str
    start: int
    end: int


@dataclass(frozen=True)
class Relation:
    """One relation as its file states it; `domain` and `range` default to the subjects and objects seen."""

    name: str
    relation_type: str
    domain_name: str
    range_name: str
    symmetric: bool
    prompt_templates: tuple[str, ...]
    prompt_templates_zs: tuple[str, ...]
    samples: tuple[Sample, ...]
    domain: tuple[str, ...] = field(default=())
    range: tuple[str, ...] = field(default=())

    @property
    def objects(self) -> tuple[str, ...]:
        """The distinct objects, in order of first appearance."""
        return tuple(dict.fromkeys(sample.object for sample in self.samples))

    @property
    def fn_type(self) -> str:
        """ONE_TO_ONE, ONE_TO_MANY, MANY_TO_ONE or MANY_TO_MANY, from repeated subjects and objects."""
        subjects = Counter(sample.subject for sample in self.samples)
        objects = Counter(sample.object for sample in self.samples)
        many_subjects, many_objects = max(objects.values()) > 1, max(subjects.values()) > 1
        return f"{'MANY' if many_subjects else 'ONE'}_TO_{'MANY' if many_objects else 'ONE'}"

    def with_samples(self, samples: tuple[Sample, ...]) -> Relation:
        """The same relation over other samples."""
        return Relation(**{**self.__dict__, "samples": tuple(samples)})

    def to_json(self) -> dict[str, Any]:
        """The published file's content."""
        content: dict[str, Any] = {
            "name": self.name,
            "prompt_templates": list(self.prompt_templates),
            "prompt_templates_zs": list(self.prompt_templates_zs),
            "properties": {
                "relation_type": self.relation_type,
                "domain_name": self.domain_name,
                "range_name": self.range_name,
                "symmetric": self.symmetric,
            },
            "samples": [{"subject": s.subject, "object": s.object} for s in self.samples],
        }
        for name, values in (("domain", self.domain), ("range", self.range)):
            if values:
                content[name] = list(values)
        return content


def parse_relation(content: Any, source: str = "relation") -> Relation:
    """Build a relation from a parsed file.

    Args: content: the JSON object; source: what to call it in an error.
    Returns: the relation. Raises: RelationError for unknown or missing keys, or a template without one `{}`.
    """
    if not isinstance(content, dict):
        raise RelationError(f"{source}: a relation file holds one JSON object.")
    _check_keys(content, _KEYS, _KEYS - {"domain", "range"}, source)
    properties = content["properties"]
    _check_keys(properties, _PROPERTIES, _PROPERTIES, f"{source}, properties")
    if properties["relation_type"] not in RELATION_TYPES:
        raise RelationError(
            f"{source}: relation_type is {properties['relation_type']!r}, not one of "
            f"{', '.join(RELATION_TYPES)}."
        )
    if not isinstance(content["name"], str) or not content["name"]:
        raise RelationError(f"{source}: name is {content['name']!r}, not text.")
    for name in ("prompt_templates", "prompt_templates_zs", "samples"):
        if not isinstance(content[name], list):
            raise RelationError(f"{source}: {name} is not a list.")
    for template in [*content["prompt_templates"], *content["prompt_templates_zs"]]:
        if str(template).count("{}") != 1:
            raise RelationError(f"{source}: the template {template!r} needs exactly one {{}}.")
    for sample in content["samples"]:
        _check_keys(sample, {"subject", "object"}, {"subject", "object"}, f"{source}, sample")
        if not all(isinstance(text, str) and text for text in sample.values()):
            raise RelationError(f"{source}: the sample {sample} needs a subject and an object of text.")
    if not content["samples"]:
        raise RelationError(f"{source}: the relation has no samples.")
    return Relation(
        name=content["name"],
        **properties,
        prompt_templates=tuple(content["prompt_templates"]),
        prompt_templates_zs=tuple(content["prompt_templates_zs"]),
        samples=tuple(Sample(**sample) for sample in content["samples"]),
        domain=tuple(content.get("domain", ())),
        range=tuple(content.get("range", ())),
    )


def load_relation(path: str | Path) -> Relation:
    """Read one relation file. Raises: RelationError where it breaks the schema, OSError without a file."""
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise RelationError(f"{path}: not valid JSON ({error}).") from error
    return parse_relation(content, str(path))


def load_relations(folder: str | Path) -> list[Relation]:
    """Read every relation file in the kind folders (`factual/`, `commonsense/`, ...) of `folder`, by name;
    where there are none, those in the folder itself.

    Raises: RelationError where a file breaks the schema or the folder holds none.
    """
    if not Path(folder).is_dir():
        raise RelationError(f"There is no folder {folder} of relation files.")
    paths = [path for kind in RELATION_TYPES for path in sorted(Path(folder, kind).glob("*.json"))]
    paths = paths or sorted(Path(folder).glob("*.json"))
    if not paths:
        raise RelationError(
            f"{folder} holds no relation files (.json), neither itself nor in {', '.join(RELATION_TYPES)}."
        )
    return [load_relation(path) for path in paths]


def fill(template: str, subject: str) -> str:
    """Put the subject into a template's `{}`; other braces stay as they are."""
    return template.replace("{}", subject)


def few_shot_prompt(template: str, examples: list[Sample] | tuple[Sample, ...], subject: str) -> Prompt:
    """Write the examples as finished lines, then the query line without its object.

    Args: template: text with one `{}`; examples: facts to show, those about `subject` are left out;
        subject: the subject asked about.
    Returns: the prompt, no trailing space, with the place of its last subject.
    """
    lines = [f"{fill(template, s.subject)} {s.object}\n" for s in examples if s.subject != subject]
    before = "".join(lines)
    start = len(before) + template.index("{}")
    return Prompt(before + fill(template, subject), start, start + len(subject))


def split(relation: Relation, n_train: int, seed: int) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Split a relation's samples so that the training part covers as many objects as it can.

    Args: relation: the relation; n_train: samples wanted for training; seed: fixes the draw.
    Returns: (train, test). Raises: RelationError where nothing would be left to test.
    """
    if not 0 <= n_train < len(relation.samples):
        raise RelationError(
            f"{relation.name}: {n_train} training samples leave none of {len(relation.samples)} to test."
        )
    shuffled = random.Random(seed).sample(relation.samples, len(relation.samples))
    by_object: dict[str, list[Sample]] = defaultdict(list)
    for sample in shuffled:
        by_object[sample.object].append(sample)
    ranked = sorted(enumerate(shuffled), key=lambda item: (by_object[item[1].object].index(item[1]), item[0]))
    ordered = tuple(sample for _, sample in ranked)
    return ordered[:n_train], ordered[n_train:]


def _check_keys(content: Any, allowed: set[str], needed: set[str], source: str) -> None:
    if not isinstance(content, dict):
        raise RelationError(f"{source}: expected a JSON object, found {type(content).__name__}.")
    unknown, missing = sorted(set(content) - allowed), sorted(needed - set(content))
    if unknown:
        raise RelationError(f"{source}: unknown key {unknown[0]!r}.")
    if missing:
        raise RelationError(f"{source}: missing key {missing[0]!r}.")
