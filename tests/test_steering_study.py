"""States and directions: streamed = whole, batched = alone, resumed; fits, AUROC, and the commands."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from recurrent import recurrent_model
from typer.testing import CliRunner

import interpcore
from interpcore.cli import app
from interpcore.data.question_sets import split_questions
from interpcore.data.questions import generate
from interpcore.errors import Refused
from interpcore.model import Tap
from interpcore.runs import RunError
from interpcore.stats import auroc, paired_difference
from interpcore.steering import study as studying
from interpcore.steering.experiments import DIRECTIONS, STATES
from interpcore.steering.fits import FITS, fit
from interpcore.steering.moments import Moments, states
from interpcore.steering.options import Method, StatesOptions
from interpcore.steering.report import told_of_controls

OPTIONS = StatesOptions(questions="tiny:48", sites=("resid", "mlp_out"), slice_size=8, shuffles=2)


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny")


def open_study(model, out, options=OPTIONS, **how):
    return DIRECTIONS.open(model, out, options, progress=False, **how)


@pytest.fixture(scope="module")
def done(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("steering") / "run"
    with open_study(tiny, out) as study:
        return out, DIRECTIONS.run(study, Method()), study.load("mean"), study


def test_streamed_moments_are_those_of_all_states():
    x = torch.randn(30, 3, 5, dtype=torch.float64) * 4 + 100
    whole = Moments.of(x)
    merged = Moments.of(x[:0])
    for part in x.split([1, 7, 0, 22]):
        merged = merged.merge(Moments.of(part))
    torch.testing.assert_close(merged.mean, x.mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.variance, x.var(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(merged.squares, whole.squares, rtol=1e-12, atol=0)


def by_hand(model, tokens="last", new=8):
    """States of every question alone, and their labels, of the direction part."""
    own = split_questions(generate(48), "direction")
    found = {"resid": [], "mlp_out": []}
    for question in own:
        ids, _ = model.encode(f"Q: {question.question}\nA:")
        n = ids.shape[1]
        if tokens != "last":
            out = model.generate(ids, max_new_tokens=new)
            ids = torch.cat([ids, out.tokens[:, : int(out.lengths[0])]], 1)
        span = {"last": slice(n - 1, n), "answer": slice(n, None), "all": slice(0, None)}[tokens]
        for site, values in found.items():
            taps = [Tap(site, d, span) for d in range(model.plan.n_calls + (site == "resid"))]
            read = model.forward(ids, taps=taps, logits_at=None).taps
            values.append(torch.stack([read[tap][0].double().mean(0) for tap in taps]))
    return {s: torch.stack(v) for s, v in found.items()}, torch.tensor([q.is_reasoning for q in own])


def test_a_direction_is_the_difference_of_the_means_of_each_alone(done, tiny):
    _, report, found, study = done
    alone, flags = by_hand(tiny)
    for site, values in alone.items():
        want = values[flags].mean(0) - values[~flags].mean(0)
        torch.testing.assert_close(found.vectors[site], want, rtol=0, atol=2e-5 * float(want.abs().max()))
        torch.testing.assert_close(found.norms[site], values.mean(0).norm(dim=-1), rtol=1e-5, atol=0)
        assert not torch.isclose(found.vectors[site], found.vectors[site][:, :1]).all()  # no constant vector
        want = torch.einsum("sn,nde->sde", study.shuffled, values)
        torch.testing.assert_close(found.shuffled[site], want, rtol=0, atol=1e-4)
    table = report.table.set_index(["site", "depth"])
    held = [study.flags[i] for i in study.held_out]
    assert not set(study.held_out) & set(study.fitted) and len(study.held_out) + len(study.fitted) == 48
    prompts = [study.prompts[i] for i in study.held_out]
    (rows, states_held), *_ = list(states(tiny, prompts, ["resid"], rows=99))
    scores = states_held["resid"][:, 2] @ found.vectors["resid"][2]
    area = auroc(scores.tolist(), [held[i] for i in rows])
    assert table.loc[("resid", 2)].auroc == pytest.approx(area.value)
    assert table.loc[("resid", 2)].auroc > 0.9 > table.loc[("resid", 2)].shuffled
    assert (report.table.auroc_low <= report.table.auroc).all()


@pytest.mark.parametrize("tokens", ["answer", "all"])
def test_states_of_answers_are_means_over_their_tokens(tiny, tmp_path, tokens):
    options = StatesOptions(questions="tiny:48", sites=("resid", "mlp_out"), tokens=tokens, new_tokens=8)
    with open_study(tiny, tmp_path / "run", options) as study:
        found = study.find("mean")
    alone, flags = by_hand(tiny, tokens)
    for site, values in alone.items():
        want = values[flags].mean(0) - values[~flags].mean(0)
        torch.testing.assert_close(found.vectors[site], want, rtol=0, atol=5e-5 * float(want.abs().max()))


def test_every_depth_of_a_recurrent_model():
    model = recurrent_model(3)
    prompts = [[1, 2, 3], [4, 5, 6, 7]]
    ((rows, found),) = states(model, prompts, ["resid", "attn_out"])
    assert found["resid"].shape == (2, model.plan.n_calls + 1, model.spec.d_model)
    tap = Tap("resid", ("core", 1, 2), -1)
    alone = model.forward(torch.tensor([prompts[1]]), taps=[tap]).taps[tap][0, 0]
    depth = model.plan.depth(("core", 1, 2))
    torch.testing.assert_close(found["resid"][rows.index(1), depth], alone, rtol=1e-10, atol=0)


def test_a_killed_study_goes_on_and_workers_agree(done, tiny, tmp_path, monkeypatch):
    _, report, found, _ = done
    real, begun = studying.moments_slice, []

    def moments_slice(study, start, stop):
        begun.append(start)
        if len(begun) == 2:
            raise KeyboardInterrupt
        return real(study, start, stop)

    moments_slice.__module__, moments_slice.__qualname__ = real.__module__, real.__qualname__
    monkeypatch.setattr(studying, "moments_slice", moments_slice)
    with pytest.raises((KeyboardInterrupt, SystemExit)), open_study(tiny, tmp_path / "run") as study:
        DIRECTIONS.run(study, Method())
    with open_study(tiny, tmp_path / "run") as study:
        again = DIRECTIONS.run(study, Method())
        assert begun[:3] == [0, 8, 8] and len(begun) == len(set(begun)) + 1
        pd.testing.assert_frame_equal(again.table, report.table)
        assert torch.equal(study.load("mean").vectors["resid"], found.vectors["resid"])
    with pytest.raises(RunError, match="template"):
        open_study(tiny, tmp_path / "run", StatesOptions(questions="tiny:48", template="{question}"))


def test_other_methods_share_the_folder_and_its_states(done, tiny, tmp_path):
    with open_study(tiny, tmp_path / "run") as study:
        for method in ("ridge", "logistic", "lat", "pca"):
            table = DIRECTIONS.run(study, Method(method=method)).table
            assert table[table.site == "resid"].auroc.max() > 0.85
        kept = STATES.run(study)
        assert len(kept.table) == 9 and len(list((tmp_path / "run/artifacts/states").iterdir())) == 6
        values = study.kept()["resid"]
        assert values.shape == (48, 5, 128)
        own = torch.tensor(study.fitted)
        flags = torch.tensor(study.flags)[own]
        torch.testing.assert_close(
            fit("mean", values[own], flags), done[2].vectors["resid"], atol=1e-5, rtol=0
        )


@pytest.mark.parametrize("method", FITS)
def test_fits_find_a_planted_direction(method):
    draw = torch.Generator().manual_seed(1)
    flags = torch.randint(2, (200,), generator=draw).bool()
    u = torch.zeros(2, 12, dtype=torch.float64)
    u[0, 3], u[1, 7] = 1.0, -1.0
    x = torch.randn(200, 2, 12, generator=draw, dtype=torch.float64) + 4 * flags[:, None, None] * u + 50
    found = fit(method, x, flags)
    assert (torch.cosine_similarity(found, u, dim=-1) > 0.9).all(), method  # of this sign


def test_ridge_and_logistic_are_what_they_minimise():
    draw = torch.Generator().manual_seed(2)
    flags = torch.randint(2, (40,), generator=draw).bool()
    x = torch.randn(40, 1, 6, generator=draw, dtype=torch.float64) + flags[:, None, None]
    s = (x[:, 0] - x[:, 0].mean(0)) / x[:, 0].std(0, correction=0)
    scale = x[:, 0].std(0, correction=0)
    y = flags.double() * 2 - 1
    w = fit("ridge", x, flags)[0] * scale
    slope = s.T @ (s @ w - (y - y.mean())) + 0.01 * 40 * w
    assert float(slope.abs().max()) < 1e-9
    w = (fit("logistic", x, flags)[0] * scale).requires_grad_()
    b = torch.zeros((), dtype=torch.float64, requires_grad=True)
    solver = torch.optim.LBFGS([b], max_iter=100, tolerance_grad=1e-14, line_search_fn="strong_wolfe")

    def loss():
        return torch.nn.functional.softplus(-y * (s @ w + b)).sum() + 0.01 * 40 / 2 * w.square().sum()

    def closure():
        solver.zero_grad()
        value = loss()
        value.backward(inputs=[b])
        return value

    solver.step(closure)
    assert float(torch.autograd.grad(loss(), w)[0].abs().max()) < 1e-5


def test_auroc_is_the_share_of_pairs_and_its_interval_covers():
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 4, 30), rng.random(30) < 0.4
    pairs = [(a > b) + 0.5 * (a == b) for a in x[y] for b in x[~y]]
    assert auroc(x, y).value == pytest.approx(np.mean(pairs))
    whole = auroc([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1])
    assert whole.value == whole.high == 1 and 0.3 < whole.low < 0.9
    none = auroc([4, 5, 6, 1, 2, 3], [0, 0, 0, 1, 1, 1])
    assert none.value == none.low == 0 and none.high == pytest.approx(1 - whole.low)
    truth, covered = 0.8413, 0  # P(N(sqrt 2, 1) > N(0, 1))
    for _ in range(300):
        scores = np.concatenate([rng.normal(2**0.5, 1, 15), rng.normal(0, 1, 20)])
        found = auroc(scores, [True] * 15 + [False] * 20)
        covered += found.low <= truth <= found.high
    assert 0.91 < covered / 300 <= 0.99
    for bad in ([1.0, np.nan], [1.0]):
        with pytest.raises(Refused):
            auroc(bad, [True, False])
    with pytest.raises(Refused, match="both labels"):
        auroc([1, 2], [True, True])


def test_paired_differences_have_width_where_pairs_agree_and_cover():
    same = paired_difference([1] * 20, [1] * 20, range(20))
    assert same.value == 0 and -0.2 < same.low < 0 < same.high < 0.2
    rng, covered = np.random.default_rng(1), 0
    for _ in range(300):
        before = rng.random(40) < 0.6
        after = np.where(rng.random(40) < 0.2, rng.random(40) < 0.3, before)
        found = paired_difference(after, before, range(40))
        covered += found.low <= 0.2 * (0.3 - 0.6) <= found.high
    assert covered / 300 > 0.92
    assert paired_difference([0.5, 0.2], [0.1, 0.1], range(2)).method.startswith("Student's t")


def test_what_cannot_be_studied_is_refused_before_a_folder_is_made(tiny, tmp_path):
    out = tmp_path / "run"
    for options, said in (
        (
            StatesOptions(questions="tiny:48", sites=("attn_in",), part="all", template="{question}" * 400),
            "positions",
        ),
        (StatesOptions(questions="tiny:4"), r"is empty|falls into the part"),
    ):
        with pytest.raises(Refused, match=said):
            open_study(tiny, out, options)
    with pytest.raises(Refused, match="label set recall is empty"):
        studying.open_states(tiny, out, OPTIONS, questions=[q for q in generate(20) if q.is_reasoning])
    with pytest.raises(Refused, match="template is"):
        StatesOptions(template="no question")
    with pytest.raises(Refused, match="tokens last, answer, all"):
        next(states(tiny, [[1]], ["resid"], tokens="first"))
    with pytest.raises(Refused, match="d_model entries"):
        next(states(tiny, [[1]], ["z"]))
    assert not out.exists()


def test_the_commands(tmp_path):
    typed = ["--questions", "tiny:40", "--out", str(tmp_path / "run"), "--quiet"]
    result = CliRunner().invoke(app, ["steering", "directions", *typed], catch_exceptions=False)
    assert result.exit_code == 0 and "auroc_low" in result.output and "mean.safetensors" in result.output
    assert (tmp_path / "run/artifacts/figures/directions-mean.png").stat().st_size > 2000
    result = CliRunner().invoke(app, ["steering", "states", *typed], catch_exceptions=False)
    assert result.exit_code == 0 and (tmp_path / "run/artifacts/figures/states.png").stat().st_size > 2000
    assert DIRECTIONS.tool()["name"] == "steering_directions"


def test_shuffled_labels_hold_no_share_of_the_labels(tiny, tmp_path):
    """Labels drawn anew agree with the labels by chance, by 1 / sqrt(n): where the labels differ along what
    the states vary in most, that share alone tells them apart. Halves of each label do not."""
    with open_study(tiny, tmp_path / "run", StatesOptions(questions="tiny:80", shuffles=8)) as study:
        flags = torch.tensor([study.flags[i] for i in study.fitted])
        weights = study.shuffled
    assert weights.shape == (8, len(flags)) and len({tuple(w.tolist()) for w in weights}) == 8
    for row in weights:
        assert float(row[row > 0].sum()) == pytest.approx(1) and float(row.sum()) == pytest.approx(
            0, abs=1e-12
        )
        for label in (True, False):
            n = int((flags == label).sum())
            assert abs(int((row[flags == label] > 0).sum()) - n / 2) <= 0.5
    # One large difference of the labels, in noise: it is in none of the shuffled directions.
    states = torch.randn(len(flags), 50, generator=torch.Generator().manual_seed(0)).double()
    states[:, 0] += 100 * flags
    share = (weights @ states)[:, 0].abs()
    assert float(share.max()) < 100 * 2 / len(flags) + 1


def test_the_report_says_where_controls_do_as_well():
    frame = pd.DataFrame(
        {
            "site": "resid",
            "depth": [0, 1, 2],
            "length": [0.0, 1.0, 1.0],
            "auroc_low": [0.5, 0.9, 0.9],
            "shuffled": [0.5, 0.95, 0.6],
        }
    )
    said = told_of_controls(frame)
    assert said.startswith("At 1 of 2 depths (resid.1)") and "--split-by category" in said
    assert "beyond every shuffled direction at all 1" in told_of_controls(frame[frame.depth != 1])
    assert "No shuffled labels" in told_of_controls(frame.assign(shuffled=float("nan")))
