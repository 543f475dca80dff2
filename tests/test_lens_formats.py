"""Lenses of other sites and rules, in the field's format, compared, and edits in their coordinates."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pandas as pd
import pytest
import torch
from families import transformers_model
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.errors import Refused
from interpcore.lens.compare import compare_lenses
from interpcore.lens.edits import directions, one_token, rotated, steering, swapping
from interpcore.lens.lens import Lens
from interpcore.lens.published import load_lens, read_published, write_published
from interpcore.lens.read import read_states, rows_of
from interpcore.lens.study import LOCAL
from interpcore.lens.sweep import slice_moments
from interpcore.model import Add, Edit, Tap
from interpcore.model.linearize import linearize
from interpcore.model.made_on import MadeOn

SKIP = 2


def prompts(count=4, length=8):
    draw = torch.Generator().manual_seed(5)
    return torch.randint(0, 61, (count, length), generator=draw).tolist()


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request):
    return interpcore.load(transformers_model(request.param, dtype=torch.float64))


def fitted(model, site="resid", rules="exact", texts=None, **more):
    target = more.pop("target_depth", model.plan.n_calls)
    halves = slice_moments(
        model, texts or prompts(), skip=SKIP, target_depth=target, site=site, rules=LOCAL[rules]
    )
    about = {"skip": SKIP, "length": 8, "made_on": MadeOn.of(model)}
    return Lens.of(halves, target_depth=target, site=site, rules=rules, **about)


def through_edits(model, site, depth, target, ids):
    """J of one prompt from a site, by central differences: each source is moved alone."""
    valid, step, total = range(SKIP, len(ids) - 1), 1e-5, 0
    tap, end = Tap(site, depth), Tap("resid", target)
    shape = model.forward(torch.tensor([ids]), taps=[tap], logits_at=None).taps[tap].shape[2:]
    units = step * torch.eye(shape.numel(), dtype=torch.float64)
    moves = torch.cat([units, -units]).view(-1, 1, *shape)
    tokens = torch.tensor([ids]).expand(len(moves), -1)
    for t in valid:
        edits = [Edit(site, depth, t, Add(moves))]
        ends = model.forward(tokens, edits=edits, taps=[end], logits_at=None).taps[end]
        up, down = ends[:, SKIP : len(ids) - 1].sum(1).chunk(2)
        total = total + (up - down).mT / (2 * step)
    return total / len(valid)


@pytest.mark.parametrize("site", ["attn_out", "mlp_out", "z"])
def test_any_site_is_what_moving_it_does(model, site):
    lens = fitted(model, site, texts=prompts(2, 6), target_depth=2)
    found = [through_edits(model, site, 1, 2, ids) for ids in prompts(2, 6)]
    mean = sum(found) / 2
    torch.testing.assert_close(lens.at(1), mean, rtol=0, atol=1e-6 * float(mean.abs().max()))
    assert lens.depths == (0, 1) and lens.reliability[0].isfinite()


def test_a_branch_at_the_top_is_carried_as_it_is(model):
    last = model.plan.n_calls - 1
    eye = torch.eye(model.spec.d_model, dtype=torch.float64)
    torch.testing.assert_close(fitted(model, "mlp_out").at(last), eye)
    heads, out = fitted(model, "z"), fitted(model, "attn_out")
    projection = model.block(0).attention.out  # z's map is attention's, through its projection
    by_hand = out.at(0) @ projection.weight.mT
    torch.testing.assert_close(heads.at(0), by_hand)


def test_rules_are_those_of_the_walk(model):
    ids = prompts(2, 6)
    for rules in ("relp", "frozen"):
        lens = fitted(model, rules=rules, texts=ids)
        linear = linearize(model, torch.tensor(ids)[:, :-1], rules=LOCAL[rules])
        n, d = linear.n_positions, model.spec.d_model
        rows = torch.eye(d, dtype=torch.float64)[None, :, None].expand(2, -1, n - SKIP, -1).contiguous()
        *_, last = linear.reverse(rows)
        torch.testing.assert_close(lens.at(0), last.resid[:, :, SKIP:].mean((0, 2)))
        assert not torch.allclose(lens.at(0), fitted(model, texts=ids).at(0))


def test_the_published_file_comes_back(model, tmp_path):
    lens, file = fitted(model), tmp_path / "m_jacobian_lens.pt"
    write_published(file, lens, "float32")
    held = torch.load(file, weights_only=True)
    assert set(held) >= {"J", "n_prompts", "source_layers", "d_model"}
    assert held["source_layers"] == [0, 1, 2] and held["metadata"]["target_layer"] == 3
    torch.testing.assert_close(held["J"][1], lens.at(2).float())
    back = load_lens(file)
    assert back.depths == (1, 2, 3) and back.target_depth == 4 and back.count == lens.count
    assert back.made_on == lens.made_on and (back.skip, back.length) == (SKIP, 8)
    assert back.standard_error is None
    torch.testing.assert_close(back.at(2), lens.at(2).float())
    tokens = torch.tensor(prompts()[0])
    ours, theirs = (read_states(model, one, tokens, 1)[0] for one in (lens, back))
    assert torch.equal(ours[1:4], theirs)
    back.save(tmp_path / "back.safetensors")
    assert Lens.load(tmp_path / "back.safetensors").published == back.published
    write_published(tmp_path / "again.pt", back)
    assert load_lens(tmp_path / "again.pt").at(1).dtype == torch.float32


def test_files_of_the_reference_package_and_its_checkpoints(model, tmp_path):
    lens, file = fitted(model), tmp_path / "theirs.pt"
    theirs = {"J": {layer: lens.at(layer + 1).half() for layer in range(3)}, "n_prompts": 4}
    torch.save({**theirs, "source_layers": [0, 1, 2], "d_model": 32}, file)
    with pytest.raises(Refused, match="does not name its target layer"):
        read_published(file)
    assert read_published(file, model).target_depth == 4 and read_published(file, model).made_on is None
    sums = {layer: 4 * lens.at(layer + 1).float() for layer in range(3)}
    more = {"n_done": 4, "next_idx": 4, "source_layers": [0, 1, 2], "target_layer": 3, "skip_first": 16}
    torch.save({"jacobian_sum": sums, **more}, file)
    found = read_published(file)
    torch.testing.assert_close(found.at(1), lens.at(1).float())
    assert (found.count, found.skip, found.target_depth) == (4, 16, 4)
    shallow = interpcore.load(transformers_model("gpt2", dtype=torch.float64))
    with pytest.raises(Refused, match="leads to depth"):
        read_published(file, shallow.with_plan(shallow.plan.skip(3)))


class Harm:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"J": {}}, "needs J"),
        ({"J": {0: torch.eye(3)}, "d_model": 4, "n_prompts": 1}, "no \\[4, 4\\]"),
        ({"J": {0: torch.full((2, 2), torch.nan)}, "d_model": 2, "n_prompts": 1}, "not finite"),
        ({"J": {0: torch.eye(2)}, "d_model": 2}, "of how many prompts"),
        ({"J": {"a": torch.eye(2)}, "n_prompts": 1}, "needs J"),
        ({"jacobian_sum": {0: torch.eye(2)}, "n_done": 0, "target_layer": 1}, "of how many prompts"),
        ({"J": {1: torch.eye(2)}, "n_prompts": 1, "metadata": {"target_layer": 0}}, "ascending depths"),
        ([1, 2], "but a list"),
        (Harm(), "tensors and plain values alone"),
    ],
)
def test_other_pt_files_are_refused_in_a_sentence(content, said, tmp_path, capsys):
    file = tmp_path / "bad.pt"
    torch.save(content, file)
    with pytest.raises(Refused, match=said):
        read_published(file)
    (tmp_path / "raw.pt").write_bytes(pickle.dumps(content) if not isinstance(content, dict) else b"PK junk")
    with pytest.raises(Refused, match="plain values alone"):
        read_published(tmp_path / "raw.pt")
    assert "run" not in capsys.readouterr().out


def test_what_the_published_format_cannot_hold_is_refused(model, tmp_path):
    with pytest.raises(Refused, match="leads from z"):
        write_published(tmp_path / "z.pt", fitted(model, "z"))
    lens = fitted(model)
    big = replace(lens, jacobian=lens.jacobian * 1e6)
    with pytest.raises(Refused, match="dtype float32"):
        write_published(tmp_path / "big.pt", big)
    assert not list(tmp_path.iterdir())


def test_two_lenses_compared(model):
    one, other = fitted(model, texts=prompts(6)), fitted(model, texts=prompts(12)[6:])
    table = compare_lenses(one, other)
    assert list(table.depth) == [0, 1, 2, 3, 4]
    j, k = ((lens.at(1) - torch.eye(32)).flatten() for lens in (one, other))
    row = table.set_index("depth").loc[1]
    assert row.correlation == pytest.approx(float(torch.corrcoef(torch.stack([j, k]))[0, 1]))
    assert row.distance == pytest.approx(float((j - k).norm() / one.at(1).norm()))
    variance = one.standard_error[1] ** 2 + other.standard_error[1] ** 2
    assert row.beyond_sampling == pytest.approx(float(((one.at(1) - other.at(1)) ** 2 / variance).mean()))
    same = compare_lenses(one, one).set_index("depth")
    assert (same.distance == 0).all() and same.correlation[1] == pytest.approx(1)
    stranger = interpcore.load(transformers_model("gpt2", seed=9, dtype=torch.float64))
    with pytest.raises(Refused, match="other weights"):
        compare_lenses(one, fitted(stranger))
    with pytest.raises(Refused, match="does not record"):
        compare_lenses(one, replace(one, made_on=None))
    assert len(compare_lenses(one, replace(one, made_on=None), other_model=True)) == 5
    with pytest.raises(Refused, match="differ in site"):
        compare_lenses(one, fitted(model, "attn_out"))
    alone = compare_lenses(one, replace(one, standard_error=None, reliability=None))
    assert alone.at_most.isna().all() and alone.beyond_sampling.isna().all()


def test_sampling_alone_gives_one():
    draw = torch.Generator().manual_seed(1)
    lenses = []
    for _ in range(2):
        samples = torch.randn(50, 1, 20, 20, generator=draw, dtype=torch.float64)
        mean, error = samples.mean(0), samples.std(0) / 50**0.5
        lenses.append(Lens(mean, (0,), 1, 50, error, torch.zeros(1), made_on=MadeOn("w", "p")))
    assert compare_lenses(*lenses).beyond_sampling.item() == pytest.approx(1, abs=0.2)


def test_directions_raise_the_logit_that_the_lens_reads(model):
    lens, depth, token = fitted(model), 1, 7
    h = torch.randn(32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).requires_grad_()
    z = lens.carried(h, depth)
    centred = z - z.mean() if model.final_norm.center else z  # the norm's scale is common to all logits
    logit = (centred * model.final_norm.weight) @ model.unembedding.weight[:, token]
    (gradient,) = torch.autograd.grad(logit, h)
    found = directions(lens, model, [token], depth)[0]
    torch.testing.assert_close(found, gradient)
    plain = directions(lens, model, [token], depth, protocol="paper")[0]
    torch.testing.assert_close(plain, model.unembedding.weight[:, token] @ lens.at(depth))


def test_swaps_exchange_two_coordinates_and_nothing_else(model):
    lens = fitted(model)
    pair = directions(lens, model, [3, 8], 1)
    tokens, tap = torch.tensor([prompts()[0]]), Tap("resid", 1)
    before, after, twice = (
        model.forward(tokens, taps=[tap], edits=edits, logits_at=None).taps[tap][0]
        for edits in ([], [swapping(pair, 1)], [swapping(pair, 1), swapping(pair, 1)])
    )
    v = torch.linalg.pinv(pair.mT)
    torch.testing.assert_close((v @ after.mT)[[1, 0]], v @ before.mT)
    outside = torch.eye(32, dtype=torch.float64) - pair.mT @ v
    torch.testing.assert_close(after @ outside.mT, before @ outside.mT)
    torch.testing.assert_close(twice, before)
    with pytest.raises(Refused, match="one direction"):
        swapping(pair[[0, 0]], 1)
    moved = model.forward(
        tokens, taps=[tap], edits=[steering(pair[0], 1, strength=2, norm=3)], logits_at=None
    )
    unit = pair[0] / pair[0].norm()
    torch.testing.assert_close(moved.taps[tap][0] - before, (6 * unit).expand_as(before))
    control = rotated(pair, 1)
    torch.testing.assert_close(control @ control.mT, pair @ pair.mT)


def test_heads_are_read_one_by_one(model):
    lens, tokens = fitted(model, "z"), torch.tensor(prompts()[0])
    rows, (top, _) = rows_of(lens, model), read_states(model, lens, tokens, 1)
    assert len(rows) == len(top) == 4 * model.spec.n_heads
    tap = Tap("z", 1)
    z = model.forward(tokens[None], taps=[tap], logits_at=None).taps[tap][0]
    at, e = rows.index((1, 2)), model.spec.d_head
    by_hand = model.unembed(model.final_norm(z[:, 2] @ lens.at(1)[:, 2 * e : 3 * e].mT)).argmax(-1)
    assert torch.equal(top[at, :, 0], by_hand)


def test_commands(tmp_path):
    def run(*typed, code=0):
        result = CliRunner().invoke(app, ["lens", *map(str, typed)])
        assert result.exit_code == code, result.output
        return result

    size = ["--prompts", 6, "--length", 24, "--skip", 4, "--quiet"]
    for name, how in (("a", []), ("b", ["--rules", "relp"]), ("z", ["--site", "z"])):
        run("fit", *size, *how, "--out", tmp_path / name)
    assert "correlation" in run("compare", tmp_path / "a", tmp_path / "b").output
    run("convert", tmp_path / "a", tmp_path / "tiny.pt")
    run("convert", tmp_path / "tiny.pt", tmp_path / "tiny.safetensors", "--model", "tiny")
    assert isinstance(run("convert", tmp_path / "a", tmp_path / "a.txt", code=1).exception, Refused)
    asked = ["--prompt", "The capital of France is", "--quiet"]
    run("read", tmp_path / "tiny.pt", *asked, "--out", tmp_path / "r")
    (page,) = (tmp_path / "r/artifacts/pages").glob("*.html")
    html = page.read_text()
    assert "_France" in html and "src=" not in html and "http" not in html
    run("read", tmp_path / "z", *asked, "--depth", 3, "--out", tmp_path / "rz")
    (table,) = (tmp_path / "rz/artifacts/tables").glob("*.parquet")
    assert set(pd.read_parquet(table).depth) == {3} and "head" in pd.read_parquet(table)
    text = [*asked, "--into", " Rome", "--draws", 2]
    out = run("edit", tmp_path / "a", *text, "--out-of", " Paris", "--out", tmp_path / "r2").output
    assert "target_random" in out and "source_plain" in out
    out = run("edit", tmp_path / "a", *text, "--depth", 3, "--strength", 2, "--out", tmp_path / "r2").output
    assert "target" in out and "source" not in out.splitlines()[0]
    wrong = run("edit", tmp_path / "a", "--into", "Rome and more", "--out", tmp_path / "r2", code=1)
    assert isinstance(wrong.exception, Refused) and "tokens" in str(wrong.exception)
    with pytest.raises(Refused, match="one token"):
        one_token(interpcore.load("tiny"), "")
