"""Run cards: what a run means, and in what two runs differ."""

import hashlib
import json
import platform
import socket
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from interpcore._version import __version__
from interpcore.errors import RunError
from interpcore.runs.canonical import plain
from interpcore.runs.fields import Fields
from interpcore.runs.hashes import same_weights

_CIRCUMSTANCE = {"circumstance": True}
_IF_ANY: dict[str, Any] = {
    "extends": (),
    "products": {},
    "sources": {},
    "quantised": None,
    "rounding_error": None,
}
_TEXTS = ("model", "revision", "weights", "tokenizer", "dtype", "plan", "plan_hash", "command", "quantised")
"""Fields that are text where they are recorded."""


@dataclass(frozen=True, kw_only=True)
class RunCard:
    """What a run means. None and empty say: not recorded, or the run has no such thing.

    Runs whose cards are equal but for the circumstances may be compared; otherwise `compare` says why not.

    Attributes:
        model: name, or the folder's name.
        revision: the hub's commit, or whatever names the version of the weights.
        weights: `model.weights.model_hash`: of the weights, and of what is computed with them.
        tokenizer: `hashes.tokenizer_hash`.
        bos: what stands in front of every prompt: "tokenizer" (what it puts there itself), "always" (its
            beginning-of-sequence token) or "never".
        dtype: the weights' dtype, such as "float32".
        masks: names of the token masks in force, such as "bos" or "padding".
        plan: the execution plan as printed.
        plan_hash: its hash.
        protocol: "default", or "paper" for a published choice reproduced with its slips.
        split: how the data were split (a name, or a mapping with the split's parameters).
        seeds: name -> seed.
        versions: package -> version.
        arguments: the run's parameters, JSON values.
        extends: names of arguments whose larger value only adds cells: "more of the same" goes on in the same
            folder. Circumstance.
        load_check_gap: the load check's largest difference to the reference logits. Circumstance: measured.
        command: what was typed. Circumstance: paths differ between machines; `arguments` carries the meaning.
        created: UTC time, ISO 8601. Circumstance.
        host: the machine. Circumstance.
        products: `ops.product_routes` of the process that began the run; going on with it takes them, so that
            the bits stay the same. Circumstance.
        sources: where model ("model") and data were found, by option: what `verify` looks for again. Paths
            differ between machines; hashes carry the meaning. Circumstance.
        rounding_error: of bfloat16 products, as the experiment measured it. Circumstance: measured;
            `arguments` says the precision.
        quantised: how the weights had been quantised before they were read. Circumstance: `weights` says what
            they are.
    """

    model: str | None = None
    revision: str | None = None
    weights: str | None = None
    tokenizer: str | None = None
    bos: str | None = None
    dtype: str | None = None
    masks: tuple[str, ...] = ()
    plan: str | None = None
    plan_hash: str | None = None
    protocol: str = "default"
    split: Any = None
    seeds: Mapping[str, int] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=lambda: current_versions())
    arguments: Mapping[str, Any] = field(default_factory=dict)
    extends: tuple[str, ...] = field(default=(), metadata=_CIRCUMSTANCE)
    load_check_gap: float | None = field(default=None, metadata=_CIRCUMSTANCE)
    command: str | None = field(default=None, metadata=_CIRCUMSTANCE)
    created: str = field(
        default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"), metadata=_CIRCUMSTANCE
    )
    host: str = field(default_factory=socket.gethostname, metadata=_CIRCUMSTANCE)
    products: Mapping[str, str] = field(default_factory=dict, metadata=_CIRCUMSTANCE)
    sources: Mapping[str, Any] = field(default_factory=dict, metadata=_CIRCUMSTANCE)
    quantised: str | None = field(default=None, metadata=_CIRCUMSTANCE)
    rounding_error: float | None = field(default=None, metadata=_CIRCUMSTANCE)

    @property
    def key(self) -> str:
        """Hash of everything that the card says but its circumstances (SHA-256 in hexadecimal): what files of
        the run carry, equal where `compare` finds no difference."""
        said = {
            f.name: plain(getattr(self, f.name), f.name)
            for f in fields(self)
            if not f.metadata.get("circumstance")
        }
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """The card as a JSON object, one entry per field, those of `_IF_ANY` where they say something."""
        return {name: v for name, v in asdict(self).items() if v or name not in _IF_ANY}

    @classmethod
    def from_json(cls, value: Any, where: str = "the run card") -> "RunCard":
        """Reads what `to_json` gave.

        Args:
            value: the JSON object.
            where: how to name it in an error, such as the file's path.

        Returns:
            The card; it compares equal to the one written.

        Raises:
            RunError: not an object, or fields are missing, unknown or of another kind.
        """
        if not isinstance(value, dict):
            raise RunError(f"{where} is not a run card: it holds a {type(value).__name__}, not an object")
        value = {"bos": None} | _IF_ANY | value  # cards from before these were recorded
        names = {f.name for f in fields(cls)}
        if set(value) != names:
            missing, unknown = sorted(names - set(value)), sorted(set(value) - names)
            raise RunError(
                f"{where} is not a run card of this version (missing: {', '.join(missing) or 'none'}; "
                f"unknown: {', '.join(unknown) or 'none'}); read it with the interpcore that wrote it"
            )
        found = Fields(value, where, RunError)
        lists = {name: found.texts(name) for name in ("masks", "extends")}
        for name in ("seeds", "versions", "arguments", "products", "sources"):
            found.object(name)
        for name in value["products"]:
            Fields(value["products"], f"products of {where}", RunError).text(name)
        for name in ("protocol", "created", "host", *_TEXTS):
            if name not in _TEXTS or value[name] is not None:
                found.text(name)
        return cls(**value | lists)


