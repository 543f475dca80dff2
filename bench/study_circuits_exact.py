"""Cost of exact patching and of evaluating circuits, one thread, CPU seconds.

    python bench/study_circuits_exact.py
    python bench/study_circuits_exact.py --scaling --plot circuits_exact_scaling.png

Random weights of GPT-2 small's shape, float32; 4 pairs of 16 tokens that differ at every position. A unit is
what transformers takes for one forward and backward pass of the clean prompts with frozen weights in the same
process, measured again beside every layer. Exact patching is timed on all edges into some heads and the MLP
of every layer and into the logits; the other heads count as much as those timed (`--heads 12` times all of
them, 20 minutes); on some edges with bfloat16 products, too. Evaluation is that of 17 published sizes (30 to
1000 edges) of 3 methods' circuits, against transformers' forwards of the clean prompts.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from study_circuits import models, pairs, seconds, unit

from interpcore.circuits import Circuit, Graph, Pairs, attribute, evaluate, exact, nested, random_circuit
from interpcore.model import Model

SIZES = (*range(30, 100, 10), *range(100, 1001, 100))
METHODS: dict[str, dict[str, Any]] = {
    "EAP": {"method": "eap"},
    "EAP-IG": {"method": "eap-ig-inputs", "steps": 5},
    "EAP-IG-KL": {"method": "eap-ig-inputs", "steps": 5, "metric": "kl"},
}


def main() -> None:
    """Run what the command line asks for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=2, help="heads per layer whose edges are timed")
    parser.add_argument("--metrics", nargs="+", default=["logit_diff"], help="of the exact scores")
    parser.add_argument("--scaling", action="store_true", help="cost against length, batch and model size")
    parser.add_argument("--plot", type=Path, help="picture of --scaling")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    figures = scaling(options.plot) if options.scaling else study(options.heads, options.metrics)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def study(heads: int, metrics: list[str]) -> dict[str, float]:
    """The table of one model shape."""
    hf, model = models()
    some = pairs(model)
    figures = evaluation(hf, model, some) | in_bfloat16(model, some)
    for name, value in figures.items():
        print(f"{name:36s} {value:10.4g}", flush=True)
    return figures | exact_cost(hf, model, some, heads, metrics)


def exact_cost(hf: Any, model: Model, some: Pairs, heads: int, metrics: list[str]) -> dict[str, float]:
    """Units per edge: of each layer's edges, and of all edges on average."""
    graph = Graph.of(model)
    figures: dict[str, float] = {}
    total = 0.0
    for layer in range(graph.blocks + 1):
        chosen, in_all = destinations(graph, layer, heads)
        one = unit(hf, some)
        setup = timed(lambda: exact(model, some, metrics, edges=graph.mask(["input->logits"])))
        spent = 0.0
        for part, weight in zip(chosen, in_all, strict=True):
            edges = torch.zeros_like(graph.legal)
            edges[:, part] = graph.legal[:, part]
            taken = timed(lambda edges=edges: exact(model, some, metrics, edges=edges)) - setup  # type: ignore[misc]
            spent += taken * weight / len(part) / one
        total += spent
        count = int(graph.legal[:, graph.destination_layers == layer].sum())
        figures[f"exact, layer {layer} (units per edge)"] = spent / count
        print(f"exact, layer {layer:<2d} {count:6d} edges {spent / count:8.4f} units per edge", flush=True)
    figures["exact (units per edge)"] = total / graph.n_edges
    print(f"exact, all {graph.n_edges:,} edges: {total / graph.n_edges:.4f} units per edge", flush=True)
    return figures


def in_bfloat16(model: Model, some: Pairs, few: int = 40, many: int = 160) -> dict[str, float]:
    """Exact patching with bfloat16 products against float32: of an edge more, once the weights are cast and
    the error is measured; what these cost first, in edges; and the error."""
    graph, draw = Graph.of(model), torch.Generator().manual_seed(0)
    order = torch.rand(graph.legal.shape, generator=draw).masked_fill(~graph.legal, 2).flatten().argsort()
    masks = [torch.zeros_like(graph.legal).flatten() for _ in (few, many)]
    for mask, n in zip(masks, (few, many), strict=True):
        mask[order[:n]] = True
    taken = {}
    for precision in ("float32", "bfloat16"):
        for n, mask in zip((few, many), masks, strict=True):
            edges = mask.view_as(graph.legal)
            begun = time.process_time()
            found = exact(model, some, edges=edges, precision=precision)["logit_diff"]
            taken[precision, n] = time.process_time() - begun
        if precision == "float32":
            full = found
    each, half_each = ((taken[p, many] - taken[p, few]) / (many - few) for p in ("float32", "bfloat16"))
    first = taken["bfloat16", few] - taken["float32", few] + few * (each - half_each)
    gap = (found.values - full.values)[edges].norm() / full.values[edges].norm()
    return {
        "an edge, float32 / bfloat16": each / half_each,
        "bfloat16 before, in edges": first / each,
        "error of bfloat16": float(gap),
        "error told": found.notes["rounding_error"],
    }


