"""Items under plans recomputed in float64, one whole text at a time, each under its plan from the first
block on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from statistics import fmean

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.model import Model, Plan
from interpcore.model.plain import check_plain, plain_model, plain_run
from interpcore.model.prompts import token_offsets
from interpcore.runs.checks import SAME, Cell, Checks, Table, within
from interpcore.runs.frames import read_frame
from interpcore.runs.ledger import Row
from interpcore.surgery.items import Item, read_items, shuffled
from interpcore.surgery.options import TEXT
from interpcore.surgery.results import PER
from interpcore.surgery.study import Study, measure_control, measure_plans
from interpcore.surgery.tables import MEANS, MEANS_OF_TEXT

VALUES = ("loss", "first_loss", "probability", "kl")
ANSWERS = ("rank", "exact", "agreement")
LEFT_OUT = "Not recomputed: intervals and continuations; influence, tokens, patch, trace and stand-in."


@dataclass(frozen=True, eq=False)
class Scored(ShortRepr):
    """One text under one plan.

    Attributes:
        scores: log-probabilities of its scored tokens [token, vocabulary].
        tokens: these.
        first: which of them is the first that writes more than a space.
    """

    scores: Tensor
    tokens: Tensor
    first: int

    @property
    def own(self) -> Tensor:
        """Log-probability of each scored token [token]."""
        return self.scores.gather(-1, self.tokens[:, None])[:, 0]

    @property
    def scale(self) -> float:
        """The largest log-probability in size: what one of them is known to a share of."""
        return float(self.scores.abs().max())

    def close(self, one: Tensor, other: Tensor) -> bool:
        """Whether float32 cannot tell two log-probabilities of any token [token] apart."""
        return bool(((one - other).abs() <= 2 * SAME["float32"] * self.scale).any())


@dataclass(eq=False)
class CellAgain:
    """One cell of the ledger, measured anew item by item.

    Attributes:
        study: the study, opened.
        model: its model in float64.
        row: of the ledger.
    """

    study: Study
    model: Model
    row: Row
    _kept: dict[tuple[int, str], list[Scored]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        asked = self.row.parameters
        task, where = asked["task"], (asked["n"], asked["seed"], asked["half"])
        if task == TEXT:
            self.items = self.study.items(task, *where)
            self.task = None
        else:
            own = self.study.task(task, *where)
            self.task = own if self.row.task.endswith(measure_plans.__qualname__) else shuffled(own)
            self.items = read_items(self.model, self.task, self.study.options.protocol)
        self.plans: list[str] = list(self.row.result["plans"])

    @property
    def size(self) -> int:
        """Items under plans."""
        return len(self.items) * len(self.plans)

    def scored(self, item: int, plan: str) -> list[Scored]:
        """The texts of an item under a plan."""
        if (item, plan) not in self._kept:
            under = self.model.with_plan(Plan.parse(plan, self.study.intact))
            with torch.no_grad():
                self._kept[item, plan] = [
                    _scored(under, ids, start, first) for ids, start, first in self._texts(self.items[item])
                ]
        return self._kept[item, plan]

    def _texts(self, item: Item) -> list[tuple[Sequence[int], int, int]]:
        """Ids of an item's texts, where the answer begins, and the first token that writes of it."""
        if self.task is None:
            return [(item.rows[0].tokens, 1, 1)]
        if self.study.options.protocol == "paper":
            return [(row.tokens, len(row.tokens) - 1, len(row.tokens) - 1) for row in item.rows]
        answers = item.example.answers if self.task.scorer == "any_of" else (item.example.answer,)
        found: list[tuple[Sequence[int], int, int]] = []
        for answer in answers:
            text, begins = self.task.joined(item.example.prompt, answer), len(item.example.prompt)
            ids, spans = token_offsets(self.model.tokenizer, text)
            reaching = [i for i, (_, stop) in enumerate(spans) if stop > begins]
            writing = [i for i in reaching if text[max(spans[i][0], begins) : spans[i][1]].strip()]
            found.append((ids, reaching[0], writing[0] if writing else reaching[0]))
        return found

    def values(self, item: int, plan: str) -> dict[str, tuple[float, float, bool]]:
        """Every measure with its scale (0 where it must be equal), and whether it is too close to call."""
        texts, intact = self.scored(item, plan), self.scored(item, self.study.intact.text)[0]
        best = min(texts, key=lambda text: -float(text.own[text.first]))
        losses = torch.stack([-text.own.sum() for text in texts])
        scale = max(text.scale for text in texts)
        at, own = best.scores[best.first], best.own[best.first]
        others = torch.cat([at[: best.tokens[best.first]], at[best.tokens[best.first] + 1 :]])
        hits = [bool((text.scores.argmax(-1) == text.tokens).all()) for text in texts]
        unsure = any(text.close(*text.scores.topk(2).values.T) for text in (*texts, intact))
        same = texts[0].scores.argmax(-1) == intact.scores.argmax(-1)
        apart = (intact.scores.exp() * (intact.scores - texts[0].scores)).sum(-1).mean()
        chance = float(own.exp())
        return {
            "loss": (-float((-losses).logsumexp(0)), scale * max(len(text.tokens) for text in texts), False),
            "first_loss": (-float(own), scale, False),
            "probability": (chance, max(scale * chance, 1e-300), False),
            "kl": (float(apart), scale, False),
            "rank": (1.0 + int((others > own).sum()), 0.0, best.close(others, own)),
            "exact": (float(any(hits)), 0.0, unsure),
            "agreement": (float(same.double().mean()), SAME["float32"], unsure),
        }


