"""Text of three kinds that no tiny model is trained on: news-like, code-like, and another language."""

from __future__ import annotations

import random

from interpcore.errors import Refused

KINDS = ("news", "code", "language")

_BODIES = ("council", "ministry", "board", "union", "agency", "committee")
_TOPICS = ("housing", "transport", "energy", "water supply", "public health", "fisheries", "tourism")
_STEPS = (
    "approved a budget for",
    "delayed a decision on",
    "published new rules on",
    "opened an inquiry into",
    "rejected a proposal about",
    "announced investment in",
)
_REASONS = (
    "citing rising costs",
    "after months of debate",
    "despite protests",
    "following a court ruling",
    "ahead of elections",
    "in response to critics",
)
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")

_FUNCTIONS = ("merge", "parse", "count", "encode", "filter", "rank")
_ARGUMENTS = ("items", "rows", "values", "nodes", "buffer")
_BODIES_OF_CODE = (
    "    total = 0\n    for x in {a}:\n        total += x\n    return total",
    "    return [x for x in {a} if x is not None]",
    "    if not {a}:\n        raise ValueError('empty')\n    return max({a})",
    "    result = {{}}\n    for i, x in enumerate({a}):\n        result[x] = i\n    return result",
    "    while len({a}) > 1:\n        {a}.pop()\n    return {a}[0]",
)

_SUBJECTS = ("El perro", "La mujer", "Mi hermano", "El vecino", "La profesora", "Un gato", "Nuestra abuela")
_PREDICATES = (
    "duerme",
    "trabaja mucho",
    "canta",
    "camina despacio",
    "lee un libro",
    "come pan",
    "espera el tren",
)
_WHERE = ("en la casa", "cerca del río", "en el jardín", "por la mañana", "con sus amigos", "bajo la lluvia")
_LINKS = ("porque", "mientras", "aunque", "y después")
_CLAUSES = ("hace mucho frío", "los niños juegan", "todavía es temprano", "nadie lo sabe", "el sol brilla")


def heldout_texts(kind: str, count: int = 50, seed: int = 0) -> list[str]:
    """Short texts of one kind.

    Args: kind: `news`, `code` or `language` (Spanish); count: how many; seed: fixes the draw.
    Returns: the texts. Raises: ValueError for another kind.
    """
    if kind not in _WRITERS:
        raise Refused(f"The kind of text {kind!r} is not one of {', '.join(KINDS)}.")
    rng = random.Random(f"held out {kind} {seed}")
    return [_WRITERS[kind](rng) for _ in range(count)]


def _news(rng: random.Random) -> str:
    body = rng.choice(_BODIES)
    return (
        f"{rng.choice(_DAYS)}: The regional {body} {rng.choice(_STEPS)} {rng.choice(_TOPICS)}, "
        f"{rng.choice(_REASONS)}. A spokesperson for the {body} said "
        f"{rng.randint(2, 95)} percent of residents "
        f"supported further spending on {rng.choice(_TOPICS)}."
    )


def _code(rng: random.Random) -> str:
    argument = rng.choice(_ARGUMENTS)
    return f"def {rng.choice(_FUNCTIONS)}({argument}):\n" + rng.choice(_BODIES_OF_CODE).format(a=argument)


def _language(rng: random.Random) -> str:
    return (
        f"{rng.choice(_SUBJECTS)} {rng.choice(_PREDICATES)} {rng.choice(_WHERE)} {rng.choice(_LINKS)} "
        f"{rng.choice(_CLAUSES)}. {rng.choice(_SUBJECTS)} {rng.choice(_PREDICATES)}."
    )


_WRITERS = {"news": _news, "code": _code, "language": _language}