def destinations(graph: Graph, layer: int, heads: int) -> tuple[list[list[int]], list[int]]:
    """Destinations of a layer that are timed together, and how many there are like them."""
    if layer == graph.blocks:
        return [[graph.logits]], [1]
    some = [graph.head_destinations(layer, letter).start + h for letter in "qkv" for h in range(heads)]
    return [some, [graph.mlp_destination(layer)]], [3 * graph.heads, 1]


def evaluation(hf: Any, model: Model, some: Pairs) -> dict[str, float]:
    """All circuits of the published study in one call, in transformers' forwards."""
    circuits: list[Circuit] = []
    for way in METHODS.values():
        circuits += nested(attribute(model, some, **way), SIZES, "greedy")

    def forward() -> None:
        with torch.no_grad():
            hf(some.clean, use_cache=False)

    ratios = []
    for _ in range(3):
        one = seconds(forward, 3)
        ratios.append(timed(lambda: evaluate(model, some, circuits)) / one)
    return {
        f"{len(circuits)} circuits (forwards)": statistics.median(ratios),
        "their edges on average": statistics.mean(c.n_edges for c in circuits),
        "their nodes on average": statistics.mean(c.n_nodes for c in circuits),
    }


def timed(run: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    start = time.process_time()
    run()
    return time.process_time() - start


RANGES = {
    "length": (4, 8, 16, 32, 64),
    "batch": (1, 2, 4, 8, 16),
    "blocks": (2, 4, 8, 16),
    "d_model": (192, 384, 768),
}
COSTS = ("exact, all edges", "evaluation, 17 circuits", "transformers, forward + backward")


def scaling(plot: Path | None) -> dict[str, float]:
    """CPU seconds against prompt length, batch, number of blocks and width, others held fixed; exact patching
    on a fortieth of the edges, drawn at random, scaled up."""
    base = {"length": 16, "batch": 4, "blocks": 4, "d_model": 384}
    figures: dict[str, float] = {}
    for name, values in RANGES.items():
        for value in values:
            shape = base | {name: value}
            hf, model = models(
                n_embd=shape["d_model"],
                n_head=shape["d_model"] // 64,
                n_layer=shape["blocks"],
                vocab_size=5000,
            )
            some = pairs(model, shape["batch"], shape["length"])
            for what, taken in zip(COSTS, costs(hf, model, some), strict=True):
                figures[f"{what}, {name}={value}"] = taken
                print(f"{what}, {name}={value:<6d} {taken:9.3f} s", flush=True)
    if plot:
        draw(figures, plot)
    return figures


def costs(hf: Any, model: Model, some: Pairs) -> tuple[float, float, float]:
    """CPU seconds of all of `COSTS`."""
    graph = Graph.of(model)
    draw_edges = torch.rand(graph.legal.shape, generator=torch.Generator().manual_seed(0))
    edges = graph.legal & (draw_edges < 1 / 40)
    share = int(edges.sum()) / graph.n_edges
    shares = (0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.125, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 0.95)
    circuits = [random_circuit(graph, round(part * graph.n_edges), 0) for part in shares]
    setup = seconds(lambda: exact(model, some, edges=graph.mask(["input->logits"])), 1)
    all_edges = (seconds(lambda: exact(model, some, edges=edges), 1) - setup) / share + setup
    return all_edges, seconds(lambda: evaluate(model, some, circuits), 1), unit(hf, some)


def draw(figures: dict[str, float], path: Path) -> None:
    """One panel per quantity varied."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, len(RANGES), figsize=(13, 3), sharey=True, constrained_layout=True)
    for axis, (name, values) in zip(axes, RANGES.items(), strict=True):
        for what in COSTS:
            axis.loglog(values, [figures[f"{what}, {name}={v}"] for v in values], "o-", label=what)
        axis.set_xlabel(name)
        axis.set_xticks(values, [str(v) for v in values], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("CPU seconds")
    picture.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
    picture.savefig(path, dpi=100)


if __name__ == "__main__":
    main()
