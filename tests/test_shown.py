"""What a notebook shows of values: a short line, a table, a page, a picture; and progress in its cells."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

import interpcore
from interpcore._shown import ShortRepr, short
from interpcore.circuits import Graph, Pairs, Scores, select
from interpcore.data.relations import load_relation
from interpcore.lens import Lens
from interpcore.lre import Operator
from interpcore.model import Cache, Model, Tap
from interpcore.ops import column_moments
from interpcore.runs import Progress, RunCard, RunFolder, pages, sweep
from interpcore.runs.experiment import Report
from interpcore.runs.plots import empty, new_figure, save_figure, say

PACKAGE = Path(interpcore.__file__).parent


def classes() -> Iterator[type]:
    """Every dataclass of the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("kernels", "cli") or parts[-1].startswith("__"):
            continue
        module = importlib.import_module(".".join(("interpcore", *parts)))
        for value in vars(module).values():
            if isinstance(value, type) and is_dataclass(value) and value.__module__ == module.__name__:
                yield value


def test_no_class_that_holds_arrays_dumps_them() -> None:
    holding = [
        cls
        for cls in classes()
        if any(word in str(f.type) for f in fields(cls) for word in ("Tensor", "DataFrame", "NDArray"))
    ]
    made = [cls for cls in holding if hasattr(cls.__repr__, "__wrapped__")]  # by the decorator
    assert len(holding) > 80 and not made, f"derive these from interpcore._shown.ShortRepr: {made}"


@dataclass
class Held(ShortRepr):
    values: Any
    name: str = "a"


@dataclass
class Under(Held):
    more: Any = None


def test_a_short_line_keeps_fields_and_cuts_what_is_long() -> None:
    line = repr(Under({f"k{i}": torch.ones(2) for i in range(20)}, more=[torch.ones(3, 4)]))
    assert line.startswith("Under(values={'k0': float32 [2], 'k1': float32 [2], ")
    assert line.endswith("'k5': float32 [2], ... 20 in all}, name='a', more=[float32 [3, 4]])")
    assert short((torch.ones(1),)) == "(float32 [1],)" and short("x" * 500) == f"'{'x' * 119}...'"


@pytest.fixture(scope="module")
def tiny() -> Model:
    model = interpcore.load("tiny", check=False)
    assert isinstance(model, Model)
    return model


@pytest.mark.parametrize("name", ["tiny", "tiny-llama"])
def test_representations_of_a_model_are_a_few_lines(name: str) -> None:
    model = interpcore.load(name, check=False)
    tokens, mask = model.encode(["Paris is", "The opposite of hot is"])
    output = model.forward(tokens, mask, taps=[Tap("resid", 2)], cache=Cache())
    shown = [model, output, output.cache, model.generate(tokens, mask, max_new_tokens=2), model.spec]
    shown += [model.origin, model.final_norm, model.unembedding, model.plan.blocks[0], Tap("resid", 2)]
    for value in shown:
        assert len(repr(value)) < 900 and "tensor(" not in repr(value), repr(value)
    assert len(repr(model.block(0))) < 2500 and "tensor(" not in repr(model.block(0))
    assert f"logits=float32 [2, {tokens.shape[1]}, {model.spec.vocab_size}]" in repr(output)


def test_the_sites_are_a_table(tiny) -> None:
    sites = tiny.sites()
    lines = repr(sites).splitlines()
    assert len(lines) == len(sites) + 1 and lines[0].split() == list(sites[0])
    assert lines[1].startswith("embed") and sites[0]["site"] == "embed"
    assert list(sites.to_pandas().site) == [row["site"] for row in sites]
    assert sites._repr_html_().count("<tr>") == len(sites) + 1


def scored() -> Scores:
    graph = Graph(2, 2, 2)
    values = torch.randn(graph.legal.shape, generator=torch.Generator().manual_seed(1))
    about = {"model": "tiny", "task": "ioi", "examples": 3, "squares": 9 * values**2}
    return Scores(graph, values, "eap", "logit_diff", **about)


def test_scores_and_circuits_are_tables_with_their_numbers() -> None:
    scores = scored()
    table = scores.to_pandas()
    assert len(table) == scores.graph.n_edges and table.score.abs().is_monotonic_decreasing
    first = table.iloc[0]
    assert float(scores.values[scores.graph.edge(f"{first.source}->{first.destination}")]) == first.score
    # n squares sum to 9 v^2: the variance of the mean is (3 v^2 - v^2) / 2.
    assert table.standard_error[0] == pytest.approx(abs(first.score))
    unscored = torch.full_like(scores.values, torch.nan)
    nodes = Scores(scores.graph, unscored, "eap", "x", nodes=torch.arange(7.0))
    assert nodes.to_pandas().iloc[0].to_dict() == {"node": "m1", "score": 6.0}
    circuit = select(scores, 12)
    kept = circuit.to_pandas(scores)
    assert len(kept) == circuit.n_edges == len(circuit.to_pandas()) and set(kept.score) <= set(table.score)
    assert f"{circuit.n_edges} of {circuit.graph.n_edges}" in repr(circuit)
    assert "eap of ioi on tiny" in scores._repr_html_() and "20 of" in scores._repr_html_()


