"""What a study of circuits means, what each of its experiments asks, and the words that both take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from interpcore.circuits.methods import method_of
from interpcore.circuits.task_list import INDUCTION
from interpcore.data.prompt_pairs import MAIN_TASKS, TASKS
from interpcore.errors import Refused, did_you_mean
from interpcore.runs.options import PRECISIONS, PROTOCOLS, option
from interpcore.runs.options import Options as Base

if TYPE_CHECKING:
    from interpcore.circuits.own import OwnTask

SEQUENCE = "logprob_diff"
"""The metric of answers of several tokens."""
METRICS = ("logit_diff", "prob_diff", SEQUENCE, "kl", "js", "accuracy")
INTERVENTIONS = ("patching", "zero", "mean", "mean-positional")
UNEQUAL = ("skip", "align", "refuse")
"""What to do with pairs of different token length."""
SELECTIONS = ("greedy", "topn")
LEVELS = ("edge", "node", "neuron")
SEGMENTS = ("position", "example")
"""What scores are kept of apart."""
DIRECTIONS = ("helps", "hurts")
"""What a positive score of a foreign file means."""
IG_STEPS = (2, 3, 5, 7, 10, 15, 20, 30, 50)
SIZES = "Edges, as a count (200), share (0.05) or 5%; again for more. Default: the study's."
OF_LEVEL = "Of edges, nodes (a source's whole output) or neurons (its entries)."


@dataclass(frozen=True, kw_only=True)
class Options(Base):
    """What a study means; the same for every experiment in a folder. `protocol="paper"` scores and measures
    on the same pairs, takes EAP-IG's left end points, divides divergences by the vocabulary and takes the
    strict hypergeometric tail."""

    plan: str | None = option(
        None,
        "Run the blocks so, such as '0-2, 1 x5, 3', 'skip 3' or 'mean(1-2)'; default: the model's own plan.",
        circumstance=True,  # the card has the plan itself
        file=False,
    )
    data: str | None = option(
        None,
        "Folder of published CSV files, <task>/<table>.csv; default: generated pairs.",
        circumstance=True,
    )
    pairs: tuple[str, ...] = option(
        (),
        "Your own task: a table (CSV, JSON lines) of clean, corrupted, answer and wrong; again for more.",
        circumstance=True,
        commas=False,
    )
    include: tuple[str, ...] = option(
        (),
        "Task files (.json: name, metric, pairs) or folders of them, whose tasks --task then takes by name.",
        circumstance=True,
        commas=False,
    )
    table: str = option("gpt2", "Name of those files: gpt2, pythia.")
    head: int = option(200, "Pairs per task at most.", least=2)
    part: str = option("study", "Of the generated pairs' subjects.", choices=("study", "reserve", "all"))
    share: float = option(
        0.5, "Of the pairs that scores are made from; circuits are measured on the others.", above=0, below=1
    )
    metric: str | None = option(None, "For all tasks; default: each task's own.", choices=METRICS)
    intervention: str = option("patching", "What corrupted edges carry.", choices=INTERVENTIONS)
    selection: str = option("greedy", "How circuits are chosen from scores.", choices=SELECTIONS)
    absolute: bool = option(True, "Choose by the scores' size, whatever their sign.")
    group_kv: bool = option(True, "One key and value input per group of heads, not one per head.")
    protocol: str = option("default", "'paper' makes the published choices.", choices=PROTOCOLS)
    unequal: str = option("skip", "Pairs of different token length.", choices=UNEQUAL)
    verbs: str | None = option(
        None, "A published verb list for sva, a CSV file; default: our own.", circumstance=True
    )
    seed: int = option(0, "Of every random draw.")
    batch_size: int | None = option(
        None, "Pairs per pass of attribution; default: what fits memory.", least=1, circumstance=True
    )
    eval_batch_size: int = option(16, "Pairs per pass of patched runs.", least=1, circumstance=True)

    def check_data(self) -> None:
        """See `Options.check_data`: the folder of pairs and the verb list."""
        if self.data is not None and not Path(self.data).is_dir():
            raise Refused(f"There is no folder {self.data} of pairs.")
        if self.verbs is not None and not Path(self.verbs).is_file():
            raise Refused(f"There is no verb list {self.verbs}.")
        self.own_tasks()

    def own_tasks(self) -> dict[str, OwnTask]:
        """The tasks of `pairs` and `include`, by name.

        Raises: Refused for a file that holds none.
        """
        from interpcore.circuits.own import of_names, read_own

        return of_names([task for file in (*self.pairs, *self.include) for task in read_own(file)])

    def chosen(self, asked: Sequence[str]) -> tuple[str, ...]:
        """The tasks that an experiment is about: those asked for, else one's own pairs, else the main tasks.

        Raises: Refused for a name that is none of them.
        """
        from interpcore.circuits.own import read_own

        given = [task.name for file in self.pairs for task in read_own(file)]
        known = (*TASKS, INDUCTION, *self.own_tasks())
        for name in asked:
            if name not in known:
                near = did_you_mean(name, known)
                raise Refused(f"--task is one of {', '.join(known)}; got {name!r}.{near}")
        return tuple(asked) or tuple(given) or MAIN_TASKS

    def chosen_one(self, asked: str | None) -> str:
        """The same where there is one: the first of one's own pairs, or ioi, unless another is asked for."""
        return self.chosen((asked,) if asked else ())[0]

    def check_asked(self, asked: Base) -> None:
        """See `Options.check_asked`: the tasks' names."""
        if isinstance(asked, OfTasks):
            self.chosen(asked.tasks)
        elif isinstance(asked, Evaluate):
            self.chosen_one(asked.task)


