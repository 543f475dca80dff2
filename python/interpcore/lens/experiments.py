"""The experiments of this family, as commands and agents find them."""

from interpcore.lens import options
from interpcore.runs.compared import Compared
from interpcore.runs.experiment import Experiment

FIT = Experiment(
    name="lens fit",
    sentence="Average the Jacobian from every depth to the last block's output over prompts, with standard "
    "errors and split-half reliability.",
    example="interpcore lens fit --model tiny --text tiny --prompts 100 --out runs/lens-tiny",
    options=options.FitOptions,
    opens="interpcore.lens.study:open_fit",
    extra="lens",
    verifies="interpcore.lens.verify:checks",
    compares=Compared(
        table="tables/depths",
        keys=("depth",),
        measures=("gain", "carried", "relative_se", "reliability"),
        unit="",
    ),
)
READ = Experiment(
    name="lens read",
    sentence="Read a text through a lens: top tokens of every depth and position, as table, picture, page.",
    example="interpcore lens read runs/lens-tiny --prompt 'The capital of France is' --out runs/read",
    options=options.ReadOptions,
    asks=options.Prompt,
    opens="interpcore.lens.read:open_read",
    runs="interpcore.lens.read:read",
    extra="lens",
)
EDIT = Experiment(
    name="lens edit",
    sentence="Steer a text to a token, or swap one token for another, in a lens's coordinates.",
    example="interpcore lens edit runs/lens-tiny --prompt 'The capital of France is' --into ' Rome' "
    "--out-of ' Paris' --out runs/read",
    options=options.ReadOptions,
    asks=options.Change,
    opens="interpcore.lens.read:open_read",
    runs="interpcore.lens.read:edit",
    extra="lens",
)
EXPERIMENTS = (FIT, READ, EDIT)
