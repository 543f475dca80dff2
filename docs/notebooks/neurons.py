# %% [markdown]
# # Neurons
#
# Statistics of every neuron on a text, which to look at, and a page to share.

# %%
import os
import tempfile
from pathlib import Path

import interpcore
from interpcore.data.tinyworld.corpus import documents
from interpcore.data.tokens import prepare_tokens
from interpcore.neurons.report.neuron_page import neuron_page
from interpcore.neurons.report.site import neuron_facts, write_site
from interpcore.neurons.study import open_study

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# The text: a file of documents; yours, in place of the tiny world's.

# %%
(work / "text.txt").write_text("\n\n".join(documents("notebook", 150)))
shards = prepare_tokens(
    work / "text.txt", work / "tokens", model.tokenizer, context=48, sample_by="paragraph"
)
shards

# %%
with open_study(model, work / "study", shards=shards, progress=True) as study:
    table = study.table
table[["layer", "neuron", "frequency", "kurt", "vocab_kurt", "family"]].nlargest(8, "kurt")

# %% [markdown]
# What the most peaked one does.

# %%
first = table.loc[table["kurt"].idxmax()]
neuron_page(work / "study", model, int(first.layer), int(first.neuron), shards, examples=5)

# %% [markdown]
# All of them as a site that needs no server: open `site/index.html` in the study's folder.

# %%
site = write_site(neuron_facts(work / "study", model, shards, examples=3, sample=16), work / "study" / "site")
site.name, f"{sum(file.stat().st_size for file in site.parent.rglob('*') if file.is_file()):,} bytes"
