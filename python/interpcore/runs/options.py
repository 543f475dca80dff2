"""Options: an experiment's parameters, each said once.

A frozen dataclass below `Options`, whose fields are made by `option`, is what an experiment takes in Python;
from the same fields come its command line (`cli.study`), its run card, an agent's tool schema and its
documentation.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interpcore.errors import Refused, did_you_mean

if TYPE_CHECKING:
    from interpcore.runs.card import RunCard


@dataclass(frozen=True)
class Option:
    """One field of an `Options`.

    Attributes:
        name: of the field; the command line writes it with dashes.
        sentence: what it is.
        kind: bool, int, float or str.
        many: a tuple of `kind`, of any length; a value given twice counts once.
        optional: None is a value, too.
        default: what it is unless given; `dataclasses.MISSING` where it must be given.
        choices: the only values; () leaves it open.
        least, above, most, below: bounds of numbers (at least, more than, at most, less than); None for none.
        extends: a larger value only adds cells to a run, so that a folder may go on with it.
        circumstance: it changes how a run is made, not what it means; the card leaves it out.
        file: whether it may name a file, or a model or library to load; None: where it is a text and a
            circumstance.
        endings: of a text that names a file; one that ends otherwise does not.
        flag: its name on the command line; "" for the field's own. Repeated options are singular there.
        positional: the command line takes it without a name.
        commas: the command line takes several of a list in one text, with commas between them.
        words: texts that are values, too, of a number; its field is `int | str` or `float | str`.
    """

    name: str
    sentence: str
    kind: type
    many: bool
    optional: bool
    default: Any
    choices: tuple[Any, ...] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    below: float | None = None
    extends: bool = False
    circumstance: bool = False
    file: bool | None = None
    endings: tuple[str, ...] = ()
    flag: str = ""
    positional: bool = False
    commas: bool = True
    words: tuple[str, ...] = ()

    @property
    def typed(self) -> str:
        """What is typed for it: its flag, or its name in capitals where it has none."""
        name = (self.flag or self.name).replace("_", "-")
        return name.upper() if self.positional else f"--{name}"

    @property
    def required(self) -> bool:
        """Whether it must be given."""
        return self.default is dataclasses.MISSING

    @property
    def outside(self) -> bool:
        """Whether it may name something outside the run: a file, a folder, a model, a library."""
        return self.circumstance and self.kind is str if self.file is None else self.file

    def check(self, value: Any) -> Any:
        """The value as the field holds it: lists as tuples that hold each of their values once, whole numbers
        as floats where floats are meant.

        Raises: Refused where it does not fit.
        """
        if value is None and self.optional:
            return None
        if not self.many:
            return self._one(value)
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise OptionError(self, f"is {value!r}; give a list.")
        return tuple(dict.fromkeys(self._one(each) for each in value))

    def _one(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.words:
            return value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if self.kind is float and whole:
            value = float(value)
        fits = whole if self.kind is int else isinstance(value, self.kind)
        if not fits:
            told = " or ".join([_KINDS[self.kind], *self.words])
            raise OptionError(self, f"is {value!r}; give {told}.")
        if self.choices and value not in self.choices:
            near = did_you_mean(value, self.choices)
            raise OptionError(self, f"is one of {', '.join(map(str, self.choices))}; got {value!r}.{near}")
        if self.kind is float and not math.isfinite(value):
            raise OptionError(self, f"is {value}; give a finite number.")
        for bound, says, holds in (
            (self.least, "at least", lambda b: value >= b),
            (self.above, "more than", lambda b: value > b),
            (self.most, "at most", lambda b: value <= b),
            (self.below, "less than", lambda b: value < b),
        ):
            if bound is not None and not holds(bound):
                raise OptionError(self, f"is {value}; give {says} {bound:g}.")
        return value

    def schema(self) -> dict[str, Any]:
        """The field as JSON Schema."""
        one: dict[str, Any] = {"type": _JSON[self.kind]}
        if self.choices:
            one["enum"] = list(self.choices)
        names = {
            "minimum": self.least,
            "exclusiveMinimum": self.above,
            "maximum": self.most,
            "exclusiveMaximum": self.below,
        }
        one |= {name: bound for name, bound in names.items() if bound is not None}
        if self.words:
            one = {"anyOf": [one, {"type": "string", "enum": list(self.words)}]}
        if self.many:
            one = {"type": "array", "items": one}
        if self.optional:
            one = {"anyOf": [one, {"type": "null"}]}
        if self.required:
            return {"description": self.sentence} | one
        default = list(self.default) if self.many and self.default is not None else self.default
        return {"description": self.sentence, "default": default} | one


class OptionError(Refused):
    """A value that does not fit its option.

    Args:
        option: which.
        said: what is wrong, to stand behind the option's name.
    """

    def __init__(self, option: Option, said: str) -> None:
        super().__init__(f"{option.name} {said}")
        self.option, self.said = option, said


PROTOCOLS = ("default", "paper")
"""What `protocol=` may be everywhere: done right, or a published choice reproduced with its slips."""

PRECISIONS = ("float32", "bfloat16")
"""What `precision=` may be of dense products: the model's own, or operands rounded where that is said."""

_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}
_JSON = {bool: "boolean", int: "integer", float: "number", str: "string"}


