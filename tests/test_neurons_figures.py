"""Figures draw what they are given."""

from __future__ import annotations

import numpy as np
import pytest

from interpcore.neurons.report import behaviour as fb
from interpcore.neurons.report import figures as fg

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def table():
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({"layer": np.repeat(range(3), 40), "neuron": np.tile(np.arange(40), 3)})
    frame["mean_corr"], frame["mean_baseline"] = rng.uniform(0.1, 1, 120), 0.15
    frame["excess_corr"] = frame.mean_corr - frame.mean_baseline
    frame["max_sim_layer"] = frame.layer
    frame["vocab_kurt"], frame["vocab_skew"] = rng.uniform(3, 20, 120), rng.normal(0, 1, 120)
    frame["vocab_var"], frame["l2_penalty"] = rng.uniform(1e-4, 1e-3, 120), rng.uniform(1, 2, 120)
    frame["in_out_sim"], frame["frequency"] = rng.uniform(-1, 1, 120), rng.uniform(0, 1, 120)
    frame["family"] = np.where(np.arange(120) == 100, "entropy", "")
    return frame


def heights(axes):
    return [patch.get_height() for patch in axes.patches]


def test_layer_bars_count_universal_neurons(table):
    figure = fg.layer_figure(table, universal=0.5)
    expected = [int((table[table.layer == d].excess_corr > 0.5).sum()) for d in range(3)]
    assert heights(figure.axes[0]) == expected
    assert np.trace(figure.axes[1].images[0].get_array()) == sum(expected)


def test_excess_title_says_the_share(table):
    figure = fg.excess_figure(table)
    share = (table.excess_corr > 0.5).mean()
    assert f"{share:.2%}" in figure.axes[1].get_xlabel()
    assert sum(heights(figure.axes[1])) == 120


def test_percentile_lines_are_the_percentiles(table):
    axes = fg.percentile_figure({"a": table, "b": table}, ["vocab_kurt"]).axes[0]
    assert len(axes.lines) == 2 * len(fg.LEVELS)
    expected = table.groupby("layer").vocab_kurt.median()
    np.testing.assert_allclose(axes.lines[0].get_ydata(), expected)


def test_density_integrates_to_one():
    grid = np.linspace(-10, 10, 2001)
    assert fg.density([0.0, 1.0, -2.0, 0.5], grid).sum() * 0.01 == pytest.approx(1, abs=1e-3)
    assert not fg.density([1.0], grid).any()


def test_contrasts_and_skews(table):
    contrasts = pd.DataFrame(
        {
            "column": ["vocab_kurt", "x"],
            "percentile": [60.0, np.nan],
            "percentile_low": [55.0, np.nan],
            "percentile_high": [65.0, np.nan],
        }
    )
    ranks = pd.DataFrame({"vocab_kurt": [50.0, 60, 70], "x": [np.nan] * 3})
    axes = fg.contrast_figure(contrasts, ranks).axes[0]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["vocab_kurt", "x"]
    skews = fg.skew_figure({"a": table}, kurtosis=19.9)
    assert "10 of highest" in skews.axes[0].get_title() and len(skews.axes) == 3
    chosen = table[table.layer == 0].nlargest(10, "vocab_kurt").vocab_skew
    np.testing.assert_allclose(skews.axes[0].lines[0].get_xdata(), chosen)  # a dot per neuron
    dots = fg.mystery_figure(table).axes[0]
    assert sum(len(line.get_xdata()) for line in dots.lines) == len(table)
    assert [t.get_text() for t in dots.get_legend().get_texts()] == ["0", "1", "2"]


