"""Reading through a lens: the top tokens at every depth and position of a text."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from interpcore.lens.lens import Lens
from interpcore.lens.options import Prompt, ReadOptions
from interpcore.lens.study import check_model
from interpcore.model import Model, Tap
from interpcore.model.card import run_card
from interpcore.model.token_text import token_texts
from interpcore.runs import RunFolder, experiment
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure

if TYPE_CHECKING:
    from pathlib import Path

    import pandas as pd

NOTES = (
    "reads: the tokens that the final norm and the unembedding rank highest after the lens's J, best first; "
    "probability: of the first.",
    "At the lens's target depth J is the identity: the model's own output where that is the last depth.",
)
INCHES = 0.75, 0.32  # of a cell
LONGEST = 12  # characters that a cell of the picture shows


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
    Returns: tokens, best first, and their probabilities, each [depth, position, top].
    Raises: Refused for another model's lens.
    """
    lens.check_model(model, other_model)
    taps = [Tap("resid", depth) for depth in range(len(lens.jacobian))]
    states = model.forward(tokens[None], taps=taps, logits_at=None).taps
    found = []
    for depth, tap in enumerate(taps):
        z = lens.carried(states[tap][0], depth)
        chances = model.unembed(model.final_norm(z)).float().softmax(-1)
        found.append(chances.topk(min(top, chances.shape[-1])))
    return torch.stack([f.indices for f in found]), torch.stack([f.values for f in found])


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

    def read(self, prompt: str) -> experiment.Report:
        """What is read in a text, as a table and a heat map."""
        import pandas as pd

        assert self.artifacts is not None
        found: Any = self.sweep(read_prompt, [{"prompt": prompt}], on_error="raise")[0].result
        texts = token_texts(self.model.tokenizer, self.model.spec.vocab_size)
        rows = [
            {
                "position": position,
                "token": texts[token],
                "depth": depth,
                "reads": " | ".join(texts[i] for i in found["top"][depth][position]),
                "first": texts[found["top"][depth][position][0]],
                "probability": found["probabilities"][depth][position][0],
            }
            for position, token in enumerate(found["tokens"])
            for depth in range(len(self.lens.jacobian))
        ]
        table = pd.DataFrame(rows)
        name = hashlib.sha256(prompt.encode()).hexdigest()[:12]
        files = write_frame(self.artifacts.artifact(f"tables/{name}"), table)
        drawn = self._draw(self.artifacts.artifact(f"figures/{name}"), table)
        shown = ("position", "token", "depth", "reads", "probability")
        return experiment.Report(table, files + drawn, NOTES, shown=shown)

    def _draw(self, path: Path, table: pd.DataFrame) -> tuple[Path, ...]:
        """Depth over position, each cell with the first token that is read, as dark as it is likely."""
        chances = table.pivot(index="depth", columns="position", values="probability").to_numpy()
        n_depths, n_positions = chances.shape
        figure, (axes,) = new_figure(1.6 + INCHES[0] * n_positions, 1.4 + INCHES[1] * n_depths)
        image = axes.imshow(chances, origin="lower", cmap="Blues", vmin=0, vmax=1, aspect="auto")
        figure.colorbar(image, ax=axes, label="probability")
        for row in table.itertuples():
            colour = "white" if row.probability > 0.6 else "black"
            place: dict[str, Any] = {"ha": "center", "va": "center", "fontsize": 7, "color": colour}
            axes.text(row.position, row.depth, _shown(row.first), parse_math=False, **place)
        asked = table[table.depth == 0].token
        axes.set_xticks(range(n_positions), [_shown(t) for t in asked], rotation=45, ha="right", fontsize=7)
        for label in axes.get_xticklabels():
            label.set_parse_math(False)
        axes.set_yticks(range(n_depths))
        axes.set(xlabel="position", ylabel="depth")
        data = f"a lens of {self.lens.count} prompts to depth {self.lens.target_depth}"
        assert self.artifacts is not None
        said = caption(model=str(self.artifacts.card.model), data=data, n=f"{n_positions} tokens")
        return save_figure(path, figure, said)


def read(study: ReadStudy, asked: Prompt) -> experiment.Report:
    """See `ReadStudy.read`."""
    return study.read(asked.prompt)


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
    lens = Lens.load(options.file)
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


def _shown(token: str) -> str:
    """A token as a cell of the picture shows it: in one line, its spaces visible, cut where it is long."""
    plain = token.replace("\n", "\\n").replace("\t", "\\t")
    plain = f"_{plain[1:]}" if plain.startswith(" ") else plain
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 1]}…"
