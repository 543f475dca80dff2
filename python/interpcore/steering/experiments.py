"""The experiments of this family, as commands and agents find them."""

from interpcore.runs.compared import Compared
from interpcore.runs.experiment import Experiment
from interpcore.steering import options

VERIFIES = "interpcore.steering.verify:checks"
STATES = Experiment(
    name="steering states",
    sentence="Keep the states of labelled questions at every depth, with norms, cosines and separation.",
    example="interpcore steering states --model tiny --out runs/states-tiny",
    options=options.StatesOptions,
    opens="interpcore.steering.study:open_states",
    runs="interpcore.steering.report:kept_states",
    extra="steering",
)
DIRECTIONS = Experiment(
    name="steering directions",
    sentence="Find the direction from recall to reasoning at every depth in one streamed pass, and say how "
    "well it tells held-out questions apart.",
    example="interpcore steering directions --model tiny --out runs/directions-tiny",
    options=options.StatesOptions,
    asks=options.Method,
    opens="interpcore.steering.study:open_states",
    runs="interpcore.steering.report:directions",
    extra="steering",
    verifies=VERIFIES,
    compares=Compared(
        table="tables/directions-mean",
        keys=("site", "depth"),
        measures=("norm", "length", "cos_reasoning", "cos_recall", "auroc", "shuffled"),
        unit="",
        by=("site",),
    ),
)
SWEEP = Experiment(
    name="steering sweep",
    sentence="Ask questions under every depth and coefficient at once, scored without generation.",
    example="interpcore steering sweep --model tiny --directions runs/directions-tiny --out runs/sweep-tiny",
    options=options.SweepOptions,
    opens="interpcore.steering.grid:open_sweep",
    extra="steering",
    verifies=VERIFIES,
    compares=Compared(
        table="tables/sweep",
        keys=("depth", "coefficient", "subset"),
        measures=("right", "chance"),
        unit="",
        by=("subset",),
    ),
)
ACCURACY = Experiment(
    name="steering accuracy",
    sentence="Hold an intervention against random and shuffled-label directions, and a prompt.",
    example="interpcore steering accuracy --model tiny --directions runs/directions-tiny --depth 2 "
    "--coefficient -1,1 --out runs/accuracy-tiny",
    options=options.AccuracyOptions,
    opens="interpcore.steering.accuracy:open_accuracy",
    extra="steering",
    verifies=VERIFIES,
    compares=Compared(
        table="tables/answers",
        keys=("condition", "coefficient", "question", "subset"),
        measures=("right", "chance"),
        unit="question",
        by=("condition", "subset"),
    ),
)
PROBES = Experiment(
    name="steering probes",
    sentence="Train linear probes at every depth, as published or with held-out choice of depth.",
    example="interpcore steering probes --model tiny --out runs/directions-tiny",
    options=options.StatesOptions,
    asks=options.ProbeOptions,
    opens="interpcore.steering.study:open_states",
    runs="interpcore.steering.probes:probes",
    extra="steering",
)
EFFECT = Experiment(
    name="steering effect",
    sentence="Map how far a direction moves the next token, exactly and to second order.",
    example="interpcore steering effect --directions runs/directions --out runs/effect",
    options=options.EffectOptions,
    opens="interpcore.steering.effect_study:open_effect",
    extra="steering",
)
EVALUATE = Experiment(
    name="steering evaluate",
    sentence="Run tasks of the lm-eval harness under an intervention, or with so many recurrence steps.",
    example="interpcore steering evaluate --model tiny --task lambada_openai --limit 20 --out runs/lambada",
    options=options.EvaluateOptions,
    opens="interpcore.steering.evaluate:open_evaluate",
    extra="harness",
)
GENERATE = Experiment(
    name="steering generate",
    sentence="Write a text with and without an intervention, side by side.",
    example="interpcore steering generate --model tiny --directions runs/directions-tiny --depth 2 "
    "--coefficient -1,1 --out runs/texts",
    options=options.GenerateOptions,
    opens="interpcore.steering.evaluate:open_generate",
    extra="steering",
)
EXPERIMENTS = (STATES, DIRECTIONS, PROBES, EFFECT, ACCURACY, SWEEP, EVALUATE, GENERATE)
# The card of an accuracy has all that a sweep's has: it is asked about first.
