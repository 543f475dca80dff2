"""Reading through a lens: the top tokens at every depth and position of a text."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.lens.edits import edit_prompt, one_token
from interpcore.lens.lens import Lens
from interpcore.lens.options import Change, Prompt, ReadOptions
from interpcore.lens.published import load_lens
from interpcore.lens.study import check_model
from interpcore.model import Model, Tap
from interpcore.model.card import run_card
from interpcore.model.token_text import token_texts
from interpcore.runs import RunFolder, canonical_json, experiment
from interpcore.runs.artifacts import write_bytes
from interpcore.runs.frames import write_frame
from interpcore.runs.token_grid import draw_token_grid, token_grid_page

PAGE = "What a text says through a Jacobian lens"
NOTES = (
    "reads: the tokens that the final norm and the unembedding rank highest after the lens's J, best first; "
    "probability: of the first.",
    "At the lens's target depth J is the identity: the model's own output where that is the last depth.",
)
ALONE = (
    "A branch is read alone: its output through J, without the rest of the stream, under a norm of its own."
)
UNKNOWN = "The lens does not record the weights it was made on; that it is this model's is the caller's word."
EDITED = (
    "target, source: probability of the token steered to or swapped in, and of that swapped out, after the "
    "prompt; plain: without an edit; random: mean over {} random directions of the same lengths and angle.",
    "The edit is made at one depth at a time, at every position.",
)


@torch.no_grad()
def read_states(
    model: Model, lens: Lens, tokens: Tensor, top: int, *, other_model: bool = False
) -> tuple[Tensor, Tensor]:
    """What a text's states mean at the lens's target depth: the tokens ranked highest, one depth at a time.

    Args:
        model: the decoder.
        lens: of this model.
        tokens: a prompt [position] int64.
        top: how many tokens.
        other_model: take a lens of another model, too.
    Returns: tokens, best first, and their probabilities, each [row, position, top]; rows as `rows_of` says.
    Raises: Refused for another model's lens.
    """
    lens.check_model(model, other_model)
    taps = [Tap(lens.site, depth) for depth in lens.depths]
    states = model.forward(tokens[None], taps=taps, logits_at=None).taps
    found = []
    for depth, tap in zip(lens.depths, taps, strict=True):
        h, j = states[tap][0], lens.at(depth)
        if lens.site == "z":
            z = torch.einsum("phe,dhe->hpd", h, j.to(h).unflatten(1, h.shape[1:]))
        else:
            z = lens.carried(h, depth)[None]
        for each in z:
            chances = model.unembed(model.final_norm(each)).float().softmax(-1)
            found.append(chances.topk(min(top, chances.shape[-1])))
    return torch.stack([f.indices for f in found]), torch.stack([f.values for f in found])


def rows_of(lens: Lens, model: Model) -> list[tuple[int, int | None]]:
    """Depth and head of each row that is read; a head only where the lens leads from z."""
    heads = range(model.spec.n_heads) if lens.site == "z" else [None]
    return [(depth, head) for depth in lens.depths for head in heads]


def read_prompt(study: ReadStudy, prompt: str) -> dict[str, Any]:
    """One cell: a text's tokens, and what is read at every depth and position."""
    tokens = study.model.encode(prompt)[0][0]
    how = study.options
    top, chances = read_states(study.model, study.lens, tokens, how.top, other_model=how.other_model)
    return {"tokens": tokens.tolist(), "top": top.tolist(), "probabilities": chances.tolist()}


