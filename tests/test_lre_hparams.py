"""Published hyperparameter files, read instead of chosen: the format, what they decide, what they refuse."""

from __future__ import annotations

import json

import pytest
import torch

import interpcore
from interpcore.data.relations import RelationError
from interpcore.data.tinyworld.world import study_relations
from interpcore.lre.editors import judge
from interpcore.lre.edits import Inverse
from interpcore.lre.hparams import hparams_hash, read_hparams
from interpcore.lre.operator import predict
from interpcore.lre.options import Options
from interpcore.lre.points import ready
from interpcore.lre.study import open_study
from interpcore.lre.trial import draw_targets
from interpcore.runs import RunError

FILE = {
    "model_name": "gptj",
    "relation_name": "object category",
    "h_layer": 1,
    "beta": 2.25,
    "rank": 40,
    "z_layer": -1,
    "h_layer_edit": "emb",
}


def write(folder, **changes):
    folder.mkdir(exist_ok=True)
    content = FILE | changes
    (folder / f"{content['relation_name'].replace(' ', '_')}.json").write_text(json.dumps(content))
    return folder


def options(folder, **how):
    return Options(trials=1, examples=4, ranks=3, max_test=12, hparams=str(folder), **how)


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny")


@pytest.fixture(scope="module")
def relation():
    return next(r for r in study_relations() if r.name == "object category")


def test_layers_are_outputs_of_blocks(tmp_path):
    [(name, found)] = read_hparams(write(tmp_path / "h")).items()
    assert name == "object category" and found.depths(4) == (2, None)
    assert (found.beta, found.rank) == (2.25, 40)
    with pytest.raises(RelationError, match=r"object_category.json names the layer 1: "):
        found.depths(1)


def test_the_hash_is_of_what_is_said_not_of_where(tmp_path):
    here, there = (read_hparams(write(tmp_path / name)) for name in "ab")
    other = read_hparams(write(tmp_path / "c", rank=41))
    assert hparams_hash(here) == hparams_hash(there) != hparams_hash(other)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"h_layer": "first"}, "h_layer is 'first'; it is a block's number, or 'emb'"),
        ({"h_layer_edit": 1.5}, "h_layer_edit is 1.5"),
        ({"z_layer": 26}, "z_layer is 26"),
        ({"beta": -1}, "beta is -1.0; give one from 0 on"),
        ({"rank": -3}, "rank"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"relation_name": ""}, "relation_name"),
    ],
)
def test_another_format_is_refused(tmp_path, changes, said):
    with pytest.raises(RelationError, match=said):
        read_hparams(write(tmp_path / "h", **changes))


def test_files_of_any_spelling_are_read(tmp_path):
    folder = write(tmp_path / "h")
    (folder / "object_category.json").rename(folder / "A.JSON")
    assert set(read_hparams(folder)) == {"object category"}


def test_folders_that_hold_none_are_refused(tmp_path):
    with pytest.raises(RelationError, match="There is no folder"):
        read_hparams(tmp_path / "nowhere")
    with pytest.raises(RelationError, match="holds no hyperparameter files"):
        read_hparams(tmp_path)
    (tmp_path / "x.json").write_text("{")
    with pytest.raises(RelationError, match=r"x\.json is no hyperparameter file"):
        read_hparams(tmp_path)


def test_a_study_reads_and_edits_where_the_files_say(tmp_path, tiny, relation):
    given = options(write(tmp_path / "h"))
    with open_study(tiny, tmp_path / "run", given, relations=[relation], progress=False) as study:
        [row] = study.run()
        found, operator = ready(study, relation.name, 0), study.operator(relation.name, 0)
        report = study.report()
        files, notes = report.files, report.notes
        card = study.folder.card
    result = row.result
    assert {c["depth"] for c in result["choices"] if c["measure"] == "faithfulness"} == {2}
    assert {c["beta"] for c in result["choices"] if c["measure"] == "faithfulness"} == {2.25}
    assert {(c["depth"], c["rank"]) for c in result["choices"] if c["measure"] == "causality"} == {(None, 40)}
    at = operator.at(2)
    tokens = predict(tiny, operator, found.states.h, [2.25])[at, 0, :, 0]
    same = (tokens == found.states.top.cpu()).double().tolist()
    assert result["outcomes"]["faithfulness"] == same
    target = draw_targets(found.test, found.known, found.seed)
    edits = Inverse.of(operator.weight[0]).apply(found.states.z[target] - found.states.z, [40])
    assert result["outcomes"]["causality"] == judge(found, target)(0, edits)[0].double().tolist()
    assert not any("hparams" in str(file) for file in files)  # they are not this run's to say
    assert "Depths, beta and rank are read from files of gptj, not chosen." in notes
    assert card.arguments["hash of hparams"] and card.sources["hparams"].endswith("h")
    with pytest.raises(RunError, match="hash of hparams"):
        open_study(tiny, tmp_path / "run", options(write(tmp_path / "g", rank=41)), relations=[relation])


def test_a_runs_own_choices_serve_another_run(tmp_path, tiny, relation):
    chosen = Options(trials=1, examples=4, ranks=3, max_test=12, protocol="paper")
    with open_study(tiny, tmp_path / "run", chosen, relations=[relation], progress=False) as study:
        [first] = study.run()
        study.report()
    again = options(tmp_path / "run", protocol="paper")
    with open_study(tiny, tmp_path / "again", again, relations=[relation], progress=False) as study:
        [second] = study.run()
    faithful = [r.result["outcomes"]["recall@1"] for r in (first, second)]
    assert torch.tensor(faithful[1]).mean() == torch.tensor(faithful[0]).mean()


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"relation_name": "twin"}, "have no file of it"),
        ({"rank": 4000}, "asks for rank 4000; the model has"),
        ({"h_layer": 3}, "only protocol='paper' has"),
        ({"h_layer": 12}, "names the layer 12"),
    ],
)
def test_what_a_model_cannot_do_is_said_of_that_relation(tmp_path, tiny, relation, changes, said):
    given = options(write(tmp_path / "h", **changes))
    with open_study(tiny, tmp_path / "run", given, relations=[relation], progress=False) as study:
        [row] = study.run()
    assert row.result["status"] == "refused" and said in row.result["reason"]
