"""Logits, generation and sites agree with transformers for every family."""

from __future__ import annotations

import pytest
import torch
from families import CONFIGS, RELATIVES, transformers_model

import interpcore
from interpcore.model import SITES, Tap
from interpcore.model.projection import Projection

FAMILIES = [*CONFIGS, *RELATIVES]
FACTORS = ("granite",)  # multiplied into copies of the projections


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request):
    """A transformers model and the same weights as ours."""
    hf = transformers_model(request.param)
    return hf, interpcore.load(hf)


def padded(side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Three prompts of 13, 4 and 9 tokens padded on a side: tokens and mask [3, 13]."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(61, (3, 13), generator=generator)
    mask = torch.ones_like(tokens)
    for row, length in enumerate((13, 4, 9)):
        if side == "left":
            mask[row, : 13 - length] = 0
        else:
            mask[row, length:] = 0
    return tokens, mask


def position_ids(mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens, as transformers wants them for padded batches."""
    return (mask.cumsum(1) - 1).clamp(min=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_agree_on_padded_batches(pair, side):
    hf, model = pair
    tokens, mask = padded(side)
    theirs = hf(tokens, attention_mask=mask, position_ids=position_ids(mask), use_cache=False).logits
    ours = model.forward(tokens, mask).logits
    real = mask.bool()
    assert float((ours - theirs)[real].abs().max()) < 1e-4 * float(theirs[real].abs().max())
    assert ours[~real].isnan().all()


def test_greedy_generation_agrees_token_for_token(pair):
    hf, model = pair
    tokens, mask = padded("left")
    theirs = hf.generate(
        tokens, attention_mask=mask, max_new_tokens=12, do_sample=False, pad_token_id=0, eos_token_id=None
    )[:, 13:]
    ours = model.generate(tokens, mask, max_new_tokens=12).tokens
    assert torch.equal(ours, theirs)


def test_sites_equal_the_transformers_modules_they_name(pair):
    hf, model = pair
    tokens = torch.arange(3, 12)[None]
    seen: dict[str, torch.Tensor] = {}
    names = {site: (side, path.format(d=2)) for site, (side, path) in model.spec.module_names.items()}
    unseen = {"mlp_out"} if model.spec.family in ("granite", "falcon", "bloom") else set()
    assert {"resid", "z", "mlp_out"} - unseen <= set(names) and not set(names) & set(model.spec.absent)
    handles = []
    for site, (side, path) in names.items():

        def keep(module, args, kwargs=None, out=None, site=site, side=side):
            value = out if side == "output" else (args[0] if args else kwargs["hidden_states"])
            seen[site] = value[0] if isinstance(value, tuple) else value

        handles.append(hf.get_submodule(path).register_forward_hook(keep, with_kwargs=True))
    hf(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    taps = {s: Tap(s, None if SITES[s].depths == "none" else 2) for s in names}
    out = model.forward(tokens, taps=list(taps.values()))
    for site, tap in taps.items():
        ours, theirs = out.taps[tap], seen[site]
        if model.spec.family == "gemma3_text" or ours.shape != theirs.shape:
            theirs = (
                theirs.transpose(1, 2) if theirs.dim() == 4 and theirs.shape[1] != ours.shape[1] else theirs
            )
        torch.testing.assert_close(
            ours.reshape(theirs.shape), theirs, rtol=1e-4, atol=1e-5, msg=lambda m, s=site: f"{s}: {m}"
        )


def test_hidden_states_are_the_residual_depths(pair):
    hf, model = pair
    tokens = torch.arange(3, 12)[None]
    theirs = hf(tokens, output_hidden_states=True, use_cache=False).hidden_states
    taps = [Tap(*interpcore.model.site_address(f"hidden_states[{i}]", 4)) for i in range(5)]
    out = model.forward(tokens, taps=taps)
    for tap, state in zip(taps, theirs, strict=True):
        torch.testing.assert_close(out.taps[tap], state, rtol=1e-4, atol=1e-5)


def test_loading_shares_the_tensors(pair):
    hf, model = pair
    pointers = {p.untyped_storage().data_ptr() for p in hf.parameters()}
    block = model.block(0)
    if model.spec.family in FACTORS:
        pytest.skip("its factors are multiplied into copies of its output projections")
    ours = [
        *([] if model.spec.family == "bloom" else [model.embedding]),  # taken behind the embeddings' norm
        model.unembedding.weight,
        *(value.weight for value in vars(block.mlp).values() if isinstance(value, Projection)),
        *(
            value
            for name in ("gate_up", "down")
            if isinstance(value := getattr(block.mlp, name, None), torch.Tensor)
        ),
        block.attention.out.weight,
    ]
    assert {t.untyped_storage().data_ptr() for t in ours} <= pointers


def test_float64_agrees_to_rounding():
    hf = transformers_model("gpt2", dtype=torch.float64)
    assert interpcore.load(hf).load_gap < 1e-12


@pytest.mark.parametrize("name", ["stories260k", "makemore_names_b"])
def test_trained_weights(shared, name):
    model = interpcore.load(shared / "models" / name)
    assert model.load_gap < 1e-4
    text = "Once upon a time" if name == "stories260k" else "ann"
    tokens, mask = model.encode(text)
    assert model.generate(tokens, mask, max_new_tokens=8).tokens.shape[0] == 1


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_embedded_models_load_by_name(name):
    model = interpcore.load(name)
    tokens, mask = model.encode("Paris, the capital of")
    assert model.load_gap < 1e-4 and model.generate(tokens, mask, max_new_tokens=2).tokens.shape == (1, 2)
