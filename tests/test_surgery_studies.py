"""Maps, block influence, token tables, patching, tracing, linear stand-ins, continuations and recipes."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from families import transformers_model
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.model import Edit, Plan, Replace, Tap
from interpcore.surgery.experiments import INFLUENCE, MAP, PATCH, REPEAT, STAND_IN, TALK, TOKENS, TRACE
from interpcore.surgery.influence import block_influence
from interpcore.surgery.items import text_items
from interpcore.surgery.linear import Fit, low_rank, mean_jacobian
from interpcore.surgery.options import (
    Influence,
    Map,
    Options,
    Patch,
    Repeat,
    StandIn,
    Talk,
    Tokens,
    Trace,
)
from interpcore.surgery.patching import patch_pair, restored_share, trace
from interpcore.surgery.recipes import read_recipe, write_recipe
from interpcore.surgery.results import changed, over_differences, over_items
from interpcore.surgery.stand_in import read_spans
from interpcore.surgery.texts import parses
from interpcore.surgery.token_table import changed_tokens

CLEAN, CORRUPTED = "The capital city of France is", "The capital city of Italy is"


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny", check=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("surgery") / "s"


def token(model, text):
    return model.tokenizer(text)["input_ids"][-1]


def test_maps_hold_every_plan_and_choose_pairs_on_other_items_than_they_report(tiny, folder):
    with MAP.open(tiny, folder, Options()) as study:
        asked = Map(task=("facts",), n=8, kind=("skip", "keep", "pairs-swap"))
        report = MAP.run(study, asked)
        again = REPEAT.run(study, Repeat(task=("facts",), n=8, times=(2,))).table
        halves = [study.items("facts", 8, 0, half) for half in ("first", "second")]
    single = report.table[report.table.kind.isin(("skip", "keep"))].set_index(["kind", "place"])
    assert set(single.index) == {("skip", d) for d in range(4)} | {("keep", n) for n in range(5)}
    assert single.loc[("skip", 3)].loss == single.loc[("keep", 3)].loss
    assert single.loc[("keep", 4)].loss_change == single.loc[("keep", 4)].loss_change_high == 0
    assert single.loc[("skip", 0)].loss_change_low > 5 and list(again.place) == [0, 1, 2, 3]
    assert not {i.id for i in halves[0]} & {i.id for i in halves[1]}
    pairs = report.table[report.table.kind == "pairs-swap"].set_index("chosen")
    every = pd.read_parquet(folder / "artifacts/tables/map-pairs-swap-all.parquet").set_index(["i", "j"])
    assert len(every) == 6
    for name, end in (("least harm", every["first"].min()), ("most harm", every["first"].max())):
        row = pairs.loc[name]
        held = every.loc[(int(row.i), int(row.j))]
        assert row.chosen_loss_change == pytest.approx(end) == pytest.approx(held["first"])
        assert row.loss_change == pytest.approx(held.second, rel=1e-6) and row.n == len(halves[1])
        assert row.shrinkage == pytest.approx(held.second - held["first"], rel=1e-5, abs=1e-6)
    assert all(file.exists() for file in report.files)
    with pytest.raises(Refused, match="splits the items"):
        Map(kind=("pairs-swap",), half="first")
    with pytest.raises(Refused, match="no map of 'jump'"):
        Map(kind=("jump",))


def test_influence_is_the_mean_cosine_by_hand(tiny, folder):
    items = text_items(tiny, ["The capital city of France is Paris.", "3 + 4 = 7"])
    found = block_influence(tiny, items)
    states = []
    for item in items:
        taps = [Tap("resid", d) for d in range(5)]
        out = tiny.forward(torch.tensor([item.rows[0].tokens]), taps=taps)
        states.append(torch.stack([out.taps[t][0] for t in taps]).double())
    every = torch.cat(states, 1)
    cosine = torch.cosine_similarity(every[:-1], every[1:], dim=-1)
    np.testing.assert_allclose(found["influence"], 1 - cosine.mean(1), rtol=1e-6)
    text = torch.cat([s[:, 1:] for s in states], 1)  # without the BOS in front
    cosine = torch.cosine_similarity(text[:-1], text[1:], dim=-1)
    np.testing.assert_allclose(found["influence_text"], 1 - cosine.mean(1), rtol=1e-6)
    with INFLUENCE.open(tiny, folder, Options()) as study:
        report = INFLUENCE.run(study, Influence(n=6))
    assert len(report.table) == 4 and "Spearman" in report.notes[0]


def test_a_token_tables_parts_sum_to_the_divergence(tiny, folder):
    tokens = tiny.encode(CLEAN)[0][0]
    plan = tiny.plan.skip(1)
    whole = changed_tokens(tiny, plan, tokens, tiny.spec.vocab_size)
    p, q = (m.forward(tokens[None]).logits[0].double().log_softmax(-1) for m in (tiny, tiny.with_plan(plan)))
    for each in whole:
        at = each["position"]
        assert len({t for t, *_ in each["less"]}) == tiny.spec.vocab_size
        kl = -sum(before * delta for _, delta, before, _ in each["less"])
        assert each["kl"] == pytest.approx(kl, abs=1e-5)
        assert each["kl"] == pytest.approx(float((p[at].exp() * (p[at] - q[at])).sum()), abs=1e-5)
        entropies = sum(after * delta for _, delta, _, after in each["more"])
        assert entropies == pytest.approx(float((q[at].exp() * (q[at] - p[at])).sum()), abs=1e-5)
    with TOKENS.open(tiny, folder, Options()) as study:
        report = TOKENS.run(study, Tokens(prompt=CLEAN, plan="skip 1", top=2))
    record = json.loads(report.files[-1].read_text())
    assert record["positions"][-1]["token"] == " is" and record["positions"][-1]["less"][0][0] == " Paris"


def test_patching_everything_is_the_clean_run_and_nothing_is_the_corrupted_one(tiny):
    clean, corrupted = (tiny.encode(t)[0][0] for t in (CLEAN, CORRUPTED))
    answers = token(tiny, "is Paris"), token(tiny, "is Rome")
    a, b, patched = patch_pair(tiny, clean, corrupted, answers)
    assert a > 0 > b and patched.shape == (5, len(clean))
    assert patched[4, -1] == pytest.approx(a, abs=1e-3)  # the last state settles the answer
    assert patched[:, 0].numpy() == pytest.approx(b, abs=1e-3)  # the same token in both prompts
    assert patched[0, 5] == pytest.approx(a, abs=1e-3)  # the country is all that differs
    with pytest.raises(Refused, match="equal ones"):
        patch_pair(tiny, clean, corrupted[1:], answers)


def test_what_heads_write_is_patched_as_what_attention_adds(tiny):
    """attn_out is a fixed linear map of z at one position, so that a clean z gives a clean attn_out."""
    clean, corrupted = (tiny.encode(t)[0][0] for t in (CLEAN, CORRUPTED))
    answers = token(tiny, "is Paris"), token(tiny, "is Rome")
    z, out = (patch_pair(tiny, clean, corrupted, answers, site)[2] for site in ("z", "attn_out"))
    torch.testing.assert_close(z, out, rtol=0, atol=1e-3)
    assert (out - out[:, :1]).abs().max() > 1


def test_a_head_is_patched_at_all_positions_and_alone(tiny, folder):
    """A head's clean z beside the corrupted others, one whole forward each; every head moves something."""
    clean, corrupted = (tiny.encode(t)[0][0] for t in (CLEAN, CORRUPTED))
    answers = token(tiny, "is Paris"), token(tiny, "is Rome")
    _, b, found = patch_pair(tiny, clean, corrupted, answers, "z", "head")
    assert found.shape == (4, tiny.spec.n_heads) and (found - b).abs().max() > 1
    taps = [Tap("z", depth) for depth in range(4)]
    mine, theirs = (tiny.forward(t[None], taps=taps).taps for t in (clean, corrupted))
    for depth, head in ((0, 1), (2, 0), (3, tiny.spec.n_heads - 1)):
        mixed = theirs[taps[depth]].clone()
        mixed[:, :, head] = mine[taps[depth]][:, :, head]
        logits = tiny.forward(corrupted[None], edits=[Edit("z", depth, None, Replace(mixed))]).logits[0, -1]
        assert found[depth, head] == pytest.approx(float(logits[answers[0]] - logits[answers[1]]), abs=1e-3)
    with PATCH.open(tiny, folder, Options()) as study:
        table = PATCH.run(study, Patch(n=2, site="z", by="head")).table
        traced = TRACE.run(study, Trace(draws=2, site="z", by="head")).table
        long = TRACE.run(study, Trace(draws=1, site="z", by="head", answer="Xyqzw")).notes
        other = PATCH.run(study, Patch(n=2))
        for name, one in (("patch-z-heads", table), ("patch-resid", other.table), ("trace-z-heads", traced)):
            assert len(pd.read_parquet(folder / "artifacts" / "tables" / f"{name}.parquet")) >= len(one)
    assert ", the first of " in long[0] and " tokens of 'Xyqzw': clean" in long[0]
    assert len(table) == len(traced) == 4 * tiny.spec.n_heads and {"depth", "head"} <= set(traced)
    with pytest.raises(Refused, match="of site z"):
        Patch(by="head")


