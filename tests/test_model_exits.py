"""Exit criteria read from one forward, and generation whose tokens make steps of their own number."""

from __future__ import annotations

import pytest
import torch
from huginn_case import huginn_model
from torch import Tensor

import interpcore
from interpcore.model import Add, Edit, Model, Tap
from interpcore.model.exits import CRITERIA, Exit, exit_steps, generate_adaptive, step_changes

STEPS = 4
IDS = torch.randint(61, (3, 9), generator=torch.Generator().manual_seed(1))
LENGTHS = torch.tensor([9, 4, 6])
MASK = (torch.arange(9) < LENGTHS[:, None]).long()
EDITS = [Edit("block_out", ("core", 1, slice(1, 3)), slice(2, None), Add(torch.full((32,), 0.3)))]


@pytest.fixture(scope="module")
def model() -> Model:
    return huginn_model(STEPS)


def median(model: Model, criterion: str) -> Exit:
    """A rule that tokens meet after steps of different number."""
    changes = step_changes(model, IDS, MASK, criterion=criterion)
    return Exit(criterion, float(changes[1:][changes[1:].isfinite()].median()))


def same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("edits", [[], EDITS], ids=["plain", "edited"])
def test_changes_are_those_between_models_of_so_many_steps(model, edits):
    core = Tap("block_out", ("core", 1, -1))
    drawn = torch.stack([model.modules["state_seed_0"].at(p, 32) for p in range(9)])
    log_probs, states = [], [drawn.expand(3, -1, -1)]
    for steps in range(1, STEPS + 1):
        # Of a range of steps, a shorter model has the first.
        written = [Edit(e.site, ("core", 1, range(1, min(3, steps))), e.positions, e.map) for e in edits]
        out = model.with_steps(steps).forward(IDS, MASK, taps=[core], edits=written if steps > 1 else [])
        log_probs.append(out.logits.float().log_softmax(-1))
        states.append(out.taps[core])
    changes = {name: step_changes(model, IDS, MASK, criterion=name, edits=edits) for name in CRITERIA}
    for name in ("entropy", "kl"):
        assert changes[name][0][MASK.bool()].isinf().all()
    for t in range(STEPS):
        same(changes["latent"][t], (states[t + 1] - states[t]).norm(dim=-1) / states[t + 1].norm(dim=-1))
    for t in range(1, STEPS):
        p, before, now = log_probs[t - 1].exp(), log_probs[t - 1], log_probs[t]
        same(changes["kl"][t], (p * (before - now)).sum(-1))
        entropies = [-(x.exp() * x).sum(-1) for x in (before, now)]
        same(changes["entropy"][t], (entropies[1] - entropies[0]).abs())
    assert changes["kl"][:, 1, 4:].isnan().all() and (changes["kl"][:, 0] >= 0).all()


def test_a_token_ends_after_the_first_step_below_the_threshold():
    changes = torch.tensor([[9.0, 0.1, 9.0], [0.4, 9.0, 9.0], [0.1, 9.0, 9.0]])
    assert exit_steps(changes, Exit("latent", 0.5)).tolist() == [2, 1, 3]
    assert exit_steps(changes, Exit("latent", 0.5, least=2)).tolist() == [2, 3, 3]
    assert exit_steps(changes, Exit("latent", 0.0)).tolist() == [3, 3, 3]
    assert Exit("kl").below == 5e-4 and Exit("entropy").below == 1e-3 and Exit("latent").below == 0.03


@pytest.mark.parametrize("lookup", ["full", "latest"])
def test_a_rule_that_is_never_met_is_plain_generation(model, lookup):
    got = generate_adaptive(
        model, IDS, MASK, rule=Exit("kl", 0.0), max_new_tokens=6, lookup=lookup, edits=EDITS, stop_tokens=()
    )
    plain = model.generate(IDS, MASK, max_new_tokens=6, edits=EDITS, stop_tokens=())
    assert torch.equal(got.tokens, plain.tokens) and torch.equal(got.lengths, plain.lengths)
    assert bool((got.steps == STEPS).all()) and got.steps.shape == (3, 6)


