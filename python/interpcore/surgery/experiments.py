"""The experiments of this family, as commands and agents find them; all of one model share a folder."""

from functools import partial

from interpcore.runs.compared import Compared
from interpcore.runs.experiment import Experiment
from interpcore.surgery import options as asked

_experiment = partial(
    Experiment,
    options=asked.Options,
    opens="interpcore.surgery.study:open_study",
    extra="surgery",
    marks=("protocol", "hash of tasks"),
    compares=Compared(
        table="tables/items",
        keys=("task", "plan", "item"),
        measures=("loss", "first_loss", "probability", "exact", "kl", "agreement"),
        unit="item",
        by=("task", "plan"),
    ),
)
_measured = partial(_experiment, verifies="interpcore.surgery.verify:checks")

TASKS = _measured(
    name="surgery tasks",
    sentence="Which tasks the intact model does: answer losses beside those of shuffled answers.",
    example="interpcore surgery tasks --model tiny --task facts,sums-1 --out runs/s-tiny",
    asks=asked.Items,
    runs="interpcore.surgery.study:tasks",
)
RUN = _measured(
    name="surgery run",
    sentence="Measure plans on tasks, item by item beside the intact plan.",
    example="interpcore surgery run --plan '0-2, 1 x5, 3' --plan 'skip 3' --task facts --out runs/s-tiny",
    asks=asked.Run,
    runs="interpcore.surgery.study:run",
)
COMPARE = _measured(
    name="surgery compare",
    sentence="Measure two plans on the same items, with the paired difference.",
    example="interpcore surgery compare 'skip 3' 'repeat 3 x2' --task facts --out runs/s-tiny",
    asks=asked.Compare,
    runs="interpcore.surgery.study:compare",
)
MAP = _measured(
    name="surgery map",
    sentence="Skip every block, keep or drop the first n, or all ranges and swaps, by task.",
    example="interpcore surgery map --model tiny --task facts,sums-1 --n 50 --out runs/s-tiny",
    asks=asked.Map,
    runs="interpcore.surgery.study:mapped",
)
REPEAT = _measured(
    name="surgery repeat",
    sentence="Run every block several times in a row, by task.",
    example="interpcore surgery repeat --model tiny --times 2,5 --out runs/s-tiny",
    asks=asked.Repeat,
    runs="interpcore.surgery.study:repeated",
)
INFLUENCE = _experiment(
    name="surgery influence",
    sentence="How far every block turns the stream, beside what skipping it really costs.",
    example="interpcore surgery influence --model tiny --out runs/s-tiny",
    asks=asked.Influence,
    runs="interpcore.surgery.influence:influence_report",
)
TOKENS = _experiment(
    name="surgery tokens",
    sentence="What becomes more and less likely at every position of a text under a plan.",
    example="interpcore surgery tokens --prompt 'The capital of France is' --plan 'skip 1' --out runs/s-tiny",
    asks=asked.Tokens,
    runs="interpcore.surgery.token_table:token_report",
)
PATCH = _experiment(
    name="surgery patch",
    sentence="Put clean states into corrupted runs at every depth and position: how much of the answer comes "
    "back.",
    example="interpcore surgery patch --model tiny --task facts --out runs/s-tiny",
    asks=asked.Patch,
    runs="interpcore.surgery.patching:patch_report",
)
TRACE = _experiment(
    name="surgery trace",
    sentence="Causal tracing: noise on a subject's embeddings, clean states put back.",
    example="interpcore surgery trace --prompt 'The capital city of France is' --subject France --answer "
    "Paris --out runs/s-tiny",
    asks=asked.Trace,
    runs="interpcore.surgery.patching:trace_report",
)
STAND_IN = _experiment(
    name="surgery stand-in",
    sentence="The best affine map in place of skipped blocks, and the linear lens, on held-out documents.",
    example="interpcore surgery stand-in --model tiny --span blocks,1-2,lens --out runs/s-tiny",
    asks=asked.StandIn,
    runs="interpcore.surgery.stand_in:stand_in_report",
)
TALK = _experiment(
    name="surgery talk",
    sentence="Go on with a prompt under any plan, beside the intact model.",
    example="interpcore surgery talk --prompt 'The capital city of France is' --plan '0-2, 1 x5, 3' --out "
    "runs/s-tiny",
    asks=asked.Talk,
    runs="interpcore.surgery.texts:talk_report",
)
EXPERIMENTS = (TASKS, RUN, MAP, REPEAT, INFLUENCE, TOKENS, PATCH, TRACE, STAND_IN, TALK, COMPARE)
