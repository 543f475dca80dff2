"""The exam of a tiny model: what it knows, what it can do, and how little its embedding gives away."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from interpcore.data import prompt_pairs, questions
from interpcore.data.relations import Relation, few_shot_prompt, split
from interpcore.data.tinyworld import heldout, plain
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tinyworld.models import load_model
from interpcore.data.tinyworld.scoring import continuation_losses, last_logits, prompt_ids, token_losses
from interpcore.data.tinyworld.world import world_relations

FACTS_BAR, TASK_BAR, TASKS_NEEDED = 0.90, 0.90, 5
SHOTS = 8
_RIDGE = 1.0


@dataclass(frozen=True)
class RelationResult:
    """Shares of a relation's facts: known with examples (first template), from the template in which the
    object directly follows the subject, without examples, and read from the subject's last token embedding
    alone."""

    kind: str
    facts: int
    few_shot: float
    direct: float
    zero_shot: float
    embedding: float
    majority: float


@dataclass(frozen=True)
class TaskResult:
    """Share of prompts with the right side ahead, and the two published metrics, averaged over prompts."""

    rows: int
    accuracy: float
    logit_difference: float
    probability_difference: float
    corrupted_logit_difference: float


@dataclass(frozen=True)
class Exam:
    """All numbers of one model's exam; losses in nats per token."""

    parameters: int
    relations: dict[str, RelationResult]
    tasks: dict[str, TaskResult]
    sums: float
    recall_questions: float
    reasoning_questions: float
    loss: dict[str, float]

    @property
    def facts(self) -> float:
        """The share of all facts known few-shot."""
        total = sum(result.facts for result in self.relations.values())
        return sum(result.few_shot * result.facts for result in self.relations.values()) / total

    @property
    def tasks_passed(self) -> int:
        """The number of tasks at or above the bar."""
        return sum(result.accuracy >= TASK_BAR for result in self.tasks.values())

    @property
    def passed(self) -> bool:
        """Whether the model meets the bar: facts and tasks."""
        return self.facts >= FACTS_BAR and self.tasks_passed >= TASKS_NEEDED

    def to_json(self) -> dict[str, Any]:
        """The numbers as they are kept beside the weights."""
        return {"passed": self.passed, "facts": self.facts, "tasks_passed": self.tasks_passed, **asdict(self)}


def examine(model: str | Path, seed: int = 0, pairs: int = 200) -> Exam:
    """Give a model the exam.

    Args: model: a model folder or a shipped model's name; seed: fixes examples and prompts; pairs: prompts
        per task.
    Returns: its results. Raises: FileNotFoundError where there is no such model.
    """
    loaded, tokenizer = load_model(model)
    asked = questions.generate(200, seed)
    right = _choices(loaded, tokenizer, asked)
    return Exam(
        parameters=sum(parameter.numel() for parameter in loaded.parameters()),
        relations={
            relation.name: _relation(loaded, tokenizer, relation, seed) for relation in world_relations()
        },
        tasks={task: _task(loaded, tokenizer, task, seed, pairs) for task in prompt_pairs.MAIN_TASKS},
        sums=_sums(loaded, tokenizer),
        recall_questions=_mean([r for r, q in zip(right, asked, strict=True) if not q.is_reasoning]),
        reasoning_questions=_mean([r for r, q in zip(right, asked, strict=True) if q.is_reasoning]),
        loss={"in world": _loss(loaded, tokenizer, documents(f"exam {seed}", 300))}
        | {kind: _loss(loaded, tokenizer, heldout.heldout_texts(kind, 50, seed)) for kind in heldout.KINDS},
    )


def embedding_readability(model: PreTrainedModel, tokenizer: Any, relation: Relation) -> float:
    """How many answers the embedding of the subject's last token gives, each read by a ridge map fitted on
    the other subjects from that embedding to the answer's output embedding (nearest answer by cosine)."""
    inputs, outputs = _weight(model.get_input_embeddings()), _weight(model.get_output_embeddings())
    last = torch.tensor([_answer_ids(tokenizer, s.subject)[-1] for s in relation.samples])
    first = torch.tensor([_answer_ids(tokenizer, s.object)[0] for s in relation.samples])
    with torch.inference_mode():
        x = torch.nn.functional.normalize(inputs[last].double(), dim=1)
        choices = torch.unique(first)
        codes = outputs[choices].double()
        codes = torch.nn.functional.normalize(codes - codes.mean(0), dim=1)
        y = codes[torch.searchsorted(choices, first)]
        x = torch.cat([x - x.mean(0), torch.ones(len(x), 1, dtype=x.dtype)], 1)
        hat = x @ torch.linalg.solve(x.T @ x + _RIDGE * torch.eye(x.shape[1], dtype=x.dtype), x.T)
        leverage = hat.diagonal()[:, None]
        left_out = (hat @ y - leverage * y) / (1 - leverage)
        guesses = choices[torch.nn.functional.normalize(left_out, dim=1).matmul(codes.T).argmax(1)]
    return float((guesses == first).double().mean())


