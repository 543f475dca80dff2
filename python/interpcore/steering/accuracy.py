"""What an intervention does to answers, beside its controls: random directions, shuffled labels, a prompt."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interpcore.model.prompts import token_ids
from interpcore.runs import Row
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, new_figure, save_figure
from interpcore.stats import mean_over_clusters
from interpcore.steering import asking
from interpcore.steering.asking import Answers, AskingStudy, answer, measured
from interpcore.steering.choice import text_losses
from interpcore.steering.files import intervention_hash
from interpcore.steering.interventions import Intervention
from interpcore.steering.logs import make_folder, write_logs
from interpcore.steering.options import AccuracyOptions

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

NEUTRAL_TOKENS = 64
SHOWN: tuple[str, ...] = (
    "condition",
    "coefficient",
    "subset",
    "n",
    "right",
    "right_low",
    "right_high",
    "difference",
)
SHOWN += ("difference_low", "difference_high", "p", "chance", "unparsed", "off_target")
NOTE = (
    "off_target: mean next-token loss in nats on the second half of neutral texts (difference from plain); "
    "random N, shuffled N: directions of equal length drawn at random, and made of shuffled labels."
)


def ask(study: AccuracyStudy, condition: str, coefficient: float) -> dict[str, Any]:
    """One cell: every question, and the neutral texts, under one condition."""
    options, asked = study.options, study.items
    if condition == "prompt" and options.prompt is not None:
        asked = asking.prepare(study.model, options, options.part, options.prompt.replace("\\n", "\n"))
    intervention = study.condition(condition, coefficient)
    found = answer(study.model, asked, intervention, options.answers, options.new_tokens)
    return asdict(found) | {"losses": text_losses(study.model, study.neutral, intervention)}


@dataclass(eq=False)
class AccuracyStudy(AskingStudy):
    """What the conditions share.

    Attributes:
        neutral: token ids of neutral texts.
    """

    options: AccuracyOptions
    neutral: list[list[int]] = field(default_factory=list)

    def conditions(self) -> list[dict[str, Any]]:
        """The cells: plain, prompt, and the direction with its controls at every coefficient."""
        options = self.options
        names = ["direction", *(f"random {i}" for i in range(options.controls))]
        if self.directions is not None:
            there = min(len(s) for s in self.directions.shuffled.values()) if self.directions.shuffled else 0
            names += [f"shuffled {i}" for i in range(min(options.controls, there))]
        cells = [{"condition": "plain", "coefficient": 0.0}]
        if options.prompt is not None:
            cells.append({"condition": "prompt", "coefficient": 0.0})
        return cells + [{"condition": n, "coefficient": c} for c in options.coefficients for n in names]

    def condition(self, name: str, coefficient: float) -> Intervention:
        """What a condition edits."""
        kind, _, number = name.partition(" ")
        if kind in ("plain", "prompt"):
            return Intervention()
        if kind == "shuffled":
            return self.intervention(coefficient, int(number))
        whole = self.intervention(coefficient)
        return whole if kind == "direction" else whole.random(1000 * self.options.seed + int(number))

    def run(self) -> list[Row]:
        """Ask under every condition that the folder does not hold yet."""
        return self.sweep(ask, self.conditions(), on_error="raise")

    def _single(self, found: Answers) -> Iterator[dict[str, Any]]:
        """A row of each question."""
        for i, question in enumerate(self.questions):
            kind = "reasoning" if question.is_reasoning else "recall"
            row: dict[str, Any] = {"question": f"{i}: {question.question_id}"}
            row["subset"] = "unscored" if question.memory_reason_score is None else kind
            row["right"] = float(found.right[i])
            yield row | ({"chance": found.chance[i]} if found.chance else {})

    def report(self) -> Report:
        """A row of each condition and subset of the questions."""
        import pandas as pd

        assert self.artifacts is not None
        cells, plain, neutral, rows = self.conditions(), None, [], []
        answers: list[dict[str, Any]] = []
        conditions: list[tuple[dict[str, Any], Answers]] = []
        for cell, row in zip(cells, self.run(), strict=True):
            kept = dict(row.result)
            losses = kept.pop("losses")
            found = Answers(**kept)
            if plain is None:
                plain, neutral = found, losses
            apart = [a - b for a, b in zip(losses, neutral, strict=True)]
            off = {"off_target": sum(losses) / len(losses)}
            if found is not plain:  # which differs from itself by nothing
                moved = mean_over_clusters(apart, range(len(apart)), share=False)
                off |= {"off_target_difference": moved.value}
                off |= {"off_target_difference_low": moved.low, "off_target_difference_high": moved.high}
            rows += [cell | one | off for one in measured(self.questions, found, plain)]
            answers += [cell | one for one in self._single(found)]
            conditions.append((cell, found))
        table = pd.DataFrame(rows)
        table["unparsed"] = table.get("unparsed", float("nan"))
        table["chance"] = table.get("chance", float("nan"))
        place = self.artifacts.artifact
        n = f"{len(self.items)} questions, {len(self.neutral)} neutral texts"
        said = caption(
            model=str(self.artifacts.card.model),
            data=f"answers: {self.options.answers}; questions: {self.options.part} part",
            n=n,
            note="Bars: exact 95% intervals; dashed: the plain model.",
        )
        files: tuple[Path, ...] = write_frame(place("tables/accuracy"), table)
        files += write_frame(place("tables/answers"), pd.DataFrame(answers))
        files += save_figure(place("figures/accuracy"), accuracy_figure(table), said)
        if self.options.logs is not None:
            card, tokenizer = self.artifacts.card, self.model.tokenizer
            files += tuple(write_logs(Path(self.options.logs), card, self.items, conditions, tokenizer))
        shown = tuple(name for name in SHOWN if name in table)
        return Report(table, files, (f"{n}.", *asking.NOTES, NOTE), shown=shown)


def accuracy_figure(table: pd.DataFrame) -> Figure:
    """Share of right answers under every condition with its interval, one panel for each subset."""
    subsets = list(dict.fromkeys(table.subset))
    names = [f"{c} {k:.15g}" if k else c for c, k in zip(table.condition, table.coefficient, strict=True)]
    table = table.assign(name=names)
    order = list(dict.fromkeys(names))
    figure, panels = new_figure(3.4 * len(subsets) + 1, 0.26 * len(order) + 1.6, len(subsets))
    for panel, subset in zip(panels, subsets, strict=True):
        part = table[table.subset == subset].set_index("name").reindex(order)
        errors = [part.right - part.right_low, part.right_high - part.right]
        y = range(len(order))
        panel.errorbar(
            part.right, y, xerr=[e.clip(lower=0) for e in errors], fmt="o", ms=4, color="#3b6ea8", capsize=2
        )
        panel.axvline(float(part.right.iloc[0]), ls="--", color="#999999", lw=1)
        panel.set(xlabel=f"right, {subset}", xlim=(-0.02, 1.02))
        panel.set_yticks(list(y), order if panel is panels[0] else [""] * len(order), fontsize=7)
        panel.invert_yaxis()
    return figure


def neutral_texts(model: Any, options: AccuracyOptions) -> list[list[int]]:
    """Token ids of neutral texts, of `NEUTRAL_TOKENS` at most.

    Raises: Refused where there are too few of two tokens.
    """
    from interpcore.data.tinyworld.corpus import documents
    from interpcore.errors import Refused

    corpus = options.neutral_corpus()
    if corpus is None:
        texts = iter(documents(f"neutral {options.seed}", options.neutral_texts * 4))
    else:
        texts = corpus.texts()
    rows = (token_ids(model.tokenizer, text)[:NEUTRAL_TOKENS] for text in texts if text.strip())
    found = list(islice((row for row in rows if len(row) >= 4), options.neutral_texts))
    if len(found) < 2:
        raise Refused(f"{options.neutral} has {len(found)} neutral texts of four tokens; two are needed.")
    return found


def open_accuracy(
    model: Any,
    out: str | os.PathLike[str],
    options: AccuracyOptions,
    *,
    command: str | None = None,
    **how: Any,
) -> AccuracyStudy:
    """The study in a run folder, new or gone on with; use it as a context manager.

    Args:
        model: the decoder.
        out: the run folder.
        options: what is asked, and what is written.
        command: what was typed, for the card.
        how: workers and progress, see `runs.experiment.Study`.
    Raises: Refused for questions, directions or an intervention that do not serve.
    """
    directions, given = asking.read_written(model, options)
    items, corpus = asking.prepare(model, options, options.part), options.neutral_corpus()
    study = AccuracyStudy(model, options, items=items, directions=directions, given=given, **how)
    study.neutral = neutral_texts(model, options)
    for cell in study.conditions():
        whole = study.condition(cell["condition"], cell["coefficient"])
        whole.check_model(model, options.other_model)
    found = asking.open_folder(
        study,
        out,
        command,
        sources={} if corpus is None else {"neutral": corpus.source_in(out)},
        hash_of_directions=None if directions is None else directions.hash(),
        hash_of_intervention=None if given is None else intervention_hash(given),
        hash_of_neutral_text=options.neutral_hash(),
    )
    assert isinstance(found, AccuracyStudy) and found.artifacts is not None
    try:
        if options.logs is not None:
            make_folder(Path(options.logs), found.artifacts.card)
        if corpus is not None:
            corpus.kept(found.artifacts)
    except BaseException:
        found.close()
        raise
    return found
