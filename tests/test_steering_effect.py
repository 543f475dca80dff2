"""Effect maps: second order against intervention and autograd, the published effect, probes, the commands."""

from __future__ import annotations

import pandas as pd
import pytest
import torch
from families import transformers_model
from recurrent import recurrent_model
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.model import Add, Edit
from interpcore.model.generic import GenericModel
from interpcore.steering.effect import divergence, published_effect, second_order
from interpcore.steering.experiments import EFFECT, PROBES
from interpcore.steering.options import EffectOptions, ProbeOptions, StatesOptions
from interpcore.steering.probes import chosen_on_their_own, trained_as_published
from interpcore.steering.study import open_states

TOKENS = torch.tensor([5, 9, 2, 44, 17])
MODELS = {
    "gpt2": lambda: interpcore.load(transformers_model("gpt2", dtype=torch.float64)),
    "gemma2": lambda: interpcore.load(transformers_model("gemma2", dtype=torch.float64)),  # soft-capped
    "recurrent": lambda: recurrent_model(2),
}


def some_vectors(model, count=None):
    draw = torch.Generator().manual_seed(3)
    shape = (model.spec.d_model,) if count is None else (count, model.spec.d_model)
    return {d: torch.randn(shape, generator=draw, dtype=torch.float64) for d in range(model.plan.n_calls + 1)}


def after(model, depth, position, vector, c):
    """Logits after the prompt with c d added [1, vocabulary], for derivatives in c."""
    edit = Edit("resid", depth, position, Add(c * vector))
    return model.forward(TOKENS[None], edits=[edit], logits_at="last").logits


def kl(model, depth, position, vector, c):
    before, moved = (after(model, depth, position, vector, x)[0].log_softmax(-1) for x in (0.0, c))
    return (before.exp() * (before - moved)).sum()


@pytest.mark.parametrize("name", MODELS)
def test_the_second_order_is_half_the_variance_of_the_slope_and_what_the_divergence_tends_to(name):
    model = MODELS[name]()
    vectors = some_vectors(model)
    found = {at: second_order(model, TOKENS, vectors, at) for at in ("last", "each", "all")}
    n = len(TOKENS)
    assert found["each"].shape == (len(vectors), 1, n)
    torch.testing.assert_close(found["each"][:, :, -1:], found["last"], rtol=1e-9, atol=1e-12)
    for depth in (0, 2, model.plan.n_calls):
        for at, place, position in (("last", 0, -1), ("each", 1, 1), ("all", 0, None)):
            slope = torch.autograd.functional.jacobian(
                lambda c, d=depth, p=position: after(model, d, p, vectors[d], c)[0],
                torch.zeros((), dtype=torch.float64),
            )
            p = after(model, depth, position, vectors[depth], 0.0)[0].softmax(-1)
            variance = (p * slope.square()).sum() - (p * slope).sum().square()
            got = found[at][depth, 0, place]
            assert float(got) == pytest.approx(float(variance) / 2, rel=1e-7, abs=1e-14), (depth, at)
    exact = divergence(model, TOKENS, vectors, [1e-3, 1.0], "each")
    ratio = exact[0] / 1e-6 / found["each"][:, 0].clamp(min=1e-300)
    seen = found["each"][:, 0] > 1e-9
    assert seen.sum() > n and ((ratio[seen] - 1).abs() < 0.05).all()
    assert ((exact[1][seen] / found["each"][:, 0][seen] - 1).abs() > 0.05).any()  # c = 1 is far from small
    want = kl(model, 2, 1, vectors[2], 1.0)
    assert float(exact[1, 2, 1]) == pytest.approx(float(want), rel=1e-9)


