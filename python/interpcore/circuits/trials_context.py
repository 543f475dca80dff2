"""What trials on circuits run in: pairs of a task, the circuit that attribution finds, and what it
carries."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from interpcore._shown import ShortRepr
from interpcore.circuits.chance import random_circuit
from interpcore.circuits.circuit import Circuit, sizes_of
from interpcore.circuits.graph import Graph
from interpcore.circuits.methods import method_of
from interpcore.circuits.metrics import Metric
from interpcore.circuits.new_pairs import RESERVED, new_rows
from interpcore.circuits.options import Options as StudyOptions
from interpcore.circuits.pairs import Pairs
from interpcore.circuits.patching.faithfulness import evaluate
from interpcore.circuits.study.cells import run_scores
from interpcore.circuits.study.study import Study, open_study
from interpcore.circuits.tasks import generate_pairs, pairs_of_rows, task_info
from interpcore.data.prompt_pairs import MAIN_TASKS
from interpcore.errors import Refused
from interpcore.generalize.context import UNTRAINED, Context, Setting
from interpcore.generalize.measured import Measured
from interpcore.model import Model
from interpcore.runs import cell_seed
from interpcore.runs.options import Options, option

RANDOM, PERMUTED = "best random circuit", "permuted heads"


@dataclass(frozen=True, kw_only=True)
class Settings(Options):
    """How circuits are found and measured."""

    pairs: int = option(40, "Pairs of each task; half find the circuit, half measure it.", least=4)
    size: str = option("10%", "Edges of a circuit: 200, 0.05 or 5%.")
    method: str = option("eap-ig", "The method that finds it.")
    other_method: str = option("eap", "The other method, for C3.")
    random: int = option(100, "Random connected circuits of equal size to be better than.", least=1)
    seed: int = option(0, "Of every draw.")

    def check_data(self) -> None:
        """See `Options.check_data`: the methods' names."""
        for name in (self.method, self.other_method):
            method_of(name)


@dataclass(frozen=True, eq=False)
class Carried(ShortRepr):
    """What a circuit does on pairs beside the whole model and nothing [pair] each."""

    values: Tensor
    full: Tensor
    empty: Tensor

    def ratio(self, units: Sequence[str], **more: Any) -> Measured:
        """Faithfulness over units."""
        top, bottom = self.values - self.empty, self.full - self.empty
        return Measured.ratio(top.tolist(), bottom.tolist(), units, **more)

    @property
    def faithfulness(self) -> float:
        """The value alone."""
        return float((self.values - self.empty).mean() / (self.full - self.empty).mean())