def test_an_answer_is_the_same_with_its_space_and_positions_say_their_tokens(tiny, folder):
    """The model knows the answer, whose first token is what follows the prompt, not a space."""
    with TRACE.open(tiny, folder, Options()) as study:
        plain = TRACE.run(study, Trace(draws=1, answer="Paris"))
        cells = len(study.folder.ledger)
        spaced = TRACE.run(study, Trace(draws=1, answer=" Paris "))
        assert spaced.table.equals(plain.table) and len(study.folder.ledger) == cells
    assert float(plain.table.value.max()) > 0.9 and "'Paris'" in spaced.notes[0]
    assert list(plain.table.token[:7])[-2:] == [" France", " is"]


def test_what_is_restored_has_an_interval_over_pairs_and_over_draws(tiny, tmp_path):
    """Means before the ratio: a place's row is that of its pairs, or draws, in the ledger."""
    with PATCH.open(tiny, tmp_path / "s", Options()) as study:
        reports = PATCH.run(study, Patch(n=6)), TRACE.run(study, Trace(draws=6))
        pairs, traced = (row.result for row in study.folder.ledger)
    clean, corrupted = (np.array([p[name] for p in pairs["pairs"]]) for name in ("clean", "corrupted"))
    last = np.array([p["patched"][2][-1] for p in pairs["pairs"]])
    noisy, depths = np.array(traced["noisy"]), np.array(traced["restored"])
    whole = np.full(6, traced["clean"])
    for report, place, values, full, none in (
        (reports[0], -1, last, clean, corrupted),
        (reports[1], 5, depths[:, 2, 5], whole, noisy),
    ):
        row = report.table[(report.table.depth == 2) & (report.table.position == place)].iloc[0]
        assert row.value == pytest.approx(values.mean()) and row.value_low < row.value < row.value_high
        share = (values - none).mean() / (full - none).mean()
        assert row.restored == pytest.approx(share)
        for end in (row.restored_low, row.restored_high):  # where the paired t test of the ratio turns
            gap = values - none - end * (full - none)
            assert abs(gap.mean()) / (gap.std(ddof=1) / 6**0.5) == pytest.approx(2.5706, abs=1e-3)
        assert "Fieller" in report.notes[-1]
    unlike = restored_share([1.0, 2.0, 4.0], [1.0, -1.0, 0.1], [0.0, 0.0, 0.0])
    assert unlike.value == pytest.approx(70) and (unlike.low, unlike.high) == (-np.inf, np.inf)