def test_several_vectors_and_depths_in_pieces_are_one_walk(monkeypatch):
    model = MODELS["gpt2"]()
    several = some_vectors(model, 3)
    whole = second_order(model, TOKENS, several, "each")
    for i in range(3):
        one = second_order(model, TOKENS, {d: v[i] for d, v in several.items()}, "each")
        torch.testing.assert_close(whole[:, i : i + 1], one, rtol=1e-9, atol=1e-14)
    from interpcore.steering import effect

    monkeypatch.setattr(effect, "BYTES", 1)
    torch.testing.assert_close(second_order(model, TOKENS, several, "each"), whole, rtol=1e-9, atol=1e-14)
    some = {4: several[4], 1: several[1]}  # in any order
    torch.testing.assert_close(
        second_order(model, TOKENS, some, "each"), whole[[4, 1]], rtol=1e-9, atol=1e-14
    )


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_published_effect_is_zero_or_belongs_to_no_divergence(name):
    model = MODELS[name]()
    units = {d: v / v.norm() for d, v in some_vectors(model).items()}
    right = published_effect(model, TOKENS, units, "probabilities")
    assert abs(right.loss) < 1e-12 and right.gradient < 1e-14 and float(right.effect.max()) < 1e-12
    paper = published_effect(model, TOKENS, units, "log-probabilities")
    assert paper.loss != paper.loss and paper.gradient > 10 and float(paper.effect.min()) >= 0
    assert float(paper.effect.max()) > 1e-3  # a gradient flows, of nothing
    # It is the gradient that autograd gives for the published loss at the last position.
    hf = transformers_model(name, dtype=torch.float64)
    hf.set_attn_implementation("eager")
    states = []

    def entering(module, given):
        states.append(given[0].detach().requires_grad_() if not states else given[0])
        return (states[-1], *given[1:])

    blocks = hf.transformer.h if name == "gpt2" else hf.model.layers
    hooks = [b.register_forward_pre_hook(entering) for b in blocks]
    with torch.enable_grad():
        logits = hf(TOKENS[None]).logits[:, -1:]
        chances = logits.log_softmax(-1)
        loss = torch.nn.functional.kl_div(chances, logits.detach().log_softmax(-1), reduction="batchmean")
        found = torch.autograd.grad(loss, states[2])[0][0, -1]
    for hook in hooks:
        hook.remove()
    want = abs(float(found.double() @ units[2]))
    assert float(paper.effect[2]) == pytest.approx(want, rel=1e-4)
    with pytest.raises(Refused, match="published target"):
        published_effect(model, TOKENS, units, "other")


def test_a_generic_model_has_no_map():
    model = GenericModel.wrap(transformers_model("gpt2"), "gpt2")
    with pytest.raises(Refused, match="hand-written blocks"):
        second_order(model, TOKENS, {0: torch.ones(32)})
    with pytest.raises(Refused, match="added at last, each, all"):
        second_order(MODELS["gpt2"](), TOKENS, {0: torch.ones(32)}, "first")


def planted(n=160, depths=3, d=8):
    draw = torch.Generator().manual_seed(4)
    flags = torch.randint(2, (n,), generator=draw).bool()
    x = torch.randn(n, depths, d, generator=draw, dtype=torch.float64)
    x[:, 1] += 3 * flags[:, None] * torch.eye(d, dtype=torch.float64)[2]
    return x, flags


def test_probes_choose_their_depth_on_questions_of_their_own():
    x, flags = planted()
    parts = ["direction"] * 80 + ["selection"] * 40 + ["test"] * 40
    w, table, note = chosen_on_their_own(x, flags, parts)
    assert (
        table.auroc.idxmax() == 1 and table.auroc[1] > 0.85 and "depth 1" in note and "on 40 others" in note
    )
    assert float(torch.cosine_similarity(w[1], torch.eye(8, dtype=torch.float64)[2], dim=0)) > 0.85
    again, other, _ = chosen_on_their_own(x, flags ^ torch.tensor([p == "test" for p in parts]), parts)
    assert torch.equal(again, w)  # what the test part says changes no probe and no choice
    pd.testing.assert_series_equal(other.selection_auroc, table.selection_auroc)
    assert other.auroc[1] < 0.2
    with pytest.raises(Refused, match="test part"):
        chosen_on_their_own(x, flags, ["direction"] * 80 + ["selection"] * 80)


