"""`interpcore lre` end to end on the published trained model: files, tables, comparison, refusals."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from lre_case import halves, load_case, report_of
from typer.testing import CliRunner

from interpcore.cli import app
from interpcore.data.relations import Sample
from interpcore.lre.report import compare_runs, published_rows, published_table
from interpcore.lre.tables import published_hparams, relation_table
from interpcore.runs import RunError

pd = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")
pytest.importorskip("matplotlib")

FEW = ["--trials", "1", "--examples", "5", "--ranks", "4"]


def write(folder, *relations):
    for relation in relations:
        path = folder / relation.relation_type / f"{relation.name.replace(' ', '_')}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(relation.to_json()))
    return folder


def lre_run(model, relations, out, *more):
    command = ["lre", "run", "--model", str(model), "--relations", str(relations), "--out", str(out)]
    return CliRunner().invoke(app, [*command, *FEW, *more])


@pytest.fixture(scope="module")
def relation(shared):
    return load_case(shared)[1]


@pytest.fixture(scope="module")
def model(shared):
    return shared / "parity" / "lre" / "trained_gpt2_model"


@pytest.fixture(scope="module")
def finished(model, relation, tmp_path_factory):
    """A run over five relations, two of which are parts of a third, and the command's result."""
    base = tmp_path_factory.mktemp("lre")
    parts = halves(relation)
    shifted = [replace(r, name=f"{r.name} again", relation_type="factual") for r in parts]
    unknown = replace(
        relation,
        name="unknown",
        samples=tuple(Sample(s.subject, f"zz{i}") for i, s in enumerate(relation.samples[:20])),
    )
    facts = write(base / "facts", *parts, *shifted, unknown)
    return base, facts, lre_run(model, facts, base / "run")


def test_a_run_writes_everything_and_says_so(finished):
    base, _, result = finished
    assert result.exit_code == 0, result.output
    for words in (
        "even again",
        "faithful",
        "times as fast as one by one",
        "faithfulness.png",
        "Left out: unk",
    ):
        assert words in result.output
    artifacts = base / "run" / "artifacts"
    for figure in ("faithfulness", "depths", "causality_by_rank", "agreement"):
        assert (artifacts / f"figures/{figure}.png").stat().st_size > 5000
    hparams = json.loads((artifacts / "hparams/trained_gpt2_model/even_again.json").read_text())
    assert set(hparams) == {
        "model_name", "relation_name", "h_layer", "beta", "rank", "z_layer", "h_layer_edit"
    }  # fmt: skip
    assert hparams["z_layer"] == -1 and hparams["h_layer"] in ("emb", 0, 1, 2, 3)
    assert len(list(artifacts.glob("operators/*/0.safetensors"))) == 4


def test_the_table_holds_measures_intervals_and_controls(finished):
    table = pd.read_parquet(finished[0] / "run" / "artifacts" / "tables" / "relations.parquet")
    facts = pd.read_parquet(finished[0] / "run" / "artifacts" / "tables" / "subjects.parquet")
    assert sorted(table.status) == ["measured"] * 4 + ["not known"]
    done = table[table.trials > 0].set_index("relation")
    for name, row in done.iterrows():
        mine = facts[(facts.relation == name)]
        assert len(mine) == row.n_test and mine.known.sum() == row.n_known
        for measure in ("faithfulness", "recall@1", "first_token@1", "causality"):
            assert row[measure] == pytest.approx(mine[mine.known][measure].mean())
            assert row[f"{measure}_all"] == pytest.approx(mine[measure].mean())
            assert row[f"{measure}_low"] <= row[measure] <= row[f"{measure}_high"]
        best = max(row[c] for c in ("majority", "b alone", "other operator", "shuffled"))
        assert row[row.faithfulness_control] == best
        assert not row.faithfulness_above or (row.faithfulness > best and row.faithfulness_p < 0.05)
    curves = pd.read_parquet(finished[0] / "run" / "artifacts" / "tables" / "curves.parquet")
    assert set(curves.curve) == {"faithfulness by depth", "causality by depth", "causality by rank"}


def test_the_same_call_again_reuses_the_run_and_other_options_are_refused(finished, model):
    base, facts, first = finished
    again = lre_run(model, facts, base / "run")
    assert again.exit_code == 0
    assert again.output[again.output.index("relation") :] == first.output[first.output.index("relation") :]
    other = lre_run(model, facts, base / "run", "--damping", "0.5")
    assert other.exit_code == 1 and isinstance(other.exception, RunError)


def test_ranks_are_searched_where_asked_and_said_so(model, relation, tmp_path):
    facts = write(tmp_path / "facts", replace(relation, samples=relation.samples[:40]))
    result = lre_run(model, facts, tmp_path / "run", "--ranks", "auto")
    assert result.exit_code == 0, result.output
    assert "Ranks were searched coarse to fine" in result.output and "--ranks auto" in result.output
    assert json.loads((tmp_path / "run/card.json").read_text())["arguments"]["ranks"] == "auto"
    (row,) = report_of(tmp_path / "run").table.to_dict("records")
    assert row["rank_search"] == "coarse to fine" and row["trials"] == 1
    wrong = lre_run(model, facts, tmp_path / "other", "--ranks", "many")
    assert wrong.exit_code == 1 and "--ranks is 'many'; give a number or auto" in str(wrong.exception)


def test_a_run_correlates_with_itself(finished):
    run = finished[0] / "run"
    found = compare_runs(run, run)
    assert len(found.relations) == 4 and not found.differences
    for r in found.correlations.values():
        assert r.value == pytest.approx(1)
    result = CliRunner().invoke(app, ["lre", "compare", str(run), str(run)])
    assert result.exit_code == 0 and "faithfulness" in result.output
    with pytest.raises(RunError, match="holds no relation table"):
        compare_runs(run, run / "nowhere")