def _relation(model: PreTrainedModel, tokenizer: Any, relation: Relation, seed: int) -> RelationResult:
    answers = [sample.object for sample in relation.samples]
    template, direct = relation.prompt_templates[0], relation.prompt_templates[-1]
    return RelationResult(
        kind=relation.relation_type,
        facts=len(relation.samples),
        few_shot=_known(model, tokenizer, _prompts(relation, template, SHOTS, seed), answers),
        direct=_known(model, tokenizer, _prompts(relation, direct, SHOTS, seed), answers),
        zero_shot=_known(
            model, tokenizer, _prompts(relation, relation.prompt_templates_zs[0], 0, seed), answers
        ),
        embedding=embedding_readability(model, tokenizer, relation),
        majority=max(answers.count(answer) for answer in set(answers)) / len(answers),
    )


def _prompts(relation: Relation, template: str, shots: int, seed: int) -> list[str]:
    """One prompt per sample, its examples drawn from the other samples."""
    prompts = []
    for index, sample in enumerate(relation.samples):
        others = relation.with_samples(tuple(s for s in relation.samples if s.subject != sample.subject))
        examples = split(others, shots, seed + index)[0]
        prompts.append(few_shot_prompt(template, examples, sample.subject).text)
    return prompts


def _known(model: PreTrainedModel, tokenizer: Any, prompts: list[str], answers: list[str]) -> float:
    """The share of prompts after which every token of the answer is the model's first choice."""
    rows, wanted = [], []
    for prompt, answer in zip(prompts, answers, strict=True):
        ids, answer_ids = prompt_ids(tokenizer, prompt), _answer_ids(tokenizer, answer)
        rows += [ids + answer_ids[:place] for place in range(len(answer_ids))]
        wanted.append(answer_ids)
    guesses = iter(last_logits(model, rows).argmax(1).tolist())
    return _mean([all([next(guesses) == token for token in ids]) for ids in wanted])


def _task(model: PreTrainedModel, tokenizer: Any, task: str, seed: int, pairs: int) -> TaskResult:
    rows = prompt_pairs.generate(task, tokenizer, pairs, seed, part="all").rows
    clean, corrupted = (
        last_logits(model, [prompt_ids(tokenizer, row[side]) for row in rows])
        for side in ("clean", "corrupted")
    )
    sides = [_sides(tokenizer, task, row) for row in rows]
    logits = torch.tensor([_difference(line, *side) for line, side in zip(clean, sides, strict=True)])
    broken = torch.tensor([_difference(line, *side) for line, side in zip(corrupted, sides, strict=True)])
    shares = torch.stack(
        [
            line[good].sum() - line[bad].sum()
            for line, (good, bad) in zip(clean.softmax(1), sides, strict=True)
        ]
    )
    return TaskResult(
        len(rows),
        _mean((shares > 0).tolist()),
        float(logits.mean()),
        float(shares.mean()),
        float(broken.mean()),
    )


def _sides(tokenizer: Any, task: str, row: prompt_pairs.Row) -> tuple[list[int], list[int]]:
    """The token ids that should be likelier after the clean prompt, and those that should be less likely."""
    if task == "ioi":
        return [row["correct_idx"]], [row["incorrect_idx"]]
    if task == "greater-than":
        years = prompt_pairs.two_digit_ids(tokenizer)
        return years[row["correct_idx"] + 1 :], years[: row["correct_idx"] + 1]
    if task == "sva":
        singular, plural = prompt_pairs.verb_ids(tokenizer)
        return (plural, singular) if row["plural"] else (singular, plural)
    if task == "gender-bias":
        return [row["clean_answer_idx"]], [row["corrupted_answer_idx"]]
    if task == "fact-retrieval-comma":
        return [row["country_idx"]], [row["corrupted_country_idx"]]
    return row["answers_idx"], row["corrupted_answers_idx"]


def _difference(logits: Tensor, good: list[int], bad: list[int]) -> float:
    return float(logits[good].mean() - logits[bad].mean())


def _sums(model: PreTrainedModel, tokenizer: Any) -> float:
    pairs = [(a, b) for a in range(1, plain.LARGEST_TERM + 1) for b in range(1, plain.LARGEST_TERM + 1)]
    finished = [plain.addition(a, b) for a, b in pairs]
    return _known(
        model,
        tokenizer,
        [text.rpartition(" ")[0] for text in finished],
        [text.rpartition(" ")[2] for text in finished],
    )


def _choices(model: PreTrainedModel, tokenizer: Any, asked: list[questions.Question]) -> list[bool]:
    """Whether each question's right option is the likeliest."""
    options = [(q, option) for q in asked for option in q.options]
    losses = iter(
        continuation_losses(
            model,
            [prompt_ids(tokenizer, q.prompt) for q, _ in options],
            [_answer_ids(tokenizer, option) for _, option in options],
        ).tolist()
    )
    right = []
    for question in asked:
        given = [next(losses) for _ in question.options]
        right.append(given.index(min(given)) == question.answer_index)
    return right


def _loss(model: PreTrainedModel, tokenizer: Any, texts: list[str]) -> float:
    losses = token_losses(model, [prompt_ids(tokenizer, text) for text in texts])
    return float(torch.cat(losses).mean())


def _answer_ids(tokenizer: Any, answer: str) -> list[int]:
    ids: list[int] = tokenizer(" " + answer, add_special_tokens=False)["input_ids"]
    return ids


def _mean(values: list[bool]) -> float:
    return sum(values) / len(values)


def _weight(module: torch.nn.Module) -> Tensor:
    weight: Tensor = module.get_parameter("weight")
    return weight
