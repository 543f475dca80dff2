"""Low-rank adapters are part of the projections that they change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import transformers_model

import interpcore
from interpcore.model import Model

peft = pytest.importorskip("peft", reason="PEFT is not installed")
TOKENS = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(5))
MODULES = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "c_fc"], "phi3": ["qkv_proj", "gate_up_proj"]}


def adapted(family: str, where: list[str] | None = None, **options: Any) -> Any:
    """A PEFT model whose adapters are away from their start, where they do nothing."""
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=where or MODULES[family], **options)
    if family == "gpt2":
        config.fan_in_fan_out = True
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = peft.get_peft_model(transformers_model(family), config).eval()
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(0, 0.3)
    return model


@pytest.mark.parametrize("family", list(MODULES))
def test_logits_are_those_with_the_adapters(family):
    wrapped = adapted(family)
    with torch.no_grad():
        theirs = wrapped(TOKENS).logits
        with wrapped.disable_adapter():
            without = wrapped(TOKENS).logits
    for given in (wrapped, wrapped.get_base_model()):
        model = interpcore.load(given)
        assert isinstance(model, Model) and model.load_gap < 1e-4
        torch.testing.assert_close(model.forward(TOKENS).logits, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(theirs, without, atol=0.1)
    with wrapped.disable_adapter():
        torch.testing.assert_close(
            interpcore.load(wrapped).forward(TOKENS).logits, without, rtol=1e-4, atol=1e-4
        )
    merged = interpcore.load(wrapped.merge_and_unload())
    torch.testing.assert_close(merged.forward(TOKENS).logits, theirs, rtol=1e-4, atol=1e-4)


def test_the_weights_without_adapters_stay_as_they_were():
    wrapped = adapted("llama")
    before = wrapped.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight.clone()
    interpcore.load(wrapped)
    assert torch.equal(before, wrapped.get_base_model().model.layers[0].self_attn.q_proj.base_layer.weight)


@pytest.mark.parametrize("kind", ["dora", "embedding", "ia3"])
def test_other_adapters_go_through_the_generic_adapter(kind):
    if kind == "ia3":
        config = peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[])
        wrapped = peft.get_peft_model(transformers_model("llama"), config).eval()
    else:
        more = {"use_dora": True} if kind == "dora" else {}
        where = ["q_proj"] if kind == "dora" else ["embed_tokens"]
        wrapped = adapted("llama", where, **more)
    with pytest.warns(UserWarning, match="adapter"):
        model = interpcore.load(wrapped)
    with torch.no_grad():
        torch.testing.assert_close(model.forward(TOKENS).logits, wrapped(TOKENS).logits, rtol=1e-4, atol=1e-4)
