"""The experiments of this family, as commands and agents find them; on one study they share a folder."""

from functools import partial

from interpcore.circuits import options as asked
from interpcore.runs.compared import Compared
from interpcore.runs.experiment import Experiment

_experiment = partial(
    Experiment,
    options=asked.Options,
    opens="interpcore.circuits.study.study:open_study",
    extra="circuits",
    verifies="interpcore.circuits.verify:checks",
    compares=Compared(
        table="tables/faithfulness",
        keys=("task", "on", "method", "requested"),
        measures=("faithfulness", "value", "kept"),
        unit="task",
        by=("task",),
    ),
)

EXPERIMENTS = (
    _experiment(
        name="circuits attribute",
        sentence="Score every edge by gradients (EAP, EAP-IG, ...), with each integral's completeness gap.",
        example="interpcore circuits attribute --task ioi --method eap,eap-ig-auto --out runs/c-tiny",
        asks=asked.Attribute,
        runs="interpcore.circuits.study.report:attributed",
    ),
    _experiment(
        name="circuits exact",
        sentence="Score edges by patching each one, under the task's metric and KL at once; all or the best.",
        example="interpcore circuits exact --task ioi --top 100 --verify eap --out runs/c-tiny",
        asks=asked.Exact,
        runs="interpcore.circuits.study.report:exactly",
    ),
    _experiment(
        name="circuits evaluate",
        sentence="Faithfulness of the circuits that a file of scores chooses, or of its own circuit, on "
        "held-out pairs.",
        example="interpcore circuits evaluate runs/c-tiny/artifacts/scores/ioi/eap.safetensors --size 5% "
        "--out runs/c-tiny",
        asks=asked.Evaluate,
        runs="interpcore.circuits.study.report:evaluated",
    ),
    _experiment(
        name="circuits pareto",
        sentence="Faithfulness over circuit sizes, the smallest circuit that keeps 85%, and random circuits "
        "of its size.",
        example="interpcore circuits pareto --task ioi,sva --method eap,eap-ig --out runs/c-tiny",
        asks=asked.Pareto,
        runs="interpcore.circuits.study.report:pareto",
    ),
    _experiment(
        name="circuits overlap",
        sentence="How much the tasks' circuits share: IoU and recall of nodes and edges, and the chance of "
        "as much.",
        example="interpcore circuits overlap --method eap-ig --size 10% --out runs/c-tiny",
        asks=asked.OfCircuits,
        runs="interpcore.circuits.study.report:overlap",
    ),
    _experiment(
        name="circuits cross-task",
        sentence="Every task's circuit (columns) measured on every task's pairs (rows).",
        example="interpcore circuits cross-task --method eap-ig --size 10% --out runs/c-tiny",
        asks=asked.OfCircuits,
        runs="interpcore.circuits.study.report:cross_task",
    ),
    _experiment(
        name="circuits ig-steps",
        sentence="Faithfulness and completeness gap by the number of steps of EAP-IG.",
        example="interpcore circuits ig-steps --task ioi --steps 2 --steps 5 --out runs/c-tiny",
        asks=asked.IgSteps,
        runs="interpcore.circuits.study.report:ig_steps",
    ),
    _experiment(
        name="circuits compare",
        sentence="How estimated scores agree with exact ones: Pearson, Kendall, mean difference, sign.",
        example="interpcore circuits compare --task ioi --method eap --method eap-ig --out runs/c-tiny",
        asks=asked.ByLevel,
        runs="interpcore.circuits.study.compare:compare",
    ),
    _experiment(
        name="circuits figures",
        sentence="Make the paper's figures 1 and 3 to 11 from runs on any model, as SVG and PNG, with their "
        "tables.",
        example="interpcore circuits figures --model tiny --out runs/c-tiny",
        asks=asked.Figures,
        runs="interpcore.circuits.study.paper:paper_figures",
    ),
)
