"""What a notebook shows of a model and its results is short."""

from __future__ import annotations

import pytest

import interpcore
from interpcore.model import Cache, Tap


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_representations_are_a_few_lines(name: str) -> None:
    model = interpcore.load(name, check=False)
    tokens, mask = model.encode(["Paris is", "The opposite of hot is"])
    output = model.forward(tokens, mask, taps=[Tap("resid", 2)], cache=Cache())
    shown = [model, output, output.cache, model.generate(tokens, mask, max_new_tokens=2), model.spec]
    shown += [model.origin, model.final_norm, model.unembedding, model.plan.blocks[0], Tap("resid", 2)]
    for value in shown:
        assert len(repr(value)) < 900 and "tensor(" not in repr(value), repr(value)
    assert len(repr(model.block(0))) < 2500 and "tensor(" not in repr(model.block(0))
    assert f"logits=float32 [2, {tokens.shape[1]}, {model.spec.vocab_size}]" in repr(output)


def test_the_sites_are_a_table() -> None:
    sites = interpcore.load("tiny", check=False).sites()
    lines = repr(sites).splitlines()
    assert len(lines) == len(sites) + 1 and lines[0].split() == list(sites[0])
    assert lines[1].startswith("embed") and sites[0]["site"] == "embed"