@dataclass(eq=False)
class ReadStudy(experiment.Study):
    """What the texts share.

    Attributes:
        lens: what they are read through.
    """

    options: ReadOptions
    lens: Lens = field(kw_only=True)

    @property
    def said(self) -> str:
        """The lens in words, for pictures."""
        leads = "" if self.lens.site == "resid" else f"from {self.lens.site} "
        rules = "" if self.lens.rules == "exact" else f", rules {self.lens.rules}"
        return f"a lens {leads}of {self.lens.count} prompts to depth {self.lens.target_depth}{rules}"

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be known of the lens."""
        unknown = () if self.lens.made_on else (UNKNOWN,)
        return unknown if self.lens.site == "resid" else (ALONE, *unknown)

    def read(self, asked: Prompt) -> experiment.Report:
        """What is read in a text, as a table, a heat map and a page."""
        import pandas as pd

        assert self.artifacts is not None
        self._check_depths(asked.depths)
        found: Any = self.sweep(read_prompt, [{"prompt": asked.prompt}], on_error="raise")[0].result
        texts = token_texts(self.model.tokenizer, self.model.spec.vocab_size)
        rows = [
            {
                "position": position,
                "token": texts[token],
                "depth": depth,
                "head": head,
                "reads": " | ".join(texts[i] for i in found["top"][row][position]),
                "first": texts[found["top"][row][position][0]],
                "probability": found["probabilities"][row][position][0],
                "probabilities": " | ".join(f"{p:.3f}" for p in found["probabilities"][row][position]),
            }
            for position, token in enumerate(found["tokens"])
            for row, (depth, head) in enumerate(rows_of(self.lens, self.model))
            if not asked.depths or depth in asked.depths
        ]
        table = pd.DataFrame(rows)
        table = table if self.lens.site == "z" else table.drop(columns="head")
        name = hashlib.sha256(asked.prompt.encode()).hexdigest()[:12]
        files = write_frame(self.artifacts.artifact(f"tables/{name}"), table)
        model = str(self.artifacts.card.model)
        drawn, left_out = draw_token_grid(self.artifacts.artifact(f"figures/{name}"), table, model, self.said)
        page = self.artifacts.artifact(f"pages/{name}.html")
        notes = (*NOTES, *self.notes)
        html = token_grid_page(PAGE, table, asked.prompt, model, self.said, notes)
        write_bytes(page, html.encode())
        shown = tuple(c for c in ("position", "token", "depth", "head", "reads", "probability") if c in table)
        return experiment.Report(table, (*files, *drawn, page), (*notes, *left_out), shown=shown)

    def edit(self, asked: Change) -> experiment.Report:
        """What an edit in the lens's coordinates changes at each depth, beside random directions."""
        import pandas as pd

        assert self.artifacts is not None
        self._check_depths(asked.depths)
        for text in filter(None, (asked.into, asked.out_of)):
            one_token(self.model, text)
        depths = asked.depths or self.lens.depths
        what: dict[str, Any] = {n: v for n, v in asked.arguments().items() if n not in ("depths", "draws")}
        grid = [{**what, "depth": -1, "draw": 0}]
        grid += [{**what, "depth": d, "draw": n} for d in depths for n in range(asked.draws + 1)]
        results: list[Any] = [row.result for row in self.sweep(edit_prompt, grid, on_error="raise")]
        plain, rest = results[0], results[1:]
        texts = token_texts(self.model.tokenizer, self.model.spec.vocab_size)
        sides = ("target", "source") if asked.out_of else ("target",)
        rows = []
        for at, depth in enumerate(depths):
            ours, *random = rest[at * (asked.draws + 1) : (at + 1) * (asked.draws + 1)]
            row: dict[str, Any] = {"depth": depth}
            for side in sides:
                row |= {side: ours[side], f"{side}_plain": plain[side]}
                row[f"{side}_random"] = sum(r[side] for r in random) / len(random)
            rows.append(row | {"top": texts[ours["top"]], "top_plain": texts[plain["top"]]})
        table = pd.DataFrame(rows)
        name = hashlib.sha256(canonical_json(asked.arguments()).encode()).hexdigest()[:12]
        files = write_frame(self.artifacts.artifact(f"tables/edit-{name}"), table)
        notes = (EDITED[0].format(asked.draws), *EDITED[1:], *self.notes)
        return experiment.Report(table, files, notes)

    def _check_depths(self, depths: tuple[int, ...]) -> None:
        for depth in depths:
            self.lens.at(depth)


def read(study: ReadStudy, asked: Prompt) -> experiment.Report:
    """See `ReadStudy.read`."""
    return study.read(asked)


def edit(study: ReadStudy, asked: Change) -> experiment.Report:
    """See `ReadStudy.edit`."""
    if study.lens.site != "resid":
        raise Refused(f"Edits are made in the residual stream; this lens leads from {study.lens.site}.")
    return study.edit(asked)


def open_read(
    model: Model,
    out: str | os.PathLike[str],
    options: ReadOptions,
    *,
    command: str | None = None,
    **how: Any,
) -> ReadStudy:
    """A folder of texts read through one lens; use it as a context manager.

    Args: as `lens.study.open_fit`.
    Raises: Refused for another model's lens; RunError for a damaged one, or a folder that holds another run.
    """
    check_model(model)
    lens = load_lens(options.file, model)
    lens.check_model(model, options.other_model)
    study = ReadStudy(model, options, lens=lens, **how)
    arguments = options.arguments() | {"hash of lens": options.lens_hash()}
    card = run_card(
        model,
        arguments=arguments,
        extends=options.extending(),
        sources=options.circumstances(),
        command=command,
    )
    study.folder = RunFolder.open_or_create(out, card, shared=True)
    study.artifacts = study.folder.artifacts
    return study
