# %% [markdown]
# # Circuits
#
# Which edges carry a behaviour: scores by attribution, a circuit, and how faithful it is on pairs
# that it was not chosen on.

# %%
import os

import interpcore
from interpcore.circuits import (
    Circuit,
    attribute,
    evaluate,
    faithfulness,
    generate_pairs,
    random_circuit,
    select,
)
from interpcore.circuits.study.about import About
from interpcore.circuits.study.page import circuit_page

MODEL = os.environ.get("INTERPCORE_MODEL", "tiny")  # or a transformers folder, a hub id, a GGUF file
model = interpcore.load(MODEL)
discovery, held_out = generate_pairs("ioi", model.tokenizer, count=40).split()
discovery

# %%
scores = attribute(model, discovery, method="eap-ig-inputs", steps=5, progress=True)
scores

# %% [markdown]
# The circuits of several sizes, beside a random one, on held-out pairs.

# %%
sizes = [size for size in (10, 20, 40, 80, 160) if size < scores.graph.n_edges]
circuits = [select(scores, size, "greedy") for size in sizes]
chance = random_circuit(scores.graph, sizes[0], seed=0)
chosen = [Circuit.full(scores.graph), Circuit.empty(scores.graph), *circuits, chance]
full, empty, *values, by_chance = evaluate(model, held_out, chosen, "logit_diff")["logit_diff"]
found = [faithfulness(value, full, empty) for value in values]
rows = [
    {"requested": size, "kept": circuit.n_edges, "faithfulness": each.value, "faithfulness_low": each.low}
    | {"faithfulness_high": each.high, "pairs": len(held_out), "metric": "logit_diff"}
    for size, circuit, each in zip(sizes, circuits, found, strict=True)
]
about = About.of(scores, rows)
[f"{row['kept']} edges: {about.said(at)}" for at, row in enumerate(about.rows)]

# %%
faithfulness(by_chance, full, empty).value

# %%
best = about.opens if about.opens is not None else len(about.circuits) - 1
about.circuits[best].plot(scores)

# %% [markdown]
# The page of it: a slider over these circuits, with search.

# %%
circuit_page(Circuit.full(scores.graph), scores, title="Indirect object", about=about)

# %%
assert about.circuits[best].to_pandas(scores).score.abs().is_monotonic_decreasing
