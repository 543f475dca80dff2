"""A whole experiment: from which depth on can the model's answer be read with its own final norm?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from interpcore.model import Tap
from interpcore.model.card import run_card
from interpcore.runs import Row, RunFolder, experiment, options
from interpcore.runs.frames import write_frame
from interpcore.runs.options import option
from interpcore.runs.plots import caption, new_figure, save_figure
from interpcore.stats import mean_over_clusters


@dataclass(frozen=True, kw_only=True)
class Options(options.Options):
    """Each field is an option of the command, a line of the card, and a field of an agent's tool."""

    prompts: tuple[str, ...] = option(("one two", "a red"), "Texts to read.", flag="prompt", extends=True)
    top: int = option(1, "The answer is read where it is among so many tokens.", least=1)


def read_prompt(study: Study, prompt: str) -> list[bool]:
    """One cell: whether the reading at each depth holds the model's next token."""
    model = study.model
    taps = [Tap("resid", depth, positions=-1) for depth in range(model.plan.n_calls + 1)]
    out = model.forward(*model.encode(prompt), taps=taps, logits_at="last")
    answer = out.logits[0].argmax()
    readings = [model.unembed(model.final_norm(out.taps[tap][0, 0])) for tap in taps]
    return [bool((logits.topk(study.options.top).indices == answer).any()) for logits in readings]


class Study(experiment.Study):
    """What the cells share, and what becomes of their rows."""

    def run(self) -> list[Row]:
        """Read every prompt that the folder does not hold yet."""
        return self.sweep(read_prompt, [{"prompt": prompt} for prompt in self.options.prompts])

    def report(self) -> experiment.Report:
        """Share of prompts read at each depth, as a table and a picture."""
        import pandas as pd

        found, place = [row.result for row in self.run()], self.artifacts.artifact
        shares = [mean_over_clusters(read, range(len(read))) for read in zip(*found, strict=True)]
        columns = {"read": "value", "read_low": "low", "read_high": "high"}
        table = pd.DataFrame({name: [getattr(s, end) for s in shares] for name, end in columns.items()})
        table.insert(0, "depth", range(len(shares)))
        figure, [axes] = new_figure(5, 3)
        axes.plot(table.depth, table["read"], "o-")
        axes.fill_between(table.depth, table.read_low, table.read_high, alpha=0.2)
        axes.set(xlabel="depth", ylabel="share of prompts read", ylim=(-0.02, 1.02))
        said = caption(model=self.artifacts.card.model, data="the prompts given", n=f"{len(found)} prompts")
        files = write_frame(place("tables/depths"), table)
        files += save_figure(place("figures/depths"), figure, said)
        return experiment.Report(table, files, ("read: share of prompts, with its exact 95% interval.",))


def open_study(model: Any, out: Any, options: Options, *, command: str | None = None, **how: Any) -> Study:
    """The study in a run folder, whose card holds everything that the result depends on."""
    said = {"arguments": options.arguments(), "extends": options.extending(), "command": command}
    folder = RunFolder.open_or_create(out, run_card(model, **said), shared=True)
    return Study(model, options, folder.artifacts, folder, **how)


LOGIT_LENS = experiment.Experiment(
    name="logit-lens",
    sentence="From which depth on the model's next token can be read with its final norm.",
    example="interpcore logit-lens --model tiny --prompt 'one two' --out runs/lens",
    options=Options,
    opens="logit_lens:open_study",
)
