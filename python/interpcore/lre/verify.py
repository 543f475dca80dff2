"""Cells of a study recomputed in float64, one whole prompt at a time: operators by autograd, facts by
their definition."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.data.relations import Sample, few_shot_prompt, file_stem, split
from interpcore.lre import tables
from interpcore.lre.crossfit import make_folds
from interpcore.lre.operator import Operator
from interpcore.lre.report import RELATIONS
from interpcore.lre.shared import SharedOperators
from interpcore.lre.states import Depth
from interpcore.lre.trial import draw_targets, run_trial
from interpcore.model import Model
from interpcore.model.names import source_name
from interpcore.model.plain import Write, check_plain, plain_logits, plain_model, plain_run
from interpcore.model.prompts import token_offsets
from interpcore.runs.checks import SAME, Cell, Checks, Table, within
from interpcore.runs.frames import read_frame

FACTS = ("known", "faithfulness", "recall@1", "recall@2", "recall@3", "first_token@1", "causality", "no edit")
SEEN = ("top logit", "state norm")
AVERAGED = (*tables.READING, *tables.EDITING)
LEFT_OUT = (
    "Not recomputed: curves over all depths, the controls that draw or choose (b alone, shuffled, random and "
    "other edits), and intervals."
)


Graph = tuple[Tensor, list[Tensor], Tensor]
"""States that are read [depth, d_model], what was added to each, and z [d_model], which depends on them."""


@dataclass(frozen=True, eq=False)
class Prompted(ShortRepr):
    """One prompt, run whole in float64: its ids, the positions read and written, and what was seen there."""

    ids: tuple[int, ...]
    read: int
    written: int
    resid: dict[int, Tensor]
    embed: Tensor
    logits: Tensor

    @property
    def z(self) -> Tensor:
        """The stream before the final norm at the last token [d_model]."""
        return self.resid[max(self.resid)][-1]

    def h(self, depth: Depth) -> Tensor:
        """The state that an operator reads [d_model]; depth None is the token embedding."""
        return self.embed[self.read] if depth is None else self.resid[depth][self.read]


@dataclass(eq=False)
class TrialAgain:
    """One measured trial: its prompts by definition, each run when first asked for.

    Attributes:
        study: the study, opened.
        model: its model in float64.
        found: what the trial found.
    """

    study: SharedOperators
    model: Model
    found: tables.Result
    _prompts: dict[int, Prompted] = field(default_factory=dict)
    _graphs: list[Graph] | None = None

    def __post_init__(self) -> None:
        name, number, options = self.found["relation"], self.found["trial"], self.study.options
        self.relation = self.study.relation(name)
        self.seed = self.study.trial_seed(name, number)
        self.train, _ = split(self.relation, options.examples, self.seed)
        facts = zip(self.found["subjects"], self.found["objects"], strict=True)
        self.test = [Sample(subject, answer) for subject, answer in facts]
        known = torch.tensor(self.found["known"])
        self.folds = make_folds(self.found["subjects"], known, self.seed, options.protocol)
        self.targets = draw_targets(self.test, known, self.seed)

    @property
    def file(self) -> str:
        """Where its operator is."""
        return f"operators/{file_stem(self.found['relation'])}/{self.found['trial']}.safetensors"

    @cached_property
    def stored(self) -> Operator:
        """Its operator as the run has it."""
        assert self.study.artifacts is not None
        return Operator.load(self.study.artifacts.artifact(self.file))[0]

    def prompt(self, fact: int) -> Prompted:
        """The prompt of a test fact."""
        if fact not in self._prompts:
            self._prompts[fact] = self._prompted(self.train, self.test[fact].subject)
        return self._prompts[fact]

    def examples(self) -> list[Prompted]:
        """The training facts, each asked about with the others above it."""
        return [
            self._prompted([*self.train[:i], *self.train[i + 1 :]], sample.subject)
            for i, sample in enumerate(self.train)
        ]

    def _prompted(self, shown: Sequence[Sample], subject: str) -> Prompted:
        template = self.relation.prompt_templates[self.study.options.template]
        prompt = few_shot_prompt(template, list(shown), subject)
        ids, offsets = token_offsets(self.model.tokenizer, prompt.text)
        if self.study.options.protocol == "paper":
            ends = [find(subject) + len(subject) for find in (prompt.text.rfind, prompt.text.find)]
            read, written = (next(i for i, (_, b) in enumerate(offsets) if b >= end) for end in ends)
        else:
            read = written = max(i for i, (a, b) in enumerate(offsets) if a < prompt.end <= b)
        with torch.no_grad():
            run = plain_run(self.model, ids)
        return Prompted(tuple(ids), read, written, run.resid, run.embed, run.logits[-1])

    def row(self, operator: Operator, i: int) -> tuple[Tensor, Tensor]:
        """Row i of W at the operator's depths [depth, d_model], and entry i of b there [depth]: means over
        the examples of d z_i / d h and of z_i - (J h)_i."""
        if self._graphs is None:
            self._graphs = [read_graph(self.model, prompt, operator.depths) for prompt in self.examples()]
        weights, biases = [], []
        for h, added, z in self._graphs:
            grads = torch.autograd.grad(z[i], added, retain_graph=True, allow_unused=True)
            rows = torch.stack(
                [torch.zeros_like(a) if g is None else g for g, a in zip(grads, added, strict=True)]
            )
            weights.append(rows)
            biases.append(z[i].detach() - (rows * h).sum(-1))
        return torch.stack(weights).mean(0), torch.stack(biases).mean(0)

    def forget(self) -> None:
        """Let the graphs of the examples go."""
        self._graphs = None

    def choice(self, measure: str, fact: int) -> dict[str, Any]:
        """What was chosen for a fact by the other half."""
        chosen = [c for c in self.found["choices"] if c["measure"] == measure]
        return next(c for c, fold in zip(chosen, self.folds, strict=True) if fold.report[fact])

    def hits(self, fact: int) -> Tensor:
        """Tokens that begin a fact's object [vocabulary] bool."""
        return self.study.answers.prefix_hits([self.test[fact].object])[0]

    def answer(self, name: str, fact: int) -> tuple[bool, bool]:
        """An outcome of a test fact, and whether it is too close to call."""
        own = self.prompt(fact)
        top, close = ranked(own.logits, 1)
        if name == "known":
            return bool(self.hits(fact)[top]), close
        if name == "no edit":
            return bool(self.hits(int(self.targets[fact]))[top]), close
        if name == "causality":
            return self._edited(fact)
        chosen, stored = self.choice("faithfulness", fact), self.stored
        depth, beta = chosen["depth"], chosen["beta"]
        at = stored.at(depth)
        z = beta * (stored.weight[at].double() @ own.h(depth)) + stored.bias[at].double()
        places = int(name[-1]) if name.startswith("recall") else 1
        said, unsure = ranked(plain_logits(self.model, z), places)
        if name == "faithfulness":
            return bool(said[0] == top[0]), close or unsure
        if name == "first_token@1":
            return bool(said[0] == self.study.answers.first_tokens([self.test[fact].object])[0]), unsure
        return bool(self.hits(fact)[said].any()), unsure

    def seen(self, name: str, fact: int) -> tuple[float, float]:
        """What a trial says that it saw of a prompt, and the norm of what that is an entry of."""
        own = self.prompt(fact)
        if name == "top logit":
            return float(own.logits.max()), float(own.logits.norm())
        size = float(own.h(self.study.depths[-1]).norm())
        return size, size

    def _edited(self, fact: int) -> tuple[bool, bool]:
        """Whether the edit towards a fact's target succeeds; too close to call where an operator that differs
        in float32's last digits decides otherwise."""
        chosen, stored = self.choice("causality", fact), self.stored
        weight = stored.weight[stored.at(chosen["depth"])]
        target = int(self.targets[fact])
        own, wanted = self.prompt(fact), self.prompt(target).z - self.prompt(fact).z
        eps, damping = torch.finfo(weight.dtype).eps, self.study.options.damping
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        said, unsure = [], False
        for off in (0.0, 4 * eps):
            edit = inverse(weight.double() * (1 + off * noise), eps, damping, chosen["rank"]) @ wanted
            top, close = ranked(self._with_added(own, chosen["depth"], edit), 1)
            said.append(bool(self.hits(target)[top]))
            unsure = unsure or close
        return said[0], unsure or said[0] != said[1]

    @torch.no_grad()
    def _with_added(self, prompt: Prompted, depth: Depth, edit: Tensor) -> Tensor:
        """Logits at the last token [vocabulary] after adding to the state of the position written."""
        return plain_run(self.model, prompt.ids, write=adding(prompt.written, [depth], [edit])).logits[-1]