def test_the_published_training_is_its_optimiser_step_by_step():
    x, flags = planted(96)
    asked = ProbeOptions(training="paper", epochs=3, learning_rate=0.02, batch_size=32, test_ratio=0.34)
    w, table, note = trained_as_published(x, flags, asked, seed=2)
    draw = torch.Generator().manual_seed(2)
    order = torch.randperm(96, generator=draw)
    test, train = order[:32], order[32:]
    p = (torch.randn(3, 8, 2, generator=draw, dtype=torch.float64) / 8**0.5).requires_grad_()
    solver, best = torch.optim.AdamW([p], lr=0.02, weight_decay=0.01), (1e9, None)
    for _ in range(3):
        for rows in train[torch.randperm(64, generator=draw)].view(2, 32):
            logits = torch.einsum("nde,dec->dnc", x[rows], p)
            losses = [torch.nn.functional.cross_entropy(one, (~flags[rows]).long()) for one in logits]
            solver.zero_grad()
            sum(losses).backward()
            for depth in range(3):
                torch.nn.utils.clip_grad_norm_([p], 1e9)
                norm = float(p.grad[depth].norm())
                p.grad[depth] /= max(1.0, norm)
            solver.step()
        logits = torch.einsum("nde,dec->dnc", x[test], p)
        losses = torch.stack(
            [torch.nn.functional.cross_entropy(one, (~flags[test]).long()) for one in logits]
        )
        losses = losses.detach()
        if float(losses.min()) < best[0]:
            best = float(losses.min()), (p[..., 0] - p[..., 1]).detach().clone()
    torch.testing.assert_close(w, best[1], rtol=1e-9, atol=1e-12)
    assert table.test_loss.min() == pytest.approx(best[0]) and "chosen on, as published" in note
    with pytest.raises(Refused, match="no whole batch"):
        trained_as_published(x[:40], flags[:40], asked)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    model, out = interpcore.load("tiny-llama"), tmp_path_factory.mktemp("steering") / "directions"
    with open_states(model, out, StatesOptions(questions="tiny:100", shuffles=1)) as study:
        study.find("mean")
        report = PROBES.run(study, ProbeOptions())
        paper = PROBES.run(study, ProbeOptions(training="paper", epochs=4, batch_size=16))
    return model, out, report, paper


def test_probe_reports(found):
    _, out, report, paper = found
    assert report.table.auroc.max() > 0.9 and "others" in report.notes[0]
    assert {"train_loss", "test_loss", "right_low"} <= set(paper.table)
    assert (out / "artifacts/directions/probe-paper.safetensors").is_file()


def test_the_study_of_effects(found, tmp_path):
    model, out, *_ = found
    direction = str(out / "artifacts/directions/mean.safetensors")
    with pytest.raises(Refused, match="several directions"):
        EffectOptions(questions="tiny:100", directions=str(out)).check_data()
    options = EffectOptions(
        questions="tiny:100", directions=direction, questions_at_most=3, protocol="paper", scale="own"
    )
    with EFFECT.open(model, tmp_path / "last", options, progress=False) as study:
        report = EFFECT.run(study)
        cells = [row.result for row in study.run()]
        assert 0 not in study.vectors()  # every question ends alike, so depth 0 has no direction
    table = report.table
    assert list(table.depth) == [1, 2, 3, 4] and ((table["ratio_0.01"] - 1).abs() < 0.2).all()
    assert (table.published_HEAD < 1e-6).all() and table.published_loss_f694727.isna().all()
    assert (table.second_order_low <= table.second_order).all() and (table.random > 0).all()
    first = torch.tensor(study.items[0].prompt)
    own = study.vectors()
    half = second_order(model, first, {d: v for d, (v, _) in own.items()})
    torch.testing.assert_close(torch.tensor(cells[0]["second_order"]).double(), half[:, 0], rtol=1e-5, atol=0)
    for vector, noise in own.values():
        torch.testing.assert_close(noise.norm(dim=-1), vector.norm().expand(4))
        assert (torch.cosine_similarity(noise, vector[None]).abs() < 0.5).all()
    typed = [
        "steering",
        "effect",
        "--model",
        "tiny-llama",
        "--questions",
        "tiny:100",
        "--directions",
        direction,
    ]
    typed += ["--questions-at-most", "2", "--at", "each", "--out", str(tmp_path / "each"), "--quiet"]
    result = CliRunner().invoke(app, typed, catch_exceptions=False)
    assert result.exit_code == 0 and "from_end" in result.output
    assert (tmp_path / "each/artifacts/figures/effect.png").stat().st_size > 2000
    with pytest.raises(Refused, match="adds a direction at resid"):
        EFFECT.open(model, tmp_path / "x", EffectOptions(directions=direction, site="mlp_out"))
