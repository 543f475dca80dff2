# %% [markdown]
# # Linear relational embeddings
#
# How far is a relation an affine map of the subject's state? A small study of your own facts, with
# its controls.

# %%
import json
import os
import tempfile
from pathlib import Path

import interpcore
from interpcore.data.relations import load_relation
from interpcore.lre import EXPERIMENTS, Options

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
work = Path(tempfile.mkdtemp())

# %% [markdown]
# A relation is a JSON file: templates and facts. The first template asks for the object of `{}`.

# %%
capitals = """France Paris Italy Rome Spain Madrid Germany Berlin Greece Athens Japan Tokyo Egypt Cairo
Cuba Havana Russia Moscow Austria Vienna Portugal Lisbon Hungary Budapest Ireland Dublin Peru Lima
Kenya Nairobi""".split()
pairs = zip(capitals[::2], capitals[1::2], strict=True)
facts = [{"subject": country, "object": city} for country, city in pairs]
about = {"relation_type": "factual", "domain_name": "country", "range_name": "city", "symmetric": False}
templates = ["The capital city of {} is"]
relation = {"name": "capital", "prompt_templates": templates, "prompt_templates_zs": templates}
(work / "capital.json").write_text(json.dumps(relation | {"properties": about, "samples": facts}))
load_relation(work / "capital.json")

# %% [markdown]
# The study: operators from a few examples, read on facts that the model knows and has not seen,
# beside controls.

# %%
run = EXPERIMENTS[0]
options = Options(relations=str(work), trials=1, examples=4, ranks=4, betas=(1.0, 2.25), max_test=20)
with run.open(model, work / "run", options, progress=True) as study:
    report = run.run(study)
report

# %%
report.to_pandas()[["relation", "faithfulness", "faithfulness_low", "faithfulness_high"]]
