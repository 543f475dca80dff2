"""Features of tokens: rules in a data file, and the words that a corpus repeats."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.errors import Refused
from interpcore.model.token_text import token_texts
from interpcore.runs import read_json
from interpcore.runs.fields import Fields

VIEWS = {"text": lambda t: t, "word": str.strip, "lower": lambda t: t.strip().lower()}
"""How a rule may look at a token's text: as it is, stripped, or stripped and lower-cased."""


@dataclass(frozen=True, eq=False)
class FeatureTable(ShortRepr):
    """Which token ids have which feature.

    Args:
        names: of the features.
        groups: the kind of each ("form", "case", "alphabet", "number", "symbol", "syntax", "prefix",
            "suffix", "topic", "unigram").
        has: [feature, vocabulary] bool.
    """

    names: tuple[str, ...]
    groups: tuple[str, ...]
    has: Tensor

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: FeatureTable) -> FeatureTable:
        """Both, one after the other."""
        return FeatureTable(
            self.names + other.names, self.groups + other.groups, torch.cat((self.has, other.has))
        )

    def select(self, keep: Sequence[int]) -> FeatureTable:
        """Some of the features, by number."""
        return FeatureTable(
            tuple(self.names[i] for i in keep), tuple(self.groups[i] for i in keep), self.has[list(keep)]
        )


def word_texts(tokenizer: Any, vocab_size: int) -> list[str]:
    """As `token_texts`, but "" for special tokens: what they are called is no text for a rule."""
    special = set(tokenizer.all_special_ids)
    return ["" if i in special else text for i, text in enumerate(token_texts(tokenizer, vocab_size))]


def rule_features(texts: Sequence[str], path: str | os.PathLike[str] | None = None) -> FeatureTable:
    """The features of a data file; those that no token has are left out.

    Args:
        texts: text of each token id [vocabulary].
        path: a file in the form of `features.json` in this folder, which None takes.
    Raises: ValueError for a file that is not of that form, with the entry.
    """
    names, groups, rows = [], [], []
    views = {name: [view(text) for text in texts] for name, view in VIEWS.items()}
    for entry in read_entries(path):
        for item in entry["each"].split() if "each" in entry else [None]:
            found = _matches(entry, item, views)
            if any(found):
                names.append(entry["name"] if item is None else entry["name"].replace("{}", item))
                groups.append(entry["group"])
                rows.append(found)
    return FeatureTable(tuple(names), tuple(groups), torch.tensor(rows, dtype=torch.bool))


def unigram_features(
    texts: Sequence[str], counts: Tensor, *, least: int = 3000, most: int | None = None
) -> FeatureTable:
    """One feature per word: all token ids with the same stripped, lower-cased text, where these occur more
    than `least` times in all (the published rule; it also asks for more than 3 ids).

    Args:
        texts: text of each token id [vocabulary].
        counts: occurrences of each id [vocabulary].
        least: occurrences that are too few.
        most: keep only so many, the commonest.
    """
    ids = defaultdict(list)
    for number, text in enumerate(texts):
        if word := text.strip().lower():
            ids[word].append(number)
    total = {word: int(counts[where].sum()) for word, where in ids.items()}
    chosen = sorted((w for w in ids if total[w] > least), key=lambda w: (-total[w], w))[:most]
    has = torch.zeros(len(chosen), len(texts), dtype=torch.bool)
    for row, word in enumerate(chosen):
        has[row, ids[word]] = True
    return FeatureTable(tuple(f"'{word}'" for word in chosen), ("unigram",) * len(chosen), has)


def read_entries(path: str | os.PathLike[str] | None) -> list[dict[str, str]]:
    """The rules of a feature file; None takes the one of this folder. Raises: Refused for another form."""
    where = Path(str(files("interpcore.neurons") / "features.json")) if path is None else Path(path)
    found = Fields.of(read_json(where), str(where), Refused).objects("features")
    for entry in found:
        entry.only({"about", "name", "group", "words", "pattern", "on", "each"}, {"name", "group"})
        for name in entry.content:
            entry.text(name, empty=name not in ("name", "group"))
        rule = ("words" in entry.content) != ("pattern" in entry.content)
        if not rule or entry.content.get("on", "lower") not in VIEWS:
            raise Refused(
                f"{where}: {dict(entry.content)!r} is no feature; it needs 'name', 'group', either 'words' "
                f"or 'pattern', and 'on' as one of {', '.join(VIEWS)}."
            )
    return [dict(entry.content) for entry in found]


def _matches(entry: dict[str, str], item: str | None, views: dict[str, list[str]]) -> list[bool]:
    """Which tokens an entry names, for one item of its 'each'."""
    if "words" in entry:
        words = set(entry["words"].split())
        return [text in words for text in views["lower"]]
    pattern = entry["pattern"] if item is None else entry["pattern"].replace("{}", item)
    try:
        compiled = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise Refused(
            f"The feature {entry['name']!r} has a pattern that does not compile: {error}."
        ) from error
    return [bool(text) and compiled.search(text) is not None for text in views[entry.get("on", "lower")]]
