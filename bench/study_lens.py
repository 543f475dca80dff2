"""Fitting a Jacobian lens beside TransformerLens and the published loop: CPU seconds on one thread.

python bench/study_lens.py [--width 384 --blocks 6] prints one line per way: seconds of a prompt of 128
tokens, how many times interpcore's, and the largest difference of the maps over their largest entry. All
give the depths that a published lens has, from the first block's output on. Beside it stands what its
products cost alone, each on the routine that is fastest for that very shape and layout (`sweep_products.py`).
TransformerLens takes part where it is installed (pip install transformer-lens, in an environment of its own).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from sweep_products import least_seconds, products_of
from torch import Tensor

import interpcore
from interpcore.data.tinyworld.models import model_folder
from interpcore.lens.sweep import slice_moments
from interpcore.model import Model

LENGTH, SKIP = 128, 16
REPLICAS = (8, 32)  # how often the published loop repeats the prompt; the faster counts


def random_gpt2(width: int, blocks: int, folder: Path) -> Any:
    """A random GPT-2 with the tiny models' tokenizer, in a folder, too."""
    tokenizer = tf.AutoTokenizer.from_pretrained(model_folder("tiny"), local_files_only=True)
    torch.manual_seed(0)
    config = tf.GPT2Config(
        vocab_size=len(tokenizer), n_positions=LENGTH, n_embd=width, n_layer=blocks, n_head=width // 64
    )
    hf = tf.GPT2LMHeadModel(config).eval()
    hf.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return hf


def published(hf: Any, ids: Tensor, replicas: int, skip: int = SKIP) -> Tensor:
    """The published loop: a cotangent of one coordinate at every target, back to every block's output,
    averaged over sources; as many coordinates at once as the prompt is repeated [block, d_model, d_model]."""
    d, valid = hf.config.n_embd, slice(skip, len(ids) - 1)
    for parameter in hf.parameters():
        parameter.requires_grad_(False)
    states: list[Tensor] = []

    def keep(_: Any, given: Any, out: Any) -> Any:
        h = out[0] if isinstance(out, tuple) else out
        if not states:
            h = h.detach().requires_grad_()
        states.append(h)
        return (h, *out[1:]) if isinstance(out, tuple) else h

    hooks = [block.register_forward_hook(keep) for block in hf.transformer.h]
    hf.transformer(ids.expand(replicas, -1))
    for hook in hooks:
        hook.remove()
    out = torch.zeros(len(states) - 1, d, d, device=ids.device)
    for start in range(0, d, replicas):
        n = min(replicas, d - start)
        cotangent = torch.zeros_like(states[-1])
        for row in range(n):
            cotangent[row, valid, start + row] = 1
        grads = torch.autograd.grad(states[-1], states[:-1], cotangent, retain_graph=True)
        for block, grad in enumerate(grads):
            out[block, start : start + n] = grad[:n, valid].mean(1)
    return out


def transformer_lens(folder: Path, text: str, replicas: int) -> Callable[[], Tensor] | None:
    """TransformerLens' own fit of the same prompt, or None where it is not installed."""
    try:
        from transformer_lens.model_bridge import TransformerBridge
        from transformer_lens.tools.analysis import JacobianLens
    except ImportError:
        return None
    bridge = TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)

    def fit() -> Tensor:
        lens = JacobianLens.fit(
            bridge, [text], corpus="bench", dim_batch=replicas, max_seq_len=LENGTH, show_progress=False
        )
        return torch.stack([lens.jacobians[layer] for layer in lens.source_layers])

    return fit


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds and the result."""
    began = time.process_time()
    found = run()
    return time.process_time() - began, found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--blocks", type=int, default=6)
    parser.add_argument("--replicas", type=int, nargs="+", default=REPLICAS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        hf = random_gpt2(asked.width, asked.blocks, folder)
        model = interpcore.load(str(folder))
        assert isinstance(model, Model)
        text = " ".join(["the capital of France is Paris and the old man went to the river"] * 40)
        ids = model.encode(text)[0][0, :LENGTH]
        slice_moments(model, [ids.tolist()[: SKIP + 4]], skip=SKIP, target_depth=1)  # routes are chosen

        def fit() -> Any:
            return slice_moments(model, [ids.tolist()], skip=SKIP, target_depth=asked.blocks, first_depth=1)

        seconds, halves = timed(fit)
        ours = halves[0].mean[1:-1]
        print(f"d {asked.width}, {asked.blocks} blocks, {LENGTH} tokens, one thread, {torch.__version__}")
        products = products_of(fit)
        operations = sum(product.operations * count for product, count in products.items())
        least = least_seconds(products)
        print(
            f"interpcore {seconds:8.1f} s, {seconds / least:.2f} x its products alone ({least:.1f} s,", end=""
        )
        print(f" {operations / 1e9:.0f} GFLOP)", flush=True)
        ways: dict[str, Callable[[], Tensor]] = {}
        for replicas in asked.replicas:
            ways[f"published loop x{replicas}"] = lambda n=replicas: published(hf, ids, n)  # type: ignore[misc]
            if (peer := transformer_lens(folder, text, replicas)) is not None:
                ways[f"TransformerLens x{replicas}"] = peer
        for name, run in ways.items():
            theirs, found = timed(run)
            gap = float((found - ours).abs().max() / ours.abs().max())
            print(f"{name:20} {theirs:8.1f} s {theirs / seconds:5.1f}x  difference {gap:.1e}", flush=True)


if __name__ == "__main__":
    main()