def test_pairs_lenses_operators_and_moments_are_tables(tiny, tmp_path) -> None:
    texts = [("Paris is in", "Rome is in"), ("<b> is", "Rome is")]
    pairs = Pairs.from_texts("t", texts, [[1], [2, 3]], [[4], [5]], tiny.tokenizer, unequal="align")
    table = pairs.to_pandas()
    assert list(table.clean) == [a for a, _ in texts] and list(table.good) == [[1], [2, 3]]
    assert "&lt;b&gt;" in pairs._repr_html_() and "2 pairs" in repr(pairs)
    eye = torch.eye(3).expand(2, 3, 3)
    lens = Lens(2 * eye, (0, 1), 1, 4)
    assert lens.to_pandas().share.tolist() == pytest.approx([0.5, 0.5])
    assert Operator((None, 1), eye, torch.ones(2, 3)).to_pandas().beyond_identity.tolist() == [0, 0]
    moments = column_moments(torch.tensor([[1.0], [3.0]]), thresholds=(2.0,)).to_pandas()
    assert moments.iloc[0][["mean", "variance", "above 2"]].tolist() == [2.0, 1.0, 0.5]
    for figure in (lens.plot(), select(scored(), 12).plot(scored())):
        assert figure._repr_png_()[:4] == b"\x89PNG" and "n = " in figure._supxlabel.get_text()


def test_a_report_shows_its_table_notes_pictures_and_pages(tmp_path) -> None:
    import pandas as pd

    figure, [axes] = new_figure(3, 2)
    empty(axes, "Nothing was found, because nothing was looked for.")
    files = save_figure(tmp_path / "f", say(figure, ""), "Model tiny; data; n = 1.")
    page = pages.page("A & B", [("One", pages.note("text"))]).save(tmp_path / "page.html")
    report = Report(pd.DataFrame({"a": [1.0], "b": ["<i>"]}), (*files, page), ("A <note>.",), shown=("b",))
    html = report._repr_html_()
    assert "&lt;i&gt;" in html and "A &lt;note&gt;." in html and "data:image/png;base64" in html
    assert "<th>a</th>" not in html and report.to_pandas().a.tolist() == [1.0]
    assert repr(report) == "Report(1 rows, 2 files)"
    (opened,) = report.pages
    assert opened == page.read_text() and "srcdoc" in opened._repr_html_() and len(repr(opened)) < 60


def cell(x: int) -> dict[str, int]:
    return {"square": x * x, "x": -x}


def test_a_sweep_and_its_folder_read_back_as_a_data_frame(tmp_path) -> None:
    rows = sweep(cell, {"x": [1, 2]}, out=tmp_path / "run", progress=False)
    assert rows.to_pandas()[["x", "square", "result_x", "status"]].values.tolist() == [
        [1, 1, -1, "done"],
        [2, 4, -2, "done"],
    ]
    with RunFolder.open(tmp_path / "run") as run:
        assert len(run.to_pandas()) == 2 and "2 cells" in repr(run) and "2 cells" in run._repr_html_()
    assert "2 cells" in rows._repr_html_() and isinstance(RunCard(), RunCard)


def test_progress_in_a_notebook_is_one_line_that_renews_itself(monkeypatch, capsys) -> None:
    states: list[tuple[str, dict[str, str]]] = []
    handle = SimpleNamespace(update=lambda state, raw: states.append(("update", state)))

    def display(state: dict[str, str], raw: bool, display_id: bool) -> Any:
        states.append(("display", state))
        return handle

    shell = SimpleNamespace(kernel=None)
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    with Progress("<sweep>", 3, clock=iter(range(100)).__next__) as shown:
        for _ in range(3):
            shown.advance()
    kinds = [kind for kind, _ in states]
    assert kinds == ["display", *["update"] * (len(states) - 1)] and len(states) >= 4
    assert states[0][1]["text/plain"] == "<sweep>: 0 of 3" and "&lt;sweep&gt;" in states[0][1]["text/html"]
    assert states[-1][1]["text/plain"].startswith("<sweep>: 3 of 3 finished in")
    assert 'value="3" max="3"' in states[-1][1]["text/html"]
    out = capsys.readouterr()
    assert out.out == out.err == ""


def test_relations_are_tables(tmp_path) -> None:
    path = tmp_path / "r.json"
    path.write_text(
        '{"name": "r", "prompt_templates": ["{} is"], "prompt_templates_zs": [], "properties": '
        '{"relation_type": "factual", "domain_name": "a", "range_name": "b", "symmetric": false}, '
        '"samples": [{"subject": "s", "object": "o"}]}'
    )
    relation = load_relation(path)
    assert relation.to_pandas().values.tolist() == [["s", "o"]]
    assert repr(relation) == "Relation('r', factual, 1 facts)"


def test_columns_of_words_stand_to_the_left_of_a_page() -> None:
    html = str(pages.table(pd.DataFrame({"name": ["a"], "said": ["b"], "n": [1], "value": [0.25]})))
    assert (
        '<td>a</td><td class="words">b</td><td>1</td><td>0.25</td>' in html
        and '<th class="words">said</th>' in html
    )
