"""The published dataset filter: facts that a model answers whatever the examples."""

from __future__ import annotations

import torch

from interpcore.data.relations import Relation, RelationError, few_shot_prompt, split
from interpcore.lre.answers import Answers
from interpcore.lre.prompts import encode_query
from interpcore.model import Model
from interpcore.model.prompts import pad


class NotKnownError(RelationError):
    """The model knows too little of a relation to measure anything."""


@torch.no_grad()
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
    """Keep the facts whose object the model's top token begins in every one of several prompts, each with a
    fresh draw of examples from the relation's other facts.

    Args:
        model: the decoder.
        answers: its tokens against words.
        relation: what to filter.
        examples, repeats: facts shown, and prompts per fact; 5 and 3 as published.
        least: facts that must remain; 10 as published.
        template: which template.
        seed: fixes the draws.
        max_rows: prompts run together.
    Raises: NotKnownError where fewer remain; RelationError for too few facts to show.
    """
    queries = []
    for i, sample in enumerate(relation.samples):
        others = relation.with_samples(tuple(s for s in relation.samples if s is not sample))
        for repeat in range(repeats):
            shown, _ = split(others, examples, seed + repeat * len(relation.samples) + i)
            prompt = few_shot_prompt(relation.prompt_templates[template], shown, sample.subject)
            queries.append(encode_query(model.tokenizer, prompt))
    tops = []
    for start in range(0, len(queries), max_rows):
        tokens, mask = pad([q.ids for q in queries[start : start + max_rows]], model.device)
        logits = model.forward(tokens, mask, logits_at="last").logits
        assert logits is not None
        tops.append(logits.argmax(-1).cpu())
    hits = answers.prefix_hits([s.object for s in relation.samples])
    top = torch.cat(tops).view(-1, repeats)
    right = hits[torch.arange(len(top))[:, None], top].all(1).tolist()
    kept = tuple(sample for sample, keep in zip(relation.samples, right, strict=True) if keep)
    if len(kept) < least:
        raise NotKnownError(
            f"{relation.name}: the model answers {len(kept)} of {len(right)} facts in all of {repeats} "
            f"prompts; {least} are needed."
        )
    return relation.with_samples(kept)