def read_graph(model: Model, prompt: Prompted, depths: Sequence[Depth]) -> Graph:
    """A prompt run anew with something added to the state that is read, at every depth."""
    added = [torch.zeros(model.spec.d_model, dtype=torch.float64, requires_grad=True) for _ in depths]

    with torch.enable_grad():
        end = plain_run(model, prompt.ids, write=adding(prompt.read, depths, added)).end[-1]
    return torch.stack([prompt.h(depth) for depth in depths]), added, end


def adding(position: int, depths: Sequence[Depth], added: Sequence[Tensor]) -> Write:
    """What adds a vector [d_model] to the state of a position at each depth; None is the token embedding."""
    by_depth = dict(zip(depths, added, strict=True))

    def write(site: str, depth: Depth, value: Tensor) -> Tensor:
        if site not in ("embed", "resid") or depth not in by_depth:
            return value
        return value.index_add(0, torch.tensor([position]), by_depth[depth][None])

    return write


def inverse(weight: Tensor, eps: float, damping: float, rank: int) -> Tensor:
    """The damped pseudo-inverse of the best approximation of a rank [d_model, d_model]; directions below the
    rounding error `eps` of the run are not there."""
    u, s, vh = torch.linalg.svd(weight)
    gains = s / (s.square() + (damping * s[0]) ** 2).clamp(min=1e-300)
    gains = torch.where(s > s[0] * len(s) * eps, gains, 0.0)
    return (vh[:rank].mT * gains[:rank]) @ u[:, :rank].mT


