"""The experiments of this family, as commands and agents find them; all of one model share a folder."""

from functools import partial

from interpcore.runs.experiment import Experiment
from interpcore.surgery import options as asked

_experiment = partial(
    Experiment, options=asked.Options, opens="interpcore.surgery.study:open_study", extra="surgery"
)

TASKS = _experiment(
    name="surgery tasks",
    sentence="Which tasks the intact model does: answer losses beside those of shuffled answers.",
    example="interpcore surgery tasks --model tiny --task facts,sums-1 --out runs/s-tiny",
    asks=asked.Items,
    runs="interpcore.surgery.study:tasks",
)
RUN = _experiment(
    name="surgery run",
    sentence="Measure plans on tasks, item by item beside the intact plan.",
    example="interpcore surgery run --plan '0-2, 1 x5, 3' --plan 'skip 3' --task facts --out runs/s-tiny",
    asks=asked.Run,
    runs="interpcore.surgery.study:run",
)
COMPARE = _experiment(
    name="surgery compare",
    sentence="Measure two plans on the same items, with the paired difference.",
    example="interpcore surgery compare 'skip 3' 'repeat 3 x2' --task facts --out runs/s-tiny",
    asks=asked.Compare,
    runs="interpcore.surgery.study:compare",
)
EXPERIMENTS = (TASKS, RUN, COMPARE)
