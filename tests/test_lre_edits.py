"""Edits by the low-rank inverse: identities of the inverse, batched against one by one, parity."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers as tf
from families import CONFIGS, transformers_model

import interpcore
from interpcore.data.relations import Sample
from interpcore.lre.answers import Answers
from interpcore.lre.crossfit import Fold
from interpcore.lre.edits import Inverse, edited_logits, edited_tokens, edits_reach, one_by_one
from interpcore.lre.operator import estimate
from interpcore.lre.prompts import Query, relation_queries
from interpcore.lre.rank_search import between, finest, rank_grid, searched
from interpcore.lre.states import published_depths, read_states


def test_the_rank_grid_runs_from_nothing_to_everything():
    assert rank_grid(128, 40)[:3] == [0, 3, 7] and rank_grid(128, 40)[-1] == 128
    assert len(rank_grid(128, 40)) == 40 and rank_grid(4, 40) == [0, 1, 2, 3, 4]


def test_a_search_finds_a_rank_between_those_of_the_grid():
    assert rank_grid(128, "auto") == rank_grid(128, 9)
    assert between([0, 16, 32], 16) == [8, 24] and between([0, 16], 0) == [8] and between([3, 4, 5], 4) == []
    prompts = torch.arange(6)

    def run(ranks):  # more prompts succeed the nearer to 41
        return torch.stack([prompts < 6 - abs(rank - 41) for rank in ranks])

    ranks = rank_grid(128, "auto")
    folds = [Fold(prompts < 3, prompts >= 3), Fold(prompts >= 3, prompts < 3)]
    rank, hits = finest(
        ranks, run(ranks) | (torch.tensor(ranks) == 48)[:, None] & (prompts < 1), folds[0], run
    )
    assert abs(rank - 41) <= 3 and hits[folds[0].choose].all()
    at_depths = torch.stack([torch.zeros_like(run(ranks)), run(ranks) | (torch.tensor(ranks) == 48)[:, None]])
    outcome, chosen = searched(ranks, at_depths, folds)
    assert chosen == [(1, 48), (1, 48)] and outcome.all()
    given, search = (0, ranks.index(32)), lambda depth, some: run(some)
    assert searched(ranks, at_depths, folds, given, search)[1] == [(0, 32), (0, 32)]
    _, chosen = searched(ranks, at_depths, folds, run=search)
    assert [depth for depth, _ in chosen] == [1, 1]


def test_prefix_sums_equal_each_rank_s_own_inverse():
    g = torch.Generator().manual_seed(0)
    weight, x = (torch.randn(n, 12, generator=g, dtype=torch.float64) for n in (12, 5))
    inverse = Inverse.of(weight)
    every = inverse.apply(x, range(13))
    assert not every[0].any()
    torch.testing.assert_close(every[12], torch.linalg.solve(weight, x.T).T)
    for rank in (1, 5, 11):
        u, s, v = inverse.u[:, :rank], inverse.s[:rank], inverse.vh[:rank]
        torch.testing.assert_close(every[rank], x @ torch.linalg.pinv(u @ torch.diag(s) @ v).T)
    torch.testing.assert_close(inverse.apply(x, [0, 5, 12]), every[[0, 5, 12]])


def test_damping_and_missing_directions():
    weight = torch.diag(torch.tensor([4.0, 2.0, 0.0], dtype=torch.float64))
    assert Inverse.of(weight).gains().tolist() == [0.25, 0.5, 0.0]
    assert Inverse.of(weight, damping=0.5).gains().tolist() == [4 / 20, 2 / 8, 0.0]
    assert not Inverse.of(torch.zeros(3, 3)).apply(torch.ones(2, 3), [0, 3]).any()


@pytest.mark.parametrize("family", list(CONFIGS))
def test_batched_edits_equal_single_ones(family):
    model = interpcore.load(transformers_model(family, dtype=torch.float64))
    g = torch.Generator().manual_seed(2)
    start = torch.randint(61, (5,), generator=g).tolist()
    ends = [torch.randint(61, (n,), generator=g).tolist() for n in (3, 5, 4)]
    queries = [Query((*start, *end), 4 + len(end) - 1, 4 + len(end) - 1) for end in ends]
    states = read_states(model, queries, published_depths(4))
    prompt = torch.tensor([0, 1, 2, 1, 0, 2])
    for depth in (None, 1, 4):
        delta = torch.randn(6, model.spec.d_model, generator=g, dtype=torch.float64)
        got = edited_logits(states, depth, prompt, delta)
        for row, i in enumerate(prompt.tolist()):
            alone = edited_logits(
                read_states(model, [queries[i]], [1]), depth, torch.tensor([0]), delta[[row]]
            )
            torch.testing.assert_close(got[row], alone[0], rtol=1e-9, atol=1e-9)
        top, seconds = one_by_one(states, depth, prompt, delta)
        assert torch.equal(top, got.argmax(-1)) and seconds > 0
        assert torch.equal(edited_tokens(states, depth, prompt, delta, max_rows=4), got.argmax(-1))
        goals = torch.rand(3, 61, generator=g) < 0.3
        delta[2] = 0
        reach = goals[prompt, edited_tokens(states, depth, prompt, delta)]
        assert torch.equal(edits_reach(states, depth, prompt, delta, goals, max_rows=4), reach)
        aimed = goals[2 - prompt, edited_tokens(states, depth, prompt, delta)]
        assert torch.equal(edits_reach(states, depth, prompt, delta, goals, 2 - prompt), aimed)
        nothing = edited_logits(states, depth, prompt, torch.zeros_like(delta))
        torch.testing.assert_close(nothing, states.logits[prompt], rtol=1e-9, atol=1e-9)


@pytest.fixture(scope="module")
def published(shared):
    """The published study on the trained model: (peer, model, rank, goals, operator, sources, targets), goals
    being the objects that a target's subject has; which one was meant is not in the file."""
    folder = shared / "parity" / "lre"
    peer = np.load(folder / "trained_gpt2.npz")
    model = interpcore.load(folder / "trained_gpt2_model")
    pairs = zip(peer["train_subjects"], peer["train_objects"], strict=True)
    examples = [Sample(str(s), str(o)) for s, o in pairs]
    facts = list(zip(peer["test_subjects"].tolist(), peer["test_objects"].tolist(), strict=True))
    template = str(peer["operator_prompt_template"]).splitlines()[-1]
    operator = estimate(model, template, examples, protocol="paper", depths=[None])
    sources, targets = (
        read_states(
            model, relation_queries(model.tokenizer, template, examples, peer[key].tolist(), "paper"), [None]
        )
        for key in ("edit_source", "edit_target")
    )
    goals = [sorted({o for s, o in facts if s == t}) for t in peer["edit_target"].tolist()]
    return peer, model, json.loads(str(peer["meta_json"]))["rank"], goals, operator, sources, targets