def test_legends_stand_beside_curves_and_empty_pictures_are_sentences(table):
    figure = fg.percentile_figure({"a": table, "b": table}, ["vocab_kurt"])
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert legend.get_window_extent().x0 >= figure.axes[0].get_window_extent().x1
    assert {t.get_text() for t in legend.get_texts()} == {
        "a", "b", "percentile 50", "percentile 90", "percentile 99", "largest",
    }  # fmt: skip
    nothing = [
        fb.histogram_figure([0, 5, 0], [0.0, 1.0], 0.5, 0.5),
        fb.intervention_figure(
            pd.DataFrame(columns=["layer", "neuron", "kind"]),
            pd.DataFrame(columns=["layer", "neuron", "role"]),
        ),
        fb.head_figure(pd.DataFrame(columns=["layer", "neuron", "attention_layer", "head", "pearson"])),
    ]
    for shown in nothing:
        assert all(not axes.axison and axes.texts[0].get_text().endswith(".") for axes in shown.axes)
    bars = fb.histogram_figure(np.bincount([1, 1, 2], minlength=4), [0.0, 1.0, 2.0], -1.0, 3.0).axes[0]
    heights, ends = bars.patches[0].get_data()[:2]
    assert (heights * np.diff(ends)).sum() == pytest.approx(1)


def test_behaviour_figures(table):
    best = table.assign(feature="f", group="number", variance_reduction=np.linspace(0, 1, 120))
    axes = fb.explanation_figure(best, "number", shown=3).axes[0]
    assert [p.get_width() for p in axes.patches] == sorted(best.variance_reduction)[-3:][::-1]
    assert axes.get_yticklabels()[0].get_text() == "2.39  f"
    letters = best[:3].assign(letter=list("cab"))
    assert fb.alphabet_figure(letters).axes[0].get_xticklabels()[0].get_text().startswith("a")
    counts = pd.DataFrame({"group": ["a", "b"], "neurons": [5, 2], "median": [0.5, 0.1]})
    assert [p.get_width() for p in fb.family_figure(counts).axes[0].patches] == [5, 2]
    curves = fb.position_figure({"0.1": (np.arange(5.0), np.ones(5))})
    np.testing.assert_array_equal(curves.axes[0].lines[0].get_ydata(), np.arange(5.0))
    assert "2.20" in [t.get_text() for t in fb.entropy_figure(table).axes[0].texts]


def test_intervention_curves_are_the_tables(table):
    rows = [
        {"layer": layer, "neuron": 1, "kind": "fixed", "value": value, "norm": norm}
        | {f"{m}_change": value * (layer + 1) for m in fb.MEASURES}
        | {f"{m}_change_se": 0.1 for m in fb.MEASURES}
        for layer in (0, 1, 2)
        for value in (0.0, 1.0)
        for norm in ("free", "frozen")
    ]
    roles = pd.DataFrame({"layer": [0, 1, 2], "neuron": 1, "role": ["entropy", "control", "control"]})
    axes = fb.intervention_figure(pd.DataFrame(rows), roles).axes[0]
    means = [line.get_ydata().tolist() for line in axes.lines if line.get_label() == "controls"]
    assert means == [[0.0, 2.5]]


def test_deactivation_figures():
    rng = np.random.default_rng(0)
    assert fb.deactivation_figure(rng.normal(0, 2, 500), rng.normal(0, 1, 500)).axes[0].get_yscale() == "log"
    heads = pd.DataFrame(
        [
            {"layer": 0, "neuron": n, "attention_layer": d, "head": h, "pearson": 0.1 * h}
            for n in (3, 4)
            for d in (1, 2)
            for h in range(4)
        ]
    )
    figure = fb.head_figure(heads)
    np.testing.assert_allclose(figure.axes[0].images[0].get_array()[0], [0, 0.1, 0.2, 0.3])
    assert len(fb.path_figure([1, 2], [3, 4], "x").axes[0].collections) == 1


def test_class_figures():
    effects, has = np.linspace(-1, 1, 50), np.arange(50) < 10
    assert len(fg.class_figure(effects, has, "first", "0.1").axes[0].patches) == 120 - 2
    found = fg.next_class_figure({"0.1": (effects[:5], effects)}, "next")
    assert found.axes[0].get_title() == "0.1\n5 tokens before it, 50 before others"
    marks = found.axes[0].lines[0]  # of so few no density
    assert marks.get_xdata().tolist() == effects[:5].tolist()
    shown = fg.composition_figure({"q": np.eye(3), "k": np.ones((3, 3))}, "0.1")
    np.testing.assert_array_equal(shown.axes[0].images[0].get_array(), np.eye(3))
