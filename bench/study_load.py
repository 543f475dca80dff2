"""Loading a folder beside transformers' own, each in a process of its own, imports included, in turn.

`python bench/study_load.py FOLDER...`: transformers' weights, the same with its tokenizer, and
`interpcore.load` with its tokenizer and its check; CPU and wall seconds, one thread, medians of five.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time

THEIRS = "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; M.from_pretrained({0!r})"
RUNS = {
    "transformers, weights": THEIRS,
    "transformers, weights and tokenizer": THEIRS + "; T.from_pretrained({0!r})",
    "interpcore.load, checked": "import interpcore; interpcore.load({0!r})",
}
REPEATS = 5


def timed(code: str) -> tuple[float, float]:
    """CPU and wall seconds of a new process."""
    before, began = os.times(), time.perf_counter()
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True, stderr=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user - before.children_user + after.children_system - before.children_system
    return cpu, time.perf_counter() - began


def main() -> None:
    """Print a row per folder and run."""
    os.environ["OMP_NUM_THREADS"] = "1"
    for folder in sys.argv[1:]:
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in RUNS}
        for _ in range(REPEATS):
            for name, code in RUNS.items():
                found[name].append(timed(code.format(folder)))
        first = found["transformers, weights"]
        for name, times in found.items():
            cpu, wall = (statistics.median(side) for side in zip(*times, strict=True))
            ratio = statistics.median(a[0] / b[0] for a, b in zip(times, first, strict=True))
            print(f"{os.path.basename(folder)}: {name}: CPU {cpu:.2f} s ({ratio:.2f}x), wall {wall:.2f} s")


if __name__ == "__main__":
    main()
