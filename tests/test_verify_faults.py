"""Every seeded fault is caught by `verify`, and a sound run of the same kind is not."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
from faults import Fault, every

import interpcore
from interpcore.circuits.experiments import EXPERIMENTS as CIRCUITS
from interpcore.circuits.options import Options as CircuitOptions
from interpcore.circuits.options import Pareto
from interpcore.data.tinyworld.world import study_relations
from interpcore.data.tokens.writing import write_shards
from interpcore.lens.experiments import FIT
from interpcore.lens.options import FitOptions
from interpcore.lre.experiments import RUN
from interpcore.lre.options import Options as LreOptions
from interpcore.neurons.experiments import EXPERIMENTS as NEURONS
from interpcore.neurons.options import Options as NeuronOptions
from interpcore.neurons.options import Summarize
from interpcore.neurons.statistics import mlp_sides
from interpcore.review.verify import verify
from interpcore.steering.experiments import ACCURACY, DIRECTIONS, SWEEP
from interpcore.steering.options import AccuracyOptions, StatesOptions, SweepOptions
from interpcore.surgery.experiments import RUN as SURGERY
from interpcore.surgery.options import Options as SurgeryOptions
from interpcore.surgery.options import Run
from interpcore.surgery.plans import read_plans

FAULTS = every()
KINDS = ("shifted depth", "padded position", "stale cache", "swapped q and k", "wrong sign", "wrong group")
CELLS, FEWER = 64, 12
"""Recomputed of every table: by the slow test, and by those of each run."""


@functools.cache
def load(name: str):
    return interpcore.load(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    relation = study_relations()[1]
    (folder / "relations").mkdir()
    (folder / "relations" / "one.json").write_text(json.dumps(relation.to_json()))
    ids = np.random.default_rng(0).integers(5, 2000, (6, 16)).astype(np.uint16)
    ids[:, ::5] = 0
    write_shards(folder / "tokens", ids, 2304, masks={"padding": [0]})
    for model in ("tiny", "tiny-llama"):
        made("states", model, folder / f"directions-{model}", folder)
    return folder


def made(family: str, model: str, out: Path, data: Path) -> None:
    """A small run of a family."""
    loaded = load(model)
    if family == "lre":
        how = {"trials": 1, "examples": 3, "betas": (1.0, 2.5), "ranks": 5, "max_test": 10}
        options = LreOptions(relations=str(data / "relations"), **how)
        with RUN.open(loaded, out, options, progress=False) as study:
            study.run()
    elif family == "lens":
        with FIT.open(loaded, out, FitOptions(prompts=2, length=9, skip=3), progress=False) as study:
            study.run()
    elif family == "circuits":
        pareto = next(e for e in CIRCUITS if e.name == "circuits pareto")
        asked = Pareto(tasks=("ioi",), methods=("eap",), sizes=("20", "100"), random=0)
        with pareto.open(loaded, out, CircuitOptions(head=6), progress=False) as study:
            from interpcore.circuits.study.cells import run_curves

            run_curves(study, asked.tasks, asked.methods, study.sizes(asked.sizes))
    elif family == "surgery":
        asked = Run(task=("facts", "sums-1"), n=3, plan=("skip 1", "repeat 2 x2", "swap 0 1"))
        with SURGERY.open(loaded, out, SurgeryOptions(), progress=False) as study:
            study.measure(
                asked, [p for each in read_plans(asked.plan, study.intact, 1).values() for p in each]
            )
    elif family == "states":
        options = StatesOptions(questions="tiny:40", part="all", shuffles=0, slice_size=20)
        with DIRECTIONS.open(loaded, out, options, progress=False) as study:
            study.scores("mean", study.find("mean"))
    elif family in ("sweep", "accuracy"):
        how = {
            "questions": "tiny:40",
            "count": 8,
            "part": "all",
            "directions": str(data / f"directions-{model}"),
        }
        if family == "sweep":
            options = SweepOptions(**how, depths=(1, 3), coefficients=(0.5,))
        else:
            options = AccuracyOptions(**how, depths=(2,), controls=0, neutral_texts=4)
        with (SWEEP if family == "sweep" else ACCURACY).open(loaded, out, options, progress=False) as study:
            study.run()
    else:
        step = next(e for e in NEURONS if e.name == "neurons summarize")
        options = NeuronOptions(tokens=str(data / "tokens"), by_token=False, by_label=False)
        with step.open(loaded, out, options, progress=False) as study:
            step.run(study, Summarize())


def caught(fault: Fault, out: Path, data: Path, monkeypatch: pytest.MonkeyPatch, cells: int) -> bool:
    """Whether verifying a run with the fault, which is still there, tells it."""
    load(fault.model)  # whose load check would tell a fault of the forward
    monkeypatch.setattr(mlp_sides, "CPU_TOKENS", 48)
    fault.patch(monkeypatch)
    made(fault.family, fault.model, out, data)
    return bool(verify(out, model=load(fault.model), cells=cells).problems)


@pytest.mark.parametrize(
    "family", ["lre", "lens", "circuits", "neurons", "surgery", "states", "sweep", "accuracy"]
)
def test_a_sound_run_stands(family, data, tmp_path):
    for model in ("tiny", "tiny-llama"):
        made(family, model, tmp_path / model, data)
        assert not verify(tmp_path / model, cells=FEWER).problems


FEW = [next(f for f in FAULTS if f.kind == kind and f.family == family) for kind, family in (
    ("shifted depth", "lre"), ("padded position", "lens"), ("stale cache", "circuits"),
    ("swapped q and k", "circuits"), ("wrong sign", "lens"), ("wrong group", "neurons"),
    ("padded position", "surgery"), ("wrong sign", "states"), ("shifted depth", "sweep"),
    ("stale cache", "accuracy"),
)]  # fmt: skip


@pytest.mark.parametrize("fault", FEW, ids=str)
def test_one_fault_of_each_kind_is_caught(fault, data, tmp_path, monkeypatch):
    assert caught(fault, tmp_path / "run", data, monkeypatch, FEWER)


@pytest.mark.slow  # 10 minutes
@pytest.mark.parametrize("fault", FAULTS, ids=str)
def test_every_seeded_fault_is_caught(fault, data, tmp_path, monkeypatch):
    assert caught(fault, tmp_path / "run", data, monkeypatch, CELLS)


def test_there_are_a_hundred_faults_of_every_kind():
    assert len(FAULTS) >= 100
    assert {fault.kind for fault in FAULTS} == set(KINDS)
