"""Generation through the adapter beside transformers' own: CPU seconds of both, alternating, one thread.

`python bench/study_generic_generation.py`: 4 prompts of 160 tokens, 64 new ones, d_model 128, 4 blocks.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers as tf

import interpcore
from interpcore.model import Add, Edit

SIZES: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
FAMILIES = ("cohere", "nemotron", "arcee")
REPEATS = 7
OPTIONS: dict[str, Any] = {"max_new_tokens": 64, "do_sample": False, "pad_token_id": 0}


def timed(run: Callable[[], Any]) -> float:
    """CPU seconds."""
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    """Print a row per family."""
    torch.set_num_threads(1)
    tokens = torch.randint(1, 1000, (4, 160), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(tokens)
    edit = Edit("resid", 2, slice(159, None), Add(torch.ones(128)))
    print(f"torch {torch.__version__}, transformers {tf.__version__}: CPU s, median of {REPEATS}")
    for family in FAMILIES:
        torch.manual_seed(0)
        hf = tf.AutoModelForCausalLM.from_config(tf.AutoConfig.for_model(family, **SIZES)).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = interpcore.load(hf)
        runs: dict[str, Callable[[], Any]] = {
            "transformers": lambda hf=hf: hf.generate(tokens, attention_mask=mask, **OPTIONS),  # type: ignore[misc]
            "interpcore": lambda m=model: m.generate(tokens, max_new_tokens=64),  # type: ignore[misc]
            "with an edit": lambda m=model: m.generate(tokens, max_new_tokens=64, edits=[edit]),  # type: ignore[misc]
        }
        assert torch.equal(runs["transformers"]()[:, 160:], runs["interpcore"]().tokens)
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(REPEATS):
            for name, run in runs.items():
                seconds[name].append(timed(run))
        ratio = {
            n: statistics.median(a / b for a, b in zip(s, seconds["transformers"], strict=True))
            for n, s in seconds.items()
        }
        print(
            family, ", ".join(f"{n} {statistics.median(s):.2f} ({ratio[n]:.2f}x)" for n, s in seconds.items())
        )


if __name__ == "__main__":
    main()
