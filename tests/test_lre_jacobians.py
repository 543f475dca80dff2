"""Jacobians between states, subjects, contexts and relations: identities, and the studies end to end."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import interpcore
from interpcore.data.tinyworld.world import study_relations
from interpcore.errors import Refused
from interpcore.lre import cosines, integral, variance
from interpcore.lre.operator import mean_operator
from interpcore.lre.options import Cosines, Integral, Options, Variance
from interpcore.lre.points import ready
from interpcore.lre.shared import SharedOperators
from interpcore.lre.study import open_study
from interpcore.model import Edit, Replace, Tap
from interpcore.model.jacobians import Shape, jacobians
from interpcore.model.names import source_site

OPTIONS = Options(trials=1, examples=4, betas=(1.0, 2.0), ranks=3, max_test=12)


@pytest.fixture(scope="module")
def relations():
    return list(study_relations())[:3]


@pytest.fixture(scope="module")
def study(relations):
    model = interpcore.load("tiny", dtype=torch.float64)
    return SharedOperators(model, OPTIONS, relations={r.name: r for r in relations})


@pytest.fixture(scope="module")
def trial(study, relations):
    return ready(study, relations[0].name, 0)


@pytest.mark.parametrize("at", [0, 2])
def test_the_jacobian_along_a_segment_carries_the_exact_change(study, trial, at):
    model, states, depth = study.model, trial.states, study.depths[at]
    query, start, end = states.queries[0], states.h[0, at], states.h[1, at]
    exact = integral.change(model, query, depth, start, end)
    site, place = source_site(depth)

    def last(state):
        tap = Tap("resid", model.plan.n_calls, len(query.ids) - 1)
        edit = Edit(site, place, query.subject, Replace(state))
        return model.forward(torch.tensor([query.ids]), taps=[tap], edits=[edit]).taps[tap][0, 0]

    torch.testing.assert_close(exact, last(end) - last(start), rtol=1e-9, atol=1e-9)
    errors = [
        float((integral.carried(model, query, depth, start, end, steps) - exact).norm() / exact.norm())
        for steps in (16, 32, 64)
    ]
    assert errors[2] < 2e-3 and errors[0] > 3.5 * errors[1] > 12 * errors[2]  # with 1 / steps^2
    alone = mean_operator(model, [query], (depth,)).weight[0] @ (end - start)
    torch.testing.assert_close(
        integral.carried(model, query, depth, start, end, 0), alone, rtol=1e-6, atol=1e-8
    )
    shared = integral.carried(model, query, depth, start, end, 16, cache=states.shared.cache)
    assert float((shared - exact).norm() / exact.norm()) == pytest.approx(errors[0], rel=1e-6)
    assert integral.change(model, query, depth, start, start).norm() < 1e-12 * states.z[0].norm()


def test_what_a_product_carries_of_a_change():
    change = torch.tensor([[3.0, 4.0]])
    found = {k: v.item() for k, v in integral.against(torch.tensor([[6.0, 8.0]]), change).items()}
    assert found == {"carried": 2.0, "error": 1.0, "beta": 0.5}
    aside = integral.against(torch.tensor([[-4.0, 3.0]]), change)
    assert aside["carried"].item() == 0 and aside["error"].item() == pytest.approx(2**0.5)
    nothing = {k: v.item() for k, v in integral.against(torch.zeros(1, 2), change).items()}
    assert nothing == {"carried": 0.0, "error": 1.0, "beta": 0.0}


def test_states_that_reach_no_last_token_are_a_reason_not_a_point(relations, tmp_path):
    said = {"model_name": "x", "relation_name": relations[0].name, "h_layer": 3, "h_layer_edit": 3}
    (tmp_path / "h").mkdir()
    (tmp_path / "h" / "x.json").write_text(json.dumps(said | {"beta": 1, "rank": 1, "z_layer": -1}))
    options = replace(OPTIONS, trials=1, protocol="paper", hparams=str(tmp_path / "h"))
    asked = Integral(steps=(1,), pairs=1)
    given = {"relations": relations[:1], "progress": False}
    with open_study(interpcore.load("tiny"), tmp_path / "run", options, **given) as study:
        report = integral.run(study, asked)
    assert report.problems == ("no relation has enough known test facts to measure",)
    assert "no known fact's state changes the last one" in report.notes[-1]


def test_segments_are_of_known_facts_and_their_targets(study, trial, relations):
    name = relations[0].name
    found = list(integral.integral_points(study, name, 0, [8], 3))
    by = {(p["by"]["jacobian"], p["by"]["steps"]): p for p in found}
    assert set(by) == {("along the segment", 0), ("along the segment", 8), ("W", 0), ("another's W", 0)}
    known = {s.subject for s, k in zip(trial.test, trial.known.tolist(), strict=True) if k}
    for one in found:
        assert len(one["subjects"]) == 3 and set(one["subjects"]) <= known
        assert np.isfinite(one["outcomes"]["carried"]).all()
    assert np.mean(by["along the segment", 8]["outcomes"]["error"]) < 0.1
    assert np.mean(by["along the segment", 8]["outcomes"]["carried"]) == pytest.approx(1, abs=0.1)


def test_cosines_of_lists_of_matrices():
    g = torch.Generator().manual_seed(0)
    one = torch.randn(4, 40, 40, generator=g, dtype=torch.float64)
    like = cosines.cosines(one, 3 * one)
    torch.testing.assert_close(like.diagonal(), torch.ones(4, dtype=torch.float64))
    assert (like - torch.eye(4)).abs().max() < 0.1 and torch.equal(like, like.mT)
    noisy = one + torch.randn(one.shape, generator=g, dtype=torch.float64)
    found = cosines.cosines(one, noisy)
    by_hand = [
        torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0)
        for a, b in ((one[0], noisy[1]), (one[1], noisy[0]))
    ]
    assert found[0, 1] == pytest.approx(float(sum(by_hand) / 2))
    shared = torch.randn(40, 40, generator=g, dtype=torch.float64) * 5
    assert cosines.cosines(one + shared, noisy + shared).min() > 0.9
    apart = cosines.centred(one + shared, noisy + shared)
    torch.testing.assert_close(apart, cosines.centred(one, noisy))
    assert apart[~torch.eye(4, dtype=torch.bool)].mean() < -0.2  # -1/3, were the noise not
    assert cosines.shuffled(one + shared, noisy + shared, 0).abs().max() < 0.15


def test_components_are_those_that_the_layout_was_drawn_with():
    g = torch.Generator().manual_seed(1)
    n, m, d = 7, 5, 4000

    def draw(*size):
        return torch.randn(*size, d, generator=g, dtype=torch.float64)

    layout = 3 + 2 * draw(n, 1) + 0.5 * draw(1, m) + draw(n, m)
    found = variance.Components.of(layout.mean(1), layout.mean(0), float(layout.square().sum()))
    assert [found.subject / d, found.context / d, found.rest / d] == pytest.approx([4, 0.25, 1], rel=0.1)
    # n m |mean|^2 + rows + columns + rest is everything
    none = 3 + 0 * draw(n, 1) + draw(n, m)
    apart = variance.Components.of(none.mean(1), none.mean(0), float(none.square().sum()))
    assert abs(apart.subject / d) < 0.02 and abs(apart.context / d) < 0.02
    parts = apart.over_size()
    assert parts["total"] == pytest.approx(parts["subject"] + parts["context"] + parts["rest"])


def test_crossed_means_are_those_of_the_stored_jacobians(study, trial):
    queries = variance.crossed_queries(study, trial, 2, 3)
    assert len(queries) == 6 and len({q.ids for q in queries}) == 6
    ids, mask = interpcore.model.prompts.pad([q.ids for q in queries])
    how = {"source_position": [q.subject for q in queries], "source_depths": (None, 1)}
    stored = jacobians(study.model, ids, mask, **how).values.unflatten(0, (2, 3))
    rows, columns, squares = jacobians(study.model, ids, mask, reduce=variance.Crossed(3), **how).values
    torch.testing.assert_close(rows, stored.mean(1))
    torch.testing.assert_close(columns, stored.mean(0))
    torch.testing.assert_close(squares, stored.square().sum((0, 1, 3, 4)))
    with pytest.raises(Refused, match="no table of 4 columns"):
        variance.Crossed(4).start(Shape(6, 1, 2, 2), torch.float32, torch.device("cpu"))


def test_a_context_shows_nothing_of_the_subjects(study, trial):
    with pytest.raises(Refused, match="make no table"):
        few = replace(trial, relation=trial.relation.with_samples(trial.relation.samples[:4]))
        variance.crossed_queries(study, few, 2, 2)


RUNS = (
    (integral.run, Integral(steps=(2, 8), pairs=3)),
    (cosines.run, Cosines()),
    (variance.run, Variance(crossed=2, contexts=2, depths=2)),
    (cosines.run, Cosines(depths=(1,))),  # whose files leave those of other depths as they are
)


def test_studies_of_jacobians_report_from_one_folder(relations, tmp_path):
    def reports():
        model = interpcore.load("tiny")
        with open_study(model, tmp_path / "run", OPTIONS, relations=relations, progress=False) as opened:
            return [run(opened, asked) for run, asked in RUNS]

    first = reports()
    for report in first:
        assert len(report.table) and not report.problems and all(f.is_file() for f in report.files)
        assert any(f.suffix == ".png" for f in report.files)
    middle = first[1].table.set_index(["depth", "pair"])
    assert (middle.xs("itself", level="pair").cosine > middle.xs("itself", level="pair").shuffled + 0.1).all()
    assert list(first[2].table.depth) == ["embed", "3"] and (first[2].table["size"] > 0).all()
    for one, again in zip(first, reports(), strict=True):  # from the ledger and its files
        assert one.table.equals(again.table)


def test_relations_are_ranked_by_their_parts():
    depths = [{"depth": "1", "subject": 0.1, "context": 0.0, "rest": 0.2, "total": 0.3, "size": 1.0}]
    results = [
        {
            "relation": f"r{i}", "relation_type": "factual", "n_known": 5, "faithfulness": 1 - i / 9,
            "chosen": [0, 0], "depths": [{**depths[0], "total": i**3 / 9, "size": 1.0}],
        }
        for i in range(6)
    ]  # fmt: skip
    table = variance.predictions(variance.relation_rows(results)).set_index("with")
    assert list(table.index) == ["total"]  # parts that do not differ have no ranks
    assert table.loc["total", "correlation"] == pytest.approx(-1) and table.loc["total", "relations"] == 6
    few = variance.predictions(variance.relation_rows(results[:3]))
    assert not len(few) and list(few.columns) == list(table.reset_index().columns)  # a file with a head


def test_means_by_depth_have_their_error_over_relations():
    pd = pytest.importorskip("pandas")
    rows = [
        {"relation": name, "trial": trial, "depth": "1", **dict.fromkeys(variance.PARTS, value)}
        | {"total": value, "size": value, "faithfulness": value}
        for name, trial, value in (("a", 0, 1.0), ("a", 1, 3.0), ("b", 0, 4.0))
    ]
    [row] = variance.by_depth_table(pd.DataFrame(rows)).to_dict("records")
    assert (row["relations"], row["total"], row["total_se"]) == (2, 3.0, 1.0)  # of 2 and 4, not of 1, 3, 4
    [alone] = variance.by_depth_table(pd.DataFrame(rows[:2])).to_dict("records")
    assert alone["total"] == 2 and np.isnan(alone["total_se"])


def test_cosines_of_two_relations_have_an_interval_within_cosines():
    pd = pytest.importorskip("pandas")
    rows = [
        {"depth": 1, "relation": a, "other": b, "pair": cosines.KINDS[a != b], "trials": 1}
        | {"cosine": c, "centred": c, "shuffled": 0.0}
        for a, b, c in (("a", "a", 0.9), ("b", "b", 0.5), ("a", "b", 0.2), ("b", "a", 0.2))
    ]
    own, other = cosines.summary(pd.DataFrame(rows)).to_dict("records")
    assert own["cosine"] == pytest.approx(0.7) and (own["cosine_low"], own["cosine_high"]) == (-1, 1)
    assert np.isnan(other["cosine_low"])  # one pair of relations