@pytest.mark.parametrize("lookup", ["full", "latest"])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_batch_gives_what_each_prompt_alone_does(model, criterion, lookup):
    options = {"rule": median(model, criterion), "max_new_tokens": 8, "lookup": lookup, "edits": EDITS}
    alone = [
        generate_adaptive(model, IDS[r : r + 1, :n], stop_tokens=(), **options)
        for r, n in enumerate(LENGTHS.tolist())
    ]
    tokens, steps = (torch.cat([getattr(one, name) for one in alone]) for name in ("tokens", "steps"))
    assert len(steps[:, 1:].unique()) > 1, steps
    left = torch.stack([row.roll(9 - int(n)) for row, n in zip(IDS * MASK, LENGTHS, strict=True)])
    for ids, mask in ((IDS, MASK), (left, MASK.flip(1))):
        got = generate_adaptive(model, ids, mask, stop_tokens=(), **options)
        assert torch.equal(got.tokens, tokens) and torch.equal(got.steps, steps)
    stop = int(tokens[1, 2])
    ended = generate_adaptive(model, IDS, MASK, stop_tokens=[stop], **options)
    for row in range(3):
        hits = (tokens[row] == stop).nonzero()
        n = int(hits[0]) + 1 if len(hits) else 8
        assert int(ended.lengths[row]) == n
        assert torch.equal(ended.tokens[row, :n], tokens[row, :n])


@pytest.mark.parametrize("lookup", ["full", "latest"])
def test_look_ups_are_what_later_tokens_see(model, lookup):
    """Against each token worked out on its own from a dictionary of keys and values."""
    rule = median(model, "latent")
    got = generate_adaptive(model, IDS[:1], rule=rule, max_new_tokens=8, lookup=lookup, stop_tokens=())
    assert len(got.steps[0, 1:].unique()) > 1
    text = torch.cat([IDS[:1], got.tokens], 1)[0, :-1]
    # The prompt and the token behind it; a new token's steps make the prediction of the next.
    steps = [STEPS] * 9 + got.steps[0, 1:].tolist()
    logits = one_by_one(model, text, steps, lookup)
    assert torch.equal(logits[8:].argmax(-1), got.tokens[0])
    fewer = one_by_one(model, text, [STEPS] * 9 + [1] * 7, lookup)
    assert float((fewer - logits)[9:].abs().max()) > 1e-3


def one_by_one(model: Model, text: Tensor, steps: list[int], lookup: str) -> Tensor:
    """Logits after each token of a text whose tokens make so many steps."""
    keys: dict[tuple[str, int], dict[int, tuple[Tensor, Tensor]]] = {}

    def run(name: str, step: int, x: Tensor, at: int) -> Tensor:
        block = model.modules[name]
        q, k, v = block.attention.qkv(block.attn_norm(x)[None, None])
        place = torch.tensor([[at]])
        q, k = (block.attention.rotated(t, place)[0, 0] for t in (q, k))
        keys.setdefault((name, step), {})[at] = k, v[0, 0]
        made = [min(step, steps[j] - 1) for j in range(at + 1)]
        seen = [j for j in range(at + 1) if lookup == "latest" or made[j] == step]
        k, v = (torch.stack([keys[name, made[j]][j][i] for j in seen]) for i in (0, 1))
        pattern = (torch.einsum("he,jhe->hj", q, k) * block.attention.scale).softmax(-1)
        x = block.attn_stream_norm(x + block.attention.out(torch.einsum("hj,jhe->he", pattern, v).flatten()))
        return block.mlp_stream_norm(x + block.mlp(block.mlp_norm(x)))

    logits = []
    for at, token in enumerate(text.tolist()):
        read = run("prelude.0", 0, model.embedding[token] * model.spec.embed_scale, at)
        x = model.modules["state_seed_0"].at(at, 32)
        for step in range(steps[at]):
            x = model.modules["adapter"](x, read)
            for block in ("core.0", "core.1"):
                x = run(block, step, x, at)
        x = run("coda.0", 0, model.final_norm(x), at)
        logits.append(model.unembed(model.final_norm(x)))
    return torch.stack(logits)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda m: Exit("cosine"), "one of entropy, kl, latent"),
        (lambda m: Exit("kl", -1.0), "0 or more"),
        (lambda m: Exit("kl", float("nan")), "0 or more"),
        (lambda m: Exit("kl", least=0), "at least 1 step"),
        (lambda m: step_changes(m, IDS, criterion="skip"), "one of entropy"),
        (lambda m: step_changes(interpcore.load("tiny"), IDS, criterion="kl"), "no recurrence"),
        (
            lambda m: generate_adaptive(m, IDS, rule=Exit("kl"), max_new_tokens=1, lookup="skip"),
            "A look-up is one",
        ),
        (lambda m: generate_adaptive(m, IDS, rule=Exit("kl"), max_new_tokens=0), "at least 1"),
        (
            lambda m: generate_adaptive(m.with_plan(m.plan.skip(2)), IDS, rule=Exit("kl"), max_new_tokens=1),
            "recurrence as it stands",
        ),
    ],
)
def test_refusals(model, call, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(model)