def _scored(model: Model, ids: Sequence[int], start: int, first: int) -> Scored:
    logits = plain_run(model, ids).logits[start - 1 : -1]
    return Scored(logits.log_softmax(-1), torch.as_tensor(list(ids[start:])), first - start)


def checks(study: Study) -> Checks:
    """What can be recomputed of a folder of surgery; see `runs.checks`."""
    assert study.folder is not None
    own = {f"{f.__module__}.{f.__qualname__}" for f in (measure_plans, measure_control)}
    rows = [row for row in study.folder.ledger if row.task in own]
    failed = tuple(f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed")
    done = [row for row in rows if row.status == "done"]
    dtype = str(study.folder.card.dtype)
    if not done:
        return Checks((), dtype, problems=("No task of this folder was measured under a plan.", *failed))
    model = plain_model(study.model)
    cells = [CellAgain(study, model, row) for row in done]
    differing = tuple(
        f"{cell.row.key} is of other items than {cell.row.parameters['task']} has"
        for cell in cells
        if [item.id for item in cell.items] != cell.row.result["items"]
    )
    gap = check_plain(model, cells[0].items[0].rows[0].tokens)
    anchored = (
        () if gap is None else (f"Written out, the model's logits are transformers' within {gap:.0e}.",)
    )
    tables = [_items(cells, VALUES), _items(cells, ANSWERS), *_means(study, done)] if not differing else []
    return Checks(tables, dtype, (*anchored, LEFT_OUT), (*failed, *differing))


def _items(cells: Sequence[CellAgain], names: Sequence[str]) -> Table:
    """Measures of single items under plans; of an item the one that is farthest from what was found."""
    ends = list(accumulate(cell.size for cell in cells))

    def cell(number: int) -> Cell:
        which, at = within(ends, number)
        one = cells[which]
        plan, item = one.plans[at // len(one.items)], at % len(one.items)
        again, stored = one.values(item, plan), one.row.result["plans"][plan]
        where = f"{{}} of {one.items[item].id} in {one.row.parameters['task']} under {plan!r}"
        found = [Cell(where.format(name), stored[name][item], *again[name]) for name in names]
        return max(found, key=lambda each: (not each.open, each.gap))

    kind = "values" if names is VALUES else "answers"
    return Table(
        f"items: {kind}", ends[-1], cell, "each text alone, whole, under its plan from the first block"
    )


def _means(study: Study, done: Sequence[Row]) -> list[Table]:
    """Means of the table of `surgery run` over the items of the ledger."""
    assert study.artifacts is not None
    file = study.artifacts.path / "artifacts" / "tables" / "run.parquet"
    if not file.is_file():
        return []
    listed = []
    for line in read_frame(file).to_dict("records"):
        mine = [
            row.result
            for row in done
            if row.task.endswith(measure_plans.__qualname__)
            and row.parameters["task"] == line["task"]
            and len(row.result["items"]) == line["n"]
            and line["calls"] in row.result["plans"]
        ]
        names = MEANS_OF_TEXT if line["task"] == TEXT else MEANS
        if len(mine) == 1:  # a plan drawn at random is a mean over several
            listed += [(line, mine[0], name) for name in names if name in line]

    def cell(number: int) -> Cell:
        line, said, name = listed[number]
        values = said["plans"][line["calls"]][name if name not in PER else "loss"]
        if name in PER:
            values = [v / n for v, n in zip(values, said[PER[name]], strict=True)]
        again = fmean(values)
        where = f"{name} of {line['plan']!r} on {line['task']}"
        return Cell(where, float(line[name]), again, max(abs(again), 1.0))

    return [Table("tables/run", len(listed), cell, "means over the ledger's items", 1e-12)] if listed else []
