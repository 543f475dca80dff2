"""Questions, and choice questions about the tiny world, each with a score between recall (0) and reasoning
(1).

A recall question asks for a fact of a study relation; a reasoning question holds its answer in its own words
(sums, comparisons, who has the thing that was given away). Records use the field names of the published
question sets.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from interpcore.data.relations import fill
from interpcore.data.tinyworld import plain, words
from interpcore.data.tinyworld.world import study_relations
from interpcore.errors import Refused

REASONING = {"sum": 1.0, "comparison": 0.9, "holder": 0.8}
RECALL = {"factual": 0.0, "commonsense": 0.1, "linguistic": 0.2}


@dataclass(frozen=True)
class Question:
    """One question. `prompt` ends where an option (with a leading space) goes on.

    Args:
        question_id: what stands for it where questions are split.
        question: its text.
        options: choices; () where the answer is a text of its own.
        answer: letter of the right option, or the answer's text.
        answer_index: of the right option; None without options.
        category, src: its subject, and the set that it is of.
        memory_reason_score: from 0 (recall) to 1 (reasoning); None where nobody said.
        accepted: texts that answer it, where several do.
        cot_content: a published solution in words.
    """

    question_id: int | str
    question: str
    options: tuple[str, ...]
    answer: str
    answer_index: int | None
    category: str
    src: str
    memory_reason_score: float | None
    accepted: tuple[str, ...] = ()
    cot_content: str = ""

    @property
    def prompt(self) -> str:
        """The text before the answer, as the tiny models have seen it in training."""
        return f"Q: {self.question}\nA:"

    @property
    def is_reasoning(self) -> bool:
        """Whether the score is above one half, the published rule."""
        return self.memory_reason_score is not None and self.memory_reason_score > 0.5

    @property
    def right(self) -> tuple[str, ...]:
        """The texts that answer it: the right option, or those accepted."""
        if self.answer_index is not None:
            return (self.options[self.answer_index],)
        return self.accepted or (self.answer,)

    def to_record(self) -> dict[str, Any]:
        """The published record; `answer` is the letter of the right option."""
        return {**asdict(self), "options": list(self.options), "accepted": list(self.accepted)}


def generate(count: int = 200, seed: int = 0, n_options: int = 4) -> list[Question]:
    """Draw choice questions, recall and reasoning in turn, no two alike.

    Args: count: how many; seed: fixes the draw; n_options: choices per question, the right one included.
    Returns: the questions. Raises: ValueError where a question cannot have that many options.
    """
    if not 2 <= n_options <= 9:
        raise Refused(f"A question has 2 to 9 options, not {n_options}.")
    rng = random.Random(f"questions {seed}")
    recall = _recall_pool(n_options)
    rng.shuffle(recall)
    made: dict[str, Question] = {}
    for turn in range(20 * count):
        if len(made) == count:
            break
        draft = recall[turn // 2 % len(recall)] if turn % 2 == 0 else _reasoning(rng, n_options)
        if draft.question not in made:
            made[draft.question] = _finish(draft, len(made), n_options, rng)
    if len(made) < count:
        raise Refused(f"There are only {len(made)} different questions, fewer than {count}.")
    return list(made.values())


class _Draft(NamedTuple):
    """A question before its options are drawn from the `others`."""

    question: str
    answer: str
    others: tuple[str, ...]
    category: str
    score: float


def _finish(draft: _Draft, number: int, n_options: int, rng: random.Random) -> Question:
    wrong = [option for option in draft.others if option != draft.answer]
    options = [*rng.sample(wrong, n_options - 1), draft.answer]
    rng.shuffle(options)
    index = options.index(draft.answer)
    letter = chr(ord("A") + index)
    return Question(
        number, draft.question, tuple(options), letter, index, draft.category, "tinyworld", draft.score
    )


def _recall_pool(n_options: int) -> list[_Draft]:
    pool = []
    for relation in study_relations():
        kind, objects = relation.relation_type, relation.objects
        if kind in RECALL and len(objects) >= n_options:
            asked = _question(relation.prompt_templates_zs[-1])
            pool += [
                _Draft(fill(asked, s.subject), s.object, objects, kind, RECALL[kind])
                for s in relation.samples
            ]
    return pool


def _reasoning(rng: random.Random, n_options: int) -> _Draft:
    category = rng.choice(tuple(REASONING))
    if category == "sum":
        prompt, answer = plain.sum_question(rng)
        others = tuple(str(n) for n in range(max(2, int(answer) - 9), int(answer) + 10))
    elif category == "comparison":
        prompt, answer, loser = plain.comparison_question(rng)
        free = [str(n) for n in range(10, 100) if str(n) not in (answer, loser)]
        others = (loser, *rng.sample(free, n_options - 2))
    else:
        prompt, answer, giver = plain.holder_question(rng)
        others = (
            giver,
            *rng.sample([n for n in words.FIRST_NAMES if n not in (answer, giver)], n_options - 2),
        )
    return _Draft(_question(prompt), answer, others, category, REASONING[category])


def _question(prompt: str) -> str:
    return prompt.removeprefix("Q: ").removesuffix("\nA:")
