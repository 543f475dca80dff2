"""The experiments of this family, as commands and agents find them."""

from interpcore.lre.options import Options
from interpcore.runs.experiment import Experiment

RUN = Experiment(
    name="lre run",
    sentence="Measure faithfulness and causality of every relation, with controls and intervals.",
    example="interpcore lre run --model tiny --relations tiny --out runs/lre-tiny",
    options=Options,
    opens="interpcore.lre.study:open_study",
    extra="lre",
    verifies="interpcore.lre.verify:checks",
)
EXPERIMENTS = (RUN,)