def test_hparams_are_chosen_as_published():
    axes = {"depth": [None, 1, 2], "beta": [0.0, 1.0, 2.0], "rank": [0, 3, 8]}

    def trial(recalls, causes):
        curves = {"recall@1 by depth and beta": recalls, "causality by depth and rank": causes}
        return {"relation": "r", "axes": axes, "curves": curves}

    trials = [
        trial([[0, 0.9, 0], [0.2, 0.4, 0.8], [0, 0, 0]], [[0, 0, 0.1], [0, 0, 0], [0, 0.5, 0.2]]),
        trial([[0, 0.1, 0], [0.9, 0.4, 0.8], [0, 0, 0]], [[0, 0, 0.1], [0, 0, 0], [0, 0.5, 0.9]]),
    ]
    assert published_hparams("m", trials) == {
        "model_name": "m",
        "relation_name": "r",
        "h_layer": 0,
        "beta": 1.0,
        "rank": 5,
        "z_layer": -1,
        "h_layer_edit": 1,
    }


def test_the_table_lists_relations_without_a_measured_trial():
    row = {"relation": "r", "relation_type": "bias", "n_objects": 2, "trial": 0, "n_test": 5, "n_known": 1}
    table = relation_table([row | {"status": "not known", "reason": "r: the model knows 1 of 5."}])
    assert table.trials[0] == 0 and table.reason[0].startswith("r: the model") and table.n_known[0] == 1


def test_bad_relations_are_named_and_the_rest_is_kept(model, relation, tmp_path):
    one = replace(relation, name="one", samples=tuple(Sample(s.subject, "fish") for s in relation.samples))
    long = replace(relation, name="long", prompt_templates=(relation.prompt_templates[0] + " x" * 400,))
    facts = write(tmp_path / "facts", one, long, relation)
    result = lre_run(model, facts, tmp_path / "run")
    assert result.exit_code == 1
    for words in ("one: all samples have the object 'fish'", "long: The prompt has", "The rest is kept"):
        assert words in str(result.exception)
    table = report_of(tmp_path / "run").table.set_index("relation")
    assert table.loc["object superclass", "trials"] == 1 and table.loc["one", "status"] == "refused"


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda folder: None, "There is no folder"),
        (lambda folder: (folder / "bias").mkdir(parents=True), "no relation files"),
        (lambda folder: put(folder, "{"), "x.json is cut short"),
        (lambda folder: put(folder, "[]"), "x.json is [], not an object"),
    ],
)
def test_bad_folders_are_refused_before_anything_runs(model, tmp_path, change, said):
    change(tmp_path / "facts")
    result = lre_run(model, tmp_path / "facts", tmp_path / "run")
    assert result.exit_code == 1 and said in str(result.exception)
    assert not (tmp_path / "run").exists()


def put(folder, text):
    (folder / "bias").mkdir(parents=True)
    (folder / "bias" / "x.json").write_text(text)


def test_a_template_without_a_slot_is_refused(model, relation, tmp_path):
    content = relation.to_json() | {"prompt_templates": ["A thing is a"]}
    put(tmp_path / "facts", json.dumps(content))
    result = lre_run(model, tmp_path / "facts", tmp_path / "run")
    assert result.exit_code == 1 and "needs exactly one {}" in str(result.exception)


def test_a_model_of_stories_knows_no_such_facts(shared, relation, tmp_path):
    folder = shared / "models" / "stories260k"
    if not folder.is_dir():
        pytest.skip("needs stories260k in the shared folder")
    facts = write(tmp_path / "facts", replace(relation, samples=relation.samples[:20]))
    result = lre_run(folder, facts, tmp_path / "run", "--template", "0")
    assert result.exit_code == 1 and "knows no such facts" in str(result.exception)
    assert "Left out: object superclass: the model knows" in result.output
    assert report_of(tmp_path / "run").table.trials.sum() == 0


def test_a_first_try_that_measured_nothing_gives_way_to_the_corrected_command(model, relation, tmp_path):
    facts = write(tmp_path / "facts", replace(relation, samples=relation.samples[:30]))
    first = lre_run(model, facts, tmp_path / "run", "--examples", "29")
    assert first.exit_code == 1 and "knows no such facts" in str(first.exception)
    again = lre_run(model, facts, tmp_path / "run", "--examples", "4")
    assert again.exit_code == 0, again.output
    other = lre_run(model, facts, tmp_path / "run", "--examples", "5")
    assert other.exit_code == 1 and "examples" in str(other.exception)
    more = lre_run(model, facts, tmp_path / "run", "--examples", "4", "--trials", "2")
    assert more.exit_code == 0 and report_of(tmp_path / "run").table.trials.max() == 2


def test_published_numbers_stand_beside_the_same_relations():
    theirs = published_table().set_index("relation")
    mine = theirs.iloc[:3][["faithfulness", "causality"]].reset_index().assign(trials=[1, 1, 0])
    mine["faithfulness"] -= 0.125
    rows = {row["what"]: row for row in published_rows(mine)}
    first, second = theirs.index[:2]
    assert set(rows) == {
        *(f"mean {m} of the relations in both" for m in ("faithfulness", "causality")),
        *(f"{m} of {name}" for m in ("faithfulness", "causality") for name in (first, second)),
    }
    mean = rows["mean faithfulness of the relations in both"]
    assert mean["rows"] == 2 and mean["published"] == pytest.approx(theirs.faithfulness[:2].mean())
    assert mean["ours"] == pytest.approx(mean["published"] - 0.125)
    assert rows[f"causality of {second}"]["ours"] == theirs.causality[second]
    other = mine.assign(relation=["a", "b", "c"])
    assert not list(published_rows(other))
