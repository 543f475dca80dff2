"""Choice questions about the tiny world, each with a score between recall (0) and reasoning (1).

A recall question asks for a fact of a study relation; a reasoning question holds its answer in its own words
(sums, comparisons, who has the thing that was given away). Records use the field names of the published
question sets.
"""

from __future__ import annotations

import random
from dataclasses import asdict, dataclass
from typing import Any

from interpcore.data.relations import fill
from interpcore.data.tinyworld import plain, words
from interpcore.data.tinyworld.world import study_relations

REASONING = {"sum": 1.0, "comparison": 0.9, "holder": 0.8}
RECALL = {"factual": 0.0, "commonsense": 0.1, "linguistic": 0.2}


@dataclass(frozen=True)
class Question:
    """One choice question. `prompt` ends where an option (with a leading space) goes on."""

    question_id: int
    question: str
    options: tuple[str, ...]
    answer: str
    answer_index: int
    category: str
    src: str
    memory_reason_score: float

    @property
    def prompt(self) -> str:
        """The text before the answer, as the tiny models have seen it in training."""
        return f"Q: {self.question}\nA:"

    @property
    def is_reasoning(self) -> bool:
        """Whether the score is above one half."""
        return self.memory_reason_score > 0.5

    def to_record(self) -> dict[str, Any]:
        """The published record; `answer` is the letter of the right option."""
        return {**asdict(self), "options": list(self.options)}


def generate(count: int = 200, seed: int = 0, n_options: int = 4) -> list[Question]:
    """Draw choice questions, recall and reasoning in turn, no two alike.

    Args: count: how many; seed: fixes the draw; n_options: choices per question, the right one included.
    Returns: the questions. Raises: ValueError where a question cannot have that many options.
    """
    if not 2 <= n_options <= 9:
        raise ValueError(f"A question has 2 to 9 options, not {n_options}.")
    rng = random.Random(f"questions {seed}")
    recall = _recall_pool(n_options)
    rng.shuffle(recall)
    made: dict[str, Question] = {}
    for turn in range(20 * count):
        if len(made) == count:
            return list(made.values())
        prompt, answer, others, category, score = (
            recall[turn // 2 % len(recall)] if turn % 2 == 0 else _reasoning(rng, n_options)
        )
        options = [*rng.sample([o for o in others if o != answer], n_options - 1), answer]
        rng.shuffle(options)
        index = options.index(answer)
        question = prompt.removeprefix("Q: ").removesuffix("\nA:")
        made.setdefault(
            question,
            Question(
                len(made),
                question,
                tuple(options),
                chr(ord("A") + index),
                index,
                category,
                "tinyworld",
                score,
            ),
        )
    raise ValueError(f"There are only {len(made)} different questions, fewer than {count}.")


def _recall_pool(n_options: int) -> list[tuple[str, str, tuple[str, ...], str, float]]:
    pool = []
    for relation in study_relations():
        template = relation.prompt_templates_zs[-1]
        if relation.relation_type not in RECALL or len(relation.objects) < n_options:
            continue
        pool += [
            (
                fill(template, sample.subject),
                sample.object,
                relation.objects,
                relation.relation_type,
                RECALL[relation.relation_type],
            )
            for sample in relation.samples
        ]
    return pool


def _reasoning(rng: random.Random, n_options: int) -> tuple[str, str, tuple[str, ...], str, float]:
    category = rng.choice(tuple(REASONING))
    if category == "sum":
        prompt, answer = plain.sum_question(rng)
        others = tuple(str(n) for n in range(max(2, int(answer) - 9), int(answer) + 10))
    elif category == "comparison":
        prompt, answer, loser = plain.comparison_question(rng)
        free = [str(n) for n in range(10, 100) if str(n) not in (answer, loser)]
        others = (loser, *rng.sample(free, n_options - 2))
    else:
        prompt, answer = plain.holder_question(rng)
        others = words.FIRST_NAMES
    return prompt, answer, others, category, REASONING[category]
