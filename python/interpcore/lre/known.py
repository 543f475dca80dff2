"""The published dataset filter: facts that a model answers whatever the examples."""

from __future__ import annotations

import torch
from torch import Tensor

from interpcore.data.relations import Relation, RelationError, few_shot_prompt, split
from interpcore.lre.answers import Answers
from interpcore.lre.prompts import encode_query
from interpcore.model import Model
from interpcore.model.prompts import pad


class NotKnownError(RelationError):
    """The model knows too little of a relation to measure anything."""


@torch.no_grad()
def drawn_answers(
    model: Model,
    relation: Relation,
    *,
    examples: int,
    draws: int,
    template: int = 0,
    seed: int = 0,
    max_rows: int = 64,
) -> Tensor:
    """The model's top token for every fact in several prompts, each with a fresh draw of examples from the
    relation's other facts.

    Args:
        model: the decoder.
        relation: the facts.
        examples, draws: facts shown, and prompts per fact.
        template: which template.
        seed: fixes the draws.
        max_rows: prompts run together.
    Returns: [fact, draw] int64.
    Raises: RelationError for too few facts to show.
    """
    queries = []
    for i, sample in enumerate(relation.samples):
        others = relation.with_samples(tuple(s for s in relation.samples if s is not sample))
        for draw in range(draws):
            shown, _ = split(others, examples, seed + draw * len(relation.samples) + i)
            prompt = few_shot_prompt(relation.prompt_templates[template], shown, sample.subject)
            queries.append(encode_query(model.tokenizer, prompt))
    tops = []
    for start in range(0, len(queries), max_rows):
        tokens, mask = pad([q.ids for q in queries[start : start + max_rows]], model.device)
        logits = model.forward(tokens, mask, logits_at="last").logits
        assert logits is not None
        tops.append(logits.argmax(-1).cpu())
    return torch.cat(tops).view(-1, draws)


def answered(answers: Answers, relation: Relation, top: Tensor) -> Tensor:
    """Which of a relation's facts top tokens [fact, draw] begin the objects of [fact, draw] bool."""
    hits = answers.prefix_hits([s.object for s in relation.samples])
    return hits[torch.arange(len(top))[:, None], top]


def dataset_filter(
    model: Model,
    answers: Answers,
    relation: Relation,
    *,
    examples: int = 5,
    repeats: int = 3,
    least: int = 10,
    template: int = 0,
    seed: int = 0,
    max_rows: int = 64,
) -> Relation:
    """Keep the facts whose object the model's top token begins in every one of several prompts.

    Args:
        model: the decoder.
        answers: its tokens against words.
        relation: what to filter.
        examples, repeats: facts shown, and prompts per fact; 5 and 3 as published.
        least: facts that must remain; 10 as published.
        template, seed, max_rows: see `drawn_answers`.
    Raises: NotKnownError where fewer remain; RelationError for too few facts to show.
    """
    how = {"template": template, "seed": seed, "max_rows": max_rows}
    top = drawn_answers(model, relation, examples=examples, draws=repeats, **how)
    right = answered(answers, relation, top).all(1).tolist()
    kept = tuple(sample for sample, keep in zip(relation.samples, right, strict=True) if keep)
    if len(kept) < least:
        raise NotKnownError(
            f"{relation.name}: the model answers {len(kept)} of {len(right)} facts in all of {repeats} "
            f"prompts; {least} are needed."
        )
    return relation.with_samples(kept)