def current_versions() -> dict[str, str]:
    """Versions of what can change a number: interpcore, torch, transformers, and Python's minor version."""
    major, minor, _ = platform.python_version_tuple()
    found = {name: metadata.version(name) for name in ("torch", "transformers")}
    return {"interpcore": __version__, **found, "python": f"{major}.{minor}"}


@dataclass(frozen=True)
class Difference:
    """One thing in which two runs differ in meaning; `str` says it in a sentence.

    Attributes:
        field: the card's field, such as "weights" or "arguments".
        left: its value in the first run.
        right: its value in the second.
        entry: which entry of a mapping field differs, such as a seed's name; None for the other fields.
    """

    field: str
    left: Any
    right: Any
    entry: str | None = None

    def extends(self, card: RunCard) -> bool:
        """Whether the second run, whose card this is, only asks for more of what the first one did."""
        if self.field != "arguments" or self.entry not in card.extends:
            return False
        if isinstance(self.left, list | tuple) and isinstance(self.right, list | tuple):
            return all(item in self.right for item in self.left)
        numbers = all(type(value) in (int, float) for value in (self.left, self.right))
        return numbers and bool(self.left < self.right)

    def __str__(self) -> str:
        name = self.field if self.entry is None else f"{self.field}[{self.entry!r}]"
        return f"{name} is {_say(self.left)} in the first run and {_say(self.right)} in the second."


def compare(first: RunCard, second: RunCard) -> list[Difference]:
    """In what two runs differ in meaning; circumstances (date, host, command, measured gap) do not count.

    Args:
        first: one card.
        second: the other.

    Returns:
        The differences, in the order of the card's fields; empty when the runs mean the same.
    """
    found = []
    for f in fields(RunCard):
        if f.metadata.get("circumstance"):
            continue
        left, right = getattr(first, f.name), getattr(second, f.name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            entries = sorted(set(left) | set(right))
            found += [Difference(f.name, left.get(entry), right.get(entry), entry) for entry in entries]
        else:
            found.append(Difference(f.name, left, right))
    return [one for one in found if not _equal(one)]


def _equal(one: Difference) -> bool:
    if one.field == "weights" and one.left and one.right:
        return same_weights(one.left, one.right)
    # As JSON text, so that a tuple equals the list it is read back as, and NaN equals itself.
    first, second = (json.dumps(plain(value, "the card"), sort_keys=True) for value in (one.left, one.right))
    return first == second


def _say(value: Any) -> str:
    return "not recorded" if value is None or value == () else repr(value)
