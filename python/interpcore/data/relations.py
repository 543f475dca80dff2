"""Relations: a set of (subject, object) facts with the templates that ask for them, as published JSON files.

A prompt puts the subject into a template's `{}`; a few-shot prompt writes one finished line per example above
it.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.data.table_rows import SUFFIXES, read_table
from interpcore.errors import Refused, did_you_mean
from interpcore.runs import RunError, read_json
from interpcore.runs.fields import Fields, is_text
from interpcore.runs.shown import AsTable

if TYPE_CHECKING:
    import pandas as pd

RELATION_TYPES = ("factual", "commonsense", "linguistic", "bias")
_KEYS = {"name", "prompt_templates", "prompt_templates_zs", "properties", "samples", "domain", "range"}
_COLUMNS = {"subject", "object", "template", "template_zs", "relation", "relation_type"}
_PROPERTIES = {"relation_type", "domain_name", "range_name", "symmetric"}


class RelationError(Refused):
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
class Relation(AsTable):
    """One relation as its file states it, a fact listed twice once; `domain` and `range` default to the
    subjects and objects seen."""

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

    def __post_init__(self) -> None:
        object.__setattr__(self, "samples", tuple(dict.fromkeys(self.samples)))

    def __repr__(self) -> str:
        return f"Relation({self.name!r}, {self.relation_type}, {len(self.samples)} facts)"

    def to_pandas(self) -> pd.DataFrame:
        """Its facts: subject, object."""
        import pandas as pd

        return pd.DataFrame([(s.subject, s.object) for s in self.samples], columns=["subject", "object"])

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


def file_stem(name: str) -> str:
    """A relation's name as published files have it: "_" for each space, and for what leads into a folder."""
    stem = re.sub(r"[\s/\\]", "_", name)
    return f"_{stem}" if stem.startswith(".") else stem


def parse_relation(content: Any, source: str = "relation") -> Relation:
    """Build a relation from a parsed file.

    Args: content: the JSON object; source: what to call it in an error.
    Returns: the relation. Raises: RelationError for unknown or missing keys, fields of another kind, or a
        template without one `{}`.
    """
    found = Fields.of(content, source, RelationError)
    found.only(_KEYS, _KEYS - {"domain", "range"})
    properties = found.object("properties")
    properties.only(_PROPERTIES, _PROPERTIES)
    relation_type = properties.text("relation_type")
    if relation_type not in RELATION_TYPES:
        raise RelationError(
            f"{source}: relation_type is {relation_type!r}, not one of {', '.join(RELATION_TYPES)}."
        )
    return Relation(
        name=found.text("name", empty=False),
        relation_type=relation_type,
        domain_name=properties.text("domain_name"),
        range_name=properties.text("range_name"),
        symmetric=properties.flag("symmetric"),
        prompt_templates=_templates(found, "prompt_templates"),
        prompt_templates_zs=_templates(found, "prompt_templates_zs"),
        samples=_samples(found),
        domain=found.texts("domain") if "domain" in content else (),
        range=found.texts("range") if "range" in content else (),
    )


def _templates(found: Fields, name: str) -> tuple[str, ...]:
    for template in found.texts(name):
        if template.count("{}") != 1:
            raise RelationError(f"{found.where}: the template {template!r} needs exactly one {{}}.")
    return found.texts(name)


def _samples(found: Fields) -> tuple[Sample, ...]:
    samples = []
    for sample in found.objects("samples"):
        sample.only({"subject", "object"}, {"subject", "object"})
        texts = [str(text).strip() for text in sample.content.values() if is_text(text)]
        if len(texts) < 2 or not all(texts):
            raise RelationError(
                f"{sample.where} is {dict(sample.content)}; it needs a subject and an object of text."
            )
        samples.append(Sample(sample.text("subject").strip(), sample.text("object").strip()))
    if not samples:
        raise RelationError(f"{found.where}: the relation has no samples.")
    return tuple(samples)


def load_relation(path: str | Path) -> Relation:
    """Read one relation file. Raises: RelationError where there is none or it breaks the schema."""
    try:
        content = read_json(path)
    except RunError as error:
        raise RelationError(f"{error}.") from error
    return parse_relation(content, str(path))


def load_table(path: str | Path) -> list[Relation]:
    """Read relations from a table (CSV, see `read_table`) with a fact in each row.

    Its columns are `subject`, `object` and `template` (text with one `{}`); `relation` names a row's relation
    where there are several (else the file does), `relation_type` its kind (else factual), `template_zs` its
    template without examples. Different templates of a relation's rows are all of its templates.

    Raises: RelationError for missing or other columns, and as `parse_relation`.
    """
    path = Path(path)
    columns, rows = read_table(path, RelationError)
    missing = [name for name in ("subject", "object", "template") if name not in columns]
    if missing:
        such = ", such as 'The capital of {} is'" if "template" in missing else ""
        raise RelationError(f"{path} has no column {', '.join(missing)}{such}; it has {', '.join(columns)}.")
    if unknown := sorted(set(columns) - _COLUMNS):
        near = did_you_mean(unknown[0], _COLUMNS)
        raise RelationError(f"{path}: unknown column {unknown[0]!r}.{near}")
    by_name: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        by_name[row.get("relation") or path.stem].append(row)
    return [_of_rows(name, facts, f"{path}, {name}") for name, facts in by_name.items()]


def _of_rows(name: str, rows: list[dict[str, str]], source: str) -> Relation:
    def different(column: str) -> list[str]:
        return list(dict.fromkeys(row[column] for row in rows if row.get(column)))

    kinds = different("relation_type")
    if len(kinds) > 1:
        raise RelationError(f"{source}: its rows have the kinds {', '.join(kinds)}; give it one.")
    content = {
        "name": name,
        "prompt_templates": different("template"),
        "prompt_templates_zs": different("template_zs"),
        "properties": {
            "relation_type": kinds[0] if kinds else "factual",
            "domain_name": "subject",
            "range_name": "object",
            "symmetric": False,
        },
        "samples": [{"subject": row["subject"], "object": row["object"]} for row in rows],
    }
    return parse_relation(content, source)


def load_relations(path: str | Path) -> list[Relation]:
    """Read one relation file (JSON, or a table of facts), or every one in the kind folders (`factual/`,
    `commonsense/`, ...) of a folder, by name; where there are none, those in the folder itself.

    Raises: RelationError where a file breaks the schema or the folder holds none.
    """
    path = Path(path)
    if path.is_file():
        return _load(path)
    if not path.is_dir():
        raise RelationError(f"There is no folder {path} of relation files, and no such file.")
    files = [file for kind in RELATION_TYPES for file in _relation_files(path / kind)]
    files = files or _relation_files(path) or _relation_files(path, SUFFIXES)
    if not files:
        raise RelationError(
            f"{path} holds no relation files (.json, .csv), itself or in {', '.join(RELATION_TYPES)}."
        )
    found = [relation for file in files for relation in _load(file)]
    names = [relation.name for relation in found]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RelationError(f"{path} holds two relations {twice!r}; give one another name.")
    return found


def _load(file: Path) -> list[Relation]:
    return load_table(file) if file.suffix.lower() in SUFFIXES else [load_relation(file)]


def _relation_files(folder: Path, suffixes: tuple[str, ...] = (".json",)) -> list[Path]:
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(p for p in found if p.suffix.lower() in suffixes and not p.name.startswith("."))


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
