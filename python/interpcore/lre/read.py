"""A text's every state through one relation's operator: the attribute lens as a heat map."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor

from interpcore.lre.attribute import misleading, wrong_objects
from interpcore.lre.crossfit import choose
from interpcore.lre.operator import Operator, predict
from interpcore.lre.options import Read
from interpcore.lre.points import ready
from interpcore.lre.shared import SharedOperators
from interpcore.model import Tap
from interpcore.model.made_on import check_made_on
from interpcore.model.names import source_name, source_site
from interpcore.runs import canonical_json
from interpcore.runs.artifacts import write_bytes
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.token_grid import draw_token_grid, token_grid_page

PAGE = "What a text's states say through a relation's operator"
EMBED = 0  # the token embedding's row, where the published sweep begins; later rows are residual depths
NOTES = (
    "reads: the tokens that beta W h + b ranks highest, best first; probability: of the first; depth 0: the "
    "token embedding; hit, framed: the first begins the answer.",
)


@torch.no_grad()
def attribute_grid(
    study: SharedOperators, operator: Operator, tokens: Tensor, beta: float = 1.0, top: int = 3
) -> tuple[Tensor, Tensor]:
    """An operator on every state of a text: its tokens at each depth and position.

    Args:
        study: with the model.
        operator: at the depths that are read; see `everywhere` for one of a single depth.
        tokens: the text [position] int64.
        beta: factor on W.
        top: how many tokens.
    Returns: tokens, best first, and their probabilities, each [depth, position, top].
    Raises: Refused for another model's operator.
    """
    model = study.model
    check_made_on(model, operator.made_on, "The operator was")
    taps = [Tap(*source_site(depth)) for depth in operator.depths]
    found = model.forward(tokens[None], taps=taps, logits_at=None).taps
    said, chances = [], []
    for tap, weight, bias in zip(taps, operator.weight, operator.bias, strict=True):
        z = beta * (found[tap][0].to(weight) @ weight.mT) + bias
        best = (
            model.unembed(model.final_norm(z.to(model.dtype)))
            .float()
            .softmax(-1)
            .topk(min(top, model.spec.vocab_size))
        )
        said.append(best.indices)
        chances.append(best.values)
    return torch.stack(said).cpu(), torch.stack(chances).cpu()


def everywhere(operator: Operator, at: int) -> Operator:
    """One depth's operator, at all of an operator's depths, as published."""
    n = len(operator.depths)
    weight, bias = operator.weight[at].expand(n, -1, -1), operator.bias[at].expand(n, -1)
    return Operator(operator.depths, weight, bias, operator.made_on)


def read_cell(
    study: SharedOperators, relation: str, prompt: str, answer: str, by: str, top: int
) -> dict[str, Any]:
    """One cell: a text read at every depth and position."""
    found, operator = ready(study, relation, 0), study.operator(relation, 0)
    betas, given = study.betas(relation), study.given_place(relation)
    faithful = predict(study.model, operator, found.states.h, betas)[..., 0] == found.states.top.cpu()
    at, b = choose(faithful[..., found.known]) if given is None else given
    beta = betas[b]
    if not prompt:
        fact = int(found.known.nonzero()[0])
        template = found.relation.prompt_templates[study.options.template]
        sample, wrong = found.test[fact], wrong_objects(found)[fact]
        prompt, answer = misleading("stated twice", template, sample, wrong).text, answer or sample.object
    tokens = study.model.encode(prompt)[0][0]
    used = operator if by == "own" else everywhere(operator, at)
    said, chances = attribute_grid(study, used, tokens, beta, top)
    hits = study.answers.prefix_hits([answer])[0] if answer else torch.zeros(study.answers.vocab_size).bool()
    return {
        "prompt": prompt,
        "answer": answer,
        "depth": source_name(operator.depths[at]),
        "beta": beta,
        "tokens": tokens.tolist(),
        "depths": [EMBED if depth is None else depth for depth in operator.depths],
        "top": said.tolist(),
        "probabilities": chances.tolist(),
        "hits": hits[said[..., 0]].tolist(),
    }


def run(study: Any, asked: Read) -> Report:
    """What a text says through a relation's operator: table, heat map and page."""
    import pandas as pd

    relation = asked.check_with(list(study.relations))
    cell = {"relation": relation, **{n: getattr(asked, n) for n in ("prompt", "answer", "by", "top")}}
    found: Any = study.sweep(read_cell, [cell], on_error="raise")[0].result
    text = study.answers.text
    table = pd.DataFrame(
        [
            {
                "position": position,
                "token": text(token),
                "depth": depth,
                "reads": " | ".join(map(text, found["top"][row][position])),
                "first": text(found["top"][row][position][0]),
                "probability": found["probabilities"][row][position][0],
                "probabilities": " | ".join(f"{p:.3f}" for p in found["probabilities"][row][position]),
                "hit": found["hits"][row][position],
            }
            for position, token in enumerate(found["tokens"])
            for row, depth in enumerate(found["depths"])
        ]
    )
    name = "read-" + hashlib.sha256(canonical_json(cell).encode()).hexdigest()[:12]
    model = str(study.artifacts.card.model)
    which = f"of depth {found['depth']}" if asked.by == "chosen" else "of each depth"
    through = f"the operator of {relation} {which}, beta {found['beta']:g}"
    through += f", answer {found['answer']}" if found["answer"] else ""
    notes = (*NOTES, f"Read through {through}.")
    files = write_frame(study.artifacts.artifact(f"tables/{name}"), table)
    drawn, left_out = draw_token_grid(study.artifacts.artifact(f"figures/{name}"), table, model, through)
    page = study.artifacts.artifact(f"pages/{name}.html")
    write_bytes(page, token_grid_page(PAGE, table, found["prompt"], model, through, notes).encode())
    shown = ("position", "token", "depth", "reads", "probability", "hit")
    return Report(table, (*files, *drawn, page), (*notes, *left_out), shown=shown)
