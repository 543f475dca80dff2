"""What `table.py` times of transformers: its own forward (sdpa), generation, gradients and Jacobians.

Nothing had to be worked around; generation is told that there is no end-of-text token.
"""

from typing import Any

import torch
import transformers
from torch import Tensor

VERSION = f"transformers {transformers.__version__}"


def model(seed: int = 0, **shape: Any) -> Any:
    """A random GPT-2 with frozen weights, small's shape unless told."""
    config = transformers.GPT2Config(bos_token_id=None, eos_token_id=None, **shape)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.GPT2LMHeadModel(config).eval().requires_grad_(False)


@torch.no_grad()
def prefill(hf: Any, tokens: Tensor) -> Tensor:
    """Logits [batch, vocabulary] after the last token, and a cache."""
    logits: Tensor = hf(tokens, use_cache=True, logits_to_keep=1).logits[:, 0]
    return logits


@torch.no_grad()
def forward(hf: Any, tokens: Tensor) -> Tensor:
    """Logits [batch, position, vocabulary]."""
    logits: Tensor = hf(tokens, use_cache=False).logits
    return logits


def generate(hf: Any, tokens: Tensor, steps: int) -> Tensor:
    """Greedy continuations [batch, step]."""
    made = hf.generate(tokens, max_new_tokens=steps, do_sample=False, pad_token_id=0, eos_token_id=None)
    new: Tensor = made[:, tokens.shape[1] :]
    return new


def gradient(hf: Any, tokens: Tensor, good: Tensor, bad: Tensor) -> Tensor:
    """One forward and backward pass: of good - bad at the last position, to the embeddings."""
    embeds = hf.transformer.wte(tokens).requires_grad_()
    last = hf(inputs_embeds=embeds).logits[:, -1]
    (last.gather(1, good) - last.gather(1, bad)).sum().backward()
    assert embeds.grad is not None
    return embeds.grad


def jacobian(hf: Any, tokens: Tensor, prefix: int, depth: int) -> Tensor:
    """d (last block's output at the last position) / d (stream entering a block, at position `prefix`),
    [d_model, d_model], by `torch.autograd.functional.jacobian` over a cache of the prefix, copied."""
    import copy

    cache = hf(tokens[:, :prefix], use_cache=True).past_key_values
    blocks, found = hf.transformer.h, {}

    def run(h: Tensor) -> Tensor:
        def enter(module: Any, args: tuple[Tensor, ...], kwargs: Any) -> Any:
            stream = torch.cat([h[None, None], args[0][:, 1:]], 1)
            return (stream, *args[1:]), kwargs

        def leave(module: Any, args: Any, out: Any) -> None:
            found["out"] = (out if isinstance(out, Tensor) else out[0])[0, -1]

        hooks = [blocks[depth].register_forward_pre_hook(enter, with_kwargs=True)]
        hooks.append(blocks[-1].register_forward_hook(leave))
        try:
            hf(tokens[:, prefix:], past_key_values=copy.deepcopy(cache))
        finally:
            for hook in hooks:
                hook.remove()
        return found["out"]

    def entering(module: Any, args: tuple[Tensor, ...]) -> None:
        found["h"] = args[0][0, 0].clone()

    hook = blocks[depth].register_forward_pre_hook(entering)
    with torch.no_grad():
        hf(tokens[:, prefix:], past_key_values=copy.deepcopy(cache))
    hook.remove()
    value: Tensor = torch.autograd.functional.jacobian(run, found["h"], vectorize=True)
    return value