def test_a_block_that_does_nothing_has_no_effect():
    hf = transformers_model("gpt2", dtype=torch.float64)
    block = hf.transformer.h[2]
    for projection in (block.attn.c_proj, block.mlp.c_proj):
        torch.nn.init.zeros_(projection.weight)
        torch.nn.init.zeros_(projection.bias)
    model = interpcore.load(hf, check=False)
    tokens, other = torch.arange(2, 9), torch.arange(3, 10)
    skipped = model.with_plan(model.plan.skip(2)).forward(tokens[None]).logits
    assert torch.equal(skipped, model.forward(tokens[None]).logits)
    _, _, patched = patch_pair(model, tokens, other, (1, 2))
    assert torch.allclose(patched[2], patched[3], rtol=0, atol=1e-12)
    _, b, out = patch_pair(model, tokens, other, (1, 2), "mlp_out")
    assert torch.allclose(out[2], torch.full_like(out[2], b), rtol=0, atol=1e-12)


def test_tracing_restores_what_noise_took(tiny):
    tokens = tiny.encode(CLEAN)[0][0]
    answer = token(tiny, "is Paris")
    how = {"sigma": 3.0, "draws": 2, "seed": 0}
    clean, noisy, restored = trace(tiny, tokens, [5], answer, **how)
    again = trace(tiny, tokens, [5], answer, **how)
    assert torch.equal(again[1], noisy) and clean > 0.9 > float(noisy.mean()) + 0.3
    assert restored[:, 0, 5].numpy() == pytest.approx(clean, abs=1e-4)  # the noise itself is taken back
    assert restored[:, 0, 0].numpy() == pytest.approx(noisy.numpy(), abs=1e-4)
    assert restored[:, 4, -1].numpy() == pytest.approx(clean, abs=1e-4)


