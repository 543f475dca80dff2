"""Pairs and metrics: lengths, answers, splits; values against their formulas, signs, refusals."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from interpcore.circuits import Metric, MetricError, Pairs, PairsError

PARITY = Path(__file__).parent / "data" / "parity_circuits.npz"


def words(*texts: str) -> PreTrainedTokenizerFast:
    """A tokenizer of whole words and dashes, with a beginning-of-text token."""
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(["<s>", "?", *texts])}, unk_token="?"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", unk_token="?")


def pairs(good: list[list[int]], bad: list[list[int]], logits_by: str = "sum") -> Pairs:
    n, width = len(good), max(len(row) for row in [*good, *bad])
    fill = [torch.tensor([[*row, *[-1] * (width - len(row))] for row in side]) for side in (good, bad)]
    tokens = torch.arange(n * 3).view(n, 3)
    return Pairs("made", tokens, tokens + 1, torch.full((n,), 3), *fill, logits_by)


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(3, 11, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_differences_join_answers_as_the_task_says(logits: Tensor) -> None:
    good, bad = [[1, 2, 3], [4], [5, 6]], [[0], [1, 2], [9]]
    p = logits.softmax(-1)
    for by, join in (("sum", torch.sum), ("mean", torch.mean)):
        found = Metric("logit_diff")(logits, pairs(good, bad, by))
        wanted = torch.stack([join(logits[i][good[i]]) - join(logits[i][bad[i]]) for i in range(3)])
        torch.testing.assert_close(found, wanted)
        found = Metric("prob_diff")(logits, pairs(good, bad, by))
        wanted = torch.stack([p[i][good[i]].sum() - p[i][bad[i]].sum() for i in range(3)])
        torch.testing.assert_close(found, wanted)


def test_divergences_are_nats_summed_and_the_paper_divides_by_the_vocabulary(logits: Tensor) -> None:
    clean = logits.flip(0)
    q, p = clean.softmax(-1), logits.softmax(-1)
    some = pairs([[1]] * 3, [[2]] * 3)
    kl = (q * (q / p).log()).sum(-1)
    torch.testing.assert_close(Metric("kl")(logits, some, clean), -kl)
    torch.testing.assert_close(Metric("kl_divergence", "paper")(logits, some, clean), -kl / 11)
    m = (p + q) / 2
    js = ((p * (p / m).log()) + (q * (q / m).log())).sum(-1) / 2
    torch.testing.assert_close(Metric("js")(logits, some, clean), -js)
    assert float(js.max()) < math.log(2)
    assert Metric("kl").natural(-2.0) == 2.0 == Metric("logit_diff").natural(2.0)


def test_divergences_have_no_gradient_on_the_clean_prompt(logits: Tensor) -> None:
    some, clean = pairs([[1]] * 3, [[2]] * 3), logits.clone()
    for name in ("kl", "js"):
        metric = Metric(name)
        here = logits.clone().requires_grad_()
        (slope,) = torch.autograd.grad(metric(here, some, clean).sum(), here)
        assert float(slope.abs().max()) < 1e-15
        assert (
            not metric.differentiable_at_clean
            and "gradient on the clean prompt is zero" in metric.clean_refusal
        )
        there = (2 * logits).requires_grad_()
        (slope,) = torch.autograd.grad(metric(there, some, clean).sum(), there)
        assert float(slope.abs().max()) > 1e-3 and metric.gradient_refusal is None
    assert Metric("logit_diff").clean_refusal is None
    assert "step function" in Metric("accuracy").gradient_refusal


def test_accuracy_compares_the_best_answers(logits: Tensor) -> None:
    best = logits.argmax(-1).tolist()
    worst = logits.argmin(-1).tolist()
    accuracy = Metric("accuracy")
    assert accuracy(
        logits, pairs([[b, w] for b, w in zip(best, worst, strict=True)], [[3]] * 3)
    ).tolist() == [float(b != 3) for b in best]
    assert accuracy(logits, pairs([[b] for b in best], [[]] * 3)).tolist() == [1.0, 1.0, 1.0]
    assert accuracy(logits, pairs([[w] for w in worst], [[]] * 3)).tolist() == [0.0, 0.0, 0.0]


def test_copies_of_a_batch_are_measured_one_by_one(logits: Tensor) -> None:
    some, clean = pairs([[1, 4]] * 3, [[2]] * 3), logits.flip(0)
    copies = torch.stack([logits, 2 * logits])
    for name in ("logit_diff", "prob_diff", "kl", "js", "accuracy"):
        metric = Metric(name)
        alone = torch.stack([metric(copy, some, clean) for copy in copies])
        torch.testing.assert_close(metric(copies, some, clean), alone)


def test_published_baselines() -> None:
    archive = np.load(PARITY)
    labels = torch.from_numpy(archive["input/labels"])
    tokens = torch.from_numpy(archive["input/clean"])
    some = Pairs("parity", tokens, tokens, torch.full((6,), 9), labels[:, :1], labels[:, 1:])
    for side in ("clean", "corrupted"):
        found = Metric("logit_diff")(torch.from_numpy(archive[f"input/{side}_last_logits"]), some)
        np.testing.assert_allclose(found, archive[f"baseline/{side}"], rtol=1e-5, atol=1e-6)


def test_what_a_metric_refuses(logits: Tensor) -> None:
    with pytest.raises(MetricError, match="no metric 'f1'; metrics are logit_diff"):
        Metric("f1")
    with pytest.raises(MetricError, match="needs the clean run's logits"):
        Metric("kl")(logits, pairs([[1]] * 3, [[2]] * 3))
    with pytest.raises(MetricError, match="outside the vocabulary of 11"):
        Metric("logit_diff")(logits, pairs([[11]] * 3, [[2]] * 3))


TEXTS = [("a b c", "a d c"), ("a b", "a b"), ("b c d", "b")]


def read(unequal: str = "skip", equal: str = "keep") -> Pairs:
    tokenizer = words("a", "b", "c", "d", "e")
    return Pairs.from_texts(
        "t", TEXTS, [[" e"], [3], [" e"]], [[2]] * 3, tokenizer, unequal=unequal, equal=equal
    )


def test_pairs_of_unequal_length_are_named_and_counted() -> None:
    skipped = read()
    assert len(skipped) == 2 and skipped.lengths.tolist() == [4, 3]
    assert skipped.left_out == (
        "1 of 3 pairs of t have prompts of different token length, the first one 'b c d' (4 and 2 tokens). "
        "They are left out.",
    )
    assert skipped.clean.tolist() == [[0, 2, 3, 4], [0, 2, 3, 0]] and skipped.good.tolist() == [[6], [3]]
    aligned = read("align")
    assert aligned.corrupted[2].tolist() == [0, 0, 0, 3] and not aligned.left_out
    with pytest.raises(PairsError, match=r"1 of 3 pairs.*Skip or align"):
        read("refuse")


def test_masks_differences_rows_and_splits() -> None:
    some = read("align")
    assert some.mask.tolist() == [[True] * 4, [True] * 3 + [False], [True] * 4]
    assert some.first_difference.tolist() == [2, 3, 1]
    assert [len(batch) for batch in some.batches(2)] == [2, 1]
    assert some.rows([1]).clean.shape == (1, 3) and some.rows([1]).texts == (("a b", "a b"),)
    assert some.swapped().clean.equal(some.corrupted)
    first, second = some.split(0.5, seed=3)
    assert len(first) + len(second) == 3 and not set(first.texts) & set(second.texts)
    assert some.split(0.5, seed=3)[0].texts == first.texts


def test_answers_of_several_tokens_and_empty_sets_are_refused() -> None:
    tokenizer = words("a", "b", "c")
    with pytest.raises(PairsError, match="continues 'a b' by 2 tokens"):
        Pairs.from_texts("t", [("a b", "b a")], [[" a c"]], [["c"]], tokenizer)
    with pytest.raises(PairsError, match=r"no pair of t\. 1 of 1 pairs"):
        Pairs.from_texts("t", [("a b", "b")], [[" a"]], [[" c"]], tokenizer)
    with pytest.raises(PairsError, match="no pair of t"):
        Pairs.from_texts("t", [], [], [], tokenizer)


def test_pairs_that_cannot_differ_are_named_and_counted() -> None:
    tokenizer = words("a", "b", "c")
    texts = [("a b", "a b"), ("a b", "c b"), ("a  c", "a c"), ("b a", "b c")]
    some = Pairs.from_texts("t", texts, [[2], [2], [2], [2, 3]], [[3], [3], [3], [3, 2]], tokenizer)
    assert some.texts == (("a b", "c b"),)
    assert some.left_out == (
        "2 of 4 pairs of t have equal clean and corrupted prompts, the first one 'a b'; left out.",
        "1 of 4 pairs of t have the same good and bad answers, the first one 'b a'; left out.",
    )
    with pytest.raises(PairsError, match=r"no pair of t\. 1 of 1 pairs of t have equal clean"):
        Pairs.from_texts("t", texts[:1], [[2]], [[3]], tokenizer)
    kept = Pairs.from_texts("t", texts, [[2]] * 4, [[3]] * 4, tokenizer, equal="keep")
    assert len(kept) == 4 and not kept.left_out
    with pytest.raises(PairsError, match="equal ones one of skip, keep"):
        Pairs.from_texts("t", texts, [[2]] * 4, [[3]] * 4, tokenizer, equal="drop")


@pytest.mark.parametrize(
    "good, said",
    [
        ([" c"], r"good of pair 1 of t is ' c'; it needs a list of answers: \[' c'\]"),
        (" c", "t has 1 pairs; good needs a list of answers for each"),
        ([4], "good of pair 1 of t is 4; it needs a list"),
        ([[4], [4]], "t has 1 pairs; good needs a list"),
        ([[-1]], "The answer -1 to 'a b' is no token id of this tokenizer, which has 5"),
        ([[5]], "The answer 5 to 'a b' is no token id"),
        ([[2.0]], r"The answer 2\.0 to 'a b' is no token id"),
        ([[True]], "The answer True to 'a b' is no token id"),
    ],
)
def test_answers_are_a_list_of_ids_or_texts_for_each_pair(good: list[object], said: str) -> None:
    tokenizer = words("a", "b", "c")
    with pytest.raises(PairsError, match=said):
        Pairs.from_texts("t", [("a b", "b a")], good, [[2]], tokenizer)  # type: ignore[arg-type]
    with pytest.raises(PairsError, match=said.replace("good", "bad")):
        Pairs.from_texts("t", [("a b", "b a")], [[2]], good, tokenizer)  # type: ignore[arg-type]
    for texts in (["ab"], [("a b",)], [("a b", 3)]):
        with pytest.raises(PairsError, match=r"Pair 1 of t is .* not a clean and a corrupted text"):
            Pairs.from_texts("t", texts, [[2]], [[3]], tokenizer)  # type: ignore[arg-type]


def test_tensors_of_pairs_are_ids() -> None:
    some = read("align")
    for change, said in (
        ({"good": some.good - 7}, "good of t holds -"),
        ({"clean": some.clean - 1}, "clean of t holds -1"),
        ({"bad": some.bad.float()}, "bad is .* it needs ids"),
        ({"good": some.good[:2]}, "good is .* it needs ids"),
        ({"lengths": some.lengths + 1}, "a length is not"),
        ({"lengths": some.lengths * 0}, "a length is not"),
    ):
        with pytest.raises(PairsError, match=said):
            replace(some, **change)