def ranked(logits: Tensor, places: int) -> tuple[Tensor, bool]:
    """The highest tokens [places], and whether two of them, or the last and the next, are nearer to each
    other than float32 tells apart."""
    best = logits.topk(places + 1)
    least = 2 * SAME["float32"] * float(logits.norm())
    return best.indices[:places], bool((best.values.diff().abs() <= least).any())


def checks(study: SharedOperators) -> Checks:
    """What can be recomputed of a study's run; see `runs.checks`."""
    assert study.folder is not None
    name = f"{run_trial.__module__}.{run_trial.__qualname__}"
    rows = [row for row in study.folder.ledger if row.task == name]
    done = tables.measured([row.result for row in rows if row.status == "done"])
    failed = [f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed"]
    if not done:
        return Checks(
            (), str(study.folder.card.dtype), problems=("No trial of this run was measured.", *failed)
        )
    model = plain_model(study.model)
    trials = [TrialAgain(study, model, found) for found in done]
    gap = check_plain(model, trials[0].prompt(0).ids)
    anchored = (
        () if gap is None else (f"Written out, the model's logits are transformers' within {gap:.0e}.",)
    )
    shown = [
        f"{t.found['relation']} {t.found['trial']}: {s.subject} is among its own examples"
        for t in trials
        for s in t.test
        if study.options.protocol == "default" and s.subject in {e.subject for e in t.train}
    ]
    return Checks(
        [_operators(trials), _facts(trials), *_means(study, done)],
        str(study.folder.card.dtype),
        (*anchored, LEFT_OUT),
        (*failed, *shown),
    )


def _operators(trials: Sequence[TrialAgain]) -> Table:
    """Rows of W with their entry of b, at one of the depths that were kept."""
    places = [(trial, depth) for trial in trials for depth in range(len(trial.stored.depths))]
    width, last = trials[0].stored.bias.shape[-1], [trials[0]]

    def cell(number: int) -> Cell:
        (trial, depth), i = places[number // width], number % width
        if trial is not last[0]:
            last[0].forget()
            last[0] = trial
        stored = trial.stored
        weights, biases = trial.row(stored, i)
        where = f"{{}} at {source_name(stored.depths[depth])}, row {i}, of {trial.file}"
        theirs = stored.weight[depth, i].double()
        j = int((theirs - weights[depth]).abs().argmax())
        w = Cell(
            where.format(f"W[{j}]"), float(theirs[j]), float(weights[depth, j]), float(weights[depth].norm())
        )
        norm = float(stored.bias[depth].double().norm())
        b = Cell(where.format("b"), float(stored.bias[depth, i]), float(biases[depth]), norm)
        return max(w, b, key=lambda one: one.gap)

    how = "means over the examples, each a prompt of its own, of d z_i / d h and z_i - (J h)_i by autograd"
    return Table("operators", len(places) * width, cell, how)


def _facts(trials: Sequence[TrialAgain]) -> Table:
    """Outcomes of single test facts."""
    ends = list(accumulate(len(trial.test) for trial in trials))
    names = (
        *FACTS,
        *(SEEN if all("seen" in trial.found for trial in trials) else ()),
    )  # earlier runs lack it

    def cell(number: int) -> Cell:
        fact, name = number // len(names), names[number % len(names)]
        t, at = within(ends, fact)
        trial = trials[t]
        place = (
            f"{name} of {trial.test[at].subject!r} in {trial.found['relation']}, trial {trial.found['trial']}"
        )
        if name in SEEN:
            return Cell(place, trial.found["seen"][name][at], *trial.seen(name, at))
        stored = trial.found["known"][at] if name == "known" else trial.found["outcomes"][name][at]
        again, close = trial.answer(name, at)
        return Cell(place, float(stored), float(again), open=close)

    how = "each prompt alone and whole; W and b as stored"
    return Table("subjects", ends[-1] * len(names), cell, how)


def _means(study: SharedOperators, done: Sequence[tables.Result]) -> list[Table]:
    """Means of the relations' table from the trials' outcomes."""
    assert study.artifacts is not None
    file = study.artifacts.path / "artifacts" / RELATIONS
    if not file.is_file():
        return []
    frame = read_frame(file)
    frame = frame[frame.trials > 0].reset_index(drop=True)
    names = [n for n in frame.columns if n in ("n_test", "n_known", "trials", *AVERAGED)]
    names += [f"{n}_all" for n in AVERAGED if f"{n}_all" in frame.columns]
    cell = partial(_mean_cell, frame.to_dict("records"), names, done)
    return [Table("relations", len(frame) * len(names), cell, "means over the trials' facts", 1e-12)]


def _mean_cell(
    records: Sequence[dict[str, Any]], names: Sequence[str], done: Sequence[tables.Result], number: int
) -> Cell:
    row, name = records[number // len(names)], names[number % len(names)]
    mine = [r for r in done if r["relation"] == row["relation"]]
    if name == "trials":
        again: float = len(mine)
    elif name.startswith("n_"):
        again = sum(r[name] for r in mine)
    else:
        measure, over_all = name.removesuffix("_all"), name.endswith("_all")
        facts = [zip(r["outcomes"][measure], r["known"], strict=True) for r in mine]
        again = statistics.fmean(value for r in facts for value, known in r if known or over_all)
    return Cell(f"{name} of {row['relation']}", float(row[name]), float(again), max(abs(again), 1.0))
