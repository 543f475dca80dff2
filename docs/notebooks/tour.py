# %% [markdown]
# # A tour
#
# A model, its sites, a forward that reads and writes them, and a sweep that survives a kill. Set
# `INTERPCORE_MODEL` to run it on another model.

# %%
import os

import interpcore
from interpcore.model import Edit, Scale, Tap
from interpcore.runs import sweep

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
model

# %% [markdown]
# Every activation has a name, a depth and a shape.

# %%
model.sites()

# %% [markdown]
# A tap reads a site, an edit writes one: here a head's output is zeroed, and the stream read behind
# it.

# %%
tokens, mask = model.encode(["The capital city of France is", "The opposite of hot is"])
stream = Tap("resid", depth=2, positions=-1)
plain = model.forward(tokens, mask, taps=[stream])
ablated = model.forward(tokens, mask, taps=[stream], edits=[Edit("z", 1, None, Scale(0.0), heads=[0])])
(ablated.taps[stream] - plain.taps[stream]).norm(dim=-1).flatten().tolist()

# %%
model.tokenizer.batch_decode(model.generate(tokens, mask, max_new_tokens=3).tokens)

# %% [markdown]
# A sweep calls a function over a grid and keeps every finished cell in a folder. The same call goes
# on where it was stopped; the rows are a data frame.


# %%
def changed(depth: int, head: int) -> dict[str, float]:
    """How far the stream moves when a head is zeroed."""
    out = model.forward(tokens, mask, taps=[stream], edits=[Edit("z", depth, None, Scale(0.0), heads=[head])])
    moved = (out.taps[stream] - plain.taps[stream]).norm(dim=-1)
    return {"moved": float(moved.mean())}


rows = sweep(changed, {"depth": [0, 1], "head": list(range(model.spec.n_heads))})
table = rows.to_pandas()
table

# %%
assert (table.status == "done").all() and (table.moved > 0).all()
