"""Cells of a study recomputed from their definition in float64: one pair and one circuit at a time, every
destination with an input of its own, gradients by autograd."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.circuit import Circuit
from interpcore.circuits.graph import Graph
from interpcore.circuits.metrics import Metric
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.scores import Scores
from interpcore.circuits.study.cells import attribute_cell, curve_cell
from interpcore.circuits.study.scored import Scored, at_level
from interpcore.circuits.study.study import Study
from interpcore.model import Model
from interpcore.model.plain import Found, check_plain, plain_model, plain_run
from interpcore.runs import read_tensors
from interpcore.runs.checks import Cell, Checks, Table
from interpcore.runs.ledger import Row

BY_GRADIENT = ("eap", "eap-ig-inputs", "clean-corrupted")
INTERVENTIONS = ("patching", "zero")
MEASURED = ("value", "clean", "ablated", "faithfulness")


@dataclass(frozen=True, eq=False)
class PairAgain(ShortRepr):
    """One pair under a metric: what its sources write on both sides, and patched runs over it.

    Args:
        model: in float64.
        graph: whose edges.
        pair: the pair, a row of its own.
        metric: what is measured.
        clean, other: what every source writes on the clean prompt, and what stands in for it
            [n_sources, position, d_model].
        logits: of the clean prompt at its last token [vocabulary].
    """

    model: Model
    graph: Graph
    pair: Pairs
    metric: Metric
    clean: Tensor
    other: Tensor
    logits: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, model: Model, graph: Graph, pair: Pairs, metric: Metric, intervention: str) -> PairAgain:
        """A pair, both prompts run whole."""
        ids, corrupted = pair.clean[0], pair.corrupted[0]
        run, theirs = plain_run(model, ids), plain_run(model, corrupted)
        clean, other = (
            sources(model, graph, tokens, {"z": each.z, "mlp": each.mlp}, graph.n_sources)
            for tokens, each in ((ids, run), (corrupted, theirs))
        )
        other = torch.zeros_like(other) if intervention == "zero" else other
        return cls(model, graph, pair, metric, clean, other, run.logits[-1])

    def measured(self, logits: Tensor) -> Tensor:
        """The metric of logits at the last token [vocabulary]."""
        return self.metric(logits[None], self.pair, self.logits[None])[0]

    @torch.no_grad()
    def value(self, edges: Tensor, neurons: Tensor | None = None) -> float:
        """The metric with every edge outside a circuit [n_sources, n_destinations] bool corrupted, and what
        its edges carry of entries outside its neurons [n_sources, d_model] bool, where they are given."""

        def read(destination: str, depth: int, stream: Tensor, found: Found) -> Tensor:
            at = destinations(self.graph, destination, depth)
            before = int(self.graph.prefix[at.start])
            gone = ~edges[:before, at, None]
            if neurons is not None:
                gone = gone | ~neurons[:before, None]
            if not bool(gone.any()):
                return stream
            moved = self.other[:before] - sources(self.model, self.graph, self.pair.clean[0], found, before)
            share = (gone * self.graph.weights[:before, at, None]).expand(-1, -1, moved.shape[-1])
            own = stream + torch.einsum("snd,spd->npd", share, moved)
            return own if destination in "qkv" else own[0]

        return float(self.measured(plain_run(self.model, self.pair.clean[0], read=read).logits[-1]))

    def scores(self, points: Sequence[float], weights: Sequence[float]) -> Tensor:
        """Every edge's score by the gradients at points between the corrupted (0) and the clean prompt (1)
        [n_sources, n_destinations]."""
        total = torch.zeros(self.graph.n_sources, self.graph.n_destinations, dtype=torch.float64)
        table = self.model.embedding
        ends = table[self.pair.corrupted[0]], table[self.pair.clean[0]]
        for point, weight in zip(points, weights, strict=True):
            added: list[tuple[slice, Tensor]] = []

            def read(
                destination: str, depth: int, stream: Tensor, found: Found, added: Any = added
            ) -> Tensor:
                at = destinations(self.graph, destination, depth)
                own = stream.new_zeros(at.stop - at.start, *stream.shape).requires_grad_()
                added.append((at, own))
                return stream + (own if destination in "qkv" else own[0])

            def write(site: str, depth: int | None, value: Tensor, point: float = point) -> Tensor:
                return value if site != "embed" else ends[0] + point * (ends[1] - ends[0])

            with torch.enable_grad():
                logits = plain_run(self.model, self.pair.clean[0], write=write, read=read).logits[-1]
                grads = torch.autograd.grad(
                    self.measured(logits), [own for _, own in added], allow_unused=True
                )
            for (at, _), grad in zip(added, grads, strict=True):
                before = int(self.graph.prefix[at.start])
                if grad is not None:
                    moved = self.clean[:before] - self.other[:before]
                    total[:before, at] += weight * torch.einsum("spd,npd->sn", moved, grad)
        return total * self.graph.weights


def destinations(graph: Graph, name: str, depth: int) -> slice:
    """Indices of what reads the stream at a place of a run."""
    if name in "qkv":
        return graph.head_destinations(depth, name)
    one = graph.logits if name == "logits" else graph.mlp_destination(depth)
    return slice(one, one + 1)


def sources(model: Model, graph: Graph, ids: Tensor, found: Found, count: int) -> Tensor:
    """What the first sources write to the stream [count, position, d_model], of a run as far as it is."""
    listed = [(model.embedding[ids] * model.spec.embed_scale)[None]]
    for depth in range(graph.blocks):
        if sum(map(len, listed)) >= count:
            break
        listed.append(written_by_heads(model, depth, found["z"][depth]))
        if sum(map(len, listed)) < count:
            listed.append(found["mlp"][depth][None])
    return torch.cat(listed)[:count]


def written_by_heads(model: Model, depth: int, z: Tensor) -> Tensor:
    """What each head writes [head, position, d_model], of z [position, head, d_head]; a norm behind them
    keeps the scale of this run."""
    block = model.block(depth)
    weight = block.attention.out.weight.unflatten(0, z.shape[-2:])
    out, norm = torch.einsum("phe,hed->hpd", z, weight), block.attn_post_norm
    if norm is None:
        return out
    out = out - out.mean(-1, keepdim=True) if norm.center else out
    out = out / (out.sum(0).square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return out if norm.weight is None else out * (norm.weight + norm.offset)


def checks(study: Study) -> Checks:
    """What can be recomputed of a study's run; see `runs.checks`."""
    assert study.folder is not None
    rows, dtype = list(study.folder.ledger), str(study.folder.card.dtype)
    failed = [f"{row.key} broke off: {row.error}" for row in rows if row.status == "failed"]
    done = [row for row in rows if row.status == "done"]
    scored, curves = (
        [row for row in done if row.task.startswith(_task(f))] for f in (attribute_cell, curve_cell)
    )
    if study.options.intervention not in INTERVENTIONS:
        said = (
            f"Runs with intervention {study.options.intervention} are not recomputed; means are of all pairs."
        )
        return Checks((), dtype, (said,), tuple(failed))
    if not scored:
        return Checks((), dtype, problems=("This run holds no finished scores.", *failed))
    model = plain_model(study.model)
    again = _Again(study, model)
    tables, left = [], []
    for row in scored:
        made, refused = _scores(again, **row.parameters)
        tables += made
        left += refused
    tables += [table for row in curves for table in _curve(again, row)]
    first = again.pairs(scored[0].parameters["task"], "discovery").rows([0]).clean[0].tolist()
    gap = check_plain(model, first)
    notes = [] if gap is None else [f"Written out, the model's logits are transformers' within {gap:.0e}."]
    notes.append(f"Not recomputed: {'; '.join([*left, 'random circuits', 'intervals'])}.")
    return Checks(tables, dtype, tuple(notes), tuple(failed))


