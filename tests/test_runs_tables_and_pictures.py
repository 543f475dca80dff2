"""Tables and pictures on disk: whole, the same every time, and saying whose numbers they hold."""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd
import pytest

from interpcore.errors import Refused
from interpcore.runs import RunCard, RunError, RunFolder
from interpcore.runs.experiment import Report
from interpcore.runs.frames import write_frame
from interpcore.runs.plots import caption, named_ticks, new_figure, save_figure


def test_a_table_is_written_twice_and_read_back(tmp_path):
    frame = pd.DataFrame({"name": ["a", "b"], "share": [0.1, 1.0]})
    files = write_frame(tmp_path / "of.v2", frame)
    assert [file.name for file in files] == ["of.v2.parquet", "of.v2.csv"]
    assert pd.read_parquet(files[0]).equals(frame) and pd.read_csv(files[1]).equals(frame)
    with pytest.raises(RunError, match="does not exist"):
        write_frame(tmp_path / "missing" / "table", frame)


def test_a_picture_says_whose_numbers_it_holds_and_two_runs_write_the_same(tmp_path):
    said = caption(model="tiny", data="14 relations", n="312 subjects", note="Bands are 95% intervals.")
    both = []
    for number in (1, 2):
        figure, panels = new_figure(4, 3, panels=3, columns=2)
        panels[0].plot([0, 1], [1, 0])
        _, png = save_figure(tmp_path / f"{number}", figure, said, kinds=("svg", "png"))
        assert png.read_bytes()[:4] == b"\x89PNG"
        text = " ".join(t.get_text().replace("\n", " ") for t in [*figure.texts, figure._supxlabel])
        assert all(part in text for part in ("tiny", "14 relations", "312 subjects", "95%"))
        both.append(png.read_bytes())
    assert len(panels) == 3 and both[0] == both[1]


def test_the_caption_stays_inside_a_narrow_picture(tmp_path):
    figure, _ = new_figure(3, 2.4)
    said = caption(model="a model with a long name", data="pairs of a corpus", n="1234567 tokens of text")
    save_figure(tmp_path / "narrow", figure, said)
    figure.draw_without_rendering()
    box = figure._supxlabel.get_window_extent()
    assert box.x1 <= figure.bbox.x1 and box.x0 >= 0 and box.y0 >= 0


@pytest.mark.parametrize("count", [1, 2, 12, 13, 31, 81])
def test_ticks_of_many_depths_do_not_run_into_one_another(count):
    figure, [axes] = new_figure(4.5, 3.8)
    names = ["embed", *map(str, range(1, count))]
    axes.plot(range(count), range(count))
    named_ticks(axes.xaxis, range(count), names, most=10)
    figure.draw_without_rendering()
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert axes.get_xticklabels()[0].get_text() == "embed" and len(boxes) <= 10
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


def test_a_report_plots_a_measure_with_its_interval(tmp_path):
    table = pd.DataFrame(
        {
            "relation": ["a b", "c d", "e f"],
            "n": [3, 4, 5],
            "size": [0.1, 0.2, 0.3],
            "hit": [0.5, 0.25, np.nan],
            "hit_low": [0.4, 0.1, np.nan],
            "hit_high": [0.6, 0.5, np.nan],
        }
    )
    with RunFolder.create(tmp_path / "run", RunCard(model="some-model")) as run:
        files = write_frame(run.artifact("table"), table)
    figure = Report(table, files).plot()
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a b", "c d", "e f"]
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), table.hit)
    bars = [path.vertices[:, 0].tolist() for path in axes.collections[0].get_paths()]
    assert bars[:2] == [[0.4, 0.6], [0.1, 0.5]] and axes.get_xlabel() == "hit"
    told = figure.get_supxlabel()
    assert "Model some-model" in told and "3 rows" in told and "hit_low to hit_high" in told
    assert Report(table).plot("size").axes[0].get_xlabel() == "size"
    assert "Model not said" in Report(table).plot("size").get_supxlabel()
    with pytest.raises(Refused, match="'relation' is no column of numbers here; n, size, hit are"):
        Report(table).plot("relation")
    for frame, sentence in ((pd.DataFrame(), "no number to draw"), (table.assign(hit=np.nan), "No row has")):
        figure = Report(frame).plot(None if frame.empty else "hit")
        assert sentence in figure.axes[0].texts[0].get_text().replace("\n", " ")
