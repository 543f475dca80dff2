"""`verify`: a sound run stands, from its card alone; what was changed or computed wrongly is named."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from typer.testing import CliRunner

import interpcore
from interpcore.circuits.experiments import EXPERIMENTS as CIRCUITS
from interpcore.circuits.options import Options as CircuitOptions
from interpcore.cli import app
from interpcore.data.relations import load_relations
from interpcore.data.tinyworld.world import study_relations
from interpcore.data.tokens.writing import write_shards
from interpcore.errors import Refused, RunError
from interpcore.lens.experiments import FIT
from interpcore.lens.options import FitOptions
from interpcore.lre.experiments import RUN
from interpcore.lre.operator import Operator
from interpcore.lre.options import Options as LreOptions
from interpcore.model.generic import GenericModel
from interpcore.neurons.experiments import EXPERIMENTS as NEURONS
from interpcore.neurons.options import Options as NeuronOptions
from interpcore.review.experiments import experiment_of, experiments
from interpcore.review.verify import verify
from interpcore.runs import read_tensors, write_tensors
from interpcore.runs.card import RunCard
from interpcore.runs.checks import Cell, Checks, Table, recompute
from interpcore.steering.experiments import ACCURACY
from interpcore.steering.files import save
from interpcore.steering.interventions import Intervention, Part
from interpcore.steering.options import AccuracyOptions

QUICK = {"trials": 1, "examples": 3, "betas": (0.0, 1.0, 2.5), "ranks": 4, "max_test": 8}


@pytest.fixture(scope="module")
def tiny():
    return interpcore.load("tiny")


@pytest.fixture(scope="module")
def relations(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("relations")
    for relation in study_relations()[1:3]:
        text = json.dumps(relation.to_json())
        (folder / f"{relation.name.replace(' ', '_')}.json").write_text(text)
    return folder


@pytest.fixture(scope="module")
def lre(tiny, relations, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "lre"
    with RUN.open(tiny, out, LreOptions(relations=str(relations), **QUICK), progress=False) as study:
        RUN.run(study)
    return out


@pytest.fixture(scope="module")
def lens(tiny, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("verify") / "lens"
    options = FitOptions(prompts=6, length=12, skip=4, slice_size=4)
    with FIT.open(tiny, out, options, progress=False) as study:
        FIT.run(study)
    return out


def test_a_sound_run_stands_from_its_card_alone(lre, lens, tiny):
    for run, cells in ((lre, 12), (lens, 8)):
        before = {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()}
        found = verify(run, cells=cells)
        assert not found.problems
        assert all(v.cells == min(cells, v.table.size) and v.worst for v in found.verdicts)
        assert all(v.worst.gap <= v.tolerance for v in found.verdicts)
        table = found.report().table
        assert list(table.recomputed) == [v.cells for v in found.verdicts]
        assert {f: f.stat().st_mtime_ns for f in run.rglob("*") if f.is_file()} == before


def test_a_changed_operator_is_named(lre, tmp_path):
    import shutil

    run = tmp_path / "changed"
    shutil.copytree(lre, run)
    file = next((run / "artifacts" / "operators").rglob("*.safetensors"))
    operator, about = Operator.load(file)
    weight = operator.weight.clone()
    weight[:, :, 5] *= 1.001
    replace(operator, weight=weight).save(file, **about)
    found = verify(run, cells=8)
    assert any(file.parent.name in problem and "operators: " in problem for problem in found.problems)
    said = CliRunner().invoke(app, ["verify", str(run), "--cells", "8"])
    assert isinstance(said.exception, Refused) and "recomputed" in str(said.exception)


def test_a_changed_slice_and_a_lens_of_other_slices_are_named(lens, tmp_path):
    import shutil

    for name, tensor, table in (
        ("slices/4-6.safetensors", "even.squares", "slices: squares"),
        ("lens.safetensors", "standard_error", "lens"),
    ):
        run = tmp_path / name.replace("/", "-")
        shutil.copytree(lens, run)
        tensors, about = read_tensors(run / "artifacts" / name)
        write_tensors(run / "artifacts" / name, tensors | {tensor: tensors[tensor] * 1.5 + 0.1}, about)
        found = verify(run, cells=24)
        assert {problem.partition(":")[0] for problem in found.problems} >= {table.partition(":")[0]}


def test_cells_done_again_give_the_same_bits_or_the_difference_is_named(lre, lens, tmp_path):
    import shutil

    for run in (lre, lens):
        before = {f: f.read_bytes() for f in run.rglob("*") if f.is_file()}
        found = verify(run, cells=2, again=True)
        assert not found.problems and found.more[-1].endswith("the same bits.")
        assert {f: f.read_bytes() for f in run.rglob("*") if f.is_file()} == before
    for name, factor, told in (("near", 1 + 1e-6, False), ("far", 1.01, True)):
        run = tmp_path / name
        shutil.copytree(lens, run)
        file = run / "artifacts" / "slices" / "0-4.safetensors"
        tensors, about = read_tensors(file)
        write_tensors(file, tensors | {"odd.mean": tensors["odd.mean"] * factor}, about)
        found = verify(run, cells=2, again=True)
        assert (
            any("done again" in p and "odd.mean in artifacts/slices/0-4" in p for p in found.problems) is told
        )
        assert told or "differ, most odd.mean" in found.more[-1]


def test_claims_are_checked_beside(lre, tmp_path):
    one = {"claim": "c", "table": "relations", "statistic": "maximum(faithfulness)", "relation": "above"}
    (tmp_path / "claims.json").write_text(json.dumps([one | {"value": 1.0}, one | {"value": -1.0}]))
    found = verify(lre, cells=1, claims=tmp_path / "claims.json")
    assert len(found.problems) == 1 and "the claim 'c' says" in found.problems[0]
    assert any(note.startswith("Claim 'c' says") for note in found.report().notes)


def test_what_does_not_fit_the_card_is_refused(lre, tiny, relations, tmp_path):
    with pytest.raises(RunError, match="weights"):
        verify(lre, model="tiny-s1")
    other = tmp_path / "other"
    other.mkdir()
    for relation in load_relations(relations)[:1]:
        (other / "one.json").write_text(json.dumps(relation.to_json()))
    with pytest.raises(RunError, match="facts of"):
        verify(lre, data={"relations": str(other)})
    with pytest.raises(Refused, match="no option"):
        verify(lre, data={"tokens": "x"})
    with pytest.raises(RunError, match="no folder"):
        verify(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run"):
        verify(tmp_path / "empty")


def test_what_is_refused_is_known_before_anything_is_recomputed(tiny, relations, tmp_path):
    """The hint after a run asks `unverified`, and `checks` refuses with what it says, and only then."""
    hf = tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=2304, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    adapter = GenericModel.wrap(hf.eval(), "wrapped", tokenizer=tiny.tokenizer)
    half = interpcore.load("tiny", dtype=torch.bfloat16)
    facts = LreOptions(relations=str(relations), **QUICK)
    ids = np.random.default_rng(0).integers(5, 2000, (6, 16)).astype(np.uint16)
    write_shards(tmp_path / "tokens", ids, 2304)
    sums = NeuronOptions(tokens=str(tmp_path / "tokens"), by_token=False, by_label=False)
    heads = Intervention((Part("z", 1, "ablate", torch.ones(32), heads=(0,)),), "heads")
    save(tmp_path / "heads.safetensors", heads)
    asked = AccuracyOptions(questions="tiny:8", part="all", intervention=str(tmp_path / "heads.safetensors"))
    for experiment, model, options, told in (
        (RUN, half, facts, "in bfloat16"),
        (RUN, tiny, facts, None),
        (CIRCUITS[0], adapter, CircuitOptions(head=6), "generic adapter"),
        (NEURONS[0], tiny, replace(sums, precision="bfloat16"), "in bfloat16"),
        (NEURONS[0], tiny, sums, "no summary yet"),
        (ACCURACY, tiny, asked, "ablate at z"),
    ):
        out = tmp_path / f"{experiment.name} {told}"
        with experiment.open(model, out, options, progress=False) as study:
            why = experiment.unverified(study)
            assert why is None if told is None else told in why
            if told is None:
                experiment.checks(study)
            else:
                with pytest.raises(Refused) as refused:
                    experiment.checks(study)
                assert str(refused.value) == why


@pytest.mark.parametrize(("precision", "offered"), [("float32", True), ("bfloat16", False)])
def test_verify_is_offered_after_a_run_that_it_takes(precision, offered, tmp_path):
    ids = np.random.default_rng(0).integers(5, 2000, (6, 16)).astype(np.uint16)
    write_shards(tmp_path / "tokens", ids, 2304)
    asked = ["neurons", "summarize", "--model", "tiny", "--tokens", str(tmp_path / "tokens"), "--quiet"]
    where = ["--no-by-label", "--precision", precision, "--out", str(tmp_path / "run")]
    said = CliRunner().invoke(app, [*asked, *where])
    assert said.exit_code == 0 and ("interpcore verify" in said.output) is offered, said.output
    taken = CliRunner().invoke(app, ["verify", str(tmp_path / "run"), "--cells", "2"])
    assert (taken.exit_code == 0) is offered, taken.output


def test_a_run_of_an_earlier_version_is_looked_at_and_not_written(lre, tmp_path):
    import shutil

    run = tmp_path / "old"
    shutil.copytree(lre, run)
    card = json.loads((run / "card.json").read_text())
    card["versions"]["interpcore"] = "0.0.1"
    (run / "card.json").write_text(json.dumps(card))
    assert not verify(run, cells=2).problems
    assert json.loads((run / "card.json").read_text()) == card


def test_every_card_belongs_to_its_experiment(lre, lens):
    assert experiment_of(lre)[0] is RUN
    assert experiment_of(lens)[0] is FIT
    assert not any(each.made(RunCard(arguments={"nothing": 1})) for each in experiments())


def test_cells_are_drawn_and_judged():
    def table(cells, **how):
        return Table("t", len(cells), lambda n: cells[n], "by hand", **how)

    same = [Cell(f"c{i}", 1.0, 1.0 + 1e-7, 1.0) for i in range(100)]
    (verdict,) = recompute(Checks([table(same)], "float32"))
    assert verdict.cells == 64 and not verdict.wrong
    (verdict,) = recompute(Checks([table(same)], "float64"), cells=10)
    assert len(verdict.wrong) == 10 and "10 of 10 cells differ" in next(verdict.problems)
    (verdict,) = recompute(Checks([table(same, most=3)], "float32"))
    assert verdict.cells == 3
    nan, nothing = float("nan"), Cell("c", float("nan"), 1.0, 1.0)
    assert Cell("c", nan, nan).gap == 0.0 and nothing.gap == math.inf
    assert Cell("c", 0.0, 1.0).gap == math.inf
    (verdict,) = recompute(Checks([table([Cell("c", 0.0, 1.0, open=True)])], "float32"))
    assert verdict.undecided == 1 and not verdict.wrong
    first, second = ([v.cells for v in recompute(Checks([table(same)], "float32"), seed=s)] for s in (0, 1))
    assert first == second
    with pytest.raises(Refused, match="bfloat16"):
        recompute(Checks([table(same)], "bfloat16"))


def test_operators_of_a_float64_run_are_the_same_to_1e_10(relations, tmp_path):
    model = interpcore.load("tiny", dtype=torch.float64)
    file = next(relations.iterdir())
    options = LreOptions(relations=str(file), **QUICK | {"examples": 2, "ranks": 2})
    with RUN.open(model, tmp_path / "run", options, progress=False) as study:
        RUN.run(study)
    found = verify(tmp_path / "run", cells=6)
    assert not found.problems
    assert found.verdicts[0].tolerance == 1e-10 and found.verdicts[0].worst.gap < 1e-11
