# %% [markdown]
# # Layer surgery
#
# The same weights, run through their blocks in another order: what still works with the first n
# blocks, without one, or with one run five times, and where in a prompt an answer is made.

# %%
import os
import tempfile
from pathlib import Path

import interpcore
from interpcore.surgery import experiments as surgery
from interpcore.surgery import options as asks

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
folder = Path(tempfile.mkdtemp()) / "run"  # all experiments of one model share it
blocks, prompt = model.plan.n_calls, "The capital city of France is"


def ask(experiment, asked):
    with experiment.open(model, folder, asks.Options(), progress=True) as study:
        return experiment.run(study, asked)


[str(model.plan.parse(text, model.plan)) for text in ("skip 1", "repeat 1 x5", "skip 1 then swap 0 1")]

# %% [markdown]
# Tasks that the intact model does not do, compared with another item's answer, say nothing about a
# block: they stand in brackets and dotted lines below.

# %%
few = {"task": ("facts", "antonyms", "json", "sums-1"), "n": 8}
ask(surgery.TASKS, asks.Items(**few))

# %% [markdown]
# The first n blocks alone, all but the first n, and all but one. A change is the mean of paired
# differences to the intact plan, in nats per answer.

# %%
maps = ask(surgery.MAP, asks.Map(kind=("keep", "drop", "skip"), **few))
maps

# %% [markdown]
# A block run twice and five times, one after the other.

# %%
ask(surgery.REPEAT, asks.Repeat(times=(2, 5), **few))

# %% [markdown]
# What becomes more and less likely after each token of a text when the last block is left out.

# %%
ask(surgery.TOKENS, asks.Tokens(prompt=prompt, plan=f"skip {blocks - 1}", top=2))

# %% [markdown]
# How the text goes on with the first n blocks, greedily: rules instead of reading by eye.

# %%
kept = tuple(f"keep first {n}" for n in range(0, blocks, max(blocks // 6, 1)))
ask(surgery.TALK, asks.Talk(prompt=prompt, plan=kept, new_tokens=8)).table

# %% [markdown]
# Where the answer is: a clean prompt's states put into a corrupted prompt, at every depth and
# position, and what single heads write, at all positions.

# %%
ask(surgery.PATCH, asks.Patch(task="facts", n=4))

# %%
ask(surgery.PATCH, asks.Patch(task="facts", n=4, site="z", by="head"))

# %% [markdown]
# The best affine map in place of one block, and from each depth to the last (the linear lens), on
# documents that it was not fitted on.

# %%
documents = {"fit": 60, "choose": 6, "test": 10, "draws": 8}  # a small model needs no more
ask(surgery.STAND_IN, asks.StandIn(span=("blocks", "lens"), **documents))

# %%
intact = maps.table[(maps.table.kind == "keep") & (maps.table.place == blocks)]
assert (intact.loss_change == 0).all()  # all blocks are the intact plan
