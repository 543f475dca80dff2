"""States, directions and answers recomputed in float64, one whole text at a time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from interpcore.errors import Refused
from interpcore.model import Model
from interpcore.model.plain import Write, check_plain, plain_model, plain_run
from interpcore.model.sites import SITES
from interpcore.runs import read_tensors
from interpcore.runs.checks import SAME, Cell, Checks, Table, within
from interpcore.runs.ledger import Row
from interpcore.steering.accuracy import AccuracyStudy, ask
from interpcore.steering.asking import prepare
from interpcore.steering.grid import SweepStudy, score_slice
from interpcore.steering.interventions import Intervention, Part
from interpcore.steering.prompts import Item
from interpcore.steering.study import StatesStudy, moments_slice, scores_slice, states_slice

FILES_OF_STATES = (moments_slice, states_slice, scores_slice)
LABELS = ("true", "false")
TINY = 1e-300
LEFT_OUT_STATES = "Not recomputed: fits other than the difference in means, cosines, AUROC and probes."
LEFT_OUT_ANSWERS = "Not recomputed: intervals, subsets and p, which are of the answers that are."


def checks(study: Any) -> Checks:
    """What can be recomputed of a folder of states and directions, of a sweep or of an accuracy; see
    `runs.checks`."""
    kinds: dict[Any, tuple[Any, Any]] = {
        StatesStudy: (_states, FILES_OF_STATES),
        SweepStudy: (_sweep, (score_slice,)),
        AccuracyStudy: (_accuracy, (ask,)),
    }
    tables_of, functions = kinds[type(study)]
    names = {f"{f.__module__}.{f.__qualname__}": f for f in functions}
    rows = [row for row in study.folder.ledger if row.task in names]
    failed = tuple(f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed")
    done = {f: [r for r in rows if r.status == "done" and names[r.task] is f] for f in functions}
    dtype = str(study.folder.card.dtype)
    if not any(done.values()):
        return Checks((), dtype, problems=("No cell of this folder is finished.", *failed))
    model = plain_model(study.model)
    first = study.prompts[0] if isinstance(study, StatesStudy) else study.items[0].prompt
    gap = check_plain(model, first)
    anchored = (
        () if gap is None else (f"Written out, the model's logits are transformers' within {gap:.0e}.",)
    )
    tables, notes = tables_of(study, model, done)
    return Checks(tables, dtype, (*anchored, *notes), failed)


class _Seen:
    """States of prompts at every depth of a site, each prompt run alone and when first asked for."""

    def __init__(self, study: StatesStudy, model: Model) -> None:
        self.study, self.model = study, model
        self._kept: dict[int, dict[str, Tensor]] = {}

    def __call__(self, question: int, site: str) -> Tensor:
        """At the last token [depth, d_model]."""
        if question not in self._kept:
            found: dict[str, dict[int, Tensor]] = {name: {} for name in self.study.options.sites}

            def write(at: str, depth: int | None, value: Tensor) -> Tensor:
                if at in found:
                    found[at][depth or 0] = value[-1]
                return value

            with torch.no_grad():
                plain_run(self.model, self.study.prompts[question], write=write)
            self._kept[question] = {
                name: torch.stack([by_depth[d] for d in sorted(by_depth)]) for name, by_depth in found.items()
            }
        return self._kept[question][site]


def _states(study: StatesStudy, model: Model, done: dict[Any, list[Row]]) -> tuple[list[Table], list[str]]:
    """Slices of states at the prompt's last token, and the difference in means of their sums."""
    notes, tables = [LEFT_OUT_STATES], _differences(study, done[moments_slice])
    if study.options.tokens != "last":
        return tables, [*notes, "Not recomputed: states of the model's own answers."]
    seen = _Seen(study, model)
    if done[moments_slice]:
        tables.append(_moments(study, done[moments_slice], seen))
    for function, name in ((states_slice, "states"), (scores_slice, "scores")):
        if done[function]:
            tables.append(_single(study, done[function], seen, name))
    return tables, notes


