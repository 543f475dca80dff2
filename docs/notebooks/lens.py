# %% [markdown]
# # The Jacobian lens
#
# What a state is worth, read through the average map from its depth to the last one.

# %%
import os
import tempfile
from pathlib import Path

import interpcore
from interpcore.lens import EXPERIMENTS, FitOptions, ReadOptions, load_lens
from interpcore.lens.options import Prompt

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
work = Path(tempfile.mkdtemp())
experiments = {experiment.name: experiment for experiment in EXPERIMENTS}

# %% [markdown]
# Fitted on a few prompts of the tiny world; `text=` takes a file or folder of your own.

# %%
fit = experiments["lens fit"]
with fit.open(model, work / "lens", FitOptions(prompts=24, length=48, skip=4), progress=True) as study:
    fitted = fit.run(study)
fitted

# %%
lens = load_lens(work / "lens", model)
lens

# %%
lens.plot()

# %% [markdown]
# Reading a text: the token that each state stands for, at every depth and position.

# %%
read = experiments["lens read"]
with read.open(model, work / "reads", ReadOptions(lens=str(work / "lens"))) as study:
    said = read.run(study, Prompt(prompt="The capital city of France is"))
said.pages[0]

# %%
assert len(said.to_pandas()) == len(lens.depths) * said.to_pandas().position.nunique()
