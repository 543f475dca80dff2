"""A TransformerLens name beside a site means that tensor: held to TransformerLens itself, if installed."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from families import transformers_model
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

import interpcore
from interpcore.model import SITES, Tap

pytestmark = pytest.mark.slow  # 1 minute

FAMILIES = [
    "gpt2",
    "gpt_neox",
    "llama",
    "qwen3",
    "olmo2",
    "gemma2",
    "gemma3",
    "gemma",
    "granite",
    "bloom",
    "phi3",
]
FAMILIES += [
    "mixtral",
    "qwen3_moe",
    "gpt_oss",
    "stablelm",
    "starcoder2",
    "glm4",
    "exaone4",
    "olmo3",
    "smollm3",
]
TOKENS = torch.arange(3, 12)[None]
BY_HEAD = "hook_attn_in"  # a copy of the stream for every head
UNFIRED = {
    "bloom": {"attn_in", "attn_out", "mlp_in"}
}  # hooks that TransformerLens 4.3.0 has there but does not run


def hooked(hf: Any, folder: Any) -> dict[str, torch.Tensor]:
    """What TransformerLens' hooks of block 2 and outside the blocks see."""
    bridge = pytest.importorskip("transformer_lens.model_bridge")
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(61)}, unk_token="w0"))
    hf.save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w0"
    ).save_pretrained(folder)
    model = bridge.TransformerBridge.boot_transformers(str(folder), device="cpu", dtype=torch.float32)
    for option in ("hook_mlp_in", "attn_result", "attn_in"):
        getattr(model, f"set_use_{option}")(True)
    seen: dict[str, torch.Tensor] = {}

    def keep(value: torch.Tensor, hook: Any, name: str) -> None:
        seen[name] = value.detach()

    outside = ("hook_embed", "ln_final.", "unembed.")
    names = [n for n in model.hook_dict if n.startswith(("blocks.2.", *outside)) and not n.endswith("_input")]
    model.run_with_hooks(TOKENS, fwd_hooks=[(name, functools.partial(keep, name=name)) for name in names])
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_a_name_beside_a_site_means_that_tensor(family, tmp_path):
    hf = transformers_model(family)
    model = interpcore.load(hf)
    seen, named = hooked(hf, tmp_path), 0
    for row in model.sites():
        site, name = row["site"], row["transformer_lens"].format(d=2)
        if not name or site in UNFIRED.get(family, ()):
            continue
        tap = Tap(site, None if SITES[site].depths == "none" else 2)
        ours, theirs = model.forward(TOKENS, taps=[tap]).taps[tap], seen[name]
        if site in ("q", "k", "v", "scores", "pattern") and theirs.shape != ours.shape:
            theirs = theirs.transpose(1, 2) if theirs.dim() == 4 else theirs.view(ours.shape)
        if name.endswith(BY_HEAD):
            assert torch.equal(theirs, theirs[:, :, :1].expand_as(theirs))
            theirs = theirs[:, :, 0]
        seen_by_all = ours.isfinite()  # scores that are masked are -inf here, a large number there
        torch.testing.assert_close(
            ours[seen_by_all],
            theirs.reshape(ours.shape)[seen_by_all],
            rtol=1e-3,
            atol=1e-4,
            msg=lambda m, s=site: f"{s}: {m}",
        )
        named += 1
    assert named >= 15