def _task(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


@dataclass(eq=False)
class _Again:
    """The study's pairs, run when first asked for; those of one table at a time.

    Attributes:
        study: the study, opened.
        model: its model in float64.
    """

    study: Study
    model: Model
    _kept: tuple[Any, dict[int, PairAgain]] = (None, {})

    def pairs(self, task: str, side: str) -> Pairs:
        """A task's pairs for "discovery" or "held-out"."""
        return self.study.pairs(task)[side == "held-out"]

    def pair(self, task: str, side: str, metric: Metric, number: int) -> PairAgain:
        """One pair under a metric."""
        key = task, side, str(metric)
        if self._kept[0] != key:
            self._kept = key, {}
        if number not in self._kept[1]:
            pair = self.pairs(task, side).rows([number])
            intervention = self.study.intervention(task).name
            self._kept[1][number] = PairAgain.of(self.model, self.study.graph, pair, metric, intervention)
        return self._kept[1][number]


def _scores(again: _Again, task: str, **what: Any) -> tuple[list[Table], list[str]]:
    """Tables of a cell's score files, and what of them is not recomputed."""
    asked, study = Scored(**what), again.study
    chosen = asked.by
    if not asked.plain or chosen.own_rules or not (chosen.exact or chosen.options["method"] in BY_GRADIENT):
        return [], [f"{asked.file} scores of {task}"]
    made = [(asked.method, None)] if not chosen.exact else [("exact", None), ("exact-kl", "kl")]
    tables = []
    for name, metric in made:
        scores = study.scores(task, name)
        measured = study.metric(task, metric or chosen.metric)
        edges = scores.scored.nonzero().tolist()
        cell = partial(_score_cell, again, task, name, scores, measured, edges, {}, chosen.exact)
        how = "a patched run for each pair" if chosen.exact else "gradients by autograd at every destination"
        tables.append(Table(f"{task} {name}", len(edges), cell, how))
    return tables, []


def _score_cell(
    again: _Again,
    task: str,
    name: str,
    scores: Scores,
    metric: Metric,
    edges: Sequence[Sequence[int]],
    kept: dict[str, Tensor],
    exact: bool,
    number: int,
) -> Cell:
    source, destination = edges[number]
    graph, n = scores.graph, len(again.pairs(task, "discovery"))
    pairs = (again.pair(task, "discovery", metric, i) for i in range(n))
    if exact:
        mask = graph.legal.clone()
        mask[source, destination] = False
        found = sum(float(p.measured(p.logits)) - p.value(mask) for p in pairs) / n
    else:
        if "all" not in kept:
            points, weights = _points(scores)
            kept["all"] = sum((p.scores(points, weights) for p in pairs), torch.zeros(())) / n
        found = float(kept["all"][source, destination])
    scale = float(scores.values.nan_to_num().double().norm())
    where = f"{graph.edge_name(source, destination)} in scores/{task}/{name}"
    return Cell(where, float(scores.values[source, destination]), found, scale)


def _points(scores: Scores) -> tuple[list[float], list[float]]:
    """Where gradients were taken, as the scores' file says: 0 is the corrupted prompt, 1 the clean one."""
    if scores.method != "eap-ig-inputs":
        return ([1.0], [1.0]) if scores.method == "eap" else ([0.0, 1.0], [0.5, 0.5])
    m, nodes = scores.notes["steps"], scores.notes["nodes"]
    shift = {"midpoint": 0.5, "left": 0.0, "right": 1.0}[nodes]
    return [(k + shift) / m for k in range(m)], [1 / m] * m


def _curve(again: _Again, row: Row) -> list[Table]:
    """A curve's values by pair and circuit, and what its rows say of them."""
    study, asked = again.study, row.parameters
    task, method, sizes, on = asked["task"], asked["method"], asked["sizes"], asked.get("on")
    level = asked.get("level", "edge")
    file = study.value_file(task, method, sizes, on, level)
    values = read_tensors(file)[0]["values"]
    graph, metric = study.graph, study.metric(on or task)
    whole = [Circuit.full(graph), Circuit.empty(graph)]
    circuits = [*whole, *study.circuits(task, method, sizes, level)]
    n = values.shape[1]
    named = ["the whole graph", "no edge", *(f"the circuit of {size} {level}s" for size in sizes)]

    def value(number: int) -> Cell:
        i, c = divmod(number, len(circuits))  # pair by pair
        found = again.pair(on or task, "held-out", metric, i).value(circuits[c].edges, circuits[c].neurons)
        where = f"{metric.name} of {named[c]} on pair {i} of {on or task}, in {file.name}"
        return Cell(where, float(values[c, i]), found, float(values[:, i].norm()))

    results = row.result

    def mean(number: int) -> Cell:
        c, name = number // len(MEASURED), MEASURED[number % len(MEASURED)]
        own, clean, ablated = (float(values[at].mean()) for at in (2 + c, 0, 1))
        made = {"value": own, "clean": clean, "ablated": ablated}
        found = (own - ablated) / (clean - ablated) if name == "faithfulness" else metric.natural(made[name])
        stored = results[c][name]
        close = name == "faithfulness" and bool(results[c]["refused"])
        where = f"{name} of {named[2 + c]} of {task}, {method}"
        return Cell(where, float(stored), found, max(abs(found), 1.0), open=close)

    title = f"{task} {at_level(method, level)} on {on or task}"
    return [
        Table(f"{title}: values", n * len(circuits), value, "the pair alone, every destination by itself"),
        Table(f"{title}: curve", len(results) * len(MEASURED), mean, "means over the pairs' values", 1e-9),
    ]
