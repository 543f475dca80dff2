# %% [markdown]
# # Steering
#
# A direction from states of two kinds of questions, and what adding it does, beside directions of
# shuffled labels.

# %%
import os
import tempfile
from pathlib import Path

import interpcore
from interpcore.steering import EXPERIMENTS
from interpcore.steering.directions import Directions
from interpcore.steering.options import SweepOptions, directions_file

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
work = Path(tempfile.mkdtemp())
experiments = {experiment.name: experiment for experiment in EXPERIMENTS}

# %% [markdown]
# Differences in means of the last token's states; `questions=` takes MMLU, MMLU-Pro, GSM8K, PopQA
# or a file.

# %%
made = experiments["steering directions"]
with made.open(model, work / "directions", made.options(questions="tiny:80"), progress=True) as study:
    report = made.run(study)
report

# %%
directions = Directions.load(directions_file(str(work / "directions")))
directions.to_pandas()

# %% [markdown]
# Added at one depth, with three coefficients: how often the right option has the highest
# probability.

# %%
swept = experiments["steering sweep"]
options = SweepOptions(
    questions="tiny:80", directions=str(work / "directions"), depths=(2,), coefficients=(-0.5, 0.5)
)
with swept.open(model, work / "sweep", options, progress=True) as study:
    found = swept.run(study)
found