def test_linear_maps_are_least_squares_and_their_controls():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=draw, dtype=torch.float64) * torch.arange(1, 7)
    true = torch.randn(6, 6, generator=draw, dtype=torch.float64)
    y = x @ true.mT + 3 + 0.1 * torch.randn(400, 6, generator=draw, dtype=torch.float64)
    fit = Fit(x, y)
    ones = torch.cat((x, torch.ones(400, 1, dtype=torch.float64)), 1)
    solved = torch.linalg.lstsq(ones, y).solution
    plain = fit.ridge(0.0)
    torch.testing.assert_close(plain.matrix, solved[:6].mT, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(plain.offset, solved[6], rtol=1e-7, atol=1e-7)
    damped, c = fit.ridge(0.1), x - x.mean(0)
    c = c.mT @ c / 400
    want = (y - y.mean(0)).mT @ (x - x.mean(0)) / 400 @ (c + 0.1 * c.trace() / 6 * torch.eye(6)).inverse()
    torch.testing.assert_close(damped.matrix, want, rtol=1e-6, atol=1e-7)
    same = Fit(x, x).ridge(0.0)
    torch.testing.assert_close(same.matrix, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-8)
    torch.testing.assert_close(same(x), x, rtol=1e-8, atol=1e-8)
    for each in (plain, damped, fit.mean_shift(), fit.constant(), low_rank(plain, 2, fit)):
        torch.testing.assert_close(each(x).mean(0), y.mean(0))  # every one keeps the means
    torch.testing.assert_close(low_rank(plain, 6, fit).matrix, plain.matrix)
    assert torch.linalg.matrix_rank(low_rank(plain, 2, fit).matrix - torch.eye(6)) == 2
    mixed = Fit(x, y[torch.randperm(400, generator=draw)]).ridge(0.0)
    fresh = torch.randn(4000, 6, generator=draw, dtype=torch.float64) * torch.arange(1, 7)
    goal = fresh @ true.mT + 3
    assert (goal - mixed(fresh)).square().sum() >= (goal - goal.mean(0)).square().sum()


def test_the_mean_jacobian_of_blocks_that_do_nothing_is_the_identity():
    hf = transformers_model("gpt2", dtype=torch.float64)
    for block in hf.transformer.h[1:3]:
        for projection in (block.attn.c_proj, block.mlp.c_proj):
            torch.nn.init.zeros_(projection.weight)
    model = interpcore.load(hf, check=False)
    found = mean_jacobian(model, [[3, 4, 5], [6, 7]], 1, 3, 5, 0)
    torch.testing.assert_close(found, torch.eye(32, dtype=torch.float64))
    assert not torch.allclose(mean_jacobian(model, [[3, 4, 5]], 0, 3, 5, 0), torch.eye(32).double())


def test_stand_ins_are_measured_on_held_out_documents(tiny, folder):
    with STAND_IN.open(tiny, folder, Options()) as study:
        report = STAND_IN.run(study, StandIn(span=("2",), fit=60, choose=6, test=10, draws=8))
    table = report.table.set_index("method")
    assert {"identity", "mean shift", "ridge", "mean Jacobian", "low rank 16", "shuffled", "constant"} == set(
        table.index
    )
    assert table.kl.ridge < table.kl.identity < table.kl.constant and table.kl.shuffled > 3
    assert table.fvu.ridge < table.fvu.identity < 1 <= table.fvu.constant and table.top1.ridge > 0.8
    assert read_spans(["lens", "1-2"], 3) == [(0, 3), (1, 3), (2, 3)]
    for text, sentence in (("2-1", "no range"), ("4", "no range"), ("x", "A span is")):
        with pytest.raises(Refused, match=sentence):
            read_spans([text], 4)


def test_talk_goes_on_as_generate_does(tiny, folder):
    with TALK.open(tiny, folder, Options()) as study:
        report = TALK.run(study, Talk(prompt=CLEAN, plan=("reverse 0-3", "0-2, 3"), new_tokens=4))
    said = {each["plan"]: each for each in report.table.to_dict("records")}
    made = tiny.with_plan(tiny.plan.reverse()).generate(*tiny.encode(CLEAN), max_new_tokens=4)
    assert said["reverse 0-3"]["text"] == tiny.tokenizer.decode(made.tokens[0])
    same = {k: v for k, v in said["intact"].items() if k != "plan"}
    assert same == {k: v for k, v in said["0-2, 3"].items() if k != "plan"}
    assert said["intact"]["agreement"] == said["intact"]["tokens"] and said["reverse 0-3"]["agreement"] == 0
    assert said["reverse 0-3"]["repetition"] > 0 == said["intact"]["repetition"]
    with pytest.raises(Refused, match="needs a seed"):
        Talk(temperature=1.0)
    assert parses('[{"a": 1', "}] and more") and not parses('[{"a": 1', "} or not")


def test_recipes_are_read_as_they_are_written(tmp_path):
    intact = Plan.identity(6)
    for text in ("0-5", "0-2, 1 x5, 3", "5, 4, 0-2"):
        plan = Plan.parse(text, intact)
        assert read_recipe(write_recipe(tmp_path / "r.yml", plan, "a/model"), intact) == plan
    assert "layer_range" in (tmp_path / "r.yml").read_text()
    for plan in (intact.keep_first(0), intact.parallel(1, 2)):
        with pytest.raises(Refused, match="plain blocks"):
            write_recipe(tmp_path / "no.yml", plan, "a/model")
    good = "merge_method: passthrough\nslices:\n- sources:\n  - model: a\n    layer_range: [0, 3]\n"
    for content, sentence in (
        ("a: [", "no YAML"),
        ("- 1", "not an object"),
        (good.replace("passthrough", "slerp"), "merges weights"),
        (good.replace("[0, 3]", "[0, 9]"), "no block 6"),
        (good.replace("[0, 3]", "[3, 3]"), "one past the last"),
        (good + good[good.index("- sources") :].replace("model: a", "model: b"), "2 models"),
    ):
        (tmp_path / "bad.yml").write_text(content)
        with pytest.raises(Refused, match=sentence):
            read_recipe(tmp_path / "bad.yml", intact)


def test_a_plan_is_written_as_a_recipe_by_a_command(tiny, tmp_path):
    def call(*words):
        return CliRunner().invoke(app, ["surgery", "recipe", *words, "--model", "tiny"])

    said = call("repeat 1 x3", str(tmp_path / "r.yml"), "--as", "me/model")
    assert said.exit_code == 0 and "6  me/model  0, 1 x3, 2-3" in said.output
    assert read_recipe(tmp_path / "r.yml", tiny.plan) == Plan.parse("0, 1 x3, 2-3", tiny.plan)
    for plan, file, sentence in (("skip 9", "a.yml", "no block"), ("0-3", "a.txt", "no .yml")):
        assert sentence in str(call(plan, str(tmp_path / file)).exception)
    assert not (tmp_path / "a.yml").exists()


def test_differences_that_are_all_alike_have_no_width():
    assert over_differences(np.zeros(20)).high == 0 == over_differences(np.zeros(20)).low
    lower = over_differences(np.array([-1.0, -2.0] * 10))
    assert lower.method.startswith("Student") and lower.low < -1.5 < lower.high
    for measure in ("rank", "kl"):  # of the intact plan
        assert over_items(np.ones(5), measure).low == over_items(np.ones(5), measure).high == 1
    right = np.ones(5)
    assert over_items(right, "right").low < 0.6
    assert changed("right", right, right).low < 0 < changed("right", right, right).high
    assert changed("loss", right, right).low == 0 == changed("loss", right, right).high
    some = over_differences(np.array([0.0, 1.0] * 10))
    assert some.value == 0.5 and 0 < some.low < 0.5 < some.high < 1
    assert replace(some, ends=None).n == 20