def check_success(model, logits, goals, theirs, rows):
    """The published flag is that of the target's object, or of one of them."""
    for i in rows:
        top = model.tokenizer.decode([int(logits[i].argmax())]).strip().lower()
        assert bool(theirs[i]) in {goal.lower().startswith(top) for goal in goals[i]}


def gaps(logits, theirs):
    """Largest difference per edit over the entries that the published scores keep (top 50)."""
    return (logits - theirs).masked_fill(~theirs.isfinite(), 0).abs().amax(1)


def left_padded_z(hf, source, target):
    """z of a pair the published way: left-padded, positions not corrected."""
    seen = []
    hook = hf.transformer.h[-1].register_forward_hook(
        lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out)
    )
    width = max(len(source), len(target))
    rows = torch.tensor([[0] * (width - len(r)) + list(r) for r in (source, target)])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in (source, target)])
    with torch.no_grad():
        hf(rows, attention_mask=mask)
    hook.remove()
    return seen[0][:, -1]


def test_edits_equal_the_published_ones_but_for_their_padding(shared, published):
    peer, model, rank, goals, operator, sources, targets = published
    inverse, everyone = Inverse.of(operator.weight[0]), torch.arange(len(goals))
    wanted = targets.z - sources.z
    delta = inverse.apply(wanted, [rank])[0]
    low = torch.from_numpy(peer["W_low_rank_pinv"])
    assert float((delta - wanted @ low.T).norm() / delta.norm()) < 1e-4

    theirs = torch.from_numpy(peer["edit_invert_lre_logits"])
    logits = edited_logits(sources, None, everyone, delta)
    even = torch.tensor(
        [len(s.ids) == len(t.ids) for s, t in zip(sources.queries, targets.queries, strict=True)]
    )
    assert float(gaps(logits, theirs)[even].max()) < 1e-3 and int((~even).sum()) == 4
    flags = peer["edit_invert_lre_success"]
    check_success(model, logits, goals, flags, even.nonzero()[:, 0].tolist())

    hf = tf.AutoModelForCausalLM.from_pretrained(shared / "parity" / "lre" / "trained_gpt2_model").eval()
    pairs = [left_padded_z(hf, s.ids, t.ids) for s, t in zip(sources.queries, targets.queries, strict=True)]
    padded = torch.stack([z[1] - z[0] for z in pairs])
    logits = edited_logits(sources, None, everyone, inverse.apply(padded, [rank])[0])
    assert float(gaps(logits, theirs).max()) < 1e-3
    check_success(model, logits, goals, flags, range(len(goals)))


@pytest.mark.parametrize("name", ["insert_h", "insert_z", "insert_e", "invert_lre_e"])
def test_other_published_editors(published, name):
    peer, model, rank, goals, operator, sources, targets = published
    h, z = sources.h[:, 0], sources.z
    first = Answers(model.tokenizer, model.spec.vocab_size).first_tokens([goal[0] for goal in goals])
    rows = model.embedding[first]  # tied: also the unembedding's rows
    rows = rows / rows.norm(dim=-1, keepdim=True)
    delta = {
        "insert_h": targets.h[:, 0] - h,
        "insert_z": targets.z - h,
        "insert_e": rows * h.norm(dim=-1, keepdim=True) - h,
        "invert_lre_e": Inverse.of(operator.weight[0]).apply(rows * z.norm(dim=-1, keepdim=True) - z, [rank])[
            0
        ],
    }[name]
    logits = edited_logits(sources, None, torch.arange(len(goals)), delta)
    theirs = torch.from_numpy(peer[f"edit_{name}_logits"])
    clear = [i for i, goal in enumerate(goals) if len(goal) == 1 or name in ("insert_h", "insert_z")]
    if name == "invert_lre_e":
        clear = [i for i in clear if len(sources.queries[i].ids) == len(targets.queries[i].ids)]
    assert len(clear) > 40 and float(gaps(logits, theirs)[clear].max()) < 1e-3
    check_success(model, logits, goals, peer[f"edit_{name}_success"], clear)
