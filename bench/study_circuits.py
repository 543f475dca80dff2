"""Cost of circuit discovery, one thread, CPU seconds.

    python bench/study_circuits.py
    python bench/study_circuits.py --scaling --plot circuits_scaling.png

Random weights of GPT-2 small's shape, float32; 4 pairs of 16 tokens that differ at every position, so that no
position can be skipped. A unit is what transformers takes for one forward and backward pass of those prompts
with frozen weights, in the same process. Memory is the peak above the loaded model, in a process of its own.
"""

import argparse
import functools
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers

import interpcore
from interpcore.circuits import Pairs, attribute
from interpcore.model import Model

BATCH, LENGTH, REPEATS = 4, 16, 5
ATTRIBUTIONS: dict[str, dict[str, Any]] = {
    "EAP": {"method": "eap"},
    "EAP-IG left": {"method": "eap-ig-inputs", "steps": 5, "nodes": "left"},
    "EAP-IG midpoint": {"method": "eap-ig-inputs", "steps": 5, "nodes": "midpoint"},
    "EAP-IG nodes": {"method": "eap-ig-inputs", "steps": 5, "level": "node"},
}


def main() -> None:
    """Run what the command line asks for and print it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--scaling", action="store_true", help="cost against length, batch and model size")
    parser.add_argument("--plot", type=Path, help="picture of --scaling")
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument("--memory-of", choices=ATTRIBUTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory_of:
        print(peak_above_model(options.memory_of))
        return
    figures = scaling(options.plot) if options.scaling else study()
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


def study() -> dict[str, float]:
    """The table of one model shape."""
    hf, model = models()
    some = pairs(model)
    figures = {"unit (s)": unit(hf, some)}
    figures |= attribution(model, some, figures["unit (s)"])
    for name, value in figures.items():
        print(f"{name:36s} {value:10.4g}", flush=True)
    return figures


def attribution(model: Model, some: Pairs, one: float) -> dict[str, float]:
    """Attribution methods in units, on pairs without and with a shared beginning, and their memory in MB."""
    figures = {}
    for name, way in ATTRIBUTIONS.items():
        figures[f"{name} (units)"] = seconds(lambda way=way: attribute(model, some, **way)) / one  # type: ignore[misc]
    alike = some.corrupted.clone()
    alike[:, : LENGTH // 2] = some.clean[:, : LENGTH // 2]
    shared = replace(some, corrupted=alike)
    way = ATTRIBUTIONS["EAP-IG midpoint"]
    figures["midpoint, half shared (units)"] = seconds(lambda: attribute(model, shared, **way)) / one
    for name in ("EAP", "EAP-IG left", "EAP-IG midpoint"):
        figures[f"{name} (MB above the model)"] = memory_of(name)
    return figures


def models(**shape: Any) -> tuple[Any, Model]:
    """A random GPT-2 with frozen weights, small's shape unless told, and ours on the same tensors."""
    config = transformers.GPT2Config(  # type: ignore[call-arg]
        bos_token_id=None, eos_token_id=None, attn_implementation="eager", **shape
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        hf = transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)
    model = interpcore.load(hf)
    assert isinstance(model, Model)
    return hf, model


def pairs(model: Model, batch: int = BATCH, length: int = LENGTH) -> Pairs:
    """Pairs of random prompts with one right and one wrong answer each."""
    draw = torch.Generator().manual_seed(0)
    size = model.spec.vocab_size
    clean = torch.randint(size, (batch, length), generator=draw)
    corrupted = (clean + torch.randint(1, size, (batch, length), generator=draw)) % size
    good, bad = torch.randint(size, (2, batch, 1), generator=draw)
    return Pairs("random", clean, corrupted, torch.full((batch,), length), good, bad)


def seconds(run: Callable[[], object], repeats: int = REPEATS) -> float:
    """Median CPU seconds of a few calls, after one that is not counted."""
    run()
    taken = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        taken.append(time.process_time() - start)
    return statistics.median(taken)


def unit(hf: Any, some: Pairs) -> float:
    """CPU seconds of one forward and backward pass of the clean prompts to their embeddings."""

    def run() -> None:
        embeds = hf.transformer.wte(some.clean).requires_grad_()
        last = hf(inputs_embeds=embeds).logits[:, -1]
        (last.gather(1, some.good) - last.gather(1, some.bad)).sum().backward()

    return seconds(run)


def memory_of(name: str) -> float:
    """Peak memory of an attribution above the loaded model in MB, measured in a new process."""
    command = [sys.executable, __file__, "--memory-of", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def peak_above_model(name: str) -> float:
    """The same in this process, which must be new (Linux)."""
    _, model = models()
    some = pairs(model)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    before = resident("VmRSS")
    attribute(model, some, **ATTRIBUTIONS[name])
    return resident("VmHWM") - before


def resident(what: str) -> float:
    """A line of this process's status in MB."""
    found = re.search(rf"{what}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024


def scaling(plot: Path | None) -> dict[str, float]:
    """CPU seconds of EAP and EAP-IG (5 midpoints) against prompt length, batch and width, others held
    fixed."""
    base = {"length": 16, "batch": 4, "d_model": 384, "blocks": 6}
    ranges = {
        "length": (4, 8, 16, 32, 64, 128),
        "batch": (1, 2, 4, 8, 16, 32),
        "blocks": (2, 4, 8, 16),
        "d_model": (192, 384, 768),
    }
    figures: dict[str, float] = {}
    for name, values in ranges.items():
        for value in values:
            shape = base | {name: value}
            _, model = models(
                n_embd=shape["d_model"],
                n_head=shape["d_model"] // 64,
                n_layer=shape["blocks"],
                vocab_size=5000,
            )
            some = pairs(model, shape["batch"], shape["length"])
            for method in ("EAP", "EAP-IG midpoint"):
                taken = seconds(functools.partial(attribute, model, some, **ATTRIBUTIONS[method]), 3)
                figures[f"{method}, {name}={value}"] = taken
                print(f"{method}, {name}={value:<6d} {taken:8.3f} s", flush=True)
    if plot:
        draw(figures, ranges, plot)
    return figures


def draw(figures: dict[str, float], ranges: dict[str, tuple[int, ...]], path: Path) -> None:
    """One panel per quantity varied."""
    import matplotlib.pyplot as plt

    picture, axes = plt.subplots(1, len(ranges), figsize=(13, 3), sharey=True, constrained_layout=True)
    for axis, (name, values) in zip(axes, ranges.items(), strict=True):
        for method in ("EAP", "EAP-IG midpoint"):
            axis.loglog(values, [figures[f"{method}, {name}={v}"] for v in values], "o-", label=method)
        axis.set_xlabel(name)
        axis.set_xticks(values, [str(v) for v in values], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("CPU seconds")
    axes[0].legend(frameon=False)
    picture.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