def _moments(study: StatesStudy, rows: Sequence[Row], seen: _Seen) -> Table:
    """Entries of a slice's mean and squared deviations of one label."""
    sites, width = study.options.sites, study.model.spec.d_model
    depths = [len(seen(0, site)) for site in sites]
    ends = list(accumulate(n * len(rows) * len(LABELS) * width for n in depths))

    def cell(number: int) -> Cell:
        which, number = within(ends, number)
        site = sites[which]
        number, i = divmod(number, width)
        number, depth = divmod(number, depths[which])
        row, label = rows[number // len(LABELS)], LABELS[number % len(LABELS)]
        asked = study.fitted[row.parameters["start"] : row.parameters["stop"]]
        states = [seen(q, site)[depth] for q in asked if study.flags[q] == (label == "true")]
        stored = _tensors(study, row)
        if not states:
            return Cell(
                f"count of {label} in {row.result['file']}", row.result["counts"][LABELS.index(label)], 0
            )
        each = torch.stack(states)
        mean, apart = each.mean(0), each - each.mean(0)
        where = f"{{}} of {label} at {site}.{depth}, entry {i}, in {row.result['file']}"
        found = [Cell(where.format("mean"), float(stored[f"{site}.{label}.mean"][depth, i]), float(mean[i]),
                      float(mean.norm()))]  # fmt: skip
        # A squared deviation is known to a share of the states' own length.
        scale = float(each.norm() * apart.norm())
        squares = float(stored[f"{site}.{label}.squares"][depth, i])
        if scale:
            found.append(Cell(where.format("squares"), squares, float(apart[:, i].square().sum()), scale))
        return max(found, key=lambda one: one.gap)

    return Table("slices", ends[-1], cell, "each prompt alone, its last token's state; sums by label")


def _single(study: StatesStudy, rows: Sequence[Row], seen: _Seen, what: str) -> Table:
    """Kept states of single questions, or how far they lie along the directions."""
    ends = list(accumulate(row.parameters["stop"] - row.parameters["start"] for row in rows))
    sites = study.options.sites

    def cell(number: int) -> Cell:
        which, at = within(ends, number)
        row = rows[which]
        question, site = row.parameters["start"] + at, sites[number % len(sites)]
        states, stored = seen(question, site), _tensors(study, row)
        depth = (number * 7) % len(states)
        own, length = states[depth], float(states[depth].norm())
        where = f"{{}} of question {question} at {site}.{depth}, in {row.result['file']}"
        if what == "states":
            theirs = stored[site][at, depth].double()
            i = int((theirs - own).abs().argmax())
            return Cell(where.format(f"entry {i}"), float(theirs[i]), float(own[i]), length)
        vector = study.load(row.parameters["method"]).vectors[site][depth]
        along = float(own @ vector / vector.norm().clamp(min=TINY))
        a = Cell(where.format("component"), float(stored[f"{site}.along"][at, depth]), along, length)
        b = Cell(where.format("length"), float(stored[f"{site}.length"][at, depth]), length, length)
        return max(a, b, key=lambda one: one.gap)

    return Table(what, ends[-1], cell, "each prompt alone, its last token's state")


def _differences(study: StatesStudy, rows: Sequence[Row]) -> list[Table]:
    """Entries of the difference in means, from all slices."""
    if not rows or not study.file("mean").is_file():
        return []
    directions, sites = study.load("mean"), study.options.sites
    shapes = [directions.vectors[site].shape for site in sites]
    ends = list(accumulate(depths * width for depths, width in shapes))

    def cell(number: int) -> Cell:
        which, number = within(ends, number)
        site = sites[which]
        depth, i = divmod(number, shapes[which][1])
        means = []
        for at, label in enumerate(LABELS):
            parts = [(row.result["counts"][at], _tensors(study, row)) for row in rows]
            total = torch.stack([n * found[f"{site}.{label}.mean"][depth] for n, found in parts if n]).sum(0)
            means.append(total / sum(n for n, _ in parts))
        again, scale = means[0] - means[1], float(means[0].norm())
        where = f"entry {i} of the direction at {site}.{depth}"
        return Cell(where, float(directions.vectors[site][depth, i]), float(again[i]), scale)

    return [Table("directions", ends[-1], cell, "sums over the slices", 1e-10)]


def _tensors(study: StatesStudy, row: Row) -> dict[str, Tensor]:
    assert study.artifacts is not None
    return read_tensors(study.artifacts.artifact(row.result["file"]))[0]


def written(intervention: Intervention, prompt: int) -> Write:
    """What `plain_run` is given to run a text whose prompt has so many tokens under an intervention.

    Raises: Refused for an edit that is not written out.
    """
    if intervention.unwritten is not None:
        raise Refused(intervention.unwritten)

    def write(site: str, depth: int | None, value: Tensor) -> Tensor:
        for part in intervention.parts:
            if (part.site, part.depth) == (site, depth):
                at = _chosen(part, len(value), prompt)
                value = torch.where(at[:, None], _changed(part, value), value)
        return value

    return write


def _chosen(part: Part, n: int, prompt: int) -> Tensor:
    """Positions that a part edits [position] bool."""
    at = torch.arange(n)
    named = {"all": at >= 0, "last": at == prompt - 1, "onward": at >= prompt - 1, "answer": at >= prompt}
    if isinstance(part.positions, str):
        return named[part.positions]
    listed = at[part.positions] if isinstance(part.positions, slice) else at[list(part.positions)]
    return torch.isin(at, listed)


def _changed(part: Part, x: Tensor) -> Tensor:
    """What a part makes of states [position, d_model]."""
    assert part.vector is not None
    v = part.vector.double()
    if part.kind == "add":
        return x + part.coefficient * v
    if part.kind == "low-rank":
        assert part.right is not None
        return x + part.coefficient * (x @ part.right.double().mT) @ v
    u = v / v.norm()
    along = (x @ u)[:, None]
    if part.kind == "clamp":
        start = 0.0 if part.bias is None else float(part.bias.double() @ u)
        return x + (part.coefficient + start - along) * u
    return x + (part.coefficient if part.kind == "amplify" else -1.0) * along * u


def option_again(model: Model, item: Item, option: int, intervention: Intervention) -> tuple[float, float]:
    """Log-probability of an option, its whole text in one run, and the size of what it is a sum of."""
    text = [*item.prompt, *item.options[option]]
    start = len(item.prompt)
    # The last token is read by nothing: an intervention on it changes no score.
    with torch.no_grad():
        logits = plain_run(model, text, write=written(intervention, start)).logits[start - 1 : -1]
    scores = logits.log_softmax(-1)
    own = scores.gather(-1, torch.tensor(item.options[option])[:, None])
    return float(own.sum()), float(scores.abs().max()) * len(own)


def _sweep(study: SweepStudy, model: Model, done: dict[Any, list[Row]]) -> tuple[list[Table], list[str]]:
    """Log-probabilities of options under single edits."""
    options, rows, depths = study.options, done[score_slice], study.depths
    values = (0.0, *options.coefficients)
    places = [
        (row, d, c, q, k)
        for row in rows
        for d in range(len(depths))
        for c in range(len(values))
        for q in range(row.parameters["stop"] - row.parameters["start"])
        for k in range(len(study.items[row.parameters["start"] + q].options))
    ]

    def cell(number: int) -> Cell:
        row, d, c, q, k = places[number]
        item, depth = study.items[row.parameters["start"] + q], depths[d]
        parts = (_part(study, depth, values[c]),) if values[c] else ()
        again, scale = option_again(model, item, k, Intervention(parts))
        where = (
            f"option {k} of question {row.parameters['start'] + q} at {options.site}.{depth}, coefficient "
            f"{values[c]:g}"
        )
        return Cell(where, row.result[d][c][q][k], again, scale)

    how = "each option's text alone and whole, edited position by position"
    return [Table("options", len(places), cell, how)], [LEFT_OUT_ANSWERS]


def _part(study: SweepStudy, depth: int, coefficient: float) -> Part:
    """The edit of a cell of the sweep, from the directions' file."""
    options, directions = study.options, study.directions
    assert directions is not None
    vector, norm = (
        directions.vectors[options.site][depth].double(),
        float(directions.norms[options.site][depth]),
    )
    length = {"unit": 1.0, "norm": norm, "own": float(vector.norm())}[options.scale]
    unit = vector / vector.norm()
    at = None if SITES[options.site].depths == "none" else depth
    added = unit * length if options.edit == "add" else unit
    return Part(options.site, at, options.edit, added, coefficient, options.positions)


def _accuracy(
    study: AccuracyStudy, model: Model, done: dict[Any, list[Row]]
) -> tuple[list[Table], list[str]]:
    """Answers to single questions, and losses of neutral texts, under each condition."""
    rows, notes = done[ask], [LEFT_OUT_ANSWERS]
    losses = Table(
        "neutral texts",
        len(rows) * len(study.neutral),
        partial(_loss, study, model, rows),
        "each text alone and whole, its second half",
    )
    if study.options.answers == "generate":
        return [losses], [*notes, "Not recomputed: generated answers."]
    size = len(rows) * len(study.items)
    how = "each option's text alone and whole; the likeliest, and the right one's share"
    answers = Table("answers", size, partial(_answer, study, model, rows, {}), how)
    return [answers, losses], notes


def _answer(
    study: AccuracyStudy, model: Model, rows: Sequence[Row], asked: dict[str, Any], number: int
) -> Cell:
    row, at = rows[number // len(study.items)], number % len(study.items)
    name, coefficient = row.parameters["condition"], row.parameters["coefficient"]
    if name not in asked:
        before = study.options.prompt if name == "prompt" else None
        asked[name] = (
            prepare(model, study.options, study.options.part, before.replace("\\n", "\n"))
            if before
            else study.items
        )
    item, edited = asked[name][at], study.condition(name, coefficient)
    found = [option_again(model, item, k, edited) for k in range(len(item.options))]
    scores = torch.tensor([score for score, _ in found], dtype=torch.float64)
    scale, index = max(size for _, size in found), item.question.answer_index
    assert index is not None
    best = scores.topk(min(2, len(scores))).values
    close = bool((best.diff().abs() <= 2 * SAME["float32"] * scale).any())
    share = float(scores.softmax(-1)[index])
    where = f"{{}} of question {at} under {name} {coefficient:g}"
    a = Cell(where.format("chance"), row.result["chance"][at], share, max(share * scale, TINY))
    right = float(int(scores.argmax()) == index)
    b = Cell(where.format("right"), float(row.result["right"][at]), right)
    return a if close else max(a, b, key=lambda one: one.gap)


def _loss(study: AccuracyStudy, model: Model, rows: Sequence[Row], number: int) -> Cell:
    row, at = rows[number // len(study.neutral)], number % len(study.neutral)
    name, coefficient = row.parameters["condition"], row.parameters["coefficient"]
    text = study.neutral[at]
    first = max(1, len(text) // 2)
    with torch.no_grad():
        logits = plain_run(model, text, write=written(study.condition(name, coefficient), first)).logits
    scores = logits[first - 1 : -1].log_softmax(-1)
    again = -float(scores.gather(-1, torch.tensor(text[first:])[:, None]).mean())
    where = f"loss of neutral text {at} under {name} {coefficient:g}"
    return Cell(where, row.result["losses"][at], again, float(scores.abs().max()))