class Circuits(Context):
    """Circuits of a model: `circuit`, `carried`, `new_pairs`."""

    controls: ClassVar[tuple[str, ...]] = (UNTRAINED, RANDOM, PERMUTED)

    @classmethod
    def data(cls, setting: Setting) -> Mapping[str, str]:
        """Hashes of the pairs of every task, as the stating model's tokenizer writes them."""
        count, seed = setting.options.pairs, setting.options.seed
        made = {task: generate_pairs(task, setting.model.tokenizer, count, seed) for task in MAIN_TASKS}
        return {task: hashlib.sha256(repr(pairs.texts).encode()).hexdigest() for task, pairs in made.items()}

    def found(self, model: Model, task: str, method: str = "") -> tuple[Circuit, Pairs]:
        """The circuit that attribution finds on a task's discovery pairs, and the pairs held out."""
        method = method or self.setting.options.method
        return self.once(("found", id(model), task, method), lambda: self._find(model, task, method))

    def carried(
        self, model: Model, circuit: Circuit, pairs: Pairs, intervention: str = "patching"
    ) -> Carried:
        """What a circuit carries of a model's behaviour; one of another model's, too."""
        both = Circuit.full(circuit.graph), Circuit.empty(circuit.graph)
        full, empty, values = self._values(model, [*both, circuit], pairs, intervention)
        return Carried(values, full, empty)

    def best_random(
        self, model: Model, size: int, pairs: Pairs, task: str, intervention: str = "patching"
    ) -> Carried:
        """The most faithful of random connected circuits of a size."""
        graph, options = Graph.of(model), self.setting.options

        def run() -> Carried:
            seeds = [
                cell_seed(options.seed, f"random {task} {size} {i}") % 2**31 for i in range(options.random)
            ]
            drawn = [random_circuit(graph, size, seed) for seed in seeds]
            both = Circuit.full(graph), Circuit.empty(graph)
            full, empty, *values = self._values(model, [*both, *drawn], pairs, intervention)
            whole = float((full - empty).mean())
            best = max(values, key=lambda v: float((v - empty).mean()) / (whole or 1.0))
            return Carried(best, full, empty)

        return self.once(("random", id(model), task, size, pairs.texts, intervention), run)

    def new_pairs(self, model: Model, task: str) -> tuple[Pairs, list[str]]:
        """Pairs of wordings that the circuit was not found on, and each one's wording; of reserved subjects
        or new names, where the task has such."""
        if task in RESERVED:
            self.mark_reserve(RESERVED[task])
        return self.once(("new pairs", id(model), task), lambda: self._write_new(model, task))

    def metric(self, task: str) -> Metric:
        """The task's own."""
        return Metric(task_info(task).metric)

    def sources(self, model: Model) -> dict[str, Any]:
        """Run folder and data hashes, as `Measured` takes them."""
        folder = self._place(model).relative_to(self.setting.path)
        return {"runs": (str(folder),), "inputs": dict(self.data(self.setting))}

    def _place(self, model: Model) -> Any:
        return self.folder(model.spec.short_name)

    def _find(self, model: Model, task: str, method: str) -> tuple[Circuit, Pairs]:
        with self._study(model) as study:
            run_scores(study, [task], [method])
            circuit = study.circuits(task, method, [self._size(study.graph)])[0]
            return circuit, study.pairs(task)[1]

    def _study(self, model: Model) -> Study:
        options = self.setting.options
        asked = StudyOptions(head=options.pairs, seed=options.seed)
        return open_study(model, self._place(model), asked, progress=False)

    def _size(self, graph: Graph) -> int:
        return sizes_of(graph, [self.setting.options.size])[0]

    def _values(
        self, model: Model, circuits: Sequence[Circuit], pairs: Pairs, intervention: str
    ) -> list[Tensor]:
        metric = self.metric(pairs.task)
        found = evaluate(model, pairs, circuits, metric, intervention=intervention, other_model=True)
        return list(found[metric.name])

    def _write_new(self, model: Model, task: str) -> tuple[Pairs, list[str]]:
        options = self.setting.options
        whole = generate_pairs(task, model.tokenizer, options.pairs, options.seed)
        studied = " ".join(clean for clean, _ in whole.split(0.5, options.seed)[0].texts)
        seen = set(studied.replace(",", " ").split())
        rows = new_rows(task, model.tokenizer, seen, options.pairs, options.seed)
        if not rows:
            raise Refused(f"This tokenizer writes no {task} pair of new wordings of equal length.")
        pairs = pairs_of_rows(task, [row for row, _ in rows], model.tokenizer)
        wording = {row["clean"]: template for row, template in rows}
        return pairs, [wording[clean] for clean, _ in pairs.texts]


def permuted_heads(circuit: Circuit, seed: int) -> Circuit:
    """The circuit with the heads of every layer renamed at random (whole groups that share keys and
    values)."""
    graph, make = circuit.graph, torch.Generator().manual_seed(seed)
    rows, columns = torch.arange(graph.n_sources), torch.arange(graph.n_destinations)
    per_group = graph.heads // graph.kv_heads
    for layer in range(graph.blocks):
        groups = torch.randperm(graph.kv_heads, generator=make)
        while graph.kv_heads > 1 and bool((groups == torch.arange(graph.kv_heads)).any()):
            groups = torch.randperm(graph.kv_heads, generator=make)  # no group keeps its name
        heads = (groups[:, None] * per_group + torch.arange(per_group)).flatten()
        source = graph.head_sources(layer)
        rows[source] = source.start + heads
        for letter in "qkv":
            place = graph.head_destinations(layer, letter)
            renamed = heads if place.stop - place.start == graph.heads else groups
            columns[place] = place.start + renamed
    return replace(circuit, edges=circuit.edges[rows][:, columns])