def option(default: Any, sentence: str, **how: Any) -> Any:
    """A field of an `Options` with its default and the sentence that says what it is.

    Args:
        default: its value unless given; `...` where it must be given.
        sentence: for the command's help, the tool schema and the documentation.
        how: bounds, choices and the like, see `Option`.
    """
    metadata = {"sentence": sentence, "how": how}
    return dataclasses.field(default=dataclasses.MISSING if default is ... else default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Options:
    """Base of every experiment's parameters. Values are checked as they are made.

    Raises: Refused for a value that does not fit its field, with the field's name.
    """

    def __post_init__(self) -> None:
        for each in declared(type(self)):
            object.__setattr__(self, each.name, each.check(getattr(self, each.name)))

    def arguments(self) -> dict[str, Any]:
        """What a run card holds of them: every field that is not a circumstance, as JSON values."""
        return {each.name: getattr(self, each.name) for each in declared(type(self)) if not each.circumstance}

    def circumstances(self) -> dict[str, Any]:
        """The fields that are circumstances, as JSON values: a card's `sources`. Names of files are made
        whole, so that they mean the same from another folder."""
        found = {e.name: (getattr(self, e.name), e.default) for e in declared(type(self)) if e.circumstance}
        return {
            name: value if value == default else _whole(value) for name, (value, default) in found.items()
        }

    @classmethod
    def extending(cls) -> tuple[str, ...]:
        """Names of the fields whose larger value only adds cells to a run."""
        return tuple(each.name for each in declared(cls) if each.extends)

    def check_data(self) -> None:
        """Look at the files that the options name, before a model is loaded.

        Raises: Refused, OSError where one is missing or does not serve.
        """

    def check_asked(self, asked: Options) -> None:
        """Look at what an experiment asks beyond what its folder means, before a model is loaded.

        Raises: Refused where the two do not go together.
        """

    @classmethod
    def of_card(cls, card: RunCard, given: Mapping[str, Any] | None = None) -> Self:
        """The options that a run was made with, data where its card says that they were found.

        Args:
            card: of the run.
            given: values instead of the card's, such as data that have moved.
        Raises: Refused as `from_json`, and where the card is of another experiment.
        """
        for name in given or {}:
            if name not in {each.name for each in declared(cls)}:
                raise Refused(f"{name!r} is no option here; data are where {_data_options(cls)} say.")
        said = {**card.arguments, **card.sources, **(given or {})}
        lacking = [e.name for e in declared(cls) if not e.circumstance and e.name not in card.arguments]
        if lacking:
            raise Refused(f"The card says nothing of {', '.join(lacking)}: the run is of something else.")
        return cls.from_json({e.name: said[e.name] for e in declared(cls) if e.name in said})

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Options out of a JSON object, as an agent or a card gives them; what it leaves out is the default.

        Raises: Refused for a name that is no field, for one that is needed, and for values that do not fit.
        """
        known = {each.name: each for each in declared(cls)}
        for name in value:
            if name not in known:
                near = did_you_mean(name, known)
                raise Refused(f"{name!r} is no option here; there are {', '.join(known)}.{near}")
        for each in known.values():
            if each.required and each.name not in value:
                raise Refused(f"{each.name} is needed: {each.sentence}")
        return cls(**value)


def declared(options: type[Options]) -> tuple[Option, ...]:
    """The fields of an options class, in order.

    Raises: TypeError for a field that was not made by `option`, or of a type that no command line can hold.
    """
    if options not in _known:
        hints = typing.get_type_hints(options)
        _known[options] = tuple(_declared(field, hints[field.name]) for field in fields(options))
    return _known[options]


_known: dict[type[Options], tuple[Option, ...]] = {}


def _declared(field: dataclasses.Field[Any], hint: Any) -> Option:
    if "sentence" not in field.metadata:
        raise TypeError(f"the field {field.name} of an Options is made by option(default, sentence)")
    parts = list(typing.get_args(hint)) if isinstance(hint, types.UnionType) else [hint]
    optional = type(None) in parts
    how = field.metadata["how"]
    worded = "words" in how and len(parts) > 1
    parts = [part for part in parts if part is not type(None) and not (worded and part is str)]
    many = typing.get_origin(parts[0]) is tuple
    kind = typing.get_args(parts[0])[0] if many else parts[0]
    if len(parts) > 1 or kind not in _KINDS:
        raise TypeError(f"option {field.name} is {hint}; it must be bool, int, float, str or a tuple of one")
    return Option(field.name, field.metadata["sentence"], kind, many, optional, field.default, **how)


def _data_options(cls: type[Options]) -> str:
    names = [each.name for each in declared(cls) if each.circumstance and each.kind is str]
    return " and ".join(names) or "no options"


def _whole(value: Any) -> Any:
    there = isinstance(value, str) and Path(value).exists()
    return str(Path(value).resolve()) if there else value


def schema(*options: type[Options]) -> dict[str, Any]:
    """JSON Schema of one object that holds the fields of several options classes, as tools take it."""
    every = [each for cls in options for each in declared(cls)]
    return {
        "type": "object",
        "properties": {each.name: each.schema() for each in every},
        "required": [each.name for each in every if each.required],
        "additionalProperties": False,
    }