@dataclass(frozen=True, kw_only=True)
class OfTasks(Base):
    """What all experiments over tasks ask."""

    tasks: tuple[str, ...] = option(
        (),
        f"Tasks: {', '.join((*TASKS, INDUCTION))}, or of --include; again for more. Default: --pairs, else "
        "six of them.",
        flag="task",
    )


@dataclass(frozen=True, kw_only=True)
class ByMethods(OfTasks):
    """What experiments that score by several methods ask."""

    methods: tuple[str, ...] = option(
        ("eap", "eap-ig"),
        "eap, eap-ig, eap-ig-<steps>, eap-ig-auto, eap-ig-kl, relp, exact, ...; again for more.",
        flag="method",
    )

    def check_data(self) -> None:
        """See `Options.check_data`: the methods' names."""
        for name in self.methods:
            method_of(name)


@dataclass(frozen=True, kw_only=True)
class ByLevel(ByMethods):
    """What experiments ask that count edges, nodes or neurons."""

    level: str = option("edge", OF_LEVEL, choices=LEVELS)

    def check_data(self) -> None:
        """See `Options.check_data`: the methods' names, and which of them score edges alone."""
        super().check_data()
        alone = [name for name in self.methods if method_of(name).edges_alone]
        if self.level != "edge" and alone:
            raise Refused(f"--method {alone[0]} scores edges alone: leave out --level.")


@dataclass(frozen=True, kw_only=True)
class Attribute(ByLevel):
    """What scoring by gradients asks."""

    given: tuple[str, ...] = option(
        (),
        "Edges corrupted already, such as m1->logits or input->a0.h1<k>; again for more. Scores are then "
        "those of one edge more, beside its own.",
    )
    segment: str | None = option(
        None, "Score every token position, or every pair of prompts, apart, too.", choices=SEGMENTS
    )

    def check_data(self) -> None:
        """See `Options.check_data`: the methods' names, and what goes with `given` and `segment`."""
        super().check_data()
        if self.given and (self.level != "edge" or self.segment):
            raise Refused("--given scores edges, all positions together: leave out --level and --segment.")
        if self.segment and self.level != "edge":
            raise Refused("--segment scores edges: leave out --level.")
        for name in self.methods:
            method = method_of(name)
            if self.given and not method.takes_given:
                raise Refused(
                    f"--given goes with eap, eap-ig in any number of steps and clean-corrupted; "
                    f"--method is {name}."
                )
            if self.segment and not method.takes_segments:
                raise Refused(f"--segment goes with methods by plain gradients; --method is {name}.")


@dataclass(frozen=True, kw_only=True)
class Exact(OfTasks):
    """What scoring by patching asks."""

    top: str | None = option(None, "Only so many best edges of --verify: 200, 0.05 or 5%; default: all.")
    verify: str = option("eap", "The method whose best edges --top takes.")
    level: str = option("edge", OF_LEVEL, choices=LEVELS)
    precision: str = option(
        "float32",
        "Of products: float32 leaves the model's own; bfloat16 rounds what an edge changes, and measures the "
        "error.",
        choices=PRECISIONS,
    )

    def check_data(self) -> None:
        """See `Options.check_data`: the method's name."""
        method_of(self.verify)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Base):
    """What measuring a file of scores asks."""

    scores: str = option(..., "A file of scores: .safetensors, .json, .pt.", positional=True, file=True)
    task: str | None = option(None, "The task to measure on; default: --pairs, else ioi.")
    sizes: tuple[str, ...] = option((), SIZES, flag="size")
    direction: str = option("helps", "What a positive score of a foreign file means.", choices=DIRECTIONS)
    circuit: bool = option(False, "Measure the file's own circuit, not chosen ones.")
    mib: bool = option(False, "MIB's CPR and CMD instead.")
    other_model: bool = option(False, "Take scores of another model with the same graph, too.")

    def check_data(self) -> None:
        """See `Options.check_data`: the file of scores."""
        if not Path(self.scores).is_file():
            raise Refused(f"There is no file {self.scores}.")


@dataclass(frozen=True, kw_only=True)
class Pareto(ByLevel):
    """What curves of faithfulness ask."""

    sizes: tuple[str, ...] = option((), SIZES.replace("Edges", "Edges (--level)"), flag="size")
    random: int = option(100, "Random connected circuits per task to compare with.", least=0)


@dataclass(frozen=True, kw_only=True)
class OfCircuits(OfTasks):
    """What experiments on one circuit per task ask."""

    method: str = option("eap-ig", "The method that chooses the circuits.")
    size: str = option("10%", "Edges of each circuit: 200, 0.05 or 5%.")

    def check_data(self) -> None:
        """See `Options.check_data`: the method's name."""
        method_of(self.method)


@dataclass(frozen=True, kw_only=True)
class IgSteps(OfTasks):
    """What curves over EAP-IG's steps ask."""

    steps: tuple[int, ...] = option(IG_STEPS, "Steps of EAP-IG; again for more.", least=1)
    sizes: tuple[str, ...] = option((), SIZES, flag="size")


@dataclass(frozen=True, kw_only=True)
class Figures(Base):
    """What the paper's figures ask."""

    tasks: tuple[str, ...] = option(TASKS, "Of the eight tasks; again for more.", choices=TASKS, flag="task")
    sizes: tuple[str, ...] = option((), SIZES, flag="size")
    steps: tuple[int, ...] = option(IG_STEPS, "Steps of EAP-IG in figure 7; again for more.", least=1)
    also: tuple[str, ...] = option(
        (), "Run folders of other models for figure 11; again for more.", file=True
    )
    exact: bool = option(True, "Patch every edge exactly (figures 4, 8 and 9).")
