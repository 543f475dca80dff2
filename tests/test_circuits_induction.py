"""Induction on any vocabulary: its pairs, and where heads look."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from families import transformers_model
from typer.testing import CliRunner

import interpcore
from interpcore.circuits.answers import PairsError
from interpcore.circuits.induction import PLACES, induction, induction_pairs, period_of
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.model import Tap


@pytest.fixture(scope="module")
def tiny() -> Any:
    return interpcore.load("tiny", check=False)


@pytest.mark.parametrize("name", ["tiny", "gpt2", "llama"])
def test_pairs_are_right_by_their_first_period_alone(name: str, tiny: Any) -> None:
    model = tiny if name == "tiny" else interpcore.load(transformers_model(name), check=False)
    pairs = induction_pairs(model, 20, seed=3)
    n = period_of(model)
    front = pairs.clean.shape[1] - n - n // 2
    assert front == (name == "tiny") and len(pairs) == 20 and bool(pairs.texts) == (name == "tiny")
    for side, answers in ((pairs.clean, pairs.good), (pairs.corrupted, pairs.bad)):
        first, again = side[:, front : front + n], side[:, front + n :]
        assert torch.equal(again, pairs.clean[:, front : front + n // 2])
        assert torch.equal(first[:, n // 2], answers[:, 0])
        assert all(len(set(row)) == n for row in first.tolist())
    assert (pairs.clean != pairs.corrupted).sum(1).tolist() == [1] * 20
    assert (pairs.good != pairs.bad).all()
    assert torch.equal(induction_pairs(model, 20, seed=3).clean, pairs.clean)
    assert not torch.equal(induction_pairs(model, 20, seed=4).clean, pairs.clean)


def test_attention_is_that_of_the_pattern(tiny: Any) -> None:
    found = induction(tiny, prompts=6, period=8, batch=4)
    assert found.period == 8 and found.attention.shape == (3, 4, 4)
    frame = found.to_pandas()
    assert len(frame) == 16 and frame[PLACES[2]].is_monotonic_decreasing
    # One prompt alone, by hand.
    one = induction(tiny, prompts=1, period=8)
    pairs = induction_pairs(tiny, 1, seed=0, period=8)
    make = torch.Generator().manual_seed(0)
    usable = torch.tensor([i for i in range(len(tiny.tokenizer)) if i not in tiny.tokenizer.all_special_ids])
    drawn = usable[torch.randperm(len(usable), generator=make)[:8]]
    assert pairs.clean[0, 1:9].tolist() == drawn.tolist()
    tokens = torch.cat([pairs.clean[0, :1], drawn, drawn])[None]
    tap = Tap("pattern", 2)
    maps = tiny.forward(tokens, taps=[tap]).taps[tap][0]  # [position, head, key]
    for place, back in enumerate((1, 8, 7)):
        wanted = torch.stack([maps[p, :, p - back] for p in range(9, 17)]).mean(0)
        torch.testing.assert_close(one.attention[place, 2], wanted.double())
    assert bool(one.errors.isnan().all()) and bool((found.errors > 0).all())
    logs = tiny.forward(tokens).logits[0].log_softmax(-1)
    losses = [-float(logs[p - 1, tokens[0, p]]) for p in range(17)[1:]]
    assert one.loss[1] == pytest.approx(sum(losses[9:]) / 7, rel=1e-5)
    assert one.loss[0] == pytest.approx(sum(losses[1:8]) / 7, rel=1e-5)


def test_a_small_vocabulary_has_a_shorter_period(tiny: Any) -> None:
    spec = dataclasses.replace(tiny.spec, vocab_size=6)
    few = dataclasses.replace(tiny, spec=spec, tokenizer=None)
    assert period_of(few) == 5 and induction_pairs(few, 4).clean.shape == (4, 7)
    short = dataclasses.replace(tiny, spec=dataclasses.replace(tiny.spec, max_positions=12))
    assert period_of(short) == 5
    none = dataclasses.replace(tiny, spec=dataclasses.replace(tiny.spec, vocab_size=3), tokenizer=None)
    with pytest.raises(PairsError, match="induction needs 4 and twice 3"):
        induction_pairs(none)


def test_the_command_draws_heads_and_the_task_has_its_name(tmp_path: Any) -> None:
    pytest.importorskip("matplotlib")
    words = ["circuits", "induction", "--prompts", "4", "--picture", str(tmp_path / "heads.png")]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0 and "after_period_back" in done.output and (tmp_path / "heads.png").is_file()
    with pytest.raises(Refused, match=r"is no \.png, \.svg or \.pdf"):
        CliRunner().invoke(app, [*words[:-1], str(tmp_path / "heads.txt")], catch_exceptions=False)
    words = ["circuits", "attribute", "--task", "induction", "--head", "6", "--method", "eap", "--quiet"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "run")], catch_exceptions=False)
    assert done.exit_code == 0 and "induction" in done.output, done.output
