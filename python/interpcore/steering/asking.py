"""What the studies that ask questions share: the questions as prompts, the interventions, and their card."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from interpcore.data.question_sets import read_questions, split_questions
from interpcore.data.questions import Question
from interpcore.errors import Refused
from interpcore.model.call import read_address
from interpcore.model.card import run_card
from interpcore.runs import RunFolder, experiment
from interpcore.stats import mean_over_clusters, paired_difference, paired_sign_test
from interpcore.steering.choice import generated, option_scores
from interpcore.steering.directions import Directions
from interpcore.steering.files import load
from interpcore.steering.interventions import Intervention, each_site
from interpcore.steering.moments import site_depths
from interpcore.steering.options import AnswerOptions, DirectionOptions
from interpcore.steering.prompts import Item, is_right, items, read_answer

SUBSETS = ("all", "reasoning", "recall")
NOTES = (
    "right: share of questions answered rightly, with its exact 95% interval; difference: from the plain "
    "model on the same questions, with Bonett and Price's 95% interval; p: exact sign test of both.",
    "chance: mean probability of the right option among the options (softmax of their log-probabilities); "
    "unparsed: share of generated texts in which no answer was found, which count as wrong.",
)


@dataclass(frozen=True)
class Answers:
    """What became of each question.

    Args:
        right: answered rightly [question].
        chance: probability of the right option among the options [question]; empty where texts are generated.
        unparsed: no answer was found [question]; empty where options are scored.
        texts: what was generated [question].
        chosen: number of the most probable option [question]; empty where texts are generated, and in runs
            of before it was kept.
    """

    right: list[bool]
    chance: list[float] = field(default_factory=list)
    unparsed: list[bool] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    chosen: list[int] = field(default_factory=list)


def answer(
    model: Any, asked: Sequence[Item], intervention: Intervention, answers: str, new_tokens: int = 32
) -> Answers:
    """Ask questions under an intervention.

    Args:
        model: the decoder.
        asked: the questions.
        intervention: what is edited.
        answers: "options", "letters" or "generate".
        new_tokens: generated at most.
    """
    if answers == "generate":
        texts = generated(model, asked, intervention, new_tokens)
        read = [read_answer(text, item.question) for text, item in zip(texts, asked, strict=True)]
        right = [is_right(a, item.question) for a, item in zip(read, asked, strict=True)]
        return Answers(right, [], [a is None for a in read], texts)
    return scored(asked, option_scores(model, asked, intervention))


def scored(asked: Sequence[Item], scores: Sequence[Sequence[float]]) -> Answers:
    """Answers from the log-probability of every option; of equal ones the first."""
    right, chance, chosen = [], [], []
    for item, given in zip(asked, scores, strict=True):
        own = torch.tensor(given[: len(item.options)], dtype=torch.float64)
        index = item.question.answer_index
        chosen.append(int(own.argmax()))
        right.append(chosen[-1] == index)
        chance.append(float(own.softmax(-1)[index]))
    return Answers(right, chance, chosen=chosen)


def measured(questions: Sequence[Question], found: Answers, plain: Answers | None) -> list[dict[str, Any]]:
    """A row of each subset: share right with its interval, and the paired difference from the plain model."""
    rows = []
    for subset in SUBSETS:
        chosen = [
            i
            for i, q in enumerate(questions)
            if subset == "all"
            or (q.memory_reason_score is not None and q.is_reasoning == (subset == "reasoning"))
        ]
        if not chosen or (subset != "all" and len(chosen) == len(questions)):
            continue
        right = [float(found.right[i]) for i in chosen]
        share = mean_over_clusters(right, chosen)
        row: dict[str, Any] = {"subset": subset, "n": len(chosen)}
        row |= {"right": share.value, "right_low": share.low, "right_high": share.high}
        if found.chance:
            row["chance"] = sum(found.chance[i] for i in chosen) / len(chosen)
        if found.unparsed:
            row["unparsed"] = sum(found.unparsed[i] for i in chosen) / len(chosen)
        if plain is not None and plain is not found:
            before = [float(plain.right[i]) for i in chosen]
            row |= _difference("difference", right, before, chosen)
            row["p"] = paired_sign_test(right, before, chosen)
            if found.chance:
                own = [found.chance[i] for i in chosen]
                row |= _difference("chance_difference", own, [plain.chance[i] for i in chosen], chosen)
        rows.append(row)
    return rows


def _difference(name: str, values: list[float], before: list[float], units: list[int]) -> dict[str, float]:
    found = paired_difference(values, before, units)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


@dataclass(eq=False)
class AskingStudy(experiment.Study):
    """What the cells share.

    Attributes:
        items: the questions as they are asked.
        directions: what is written; None where a file says it.
        given: the intervention of a file.
    """

    items: list[Item] = field(default_factory=list)
    directions: Directions | None = None
    given: Intervention | None = None

    @property
    def questions(self) -> list[Question]:
        """The questions."""
        return [item.question for item in self.items]

    @property
    def unverified(self) -> str | None:
        """See `runs.experiment.Study`."""
        return super().unverified or self.intervention(1.0).unwritten

    def intervention(self, coefficient: float, shuffle: int | None = None) -> Intervention:
        """What is asked for, at a coefficient; `shuffle` takes a shuffling's directions instead, their
        lengths those of the direction itself."""
        options = self.options
        if self.given is not None:
            return self.given.scaled(coefficient)
        assert self.directions is not None
        return each_site(
            self.directions,
            depths_of(self.model, options.site, options.depths, options.calls),
            sites=(options.site,),
            kind=options.edit,
            scale=options.scale,
            coefficient=coefficient,
            positions=options.positions,
            shuffle=shuffle,
        )


def depths_of(model: Any, site: str, depths: Sequence[int], calls: Sequence[str]) -> list[int]:
    """The depths, from 0, that depths and block calls in words name, each once.

    Raises: Refused for one that the model does not have.
    """
    named = [depth for text in calls for depth in model.plan.depths(read_address(text))]
    return list(dict.fromkeys(depth_of(model, site, depth) for depth in (*depths, *named)))


def depth_of(model: Any, site: str, depth: int) -> int:
    """A depth from 0. Raises: Refused for one that the site does not have."""
    count = site_depths(model, site)
    if not -count <= depth < count:
        raise Refused(f"Site {site!r} has depths 0 to {count - 1} in {model.spec.name}; got {depth}.")
    return depth % count


def prepare(model: Any, options: AnswerOptions, part: str, before: str = "") -> list[Item]:
    """The questions of a part as prompts, examples from the others in front.

    Raises: Refused as `prompts.items`, and where there are fewer examples than shots.
    """
    every = options.read()
    chosen = split_questions(every, part, options.seed, by=options.split_by)
    examples: list[Question] = []
    if options.shots:
        pool = (
            every if options.shots_from is None else read_questions(options.shots_from, "validation", None, 1)
        )
        own = {q.question for q in chosen}
        examples = _examples([q for q in pool if q.question not in own], options.shots)
    given: dict[str, Any] = {"answers": options.answers, "template": options.template, "examples": examples}
    return items(model, chosen, before=before, **given)


def _examples(pool: Sequence[Question], shots: int) -> list[Question]:
    """The first `shots` of every category; of all together where no category has so many."""
    by_category: dict[str, list[Question]] = {}
    for question in pool:
        by_category.setdefault(question.category, []).append(question)
    found = [q for own in by_category.values() if len(own) >= shots for q in own[:shots]]
    if not found and len(pool) < shots:
        raise Refused(
            f"There are {len(pool)} questions to show as examples; {shots} are asked for (shots_from)."
        )
    return found or list(pool[:shots])


def open_folder(
    study: AskingStudy,
    out: str | os.PathLike[str],
    command: str | None,
    sources: Mapping[str, str] | None = None,
    **more: str | None,
) -> Any:
    """Give a study its run folder, whose card holds everything that its results depend on.

    Args:
        study: the study.
        out: the folder.
        command: what was typed.
        sources: where data are, by option, if they are not where the option says.
        more: hashes.
    """
    asked = json.dumps(
        [[list(i.prompt), [list(o) for o in i.options], i.question.to_record()] for i in study.items]
    )
    hashes = {"hash of questions": hashlib.sha256(asked.encode()).hexdigest()}
    hashes |= {name.replace("_", " "): value for name, value in more.items() if value is not None}
    found = study.options.circumstances() | dict(sources or {})
    arguments = study.options.arguments() | hashes
    card = run_card(study.model, arguments=arguments, command=command, sources=found)
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    return study


def read_written(model: Any, options: DirectionOptions) -> tuple[Directions | None, Intervention | None]:
    """The directions, or the file's intervention, that options name.

    Raises: Refused for those of another model or shape.
    """
    file = getattr(options, "intervention", None)
    if file is not None:
        given = load(Path(file), model)
        given.check_model(model, options.other_model)
        return None, given
    if options.directions is None:
        raise Refused("Give --directions, the run folder of `interpcore steering directions`.")
    directions = Directions.load(options.directions)
    directions.check_model(model, options.other_model)
    return directions, None
